"""Runs over 8 devices, 2 and 4 processes are the run on one device; a run may change between them on the way."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from octo_integration.model.sizes import CONFIGS
from octo_integration.policy.trained import load_run
from tests.octo_integration import child
from tests.octo_integration.processes import peers

STOPPED = 20  # by SIGTERM to one of two processes; a single process then goes on
HANDED_ON = 20  # steps later, to four processes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of the runs one, eight, two, four and moved (2 processes, then 1, then 4)."""
    root = tmp_path_factory.mktemp("processes")

    def job(out: str, sees: int, stop: int | None = None, copy: str | None = None, **mesh):
        copied = None if copy is None else str(root / copy)
        return {"out": str(root / out), "mesh": mesh, "sees": sees, "stop": stop, "copy": copied}

    several = {"distributed": "explicit"}
    split = {"fsdp": 2, "tensor": 2, **several}  # two processes each work on the same examples
    sessions = [
        {
            "processes": 2,
            "devices": 2,
            "jobs": [job("two", 4, STOPPED, "moved", fsdp=4, **several), job("two", 4, fsdp=4, **several)],
        },
        {
            "processes": 1,
            "devices": 8,
            "jobs": [job("one", 1), job("moved", 4, HANDED_ON, fsdp=4), job("eight", 8, 10, data=2, fsdp=2, tensor=2)],
        },
        {
            "processes": 4,
            "devices": 1,
            "jobs": [job("moved", 4, **split), job("four", 4, **split)],
        },
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.octo_integration.processes.peers", json.dumps(sessions)],
        env=child.environment(root), cwd=child.ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root


def losses(run: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def meaningful(run: Path) -> dict:
    """All but the biases of keys: softmax cancels them, so their gradient is rounding, which Adam makes steps of."""
    leaves = flatten_dict(load_run(run).params, sep="/")
    return {path: leaf for path, leaf in leaves.items() if not path.endswith("attn/key/bias")}


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), a, b)


@pytest.mark.parametrize("name", ["two", "four", "moved"])
def test_processes_train_like_one(runs, name, monkeypatch):
    monkeypatch.setitem(CONFIGS, "micro", peers.CONFIGS["micro"])
    one, many = losses(runs / "one"), losses(runs / name)
    assert list(many) == list(range(peers.LOG_EVERY, peers.STEPS + 1, peers.LOG_EVERY))
    assert_close(many, one)
    assert_close(meaningful(runs / name), meaningful(runs / "one"))


def test_eight_devices_on_three_axes_train_like_one(runs):
    eight = losses(runs / "eight")
    assert list(eight) == [5, 10]
    assert_close(eight, {step: losses(runs / "one")[step] for step in eight})


def test_every_process_writes_its_shards_and_the_first_the_rest(runs):
    saved = runs / "four" / "checkpoints" / str(peers.STEPS)
    assert sorted(path.name for path in saved.glob("**/ocdbt.process_*")) == [f"ocdbt.process_{i}" for i in range(4)]
    (events,) = (runs / "four").glob("events.out.tfevents*")
    assert events.stat().st_size > 0
    assert not list((runs / "four" / "checkpoints").glob("*tmp*"))
