"""From a config to all that a run works with. What is behind it knows the parts, not the config."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from octo_integration import data
from octo_integration.common.memory import check_memory
from octo_integration.config import FinetuneConfig
from octo_integration.data.statistics import cache_directory
from octo_integration.policy.predict import Predict, make_predict
from octo_integration.state import lora, sharding
from octo_integration.state.methods import Hold, holding
from octo_integration.state.optimizer import learning_rate, make_optimizer
from octo_integration.state.origin import anchor_of
from octo_integration.state.setup import Built, abstract_params, build, initial_params
from octo_integration.state.train_state import TrainState, abstract_state, init_state, shardings_of
from octo_integration.train import checks, defaults
from octo_integration.train.step import Metrics, make_loss, make_train_step
from octo_integration.train.steps import Cadence

Tree = Any
Batch = Mapping[str, Any]


class Split(NamedTuple):
    """A split to evaluate on.

    Attributes:
      batches: reads all of it once.
      unnormalise: normalised actions -> its data set's units; dimensions of other data sets of a mixture become 0.
    """

    batches: Callable[[], Iterator[Batch]]
    unnormalise: Callable[[np.ndarray], np.ndarray]


class Job(NamedTuple):
    """A run, ready to start; nothing is in the devices' memory yet.

    Attributes:
      name: for the progress bar.
      built: the model, its layers and the statistics of its data.
      hold: what holds the weights.
      like: the state as shapes with shardings.
      theta0: reads or draws the parameters that the weights are held near, placed as those of `like`.
      start: reads those that training starts from; None: they are theta0.
      init: parameters to start from -> the state of step 0.
      read: n -> this process's share of the batches from number n on.
      place: such a batch -> the same as the step takes it, on the devices.
      step: (state, which it donates; batch) -> (state, metrics on the device).
      merge: all parameters -> those of the same model without adapters.
      predict: of `make_predict`.
      splits: those to evaluate on, by name.
      rate: the learning rate by updates of the optimizer.
      cadence: how long, and how often.
      patience: batches skipped in a row that end the run; 0: none is skipped.
    """

    name: str
    built: Built
    hold: Hold
    like: TrainState
    theta0: Callable[[], Tree]
    start: Callable[[], Tree] | None
    init: Callable[[Tree], TrainState]
    read: Callable[[int], Iterator[Batch]]
    place: Callable[[Batch], Tree]
    step: Callable[[TrainState, Tree], tuple[TrainState, Metrics]]
    merge: Callable[[Tree], Tree]
    predict: Predict
    splits: Mapping[str, Split]
    rate: optax.Schedule
    cadence: Cadence
    patience: int


def assemble(config: FinetuneConfig) -> Job:
    """The run that `config` describes: cheap checks first, then the statistics of its data, which may take long.

    Raises:
      FileNotFoundError, ValueError: config, data set or weights do not fit.
    """
    mesh = sharding.make_mesh(config.mesh)
    share = sharding.batch_share(config.data.batch_size, mesh)
    checks.check(config, hosts=share[1])
    config = defaults.of_data(config)
    statistics = data.compute_statistics(config.data, cache_directory())
    built = build(config, statistics)
    splits = {split: _split(config.data, statistics, split) for split in config.eval_splits or ()}
    shapes = abstract_params(config, built)
    hold = holding(config, built.layers, shapes)
    tx = make_optimizer(config, hold)
    like = abstract_state(shapes, tx, mesh, config.mesh.min_size, hold.anchor_memory)
    check_state_memory(like, mesh)
    placed = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at.sharding), shapes, like.model
    )
    merge = functools.partial(lora.merge_lora, lora=config.lora)
    initial = functools.partial(initial_params, built=built, like=placed)
    anchor = anchor_of(config)
    return Job(
        name=f"{config.model or Path(str(config.weights)).stem} {config.maps.method}",
        built=built,
        hold=hold,
        like=like,
        theta0=functools.partial(initial, anchor),
        start=None if anchor is config else functools.partial(initial, config),
        init=functools.partial(init_state, tx=tx, like=like),
        read=lambda n: data.train_batches(config.data, statistics, seed=config.seed, start=n, shard=share),
        place=lambda batch: sharding.put_local(built.device_form(batch), mesh),
        step=make_train_step(make_loss(built.model), tx, like, mesh, config.seed, config.nan_policy),
        merge=jax.jit(merge, out_shardings=shardings_of(lora.base(like.model))),
        predict=make_predict(built, mesh),
        splits=splits,
        rate=learning_rate(config),
        cadence=Cadence(
            config.optimizer.steps,
            config.optimizer.accumulate,
            log_every=config.log_every,
            eval_every=config.eval_every,
            save_every=config.save_every,
        ),
        patience=config.max_skips if config.nan_policy == "skip" else 0,
    )


def check_state_memory(like: TrainState, mesh: jax.sharding.Mesh) -> None:
    """Refuses a state that the host's memory cannot hold, with a gradient of what is trained and the copy of θ0 for the
    drift; a device has its own memory.

    Raises:
      ValueError: there is too little; says how much.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return
    here = len(mesh.local_devices)

    def size(tree: Tree) -> int:
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)) * here

    needed = size(like) + (1 if like.frozen else 2) * size(like.params)
    check_memory(needed, "training this model", "give --lora.rank 16, or a smaller model")


def _split(config: data.DataConfig, statistics: data.Statistics | data.MixtureStatistics, name: str) -> Split:
    own = statistics.of(data.member_of(config, name)[0].name)
    missing = statistics.action_dim - own.action_dim

    def unnormalise(action: np.ndarray) -> np.ndarray:
        physical = own.unnormalise_action(action[..., : own.action_dim])
        return np.pad(physical, [(0, 0)] * (action.ndim - 1) + [(0, missing)])

    def batches() -> Iterator[Batch]:
        return data.eval_batches(config, statistics, split=name)

    batches()  # opens it: a wrong name shall not wait for the first measurement
    return Split(batches, unnormalise)
