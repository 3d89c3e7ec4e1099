"""Imported weights: a directory with an Orbax checkpoint, where it came from, and the tokenizer that belongs to it.

weights/mini/params/          Orbax, one array per leaf, restored straight onto a mesh
weights/mini/provenance.json  model, source files with sizes and hashes, names, fingerprint of every leaf
weights/mini/model.json        the configuration (state/described.py)
weights/mini/tokenizer.json   if the language model's (or T5's) directory has one
"""

import contextlib
import datetime
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file
from tqdm import tqdm

import maps_optax as mx
from octo_integration.common import stored
from octo_integration.common.memory import check_memory
from octo_integration.model.config import TOWERS, VLAConfig
from octo_integration.weights.computation import check_computation, check_names, check_tied
from octo_integration.weights.convert import Plan, as_published, load, plan, unload
from octo_integration.weights.hf import Checkpoint, open_checkpoint, sha256
from octo_integration.weights.names import FORMATS, MODEL_TYPES, PRISMATIC, PRISMATIC_TRAINED
from octo_integration.weights.positions import resamplable, resample

Tree = Any
IN_FLIGHT = 0.1  # of the model
PEAK = 1.3  # models, in memory at once
NO_SOURCE = "import: no source; give --dinov2, --siglip, ... or --prismatic a directory of safetensors."
PROVENANCE, PARAMS, TOKENIZER = "provenance.json", "params", "tokenizer.json"


def check_new(out: Path) -> None:
    """Raises FileExistsError if there is anything at `out`."""
    if out.exists():
        raise FileExistsError(f"{out} is there already; give another --out, or remove it.")


