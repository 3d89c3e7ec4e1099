"""Fine-tuning from end to end on the shipped data with a micro model: resume, signals, logs, drift, errors."""

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from octo_integration import data
from octo_integration.config import FinetuneConfig, MapsConfig, MeshConfig, OptimizerConfig
from octo_integration.data import DataConfig
from octo_integration.evaluate.plot import plot_drift
from octo_integration.logs import run_log
from octo_integration.model.sizes import CONFIGS
from octo_integration.policy.policy import load_policy
from octo_integration.policy.trained import load_run
from octo_integration.state import checkpoint
from octo_integration.state.optimizer import learning_rate
from octo_integration.state.setup import abstract_params, initial_params
from octo_integration.train import assemble, loop
from tests.octo_integration import micro_vla

ROOT = Path(__file__).parents[3]
STEPS = 10


@pytest.fixture(autouse=True, scope="module")
def _micro_model(tmp_path_factory):
    """The micro model by name, and compiled programs kept from run to run: compiling is what takes the time."""
    cache = str(tmp_path_factory.mktemp("cache"))
    before = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "micro", micro_vla.CONFIG)
        patch.setenv("XDG_CACHE_HOME", cache)
        patch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
        jax.config.update("jax_compilation_cache_dir", cache)
        yield
    jax.config.update("jax_compilation_cache_dir", before)


def config(out: Path, **changes) -> FinetuneConfig:
    base = FinetuneConfig(
        out=str(out),
        model="micro",
        weights=None,
        data=DataConfig(batch_size=4),
        optimizer=OptimizerConfig(lr=3e-3, warmup=2, steps=STEPS),
        eval_splits=("heldout",),
        log_every=1,
        save_every=5,
    )
    return dataclasses.replace(base, **changes)


def saved_params(out: Path, step: int | None = None):
    return load_run(out, step).params


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Ten steps without an interruption."""
    out = tmp_path_factory.mktemp("straight")
    outcome = loop.finetune(config(out))
    assert (outcome.step, outcome.signal) == (STEPS, None)
    return out


def test_sigterm_saves_and_the_same_command_resumes_bit_for_bit(straight, tmp_path):
    command = [
        sys.executable, "-m", "tests.octo_integration.train.drive", "0.3", "finetune", "--out", str(tmp_path),
        "--model", "micro", "--weights", "None", "--data.batch-size", "4", "--optimizer.lr", "3e-3",
        "--optimizer.warmup", "2", "--optimizer.steps", str(STEPS), "--eval-splits", "heldout",
        "--log-every", "1", "--save-every", "5",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    stopped = checkpoint.open_checkpoints(tmp_path / "checkpoints", keep=2).latest_step()
    assert 3 <= stopped < STEPS
    assert f"at step {stopped}, saved" in output and "Traceback" not in errors
    assert errors.count("finishing this step, then saving; again to stop at once\n") == 1

    assert loop.finetune(config(tmp_path)).step == STEPS
    assert_same(saved_params(tmp_path), saved_params(straight))
    for a, b in zip(lines(tmp_path), lines(straight), strict=True):
        assert {**a, "steps_per_second": 0} == {**b, "steps_per_second": 0}


def interrupt_the_evaluation(monkeypatch, number: int) -> list[int]:
    """Sends SIGTERM before the `number`-th batch of evaluations; counts the batches."""
    real, seen = data.eval_batches, []

    def batches(*args, **options):
        for batch in real(*args, **options):
            seen.append(len(seen) + 1)
            if seen[-1] == number:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(data, "eval_batches", batches)
    return seen


def test_sigterm_in_the_last_evaluation_ends_it_at_the_next_batch(straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        seen = interrupt_the_evaluation(patch, 2)
        outcome = loop.finetune(config(tmp_path))
    assert outcome == loop.Outcome(STEPS, signal.SIGTERM, {}) and len(seen) == 2
    assert_same(saved_params(tmp_path), saved_params(straight))
    assert loop.finetune(config(tmp_path)).errors["heldout"].episodes > 0


def test_sigterm_in_an_evaluation_on_the_way_ends_the_run_after_one_more_step(straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        seen = interrupt_the_evaluation(patch, 2)
        outcome = loop.finetune(config(tmp_path, eval_every=3, save_every=2, log_every=10))
    assert outcome == loop.Outcome(4, signal.SIGTERM, {}) and len(seen) == 2
    assert checkpoint.open_checkpoints(tmp_path / "checkpoints", keep=2).all_steps() == [2, 4]
    assert [line["step"] for line in lines(tmp_path)] == [4]  # and no line of an evaluation
    assert loop.finetune(config(tmp_path)).step == STEPS
    assert_same(saved_params(tmp_path), saved_params(straight))


def test_few_steps_are_dispatched_ahead_of_the_device(tmp_path, monkeypatch):
    """So that a signal waits for few: here for one that runs and one that is queued, of ten between two log lines."""
    make, started, ended, ahead = assemble.make_train_step, [], [], []

    def wait(loss):
        time.sleep(0.05)
        ended.append(loss)
        return loss

    slowly = jax.jit(lambda loss: jax.pure_callback(wait, loss, loss))

    def slow(*args):
        step = make(*args)

        def call(state, batch):
            ahead.append(len(started) - len(ended))
            started.append(batch)
            state, metrics = step(state, batch)
            return state, {**metrics, "loss": slowly(metrics["loss"])}

        return call

    monkeypatch.setattr(assemble, "make_train_step", slow)
    loop.finetune(config(tmp_path, eval_splits=(), log_every=10, save_every=10))
    assert len(ended) == STEPS and max(ahead) <= 1, ahead


def test_while_it_trains_theta0_is_on_no_device_but_as_the_anchor_that_a_method_has(tmp_path, monkeypatch):
    """Under Adam a tensor is there three times: as parameter and as two moments; theta0 waits in the host's memory."""
    live, shape = [], (32, 128)  # of bridge/fc1/kernel

    def count(log):
        gc.collect()
        kinds = [x.sharding.memory_kind for x in jax.live_arrays() if x.shape == shape]
        live.append(sorted(kinds))

    gc.collect()
    before = sorted(x.sharding.memory_kind for x in jax.live_arrays() if x.shape == shape)
    monkeypatch.setattr(run_log.RunLog, "advance", count)
    loop.finetune(config(tmp_path, maps=MapsConfig(method="adam"), eval_splits=(), save_every=STEPS))
    device = jax.local_devices()[0]
    kind = device.default_memory().kind
    host = "pinned_host" if any(memory.kind == "pinned_host" for memory in device.addressable_memories()) else kind
    assert live[-1] == sorted([*before, kind, kind, kind, host])


