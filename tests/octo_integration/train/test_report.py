"""A line of the log, and the one warning where the steps that MAPS judged are not those that were taken."""

import functools

import jax
import optax
import pytest

import maps_optax as mx
from octo_integration.config import FinetuneConfig, MeshConfig, OptimizerConfig
from octo_integration.state import sharding
from octo_integration.state.methods import holding
from octo_integration.state.optimizer import make_optimizer
from octo_integration.state.train_state import abstract_state, init_state
from octo_integration.train.report import falsified, make_report
from octo_integration.train.step import make_loss, make_train_step
from tests.octo_integration import micro

CONFIG = FinetuneConfig("", optimizer=OptimizerConfig(lr=1e-2, warmup=0, steps=20))


def reports(after: optax.GradientTransformation | None, steps: int = 4) -> tuple[list[dict[str, float]], list[str]]:
    """A report after each step of a run with MAPS, and what was warned of; `after` stands behind MAPS."""
    hold = holding(CONFIG, micro.LAYERS, micro.params())
    if after is not None:
        hold = hold._replace(after=mx.chain(hold.after, after))
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    tx = make_optimizer(CONFIG, hold)
    like = abstract_state(micro.params(), tx, mesh, 64)
    step = make_train_step(make_loss(micro.Micro()), tx, like, mesh, micro.SEED)
    warned: list[str] = []
    of_layers = functools.partial(mx.metrics, layers=micro.LAYERS)
    report = make_report(lambda update: 0.1 * (update + 1), 1, False, of_layers, warned.append)
    state, lines = init_state(micro.params(), tx, like), []
    for i in range(steps):
        state, metrics = step(state, micro.batch(i))
        lines.append(report([jax.device_get(metrics)], state, i + 1))
    return lines, warned


def test_a_line_has_the_means_the_learning_rate_and_what_maps_did() -> None:
    lines, warned = reports(None)
    assert {"loss", "grad_norm", "learning_rate", "drift/vision/0", "pull/vision/0", "pulled", "mismatch"} <= set(
        lines[0]
    )
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [line["mismatch"] for line in lines] == [0.0] * 4 and warned == []


def test_what_changes_the_steps_after_maps_is_warned_of_once_and_the_layer_named() -> None:
    """Half of each step is taken: from the second step on the distance is half of what MAPS had left, 50 % off."""
    lines, warned = reports(optax.scale(0.5))
    assert [line["mismatch"] > 0.1 for line in lines] == [False, True, True, True]
    second = {name: value for name, value in lines[1].items() if name.startswith("mismatch/")}
    (line,) = warned
    assert f"the steps of {max(second, key=second.get).removeprefix('mismatch/')} after MAPS has judged them" in line
    assert second[max(second, key=second.get)] == pytest.approx(0.5, abs=1e-3) and "is off by 50 %" in line
    assert line.startswith("warning: ") and "put MAPS last in the chain" in line and "\n" not in line


def test_the_layer_that_is_named_is_that_with_the_largest_mismatch() -> None:
    values = {
        "mismatch": 0.2,
        "mismatch/vision/0": 0.01,
        "mismatch/vision/1": 0.2,
        "mismatch/language": 0.0,
        "drift/x": 9.0,
    }
    assert "the steps of vision/1 after" in (falsified(values) or "") and "off by 20 %" in (falsified(values) or "")


def test_rounding_no_maps_and_numbers_that_are_none_are_no_reason_to_warn() -> None:
    for values in ({}, {"mismatch": 0.0, "mismatch/a": 0.0}, {"drift/a": 1.0}, {"mismatch/a": float("nan")}):
        assert falsified(values) is None


def test_a_run_that_is_not_measured_has_no_metrics_of_maps() -> None:
    report = make_report(lambda update: 1.0, 1, False, None, pytest.fail)
    assert report([{"loss": 2.0}, {"loss": 4.0}], None, 1) == {"loss": 3.0, "learning_rate": 1.0}
