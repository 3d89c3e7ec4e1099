"""The real openpi-client against our server; it lives in the environment of PARITY_PYTHON."""

import json
import os
import subprocess
import sys

import pytest

from octo_integration.serve.server import Limits
from tests.octo_integration.serve.serving import CHUNK, serving

SCRIPT = """
import json, sys
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]), api_key="right")
image = np.zeros((224, 224, 3), np.uint8)
observation = {"observation/image": image, "observation/wrist_image": image, "observation/state": np.ones(4)}
found = {"chunk": policy.get_server_metadata()["chunk"]}
try:
    policy.infer(observation)
except RuntimeError as error:
    found["error"] = str(error)
observation["prompt"] = "push"
whole = policy.infer(observation)
found["actions"], found["shape"] = whole["actions"].tolist()[0], whole["actions"].shape
found["timing"] = whole["server_timing"]["infer_ms"]
broker = ActionChunkBroker(policy, action_horizon=3)
found["asked"] = [broker.infer(observation)["actions"].tolist() for _ in range(4)]
broker.reset()
found["after"] = broker.infer(observation)["actions"].tolist()
print(json.dumps(found))
"""


def test_openpis_own_client_and_its_broker_are_served():
    python = os.environ.get("PARITY_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import openpi_client"], capture_output=True).returncode:
        pytest.skip(f"{python} has no openpi_client; make test sets PARITY_PYTHON to one that has")
    with serving(limits=Limits(api_key="right")) as (url, _):
        command = [python, "-W", "ignore", "-c", SCRIPT, url.rpartition(":")[2]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "the request has no prompt" in found["error"]
    assert found["chunk"] == CHUNK and found["shape"] == [CHUNK, 4] and found["timing"] > 0
    # Asked, moments seen (the refused request was none), sum of proprio, letters of the prompt.
    assert found["actions"] == [1, 1, 4, 4]
    assert found["asked"] == [[2, 2, 4, 4]] * 3 + [[3, 3, 4, 4]]
    assert found["after"] == [4, 4, 4, 4]
