"""`fit` in two processes with two devices each: the run of one process, resumed bit for bit, and what it refuses."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import maps_optax as mx
from octo_integration.train import MeshConfig, fit
from tests.octo_integration import child
from tests.octo_integration.train import fit_peers

STEPS, STOPPED = 8, 3  # the second process is sent SIGTERM then; the same call goes on


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder of the runs of two processes, and of what each of them said."""
    root = tmp_path_factory.mktemp("fit")
    several = {"distributed": "explicit"}

    def job(out, steps=STEPS, stop=None, spoil=None, **mesh):
        return {"out": str(root / out), "steps": steps, "stop": stop, "spoil": spoil, "mesh": {**several, **mesh}}

    jobs = [
        job("whole"),
        job("sharded", fsdp=4),
        job("stopped", fsdp=4, stop=STOPPED),
        job("stopped", fsdp=4),
        job("halves", steps=STOPPED),  # which the test goes on with alone
        job("params", spoil="params"),
        job("rows", spoil="rows"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.octo_integration.train.fit_peers", json.dumps(jobs)],
        env=child.environment(root), cwd=child.ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """(folder, end) of the run of one process."""
    out = tmp_path_factory.mktemp("one")
    return out, alone(out)


def said(root, name):
    """What the calls ended with, a list of each process."""
    files = [root / f"{name}.{process}.json" for process in range(fit_peers.PROCESSES)]
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def alone(out, steps=STEPS):
    """The same by this process alone; a run that has ended is only read."""
    return fit(
        fit_peers.loss, fit_peers.params(), fit_peers.optimizer(), lambda n: fit_peers.batches(n, 0, 1),
        out=out, steps=steps, layers=fit_peers.LAYERS, mesh=MeshConfig(min_size=64), log_every=1, save_every=100,
    )  # fmt: skip


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("name", "held"), [("whole", 1.0), ("sharded", 0.25)])
def test_two_processes_train_like_one(root, one, name, held):
    two, (folder, one) = alone(root / name), one
    assert said(root, name) == [[{"step": STEPS, "held": held}]] * 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), two.params, one.params)
    for a, b in zip([x for x in lines(root / name) if "loss" in x], lines(folder), strict=True):
        for key in ("loss", "largest", "grad_norm", "drift", "drift/vision/0", "drift/vision/1"):
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), key
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(jax.device_get(one.params))))
    assert [(x["step"], round(x["norm"], 3)) for x in lines(root / name) if "norm" in x][-1] == (STEPS, norm.round(3))


def test_sigterm_to_one_process_stops_both_at_a_step_and_the_same_call_resumes_bit_for_bit(root):
    assert said(root, "stopped") == [[{"SystemExit": "143"}, {"step": STEPS, "held": 0.25}]] * 2
    straight, resumed = alone(root / "sharded"), alone(root / "stopped")
    jax.tree.map(np.testing.assert_array_equal, (straight.params, straight.opt_state),
                 (resumed.params, resumed.opt_state))  # fmt: skip
    checkpoints = sorted(int(p.name) for p in (root / "stopped/checkpoints").iterdir() if p.name.isdecimal())
    assert len(checkpoints) == 2 and STOPPED <= checkpoints[0] < checkpoints[1] == STEPS
    shards = {path.name for path in (root / "stopped/checkpoints").glob(f"{STEPS}/**/ocdbt.process_*")}
    assert shards == {"ocdbt.process_0", "ocdbt.process_1"}
    saved = (root / f"stopped/checkpoints/{STEPS}/default/_METADATA").read_text()
    assert "fingerprints" in saved  # in place of theta0


def test_one_process_goes_on_with_a_run_of_two(root, one):
    assert said(root, "halves") == [[{"step": STOPPED, "held": 1.0}]] * 2
    moved, (_, one) = alone(root / "halves"), one
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), moved.params, one.params)
    anchors = [s.anchor for s in jax.tree.leaves(moved.opt_state, is_leaf=lambda x: isinstance(x, mx.SPDState))
               if isinstance(s, mx.SPDState)]  # fmt: skip
    np.testing.assert_array_equal(anchors[0]["blocks"], fit_peers.params()["blocks"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("params", "fit: params differs between processes: blocks is another one in process 1 than in process 0; give"),
        ("rows", "fit: the number of examples of a batch differs between processes: it is another one in process 1"),
    ],
)
def test_processes_that_contradict_each_other_are_told(root, name, message):
    for calls in said(root, name):
        assert calls[0].get("ValueError", "").startswith(message)