def test_a_finished_run_is_only_measured_again(straight, capsys):
    before = (straight / "metrics.jsonl").read_text()
    outcome = loop.finetune(config(straight))
    assert outcome.step == STEPS and set(outcome.errors) == {"heldout"}
    assert (straight / "metrics.jsonl").read_text() == before
    assert f"at step {STEPS} of {STEPS}" in capsys.readouterr().out


def test_what_a_run_leaves_behind(straight):
    names = {path.name for path in straight.iterdir()}
    assert {"config.json", "statistics.json", "checkpoints", "metrics.jsonl", "drift.json"} <= names
    records = lines(straight)
    assert [r["step"] for r in records] == [*range(1, STEPS + 1), STEPS]
    assert {"loss", "grad_norm", "learning_rate", "drift/dinov2/0", "triggered/bridge"} <= set(records[4])
    assert "action_l1/heldout" in records[-1]
    assert json.loads((straight / "config.json").read_text())["versions"]["jax"] == jax.__version__
    (events,) = straight.glob("events.out.tfevents*")
    assert b"drift/dinov2/0" in events.read_bytes()


def test_drift_is_the_distance_to_the_pretrained_weights_for_every_method(straight, tmp_path):
    loop.finetune(config(tmp_path, maps=MapsConfig(method="adam")))
    for out, strength in ((straight, MapsConfig.lambda_max), (tmp_path, 0.0)):
        record = json.loads((out / "drift.json").read_text())
        rows = {row["name"]: row for row in record["tensors"]}
        built = load_run(out).built
        theta0 = initial_params(config(out), built, abstract_params(config(out), built))
        theta = saved_params(out)
        gap = np.asarray(theta["bridge"]["fc1"]["kernel"]) - theta0["bridge"]["fc1"]["kernel"]
        assert rows["bridge/fc1/kernel"]["drift"] == pytest.approx(float(np.linalg.norm(gap)), rel=1e-4)
        assert max(row["strength"] for row in rows.values()) == strength
        assert [row["layer"] for row in record["tensors"]] == sorted(row["layer"] for row in record["tensors"])
        assert not any(name.startswith(("action_head", "readout")) for name in rows)
    plot_drift([straight, tmp_path], tmp_path / "drift.png")