def import_weights(
    model: str,
    config: VLAConfig,
    shapes: Tree,
    sources: Mapping[str, Path],
    out: Path,
    prismatic: Path | None = None,
    files: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Reads published checkpoints into an Orbax checkpoint, whole or not at all.

    Names, shapes, what config.json says and the memory are checked before the first tensor is read. Besides the leaves
    one tensor is in memory at a time. Positions are kept as published: `restore` resamples them.

    Args:
      model: name of the configuration, for the record.
      config: it; what a checkpoint is computed with must be what this says.
      shapes: its parameters as `jax.ShapeDtypeStruct`s.
      sources: module -> directory of safetensors.
      out: the directory to make.
      prismatic: directory of a whole Prismatic checkpoint (MiniVLA, OpenVLA), in place of `sources`.
      files: name -> JSON that is written beside the weights.

    Returns:
      The provenance; its "fresh" names the modules of the model without a source.

    Raises:
      FileExistsError, FileNotFoundError: `out` is there already; a source is not.
      ValueError: a source is damaged, is of another model or computed in another way, or its tensors are not those of
        the model, or not finite; or there is too little memory.
      OSError: `out` could not be written; nothing of it is left.
    """
    check_new(out)
    opened = open_sources(sources, prismatic)
    if not opened:
        raise ValueError(NO_SOURCE)
    for module in opened:
        if module not in shapes:
            raise ValueError(f"import: model {model!r} has no {module}; it has {', '.join(shapes)}.")
    plans = {}
    for module, (checkpoint, prefix) in opened.items():
        if module != "bridge":
            check_computation(module, getattr(config, module), checkpoint, prismatic is not None)
        wanted = {"/".join(path): leaf.shape for path, leaf in flatten_dict(shapes[module]).items()}
        unread = _left_out(config) if module == "language" else {}
        plans[module] = as_published(plan(module, wanted, checkpoint, prefix, unread), checkpoint)
        if module in TOWERS:
            check_names(getattr(config, module), plans[module], checkpoint)
    if prismatic is not None:
        _check_prismatic(opened)
    if "language" in plans:
        check_tied(plans["language"], opened["language"][0], prismatic is not None)
    size = 4 * sum(math.prod(shape) for planned in plans.values() for shape in planned.shapes.values())
    check_memory(PEAK * size, f"the import of {model}", "stop what else runs, or take a smaller model")
    params: Tree = {}
    host = jax.devices("cpu")[0]
    for module in tqdm(plans, desc=f"import {model}", unit="module"):
        leaves = load(plans[module], opened[module][0])
        # Orbax writes JAX's arrays from where they are, but NumPy's from copies of all of them.
        placed = {tuple(name.split("/")): jax.device_put(leaf, host) for name, leaf in leaves.items()}
        params[module] = unflatten_dict(placed)
    provenance = {
        "model": model,
        "date": datetime.date.today().isoformat(),
        "prismatic": prismatic is not None,
        "modules": {module: _record(plans[module], opened[module][0]) for module in plans},
        "fresh": [module for module in shapes if module not in plans],
        "fingerprints": fingerprints(params),
    }
    with written_whole(out) as temporary:
        save(temporary / PARAMS, params)
        (temporary / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n")
        for name, values in files.items():
            (temporary / name).write_text(json.dumps(values, indent=1) + "\n")
        for module in ("language", "t5"):
            if module in opened and (found := opened[module][0].directory / TOKENIZER).is_file():
                shutil.copyfile(found, temporary / TOKENIZER)
    return provenance


def read_provenance(directory: Path) -> dict[str, Any]:
    """What `import_weights` recorded.

    Raises:
      FileNotFoundError: `directory` holds no imported weights.
      ValueError: the record is damaged.
    """
    path = directory / PROVENANCE
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights {directory}: no {PROVENANCE}; give what maps-vla import made.")
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        return {name: record[name] for name in ("model", "date", "prismatic", "modules", "fresh", "fingerprints")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); import the weights again.") from None


def check_imported(directory: Path, like: Tree) -> tuple[dict[str, Any], Tree]:
    """The provenance of imported weights, and the part of `like` that they have, whose shapes are found to be theirs
    but for positions, which can be resampled.

    Raises:
      FileNotFoundError, ValueError: no weights there, or of another model.
    """
    record = read_provenance(directory)
    wanted = {module: like[module] for module in record["modules"] if module in like}
    _check_shapes(directory, record, wanted, stored_shapes(directory))
    return record, wanted


def stored_shapes(directory: Path) -> Tree:
    """Imported modules as `jax.ShapeDtypeStruct`s, as they are on disk: `restore` of these resamples nothing.

    Raises:
      ValueError: they cannot be read.
    """
    with _readable(directory):
        return stored.shapes(directory / PARAMS)


def restore(directory: Path, like: Tree) -> Tree:
    """Imported modules, straight to where `like` says; positions for another image size resampled as their family does.

    Args:
      like: parameters as `jax.ShapeDtypeStruct`s with shardings (or without: the first device).

    Raises:
      FileNotFoundError, ValueError: no weights there; of another model; not what was imported (fingerprints differ).
    """
    record, wanted = check_imported(directory, like)
    saved = flatten_dict(stored_shapes(directory))
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    other = {path: leaf for path, leaf in flatten_dict(wanted).items() if leaf.shape != saved[path].shape}
    if old := [path[0] for path in other if "patches" not in record["modules"][path[0]]]:
        raise ValueError(
            f"weights {directory}: positions of {old[0]} were resampled when they were imported, and not for images of "
            "this size; import them again, or give the --data.image-size of then."
        )
    placed = unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(saved[path].shape, leaf.dtype, sharding=_where(leaf, local, path in other))
            for path, leaf in flatten_dict(wanted).items()
        }
    )
    arguments = ocp.args.PyTreeRestore(
        item=placed,
        restore_args=ocp.checkpoint_utils.construct_restore_args(placed),
        partial_restore=True,
    )
    with _quiet(), _readable(directory), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        params = checkpointer.restore((directory / PARAMS).absolute(), args=arguments)
    found = fingerprints(params)
    wrong = [name for name, code in found.items() if code != record["fingerprints"][name]]
    if wrong:
        raise ValueError(f"weights {directory}: {wrong[0]} is not what was imported; import them again.")
    if not other:
        return params
    resized = {path: _resized(params, path, leaf, record, local) for path, leaf in other.items()}
    return unflatten_dict({**flatten_dict(params), **resized})


def export_weights(params: Tree, record: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes parameters back as safetensors under the names they were imported from, whole or not at all.

    Args:
      params: a tree with the modules of `record`, such as those of a fine-tuned run; LoRA adapters merged.
      record: the provenance of the weights it started from.
      out: the directory to make; a file per module, or one for a Prismatic checkpoint.

    Raises:
      FileExistsError, OSError: `out` is there already, or could not be written.
    """
    check_new(out)
    files: dict[str, dict[str, np.ndarray]] = {}
    for module, origin in record["modules"].items():
        layout = next(f for f in FORMATS[module] if f.name == origin["format"])
        leaves = {"/".join(path): leaf for path, leaf in flatten_dict(jax.device_get(params[module])).items()}
        tensors = {}
        for name, value in unload(module, layout, leaves, origin["class_positions"]):
            shape = origin["shapes"][origin["prefix"] + name]
            tensors[origin["prefix"] + name] = value.reshape(
                [*shape[:-2], *value.shape] if _table(value, shape) else shape
            )
        tensors |= {copy: tensors[original] for copy, original in origin.get("copies", {}).items()}
        files.setdefault("model" if record["prismatic"] else module, {}).update(tensors)
    with written_whole(out) as temporary:
        for name, tensors in files.items():
            folder = temporary if record["prismatic"] else temporary / name
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return sorted(out.rglob("*.safetensors"))


def fingerprints(params: Tree) -> dict[str, list[list[int]]]:
    """Hashes of every leaf's bits, {"dinov2/norm/scale": [[a, b, dtype]]}, the same under every sharding.

    A leaf that stacks blocks has one per block: hashing needs twice the memory of what is hashed.
    """
    return {
        "/".join(path): [_fingerprint(leaf[i]) for i in range(len(leaf))] if "blocks" in path else [_fingerprint(leaf)]
        for path, leaf in flatten_dict(params).items()
    }


def _fingerprint(leaf: Any) -> list[int]:
    detached = mx.detach_anchor(mx.L2SPState({"leaf": leaf})).anchor
    return [int(word) for word in np.asarray(detached.fingerprints["leaf"])]


def _table(value: np.ndarray, shape: list[int]) -> bool:
    """A position table that was resampled when it was imported."""
    return bool(value.size != np.prod(shape))


def open_sources(sources: Mapping[str, Path], prismatic: Path | None) -> dict[str, tuple[Checkpoint, str | None]]:
    """Module -> its checkpoint, whose headers are read, and the prefix of its tensors where it is known.

    Raises:
      FileNotFoundError, ValueError: a source is not there, damaged, or holds another kind of model.
    """
    if prismatic is not None:
        whole = open_checkpoint(prismatic)
        trained = any(name.startswith(PRISMATIC_TRAINED["language"]) for name in whole.tensors)
        return {module: (whole, prefix) for module, prefix in (PRISMATIC_TRAINED if trained else PRISMATIC).items()}
    opened: dict[str, tuple[Checkpoint, str | None]] = {}
    for module, directory in sources.items():
        checkpoint = open_checkpoint(directory)
        kind = checkpoint.configs.get("config.json", {}).get("model_type")
        if kind is not None and kind not in MODEL_TYPES[module]:
            raise ValueError(
                f"{directory} holds a model of type {kind!r}; --{module} takes {' or '.join(MODEL_TYPES[module])}."
            )
        opened[module] = (checkpoint, None)
    return opened


def _check_prismatic(opened: Mapping[str, tuple[Checkpoint, str | None]]) -> None:
    checkpoint = opened["language"][0]
    known = (*(str(prefix) for _, prefix in opened.values()), "action_head.", "proprio_projector.")
    unused = sorted(name for name in checkpoint.tensors if not name.startswith(known))
    if unused:
        raise ValueError(f"{checkpoint.directory} does not fit a Prismatic model: unused: {', '.join(unused)}.")


def _record(plan: Plan, checkpoint: Checkpoint) -> dict[str, Any]:
    used = {plan.prefix + rule.source.format(i=i) for rule in plan.rules.values() for i in range(_depth(plan, rule))}
    table = plan.rules.get("pos_embed")
    rows = checkpoint.tensors[plan.prefix + table.source].shape[-2] if table else 0
    files = sorted({checkpoint.tensors[name].file for name in used})
    return {
        "format": plan.format.name,
        "prefix": plan.prefix,
        "class_positions": rows - int(rows**0.5) ** 2,
        "patches": int(rows**0.5) ** 2,
        "files": [{"name": f.name, "bytes": f.stat().st_size, "sha256": sha256(f)} for f in files],
        "ignored": dict(sorted(plan.ignored.items())),
        "copies": dict(plan.copies),
        "shapes": {name: list(checkpoint.tensors[name].shape) for name in sorted(used)},
    }


def _depth(plan: Any, rule: Any) -> int:
    return plan.shapes[rule.leaf][0] if "{i}" in rule.source else 1


def _check_shapes(directory: Path, record: Mapping[str, Any], wanted: Tree, stored: Tree) -> None:
    have = {"/".join(path): tuple(leaf.shape) for path, leaf in flatten_dict(stored).items()}
    for path, leaf in flatten_dict(wanted).items():
        name = "/".join(path)
        shape = have.get(name, ())
        if shape != leaf.shape and not resamplable(path[-1], shape, leaf.shape):
            raise ValueError(
                f"weights {directory} are of {record['model']}: {name} is {list(shape)}, the model has "
                f"{list(leaf.shape)}; give --model {record['model']}, or leave --model out."
            )


def _where(leaf: Any, local: jax.sharding.Sharding, whole: bool) -> jax.sharding.Sharding:
    """Of a leaf, or of one like it that every device has whole."""
    own = getattr(leaf, "sharding", None) or local
    if whole and isinstance(own, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(own.mesh, jax.sharding.PartitionSpec())
    return own


def _resized(params: Tree, path: tuple[str, ...], leaf: Any, record: Mapping[str, Any], local: Any) -> jax.Array:
    """Positions for as many patches as `leaf` has, where it has them."""
    module, *inside = path
    table = params[module]
    for name in inside:
        table = table[name]
    values = resample(np.asarray(table.addressable_data(0)), leaf.shape[0], antialias(record, module))
    values = values.astype(leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, _where(leaf, local, False), lambda part: values[part])


def antialias(record: Mapping[str, Any], module: str) -> bool:
    """How the family of a module resamples its positions (see `resample`), by the provenance."""
    return next(f.antialias for f in FORMATS[module] if f.name == record["modules"][module]["format"])


def _left_out(config: VLAConfig) -> dict[str, str]:
    """Names of the tensors of a language model whose first blocks alone are used."""
    language = config.language
    unread = range(language.depth, language.of_depth or language.depth)
    why = f"only the first {language.depth} of {language.of_depth} blocks are used"
    return {rf"(model\.)?layers\.({'|'.join(map(str, unread))})\..*": why} if unread else {}


def save(path: Path, params: Tree) -> None:
    """Writes leaves, of which it copies no more than IN_FLIGHT at once."""
    # Orbax copies what it writes; at most this much at once, so that the model is not in memory twice.
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    gigabytes: Any = (1 + max(*sizes, sum(sizes) * IN_FLIGHT)) / 1e9
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler(save_concurrent_gb=gigabytes)) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(params))


@contextlib.contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A directory that gets its name when it is complete; on an error nothing is left."""
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _readable(directory: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Orbax and its storage library raise whatever theirs raise
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"weights {directory} cannot be read ({text}); import them again.") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
