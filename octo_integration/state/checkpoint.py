"""Checkpoints with Orbax: parameters, optimizer state without theta0, and the step; whole or not at all.

theta0 is the pretrained weights file that the run's config names, so a checkpoint keeps only its fingerprint
(`mx.detach_anchor`); restoring re-attaches it and refuses other weights. Leaves are stored under their path
(`params/dinov2/...`, `opt_state/2/0/mu/...`), so a mismatch can be named and parameters can be read on their own.
"""

import contextlib
import functools
import gc
import logging
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

import maps_optax as mx
from octo_integration.common import stored
from octo_integration.state import sharding, whole
from octo_integration.state.optimizer import HOLD_PATH
from octo_integration.state.train_state import TrainState

Tree = Any
Named = dict[str, Any]

# Seconds that the storage library's other writers get to give up after one of them failed.
SETTLE = 0.5

TEMPORARY = "*.orbax-checkpoint-tmp*"


def open_checkpoints(directory: Path, keep: int) -> ocp.CheckpointManager:
    """The checkpoints of a run, newest `keep` of them; leftovers of a killed save are removed.

    Torn checkpoints that are newer than all whole ones are set aside, with a warning, so the latest is whole.
    """
    if jax.process_index() == 0:  # the others wait for it while they make their manager
        _remove_temporary(directory)
        whole.set_torn_aside(directory)
    return _manager(directory, max_to_keep=keep, enable_async_checkpointing=True)


def save(manager: ocp.CheckpointManager, step: int, state: TrainState, *, anchored: bool) -> None:
    """Copies the state to the host and goes on while threads write it: into a temporary folder, which is renamed.

    After the return the state may be donated. Every process calls this and writes what its devices hold.

    Args:
      step: the name of the checkpoint.
      anchored: the optimizer state holds theta0, which is taken out (see `Hold`).

    Raises:
      OSError: this checkpoint, or the one before, could not be written (full disk, say); nothing of it is left, older
        checkpoints are.
    """
    finish(manager)
    if anchored:
        state = state._replace(opt_state=mx.detach_anchor(state.opt_state))
    with _reported(manager, step):
        manager.save(step, args=ocp.args.PyTreeSave(_nest(_named(state))), force=True)


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits until the last checkpoint is in place.

    Raises:
      OSError: it could not be written, as for `save`.
    """
    with _reported(manager, manager.latest_step()):
        manager.wait_until_finished()


@contextlib.contextmanager
def finishing(manager: ocp.CheckpointManager) -> Iterator[None]:
    """`finish` at the end of the context, whether it ends well or not: nothing half-written is left behind."""
    try:
        yield
    finally:
        finish(manager)


@contextlib.contextmanager
def _reported(manager: ocp.CheckpointManager, step: int | None) -> Iterator[None]:
    """Makes one OSError of whatever the storage library raises while it writes `step`, and clears up after it."""
    reason = None
    try:
        yield
    except Exception as error:
        reason = _reason(error)
    if reason is None:
        return
    time.sleep(SETTLE)  # the other writers fail too, and tell so when they are collected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        gc.collect()
    if jax.process_index() == 0:
        _remove_temporary(Path(manager.directory))
    manager.reload()  # it has already forgotten older checkpoints, which the new one should have replaced
    raise OSError(
        f"cannot write checkpoint {manager.directory}/{step}: {reason}; make room or choose another --out; the "
        f"last complete checkpoint is {manager.latest_step()}."
    )


def restore(
    manager: ocp.CheckpointManager,
    step: int,
    like: TrainState,
    pretrained: Tree,
    fresh: Callable[[], TrainState] | None,
    *,
    anchored: bool,
    anchor_memory: str = "device",
) -> TrainState:
    """The state saved at `step`, with theta0 attached again.

    A run may go on under another method (adam to maps, say): parameters and Adam's moments are then restored, and what
    holds the weights starts fresh.

    Args:
      like: the wanted state as `jax.ShapeDtypeStruct`s with shardings.
      pretrained: theta0, a tree like params, sharded as the anchor shall be.
      fresh: makes the state of step 0; called only if the checkpoint was made under another method. None: no other
        optimizer state is taken.
      anchored: as for `save`.
      anchor_memory: of `Hold`.

    Raises:
      ValueError: the checkpoint is of another model or optimizer (names the first leaf that differs), or theta0 is not
        the one that training started from.
    """
    where = f"checkpoint {manager.directory}/{step}"
    if anchored:
        like = like._replace(opt_state=_detached(like.opt_state))
    saved, wanted = _saved_leaves(manager, step), _named(like)
    held = [{path for path in leaves if HOLD_PATH.match(path)} for leaves in (saved, wanted)]
    if fresh is None or held[0] == held[1]:
        _check_same(saved, wanted, where)
        state = _rebuild(like, _read(manager, step, wanted))
        if anchored:
            kind = None if anchor_memory == "device" else anchor_memory
            state = state._replace(opt_state=mx.attach_anchor(state.opt_state, pretrained, memory_kind=kind))
        return state
    saved = {path: leaf for path, leaf in saved.items() if path not in held[0]}
    wanted = {path: leaf for path, leaf in wanted.items() if path not in held[1]}
    _check_same(saved, wanted, where)
    start = fresh()
    return _rebuild(start, {**_named(start), **_read(manager, step, wanted)})


def restore_params(directory: Path, like: Tree, step: int | None = None) -> Tree:
    """The parameters alone, whatever the optimizer was.

    Args:
      directory: the run's folder of checkpoints.
      like: the parameters as `jax.ShapeDtypeStruct`s, with or without shardings.
      step: default: the latest.

    Raises:
      FileNotFoundError: no such checkpoint.
      ValueError: the checkpoint is torn, or of another model; names the first leaf that differs.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"no checkpoints in {directory}; give the --out folder of a finetune run.")
    steps = sorted(whole.steps_in(directory))
    if step is not None and step in steps and (what := whole.damage(directory / str(step))):
        raise ValueError(f"checkpoint {directory}/{step} is torn: {what}; take another step ({steps}).")
    found = whole.newest_whole(directory) if step is None else step
    if found is None or found not in steps:
        raise FileNotFoundError(f"no checkpoint {step or ''} in {directory}; there are: {steps or 'none'}.")
    _check_same(saved_params(directory, found), _named({"params": like}), f"checkpoint {directory}/{found}")
    return read_params(directory, found, like)