def test_another_config_in_the_same_folder_names_the_field(straight):
    with pytest.raises(ValueError, match=r"holds a run with seed=0, this one has 1; choose another --out"):
        loop.finetune(config(straight, seed=1))


@pytest.fixture
def poison(monkeypatch):
    """poison(numbers): proprio of these training batches is NaN, and so are loss and gradients."""
    real = data.train_batches

    def call(numbers):
        def poisoned(*args, start=0, **kwargs):
            for i, batch in enumerate(real(*args, start=start, **kwargs), start=start):
                observation = batch["observation"]
                bad = {**batch, "observation": {**observation, "proprio": observation["proprio"] * np.nan}}
                yield bad if i in numbers else batch

        monkeypatch.setattr(data, "train_batches", poisoned)

    return call


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, poison):
    poison({6})
    message = r"^loss is nan at step 7; the first gradient .* is that of \S+; .* last good checkpoint is 5 "
    with pytest.raises(FloatingPointError, match=message) as error:
        loop.finetune(config(tmp_path, log_every=10))
    assert "--nan-policy skip" in str(error.value) and "\n" not in str(error.value)
    assert checkpoint.open_checkpoints(tmp_path / "checkpoints", keep=2).all_steps() == [5]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(saved_params(tmp_path)))


def test_skipped_batches_are_counted_and_the_run_goes_on_also_after_it_was_stopped(tmp_path, poison):
    poison({2, 6, 7})
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 3; .* checkpoint is 2 "):
        loop.finetune(config(tmp_path, save_every=2))
    outcome = loop.finetune(config(tmp_path, save_every=2, log_every=2, nan_policy="skip", max_skips=3))
    assert outcome.step == STEPS and np.isfinite(outcome.errors["heldout"].l1)
    logged = {line["step"]: line for line in lines(tmp_path) if "skipped" in line}
    assert {step: line["skipped"] for step, line in logged.items()} == {4: 1, 6: 1, 8: 3, 10: 3}
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert logged[10]["learning_rate"] == pytest.approx(float(learning_rate(config(tmp_path))(6)))


def test_too_many_skipped_batches_in_a_row_stop_the_run(tmp_path, poison):
    poison({1, 3, 4, 5})
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 6; so it was in 3 batches in a row, .* is 5 "):
        loop.finetune(config(tmp_path, nan_policy="skip", max_skips=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "huge"}, "there is no model 'huge'"),
        ({"data": DataConfig(path="/nowhere/data")}, "/nowhere/data"),
        ({"mesh": MeshConfig(data=3)}, "mesh: data=3"),
        ({"weights": "/nowhere/x.safetensors"}, "/nowhere/x.safetensors"),
        ({"eval_splits": ("test",)}, "test"),
    ],
)
def test_bad_input_is_told_before_the_first_step_and_leaves_nothing(tmp_path, changes, message):
    out = tmp_path / "run"
    with pytest.raises((ValueError, OSError), match=message) as error:
        loop.finetune(config(out, **changes))
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_the_policy_gives_actions_in_the_units_of_the_data(straight):
    policy = load_policy(straight)
    rng = np.random.default_rng(0)
    observation = {
        "image_primary": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
        "proprio": np.asarray([0.0, 0.6, 0.2, 1.0], np.float32),
    }
    actions = policy(observation, "push the puck to the goal")
    assert actions.shape == (8, 4) and np.isfinite(actions).all()
    run = load_run(straight)
    batch = {
        "observation": {
            "image_primary": observation["image_primary"][None, None],
            "proprio": run.built.statistics.normalise_proprio(observation["proprio"])[None, None],
            "timestep_pad_mask": np.ones((1, 1), bool),
        },
        "task": {"instruction": ["push the puck to the goal"]},
    }
    expected = run.built.statistics.unnormalise_action(run.predict(run.params, batch, 0))[0]
    np.testing.assert_allclose(actions, expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"image_primary is uint8\[32, 32\]; give uint8\[height, width, 3\]"):
        policy({**observation, "image_primary": np.zeros((32, 32), np.uint8)}, "push")
