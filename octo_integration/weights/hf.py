"""A directory of safetensors as Hugging Face lays it out: one file, or several and an index."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

INDEX = "*.safetensors.index.json"
BLOCK = 1 << 24


class Tensor(NamedTuple):
    """Where a tensor is, and its shape."""

    file: Path
    shape: tuple[int, ...]


class Checkpoint(NamedTuple):
    """The tensors of a directory by name, and what its config.json says ({} without one)."""

    directory: Path
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]

    @property
    def files(self) -> list[Path]:
        """The files that hold tensors, in order."""
        return sorted({tensor.file for tensor in self.tensors.values()})


def open_checkpoint(directory: Path) -> Checkpoint:
    """Reads the headers of a checkpoint.

    Args:
      directory: holds *.safetensors (all are read, or those that the index names); a single file is one too.

    Raises:
      FileNotFoundError: there is no such directory, no safetensors in it, or a file that the index names is missing.
      ValueError: a file is damaged.
    """
    directory = Path(directory)
    if directory.is_file():
        files, directory = [directory], directory.parent
    elif directory.is_dir():
        files = _files(directory)
    else:
        raise FileNotFoundError(f"there is no checkpoint {directory}; give a directory with safetensors files.")
    tensors = {}
    for file in files:
        with _opened(file) as handle:
            for name in handle.keys():
                tensors[name] = Tensor(file, tuple(handle.get_slice(name).get_shape()))
    config = directory / "config.json"
    return Checkpoint(directory, tensors, _json(config) if config.is_file() else {})


def read(checkpoint: Checkpoint, name: str, rows: slice = slice(None)) -> np.ndarray:
    """A tensor, or some of its rows, as float32.

    Raises:
      ValueError: the file is damaged.
    """
    tensor = checkpoint.tensors[name]
    with _opened(tensor.file) as handle:
        values = handle.get_slice(name)[rows] if tensor.shape else handle.get_tensor(name)
    return np.asarray(values, np.float32)


def sha256(file: Path) -> str:
    """The hash of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _files(directory: Path) -> list[Path]:
    indices = sorted(directory.glob(INDEX))
    if not indices:
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"there are no safetensors files in {directory}; give the directory that has them.")
        return files
    names = sorted(set(_json(indices[0]).get("weight_map", {}).values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{indices[0]} names {name!r}, which is not in its directory; it is not to be trusted.")
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} lacks {name}, which {indices[0].name} lists; copy it again.")
    return [directory / name for name in names]


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object; copy it again.")
    return values


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="np") as handle:
            yield handle
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file, or damaged ({error}); copy it again.") from None
