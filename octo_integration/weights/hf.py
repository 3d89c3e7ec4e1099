"""A directory of safetensors as Hugging Face lays it out: one file, or several and an index."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

INDEX, MAIN_INDEX = "*.safetensors.index.json", "model.safetensors.index.json"
CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
BLOCK = 1 << 24


class Tensor(NamedTuple):
    """Where a tensor is, its shape, and its kind of number as safetensors calls it ("F32", "BF16", "I8", ...)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Checkpoint(NamedTuple):
    """The tensors of a directory by name, and its JSON files of CONFIGS by name."""

    directory: Path
    tensors: Mapping[str, Tensor]
    configs: Mapping[str, Mapping[str, Any]]

    @property
    def files(self) -> list[Path]:
        """The files that hold tensors, in order."""
        return sorted({tensor.file for tensor in self.tensors.values()})


def open_checkpoint(directory: Path) -> Checkpoint:
    """Reads the headers of a checkpoint.

    Args:
      directory: holds *.safetensors. Where an index is, it alone says which tensor is in which file: other copies of a
        tensor, and what it does not list, are not of the checkpoint. A single file is one too.

    Raises:
      FileNotFoundError: there is no such directory, no safetensors in it, or a file that the index names is missing.
      ValueError: a file is damaged; two hold a tensor of one name, and no index says which counts; the index names a
        file that has not the tensor.
    """
    directory = Path(directory)
    if directory.is_file():
        tensors, directory = _header(directory), directory.parent
    elif directory.is_dir():
        index = _index(directory)
        tensors = _all(directory) if index is None else _listed(index)
    else:
        raise FileNotFoundError(f"there is no checkpoint {directory}; give a directory with safetensors files.")
    configs = {name: _json(directory / name) for name in CONFIGS if (directory / name).is_file()}
    return Checkpoint(directory, tensors, configs)


def read(checkpoint: Checkpoint, name: str, rows: slice = slice(None)) -> np.ndarray:
    """A tensor, or some of its rows, as float32.

    Raises:
      ValueError: the file is damaged, or a number in it is not finite.
    """
    tensor = checkpoint.tensors[name]
    with _opened(tensor.file) as handle:
        values = handle.get_slice(name)[rows] if tensor.shape else handle.get_tensor(name)
    values = np.asarray(values, np.float32)
    # The extremes of what holds a NaN are NaN; a mask of all elements would take memory.
    if not np.isfinite([values.min(), values.max()]).all():
        raise ValueError(
            f"{tensor.file}: {name} has NaN or infinite values; copy it again, or give another checkpoint."
        )
    return values


def sha256(file: Path) -> str:
    """The hash of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _header(file: Path) -> dict[str, Tensor]:
    with _opened(file) as handle:
        slices = {name: handle.get_slice(name) for name in handle.keys()}
        return {name: Tensor(file, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _index(directory: Path) -> Path | None:
    indices = sorted(directory.glob(INDEX))
    if len(indices) > 1 and directory / MAIN_INDEX not in indices:
        raise ValueError(f"{directory} has {indices[0].name} and {indices[1].name}; leave the one that counts.")
    return directory / MAIN_INDEX if len(indices) > 1 else next(iter(indices), None)


def _all(directory: Path) -> dict[str, Tensor]:
    """The tensors of all files of a directory."""
    tensors: dict[str, Tensor] = {}
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"there are no safetensors files in {directory}; give the directory that has them.")
    for file in files:
        mine = _header(file)
        if twice := sorted(tensors.keys() & mine.keys()):
            raise ValueError(
                f"{directory}: {twice[0]} is in {tensors[twice[0]].file.name} and in {file.name}, and there is no "
                f"{MAIN_INDEX} that says which counts; remove the file that does not, or give one file."
            )
        tensors |= mine
    return tensors


def _listed(index: Path) -> dict[str, Tensor]:
    """The tensors that an index lists, where it says that they are."""
    directory, listed = index.parent, _json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files; copy it again.")
    headers: dict[str, dict[str, Tensor]] = {}
    for name in sorted(set(listed.values())):
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, which is not in its directory; it is not to be trusted.")
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} lacks {name}, which {index.name} lists; copy it again.")
        headers[name] = _header(directory / name)
    for tensor, name in listed.items():
        if tensor not in headers[name]:
            others = sorted(f.name for f in directory.glob("*.safetensors") if tensor in _header(f))
            where = f"it is in {' and '.join(others)}" if others else "no file has it"
            raise ValueError(f"{index} says that {tensor} is in {name}, but {where}; copy the checkpoint again.")
    return {tensor: headers[name][tensor] for tensor, name in listed.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object; copy it again.")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose later values do not silently replace earlier ones."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"it has {name!r} twice")
        values[name] = value
    return values


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="np") as handle:
            yield handle
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file, or damaged ({error}); copy it again.") from None
