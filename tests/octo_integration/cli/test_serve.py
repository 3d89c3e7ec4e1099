"""`maps-vla serve`, a process of its own, and `maps-vla evaluate --policy` that asks it."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from octo_integration.cli import commands, serve
from octo_integration.config import read_config
from octo_integration.data import standardize
from octo_integration.data.statistics import read_statistics
from octo_integration.model.sizes import CONFIGS
from octo_integration.policy.policy import load_policy
from octo_integration.serve.client import connected
from octo_integration.train.run_directory import describe_run
from tests.octo_integration import child, micro_vla
from tests.octo_integration.simulator import simulated

# Another convention than that of the run's data, which an evaluation must not take for the simulator's.
HALVED = dataclasses.replace(standardize.find("metaworld"), own=lambda action: action / 2)
DRIVE = [sys.executable, "-m", "tests.octo_integration.train.drive", "0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def run(root):
    """A run of two steps."""
    command = [*DRIVE, "finetune", "--out", str(root / "run"), "--model", "micro", "--weights", "None"]
    command += ["--optimizer.steps", "2", "--optimizer.warmup", "1", "--eval-splits", "heldout", "--data.window", "2"]
    done = subprocess.run(command, env=child.environment(root), cwd=child.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root / "run"


@contextlib.contextmanager
def served(run, *options):
    """The server's process, and ws://... of it."""
    command = [*DRIVE, "serve", "--run", str(run), "--port", "0", *options]
    environment = child.environment(run.parent)
    with subprocess.Popen(
        command, env=environment, cwd=child.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            line = next((line for line in process.stdout if line.startswith("serving ")), None)
            assert line is not None, process.stderr.read()
            yield process, line.split(" at ")[1].split(";")[0]
        finally:
            process.kill()


def moment(seed, size=64):
    rng = np.random.default_rng(seed)
    return {
        "image_primary": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "proprio": rng.normal(size=4).astype(np.float32),
    }


def test_a_served_run_acts_as_it_does_here_and_sigterm_ends_it(run, monkeypatch):
    monkeypatch.setitem(CONFIGS, "micro", micro_vla.CONFIG)
    here = load_policy(str(run))
    with served(run) as (process, url):
        with connected(url) as policy:
            about = policy.about
            assert (about["run"], about["step"], about["chunk"], about["action_dim"]) == ("run", 2, 8, 4)
            for episode in range(2):
                policy.reset()
                here.reset()
                for n in range(3):
                    seen = moment(10 * episode + n, 48 + n)
                    if n == 1:
                        policy.observe(seen)
                        here.observe(seen)
                    else:
                        np.testing.assert_array_equal(policy(seen, "push"), here(seen, "push"))
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, process.stderr.read()


def test_a_served_run_is_evaluated_as_the_run_is(run, tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, "micro", micro_vla.CONFIG)
    with simulated("reach", image_size=8):
        pass  # or it skips
    settings = ["--tasks", "reach", "--episodes", "2", "--max-steps", "6", "--execute", "2"]
    files = [tmp_path / "here.jsonl", tmp_path / "there.jsonl"]
    with served(run, "--standardize", f"{__name__}:HALVED") as (_, url):
        for source, file in zip((["--run", str(run)], ["--policy", url, "--workers", "2"]), files, strict=True):
            assert commands.main(["evaluate", *source, *settings, "--out", str(file)]) == 0
    here, there = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    assert here[0]["evaluation"] == there[0]["evaluation"]
    assert sorted(here[1:], key=str) == sorted(there[1:], key=str) and len(here) == 3
    assert (here[0]["about"]["run"], there[0]["about"]["run"]) == (str(run), url)


def test_a_run_keeps_the_mapping_that_turns_its_actions_back(run, tmp_path):
    file = tmp_path / "mapping.json"
    fields = {"images": {"primary": "image"}, "state": {"state": 4}, "action": {"action": 4}, "instruction": "words"}
    file.write_text(json.dumps({**fields, "gripper": {"entry": 3, "closed": 1, "open": -1}}))
    config = read_config(run)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, standardize=str(file)))
    (tmp_path / "run").mkdir()
    describe_run(tmp_path / "run", config, read_statistics(run / "statistics.json"))
    file.unlink()
    own = serve.own_actions(serve.Options(run=str(tmp_path / "run")), config)
    np.testing.assert_array_equal(own(np.array([0.5, 0, 0, 1], np.float32)), [0.5, 0, 0, -1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "nowhere"], "nowhere"),
        (["--port", "70000"], "port is 70000; give a number from 0 to 65535"),
        (["--step", "7"], "7"),
        (["--names", "nowhere.json"], "names: no nowhere.json; give a JSON file"),
        (["--api-key-file", "nowhere.txt"], "api_key_file: no nowhere.txt"),
        (["--standardize", "martian"], "'martian'; there are bridge, calvin, libero, metaworld"),
        (["--dataset", "kuka"], "kuka"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
    ],
)
def test_what_cannot_be_served_is_an_error_in_a_line(run, options, message, monkeypatch, capsys):
    monkeypatch.setitem(CONFIGS, "micro", micro_vla.CONFIG)
    command = ["serve", "--run", str(run), *options] if "--run" not in options else ["serve", *options]
    assert commands.main([*command, *([] if "--port" in options else ["--port", "0"])]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said


def test_a_port_that_is_taken_is_an_error_in_a_line(run, monkeypatch, capsys):
    monkeypatch.setitem(CONFIGS, "micro", micro_vla.CONFIG)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert commands.main(["serve", "--run", str(run), "--port", port]) == 2
    said = capsys.readouterr().err.strip()
    assert port in said and "in use" in said and "\n" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "ws://x", "--out", "x", "--step", "3"], "step is of a run, not of a policy server; leave it out"),
        (["--run", "x", "--names", "x.json"], "names is of a policy server, not of a run; leave it out"),
        (["--policy", "gs://x"], "policy is 'gs://x'; give ws://host:port"),
        ([], "give --run, or --policy in its place"),
        (["--run", "x", "--policy", "ws://x"], "give --run, or --policy in its place"),
        (["--policy", "ws://127.0.0.1:9"], "give --out, the file of the episodes"),
        (["--policy", "ws://127.0.0.1:9", "--out", "x.jsonl"], "no policy answers at ws://127.0.0.1:9"),
    ],
)
def test_nobody_to_evaluate_is_an_error_in_a_line(options, message, capsys):
    assert commands.main(["evaluate", *options]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and not os.path.exists("x.jsonl")
