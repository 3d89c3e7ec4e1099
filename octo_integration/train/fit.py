"""The loop for any JAX model: `fit(loss, params, tx, batches, ...)`. The one that `maps-vla finetune` runs on, too."""

import functools
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import maps_optax as mx
from octo_integration.common import files
from octo_integration.common.paths import refuse_schemes
from octo_integration.config import LogConfig, MeshConfig
from octo_integration.evaluate.drift import drift
from octo_integration.logs.run_log import openers
from octo_integration.processes import alike, claim, distributed, flags, lifeline
from octo_integration.state import sharding
from octo_integration.state.train_state import TrainState, placed, shardings_of
from octo_integration.train import session
from octo_integration.train.report import Report, make_report
from octo_integration.train.step import make_train_step
from octo_integration.train.steps import Cadence

Tree = Any
# In config.json, in place of the config of a fine-tuning run.
MADE_BY = "fit"


class Fitted(NamedTuple):
    """How a call of `fit` ended.

    Attributes:
      params: on the devices.
      opt_state: of `tx` (of `optax.MultiSteps` around it, with `accumulate`), with θ0.
      step: optimizer steps done, all of them saved.
    """

    params: Tree
    opt_state: Tree
    step: int


def fit(
    loss: Callable[[Tree, Tree, jax.Array], Any],
    params: Tree,
    tx: optax.GradientTransformation,
    batches: Callable[[int], Iterable[Tree]],
    *,
    out: str | Path,
    steps: int,
    accumulate: int = 1,
    anchor: Tree | None = None,
    layers: mx.LayerStack | None = None,
    measure: Callable[[Tree], Mapping[str, float]] | None = None,
    mesh: MeshConfig | None = None,
    specs: Tree | None = None,
    log: LogConfig | None = None,
    log_every: int = 20,
    eval_every: int = 200,
    save_every: int = 200,
    keep: int = 2,
    seed: int = 0,
) -> Fitted:
    """Trains `params` for `steps` optimizer steps, or goes on from the latest checkpoint in `out`, bit for bit.

    The step is jitted over a mesh of all devices of all processes and donates its state. Checkpoints hold parameters
    and optimizer state without θ0. The log (metrics.jsonl, TensorBoard, a bar) has the loss, the norm of the gradient,
    what `loss` returns beside it, how far each layer is from θ0, and `mx.metrics` where `tx` has something to say.
    SIGTERM and Ctrl-C end the step, save, and end the program with exit code 143 or 130, as `maps-vla finetune`; before
    the first step is done they act as usual. In a script that several processes run,
    `octo_integration.processes.distributed.start(mesh)` comes before anything else of JAX, such as the parameters.

    Args:
      loss: (params, batch, key) -> a scalar, or (a scalar, {name: scalar to log}). `key` is another one at every batch
        and the same when it is resumed. Of an nnx model, `nnx.merge(graph, params)` is in here.
      params: any pytree of float arrays, the same in every process. Not donated.
      tx: the optimizer, such as `mx.chain(optax.adamw(rate), mx.maps(layers, 3.2))`.
      batches: n -> batches from number n on, as pytrees of arrays that have the examples along axis 0. Of several
        processes each gives its own rows. The same n has to give the same batches for a run to resume bit for bit.
      out: directory of the run.
      accumulate: batches of one optimizer step, whose gradients are averaged (`optax.MultiSteps`).
      anchor: θ0, a tree like params, in place of the `anchor` of `mx.spd`; None: params.
      layers: that `mx.maps` was given: names and gathers layers in the log. None: each leaf is one.
      measure: params -> scalars to log, every `eval_every` steps and at the end.
      mesh: as of `maps-vla finetune`: batches are split over `data` x `fsdp`, parameters along `fsdp` (their largest
        axis that it divides, from `min_size` elements on). None: all devices are `data`, parameters are replicated.
      specs: a tree like params of `jax.sharding.PartitionSpec` over these axes, in place of that rule.
      log: whether Weights & Biases gets the log, too; None: it does not.
      log_every, eval_every, save_every: steps between two of a kind; logged, measured and saved is also at the end.
      keep: checkpoints kept.
      seed: of `key`.

    Raises:
      ValueError: an argument, or what `out` holds, does not fit; before the first step, but for batches that end.
      FloatingPointError: loss or gradient became NaN or inf; names the step and the leaf.
      OSError: a checkpoint could not be written.
      SystemExit: a signal asked to stop, and all is saved.
    """
    refuse_schemes(str(out), "out")
    cadence = Cadence(steps, accumulate, log_every=log_every, eval_every=eval_every, save_every=save_every)
    _check(params, batches, {**cadence._asdict(), "keep": keep})
    mesh, loggers = mesh or MeshConfig(), openers(log or LogConfig())
    distributed.start(mesh)
    grid, out = sharding.make_mesh(mesh), Path(out)
    own: Any = tx if accumulate == 1 else optax.MultiSteps(tx, accumulate)
    shapes = jax.eval_shape(functools.partial(_state, own), params)
    like = placed(shapes, own, grid, _places(params, specs, grid, mesh.min_size), {})
    holds = [node for node in jax.tree.leaves(like.opt_state, is_leaf=_is_hold) if _is_hold(node)]
    put = functools.partial(_put, at=shardings_of(like.params))
    init = jax.jit(functools.partial(_state, own), out_shardings=shardings_of(like))
    run = session.Session(
        name=out.name,
        like=like,
        theta0=lambda: put(params if anchor is None else anchor),
        start=None if anchor is None else lambda: put(params),
        init=init,
        step=make_train_step(_with_metrics(loss), own, like, grid, seed),
        batches=lambda n: _placed_batches(batches, n, steps * accumulate, grid),
        report=lambda theta0: _report(theta0, layers, any(isinstance(node, mx.SPDState) for node in holds), like),
        saved=lambda state, done, theta0: None,
        measure=lambda now, request: {} if measure is None else {k: float(v) for k, v in measure(now).items()},
        cadence=cadence,
        keep=keep,
        anchored=any(jax.tree.leaves(node.anchor) for node in holds),
        loggers=loggers,
    )
    with lifeline.together(out), claim.held(out):
        alike.check("fit: arguments", {**cadence._asdict(), "keep": keep, "seed": seed})
        alike.check("fit: params", _codes(params))
        alike.check("fit: anchor", {} if anchor is None else _codes(anchor))
        _record(out, {"accumulate": accumulate, "seed": seed})
        ended = session.go(run, out, session.begin(run, out))
    if ended.signal is not None:
        session.say(f"stopped by signal {ended.signal} at step {ended.step}, saved; the same call goes on from there.")
        raise SystemExit(128 + ended.signal)
    return Fitted(ended.state.params, ended.state.opt_state, ended.step)


