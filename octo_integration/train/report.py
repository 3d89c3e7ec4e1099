"""What a line of the log says about the steps since the last one."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from octo_integration.state.optimizer import batches_applied
from octo_integration.state.train_state import TrainState
from octo_integration.train import finite
from octo_integration.train.step import Metrics

Report = Callable[[list[Metrics], TrainState, int], dict[str, float]]


def make_report(
    rate: optax.Schedule | None,
    accumulate: int,
    skipping: bool,
    layer_metrics: Callable[[Any], dict[str, jax.Array]] | None,
    warn: Callable[[str], None],
) -> Report:
    """(metrics of batches, state, optimizer steps done) -> the scalars to log.

    Args:
      rate: the learning rate by updates of the optimizer, where it is known.
      accumulate: batches of an optimizer step.
      skipping: batches may have been left out, and are counted.
      layer_metrics: what `mx.metrics` says of an optimizer state, where it has something to say.
      warn: called once at most, with one line, where the step that MAPS judged is not the one that was taken.
    """
    warned = False

    def report(pending: list[Metrics], state: TrainState, done: int) -> dict[str, float]:
        nonlocal warned
        values, updates = finite.mean(pending), done
        if skipping:
            applied = batches_applied(state.opt_state, accumulate)
            values[finite.SKIPPED] = int(state.step) - applied
            updates = max(applied // accumulate, 1)
        if rate is not None:
            values["learning_rate"] = float(rate(updates - 1))
        if layer_metrics is not None:
            values |= {name: float(value) for name, value in jax.device_get(layer_metrics(state.opt_state)).items()}
            if not warned and (line := falsified(values)) is not None:
                warn(line)
                warned = True
        return values

    return report


def falsified(values: Mapping[str, float]) -> str | None:
    """Of `mx.metrics`: the layer whose steps were changed most after MAPS had judged them; None: they were not."""
    layers = {name: value for name, value in values.items() if name.startswith("mismatch/")}
    worst = max(layers, key=layers.__getitem__, default="")
    if not layers.get(worst, 0.0) > 0.0:
        return None
    layer, share = worst.removeprefix("mismatch/"), 100 * layers[worst]
    return (
        f"warning: something changes the steps of {layer} after MAPS has judged them (its distance to theta0 is off by "
        f"{share:.2g} %), so MAPS pulls too much or too little; put MAPS last in the chain, after the learning rate, "
        "weight decay and freezing."
    )