def saved_params(directory: Path, step: int) -> Named:
    """The parameters that a checkpoint has, without reading them: {"params/dinov2/...": shape and dtype}.

    Raises:
      ValueError: it cannot be read.
    """
    leaves = _saved_leaves(_manager(directory, read_only=True), step)
    return {path: leaf for path, leaf in leaves.items() if path.startswith("params/")}


def read_params(directory: Path, step: int, like: Tree) -> Tree:
    """Those of a checkpoint's parameters that `like` has, which it must have as they were saved.

    Args:
      like: `jax.ShapeDtypeStruct`s, with or without shardings.
    """
    wanted = {"params": like}
    return _rebuild(wanted, _read(_manager(directory, read_only=True), step, _named(wanted)))["params"]


def _manager(directory: Path, **options: Any) -> ocp.CheckpointManager:
    _hush()
    return ocp.CheckpointManager(
        directory.absolute(),
        options=ocp.CheckpointManagerOptions(**options),
        item_handlers=whole.listing_handler(),
    )


def _remove_temporary(directory: Path) -> None:
    for leftover in directory.glob(TEMPORARY):
        shutil.rmtree(leftover, ignore_errors=True)


def _detached(opt_state: Tree) -> Tree:
    """`mx.detach_anchor` of shapes, with the shardings kept where there are any (fingerprints have none)."""
    shapes, placed = jax.eval_shape(mx.detach_anchor, opt_state), _named(opt_state)
    return _rebuild(shapes, {path: placed.get(path, leaf) for path, leaf in _named(shapes).items()})


def _named(tree: Tree) -> Named:
    """{'params/dinov2/norm/scale': leaf, ...}; trained and frozen parameters stand together, as the model has them."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {re.sub("^frozen/", "params/", sharding.name_of(path)): leaf for path, leaf in pairs}


def paths(tree: Tree) -> list[str]:
    """The path of every leaf, in JAX's order."""
    return list(_named(tree))


def _nest(named: Named) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, leaf in named.items():
        *folders, last = path.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return root


def _rebuild(like: Tree, named: Named) -> Tree:
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), [named[path] for path in _named(like)])


def _saved_leaves(manager: ocp.CheckpointManager, step: int) -> Named:
    with _readable(manager, step):
        return _named(stored.shapes(Path(manager.directory) / str(step) / whole.ITEM))


def _check_same(saved: Named, wanted: Named, where: str) -> None:
    for path in sorted(saved.keys() | wanted.keys()):
        have, want = (_signature(leaves.get(path)) for leaves in (saved, wanted))
        if have != want:
            raise ValueError(
                f"{where} is of another model or optimizer: the first leaf that differs is {path!r} ({have} in the "
                f"checkpoint, {want} in this run); give the config it was made with, or another --out."
            )


def _signature(leaf: Any) -> str:
    return "absent" if leaf is None else f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _read(manager: ocp.CheckpointManager, step: int, wanted: Named) -> Named:
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    item = _nest(
        {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or local)
            for path, leaf in wanted.items()
        }
    )
    arguments = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    with _readable(manager, step):
        return _named(manager.restore(step, args=arguments))


@contextlib.contextmanager
def _readable(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Makes one ValueError of whatever the storage library raises where a checkpoint is damaged."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"checkpoint {manager.directory}/{step} cannot be read ({type(error).__name__}: {_reason(error)}); delete "
            "this folder to go on from the checkpoint before it."
        ) from None


def _reason(error: BaseException) -> str:
    """'No space left on device' out of the storage library's long message."""
    match = re.search(r"(No space left on device|File too large|Permission denied|Read-only file system)", str(error))
    return match.group(1) if match else " ".join(str(error).split())[-300:]


def _hush() -> None:
    """Keeps tracebacks of errors that we report in one line off stderr, whichever thread they come from: Orbax and
    asyncio log them, and writers that fail after the first one find its event loop closed.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_worth_telling)
    if getattr(sys.unraisablehook, "func", None) is not _unraisable:
        sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)


def _worth_telling(record: logging.LogRecord) -> bool:
    told = "orbax" in record.pathname or "exception was never retrieved" in record.getMessage()
    return not told


def _unraisable(hook: Callable[[Any], object], problem: Any) -> None:
    if not (isinstance(problem.exc_value, RuntimeError) and "loop is closed" in str(problem.exc_value)):
        hook(problem)
