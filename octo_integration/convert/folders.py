"""Folders of .npz episodes, and of HDF5 files as robomimic and LIBERO write them (data/demo_0/actions, …/obs/…)."""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from octo_integration.convert.episode import (
    ACTION,
    INSTRUCTION,
    OBSERVED,
    UNSEEN,
    Episode,
    Frames,
    Key,
    Reader,
    text,
    use_of,
)

HDF5 = (".hdf5", ".h5")
BLOCK = 64  # frames that are read at once


def _files(folder: Path, *endings: str) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix in endings and not path.name.startswith("."))
    return sorted(found, key=lambda path: _order(path.name))


def _order(name: str) -> list[Any]:
    """demo_2 before demo_10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _npz_episodes(folder: Path) -> dict[str, Key]:
    return {path.name: path.name for path in _files(folder, ".npz")}


@contextlib.contextmanager
def _npz(folder: Path, key: Key) -> Iterator[Episode]:
    path = folder / key
    with contextlib.ExitStack() as opened:
        with _told(path):
            file = opened.enter_context(open(path, "rb"))
            stored = opened.enter_context(np.lib.npyio.NpzFile(file, allow_pickle=False))
            arrays = {name: _Member(stored, name) for name in stored.files}
            words = next((name for name in INSTRUCTION if name in arrays and arrays[name].dtype.kind in "US"), None)
            told = "" if words is None else arrays[words][()]
            instruction = text(told) if np.size(told) == 1 else [text(one) for one in np.ravel(told)]
            episode = _episode(path, arrays, instruction)
        yield episode


class _Member:
    """An array of an .npz file, as a data set of HDF5: its values are read when they are asked for."""

    def __init__(self, stored: Any, name: str) -> None:
        with stored.zip.open(f"{name}.npy") as file:
            old = np.lib.format.read_magic(file) == (1, 0)
            header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
            self.shape, _, self.dtype = header(file)
        if self.dtype.hasobject:
            raise ValueError(f"{name} is a pickle, which is not read")
        self._read = functools.partial(stored.__getitem__, name)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._values[rows]

    @functools.cached_property
    def _values(self) -> np.ndarray:
        return self._read()


def _hdf5_episodes(folder: Path) -> dict[str, Key]:
    import h5py

    found: dict[str, Key] = {}
    for path in _files(folder, *HDF5):
        with _told(path), h5py.File(path) as file:
            # Without a group data, the file is an episode.
            names = sorted(file["data"], key=_order) if "data" in file else [""]
        found |= {"/".join(filter(None, (path.name, name))): [path.name, name] for name in names}
    return found


@contextlib.contextmanager
def _hdf5(folder: Path, key: Key) -> Iterator[Episode]:
    import h5py

    path, name = folder / key[0], key[1]
    with contextlib.ExitStack() as opened:
        with _told(path):
            file = opened.enter_context(h5py.File(path))
            group = file["data"][name] if name else file
            arrays: dict[str, Any] = {}
            group.visititems(lambda at, item: arrays.update({at: item}) if isinstance(item, h5py.Dataset) else None)
            episode = _episode(path, arrays, _words(file, group))
        yield episode


def _words(file: Any, group: Any) -> str:
    """The instruction: of the episode, as a text or in robocasa's ep_meta; of LIBERO's file; or none."""
    for name in INSTRUCTION:
        for place in (group, group.attrs):
            if name in place and isinstance(value := place[name][()] if place is group else place[name], str | bytes):
                return text(value)
    described = (group, "ep_meta", "lang"), (file.get("data", file), "problem_info", "language_instruction")
    for place, attribute, name in described:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return "".join(json.loads(text(place.attrs[attribute]))[name]).strip(
                '"'
            )  # LIBERO has lists of letters, too
    return ""


def _episode(path: Path, arrays: Mapping[str, Any], instruction: Any) -> Episode:
    """Sorts arrays, or data sets of HDF5, by what they are."""
    vectors, images, left_out = {}, {}, {}
    grouped = any(map(OBSERVED.match, arrays))
    for name, array in arrays.items():
        seen = OBSERVED.match(name) if grouped else re.split(r"[./]", name)[0] not in UNSEEN
        if not seen and name not in (*ACTION, *INSTRUCTION):
            left_out[name] = "nothing that a robot sees"
            continue
        use = use_of(array.shape, array.dtype)
        if use == "vector":
            vectors[name] = array[()]
        elif use == "image":
            images[name] = Frames(len(array), _frames(path, array), tuple(array.shape[1:]))
        elif name not in INSTRUCTION:
            left_out[name] = use
    return Episode(vectors, images, instruction, left_out)


def _frames(path: Path, array: Any) -> Callable[[], Iterator[np.ndarray]]:
    def frames() -> Iterator[np.ndarray]:
        for start in range(0, len(array), BLOCK):
            with _told(path):
                block = array[start : start + BLOCK]
            yield from block

    return frames


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Names the file in what its library says of it."""
    try:
        yield
    except Exception as error:  # h5py, numpy and its zip files raise whatever they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"convert: {path} cannot be read ({reason}); copy it again, or leave it out (--skip, of a whole file: "
            "take it out of the folder)."
        ) from None


def _holds(*endings: str) -> Callable[[Path], bool]:
    return lambda folder: bool(_files(folder, *endings))


NPZ = Reader(_holds(".npz"), _npz_episodes, _npz)
ROBOMIMIC = Reader(_holds(*HDF5), _hdf5_episodes, _hdf5)
