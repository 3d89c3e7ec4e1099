"""Checkpoints: whole or not at all, without theta0, and refused where they do not fit."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from octo_integration.config import MapsConfig, OptimizerConfig
from octo_integration.state import checkpoint
from tests.octo_integration import micro

ROOT = Path(__file__).parents[3]


class Trainer:
    """A run of the toy: `train` makes steps, `save` and `restore` go through `directory`."""

    def __init__(self, directory: Path, *, method="maps", width=16, seed=0, accumulate=1):
        self.theta0 = micro.params(width, seed)
        self.anchored = method != "adam"
        optimizer = OptimizerConfig(lr=1e-2, warmup=2, steps=60, weight_decay=0.0, accumulate=accumulate)
        self.machine = micro.machine(optimizer, MapsConfig(method=method), width)
        self.state = self.machine.start(self.theta0)
        self.manager = checkpoint.open_checkpoints(directory, keep=2)

    def train(self, first: int, last: int) -> "Trainer":
        for i in range(first, last):
            self.state, _ = self.machine.step(self.state, micro.batch(i))
        return self

    def begin_to_save(self, step: int) -> "Trainer":
        checkpoint.save(self.manager, step, self.state, anchored=self.anchored)
        return self

    def save(self, step: int) -> "Trainer":
        self.begin_to_save(step)
        checkpoint.finish(self.manager)
        return self

    def restore(self, step: int) -> "Trainer":
        self.state = checkpoint.restore(
            self.manager,
            step,
            self.machine.like,
            self.theta0,
            lambda: self.machine.start(self.theta0),
            anchored=self.anchored,
        )
        return self


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("method", "accumulate"), [("maps", 1), ("maps", 2), ("adam", 1), ("l2_sp", 1)])
def test_going_on_from_a_checkpoint_is_bit_exact(tmp_path, method, accumulate):
    one = Trainer(tmp_path, method=method, accumulate=accumulate).train(0, 4).save(4)
    two = Trainer(tmp_path, method=method, accumulate=accumulate).restore(4)
    assert_same(two.state, one.state)
    assert_same(two.train(4, 8).state, one.train(4, 8).state)


def test_theta0_is_not_in_a_checkpoint(tmp_path):
    sizes = {}
    for method in ("adam", "maps"):
        Trainer(tmp_path / method, method=method).train(0, 2).save(2)
        manager = checkpoint.open_checkpoints(tmp_path / method, keep=2)
        leaves = jax.tree.leaves(manager.item_metadata(2).tree)
        sizes[method] = sum(np.prod(leaf.shape, dtype=int) for leaf in leaves)
    assert sizes["maps"] - sizes["adam"] < 100  # fingerprints and per-layer numbers


def test_other_pretrained_weights_are_refused(tmp_path):
    Trainer(tmp_path).train(0, 2).save(2)
    with pytest.raises(ValueError, match="not the weights that training started from"):
        Trainer(tmp_path, seed=1).restore(2)


@pytest.mark.parametrize(
    ("other", "leaf"),
    [
        ({"width": 24}, r"'opt_state/2/0/mu/head/kernel' \(float32\[16,6\] in the checkpoint, float32\[24,6\]"),
        ({"accumulate": 2}, r"'opt_state/\S+' \(\S+ in the checkpoint, absent in this run\)"),
    ],
)
def test_a_checkpoint_of_another_run_names_the_first_leaf(tmp_path, other, leaf):
    Trainer(tmp_path).train(0, 2).save(2)
    with pytest.raises(ValueError, match=f"the first leaf that differs is {leaf}") as error:
        Trainer(tmp_path, **other).restore(2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("before", "after"), [("adam", "maps"), ("maps", "adam"), ("l2_sp", "maps")])
def test_a_run_may_go_on_under_another_method(tmp_path, before, after):
    one = Trainer(tmp_path, method=before).train(0, 4).save(4)
    two = Trainer(tmp_path, method=after).restore(4)
    assert_same(two.state.params, one.state.params)
    assert_same(two.state.opt_state[2], one.state.opt_state[2])  # Adam's moments
    if after == "maps":
        anchor = two.state.opt_state[3].anchor["vision"]["embed"]["kernel"]
        np.testing.assert_array_equal(anchor, two.theta0["vision"]["embed"]["kernel"])
    two.train(4, 6)


def test_parameters_alone(tmp_path):
    one = Trainer(tmp_path).train(0, 4).save(4)
    like = jax.eval_shape(lambda: micro.params())
    assert_same(checkpoint.restore_params(tmp_path, like), one.state.params)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 3 in .*; there are: \[4\]"):
        checkpoint.restore_params(tmp_path, like, step=3)
    with pytest.raises(FileNotFoundError, match="no checkpoints in"):
        checkpoint.restore_params(tmp_path / "absent", like)


def test_the_newest_are_kept_and_leftovers_of_a_kill_removed(tmp_path):
    run = Trainer(tmp_path)
    for step in (1, 2, 3):
        run.save(step)
    (tmp_path / "4.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.open_checkpoints(tmp_path, keep=2).all_steps() == [2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(tmp_path, monkeypatch):
    finalize, may_end = ocp.PyTreeCheckpointHandler.finalize, threading.Event()

    def late(*args, **kwargs):
        may_end.wait(60)
        return finalize(*args, **kwargs)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", late)
    run = Trainer(tmp_path).train(0, 4)
    at_the_save = jax.tree.map(np.array, run.state)
    run.begin_to_save(4).train(4, 8)  # which donates the buffers that are being saved
    with pytest.raises(FileNotFoundError, match="there are: none"):
        checkpoint.restore_params(tmp_path, jax.eval_shape(lambda: micro.params()))
    may_end.set()
    checkpoint.finish(run.manager)
    assert_same(Trainer(tmp_path).restore(4).state, at_the_save)


def test_nothing_is_lost_when_the_newest_cannot_be_written(tmp_path, monkeypatch):
    run = Trainer(tmp_path)
    run.manager = checkpoint.open_checkpoints(tmp_path, keep=1)
    run.train(0, 1).save(1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.PyTreeCheckpointHandler, "finalize", full)
        run.begin_to_save(2)
        with pytest.raises(OSError, match=r"/2: No space left on device; .* last complete checkpoint is 1"):
            checkpoint.finish(run.manager)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    run.save(3)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.octo_integration.state.test_checkpoint import Trainer
directory = Path(sys.argv[1])
run = Trainer(directory).train(0, 1).save(1)
run.train(1, 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    run.begin_to_save(2).train(2, 3)
    print("went on")
    run.begin_to_save(3)
except OSError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    message = done.stdout.splitlines()
    assert len(message) == 2 and message[0] == "went on"
    assert f"cannot write checkpoint {tmp_path}/2: File too large" in message[1]
    assert "the last complete checkpoint is 1" in message[1]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    Trainer(tmp_path).restore(1)
