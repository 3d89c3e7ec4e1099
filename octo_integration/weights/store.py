"""Parameter trees in safetensors files: one tensor per leaf, named by its path.

bfloat16 halves a file; weights that were trained in float32 lose all but 8 bits of precision once,
when saved, and come back the same every time.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from octo_integration.common.files import replacing

Tree = Any

SHOWN = 5
FILE_MODE = 0o644


def save_params(
    path: Path,
    params: Tree,
    metadata: Mapping[str, str] | None = None,
    dtype: Any = None,
) -> None:
    """Writes a tree of nested dicts, whole or not at all.

    Args:
      path: the file, ending in .safetensors; its directory is made if it is not there.
      params: arrays, on any device; a leaf at tree["a"]["b"] becomes the tensor "a/b".
      metadata: provenance, kept in the file's header.
      dtype: of the float tensors in the file; default: as they are.

    Raises:
      OSError: the file could not be written (full disk, say); what was there before still is.
    """
    tensors = {}
    for name, leaf in flatten_dict(jax.device_get(params), sep="/").items():
        array = np.asarray(leaf)
        wanted = dtype if dtype is not None and _is_float(array.dtype) else array.dtype
        tensors[name] = np.ascontiguousarray(array.astype(wanted)).reshape(array.shape)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=dict(metadata or {}))
        except SafetensorError as error:
            raise OSError(str(error)) from None
        temporary.chmod(FILE_MODE)  # the library's is for the owner alone


def load_params(path: Path, like: Tree, fresh: Sequence[str] = ()) -> Tree:
    """Reads what `save_params` wrote, checking every tensor against the model's.

    Args:
      path: the file.
      like: nested dicts of arrays or `jax.ShapeDtypeStruct`s: what the model has.
      fresh: names of modules, such as "action_head", that a file may lack: their leaves are then
        those of `like`, which must be arrays. A file has all of such a module or nothing.

    Returns:
      A tree as `like`, of numpy arrays (and `like`'s own leaves where fresh). Float tensors come in
      the dtype of `like`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no safetensors file or damaged, or its tensors are not the model's; names
        those missing, unused, of another shape, of another kind of number, or not finite.
    """
    wanted = flatten_dict(like, sep="/")
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        kept = _fresh_leaves(wanted, slices, fresh)
        _check_fit(path, {n: x for n, x in wanted.items() if n not in kept}, slices)
        loaded = {
            name: kept[name] if name in kept else _read(file, name, leaf.dtype, path) for name, leaf in wanted.items()
        }
    return unflatten_dict(loaded, sep="/")


def check_params(path: Path, like: Tree, fresh: Sequence[str] = ()) -> None:
    """Compares names and shapes of a file with the model's, without reading a tensor.

    Args:
      path, like: as of `load_params`.
      fresh: modules that are not compared.

    Raises:
      FileNotFoundError, ValueError: as `load_params`.
    """

    def compared(leaves: Mapping[str, Any]) -> dict[str, Any]:
        return {name: leaf for name, leaf in leaves.items() if name.split("/")[0] not in fresh}

    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        _check_fit(path, compared(flatten_dict(like, sep="/")), compared(slices))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there are no weights {path}; give a .safetensors file.")
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or damaged ({error}).") from None


def _check_fit(path: Path, wanted: Mapping[str, Any], slices: Mapping[str, Any]) -> None:
    problems = _problems(wanted, slices)
    if problems:
        raise ValueError(f"weights {path} do not fit the model: {'; '.join(problems)}.")


def _fresh_leaves(wanted: Mapping[str, Any], slices: Mapping[str, Any], fresh: Sequence[str]) -> dict[str, Any]:
    """The leaves of fresh modules of which the file has nothing."""
    absent = [module for module in fresh if not any(name.startswith(f"{module}/") for name in slices)]
    kept = {n: x for n, x in wanted.items() if any(n.startswith(f"{m}/") for m in absent)}
    for name, leaf in kept.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(f"like: {name} is not in the file and has no value; give an array.")
    return kept


def _problems(wanted: Mapping[str, Any], slices: Mapping[str, Any]) -> list[str]:
    shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
    found = {
        "missing": [name for name in wanted if name not in shapes],
        "unused": [name for name in shapes if name not in wanted],
        "of another shape": [
            f"{name} {list(shapes[name])} (the model has {list(leaf.shape)})"
            for name, leaf in wanted.items()
            if name in shapes and shapes[name] != tuple(leaf.shape)
        ],
    }
    return [f"{what}: {_some(names)}" for what, names in found.items() if names]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _read(file: Any, name: str, dtype: Any, path: Path) -> np.ndarray:
    array = file.get_tensor(name)
    if array.dtype != dtype and not (_is_float(array.dtype) and _is_float(dtype)):
        raise ValueError(
            f"weights {path} do not fit the model: {name} is {array.dtype.name}, the model has {np.dtype(dtype).name}."
        )
    if _is_float(array.dtype) and not np.isfinite(array).all():
        raise ValueError(f"weights {path}: {name} has NaN or infinite values; give other weights.")
    return array.astype(dtype, copy=False)


def _is_float(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))