def _check(params: Tree, batches: Any, numbers: Mapping[str, int]) -> None:
    named = [(sharding.name_of(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    names = [name for name, _ in named]
    if not names:
        raise ValueError("fit: params has no leaves.")
    for name, leaf in named:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"fit: leaf {name!r} of params is {dtype or type(leaf).__name__}, which has no gradient; give arrays "
                "of floats, and keep the rest in loss (of an nnx model: nnx.split(model, nnx.Param, ...))."
            )
        if not leaf.size:
            raise ValueError(f"fit: leaf {name!r} of params has no entries, which no checkpoint holds; leave it out.")
        if names.count(name) > 1:
            raise ValueError(f"fit: two leaves of params are called {name!r} in a checkpoint; rename one.")
    if not callable(batches):
        raise ValueError(
            "fit: batches has to be a function, n -> batches from number n on, so that a run can be resumed; such as "
            "lambda n: itertools.islice(make_batches(), n, None)."
        )
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"fit: {name} is {value}; give at least 1.")


def _codes(tree: Tree) -> dict[str, int]:
    """Of every leaf that a process has to itself; one that lies over several processes is theirs together."""
    named = {sharding.name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    alone = {name: x for name, x in named.items() if getattr(x, "is_fully_addressable", True)}
    return {name: alike.code(np.asarray(x)) for name, x in alone.items()} if jax.process_count() > 1 else {}


def _is_hold(node: Any) -> bool:
    return isinstance(node, mx.SPDState | mx.L2SPState)


def _state(tx: Any, params: Tree) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), tx.init(params))


