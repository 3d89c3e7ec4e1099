"""Defaults that depend on something else: on the run that is resumed, the model, the steps, the data set."""

import dataclasses
from pathlib import Path

from octo_integration.config import FinetuneConfig, read_config
from octo_integration.state.described import following, model_of, name_of
from octo_integration.state.optimizer import peak_rate
from octo_integration.state.origin import run_of


def of_run(config: FinetuneConfig, out: Path) -> FinetuneConfig:
    """What `config` leaves open is as in the run that `out` holds.

    Without one, model, learning rate and size of the images are those of the weights' model, and warmup is a share of
    the steps. Weights that are a run's are its checkpoint from then on.

    Raises:
      ValueError: config.json is not ours; there is no such model.
    """
    resumed = (out / "config.json").exists()
    before = read_config(out) if resumed else following(config)
    config = dataclasses.replace(
        config,
        model=before.model if config.model is None else config.model,
        weights=before.weights if _same(config.weights, before.weights) else config.weights,
        head=before.head if config.head is None else config.head,
        instruction_length=config.instruction_length or before.instruction_length,
    )
    config = dataclasses.replace(config, model=name_of(config, out))
    pixels = before.data.image_size if config.data.image_size is None else config.data.image_size
    pixels = model_of(config, out).image_size if pixels is None else pixels
    optimizer, splits = config.optimizer, config.eval_splits
    lr = peak_rate(before) if optimizer.lr is None else optimizer.lr
    warmup = before.optimizer.warmup_steps if optimizer.warmup is None else optimizer.warmup
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, image_size=pixels),
        optimizer=dataclasses.replace(optimizer, lr=lr, warmup=warmup),
        eval_splits=before.eval_splits if splits is None else splits,
    )


def _same(given: str | None, before: str | None) -> bool:
    """Whether weights are the run, or its checkpoint, that a run started from."""
    return given is not None and before is not None and Path(given) in (Path(before), run_of(before))


def of_data(config: FinetuneConfig) -> FinetuneConfig:
    """`eval_splits`, where they are still open, are those that the data set has beside the one trained on.

    Raises:
      FileNotFoundError, ValueError: the data set cannot be used.
    """
    if config.eval_splits is not None:
        return config
    from octo_integration.data.sources import other_splits  # tensorflow, as in `checks`

    return dataclasses.replace(config, eval_splits=other_splits(config.data))