def _places(params: Tree, specs: Tree | None, mesh: Mesh, min_size: int) -> Tree:
    if specs is None:
        return sharding.param_shardings(params, mesh, min_size)
    given: Any = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    trees: list[Any] = [jax.tree.structure(tree) for tree in (given, params)]
    if trees[0] != trees[1]:
        raise ValueError("fit: specs is no tree like params; give a PartitionSpec for each leaf.")
    return given


def _put(tree: Tree, at: Tree) -> Tree:
    """Copies on the mesh, whether the leaves are on the host, on one device, or on a mesh already."""

    def place(leaf: Any, to: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, to)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, to, lambda index: host[index])

    return jax.tree.map(place, tree, at)


def _with_metrics(loss: Callable[..., Any]) -> Callable[..., Any]:
    def both(params: Tree, batch: Tree, key: jax.Array) -> Any:
        found = loss(params, batch, key)
        return found if isinstance(found, tuple) else (found, {})

    return both


def _placed_batches(batches: Callable[[int], Iterable[Tree]], n: int, total: int, mesh: Mesh) -> Iterator[Tree]:
    given = n
    for batch in batches(n):
        if given == n:
            alike.check("fit: the number of examples of a batch", {"it": len(jax.tree.leaves(batch)[0])})
        yield sharding.put_local(batch, mesh)
        given += 1
    raise ValueError(f"fit: batches ended after {given} of {total}; the last checkpoint is kept.")


def _report(theta0: Tree, layers: mx.LayerStack | None, measured: bool, like: TrainState) -> Report:
    """Loss and norms; and `mx.metrics`, or without a state of MAPS the drift alone, under the same names."""
    positions = jax.tree.map(lambda _: 1, like.params) if layers is None else layers
    slices = mx.slices(positions, like.params)
    spd = functools.partial(mx.metrics, layers=layers)
    of_state = None if not measured else spd if layers is None else jax.jit(spd)
    plain = make_report(None, 1, False, of_state, session.say)

    def report(pending: list[Any], state: TrainState, done: int) -> dict[str, float]:
        values = plain(pending, state, done)
        if measured:
            return values
        squares: dict[str, float] = {}
        for row in drift(state.params, theta0, slices, 0.0):
            name = row["name"] if layers is None else "/".join(filter(None, (row["module"], row["block"])))
            squares[name] = squares.get(name, 0.0) + row["drift"] ** 2
        moved = {f"drift/{name}": square**0.5 for name, square in squares.items()}
        return {**values, "drift": sum(squares.values()) ** 0.5, **moved}

    return report


def _record(out: Path, settings: dict[str, Any]) -> None:
    """Writes config.json, or compares it with the one that is there."""
    path = out / "config.json"
    if path.exists():
        try:
            before = json.loads(path.read_text())
            made, versions = before[MADE_BY], before["versions"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"fit: {out} holds another run ({path} is not of fit); choose another out.") from None
        flags.check_flags(out, versions)
        for name, value in settings.items():
            if made.get(name) != value:
                raise ValueError(
                    f"fit: {out} holds a run with {name}={made.get(name)!r}, this one has {value!r}; choose another "
                    "out, or the same value."
                )
    elif jax.process_index() == 0:
        versions = {"jax": importlib.metadata.version("jax"), **flags.flags()}
        files.write_json(path, {MADE_BY: settings, "versions": versions})
