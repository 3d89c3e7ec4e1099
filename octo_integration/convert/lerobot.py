"""LeRobot data sets v2.1 and v3.0: parquet and video in a directory, as their own metadata describe them."""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from octo_integration.convert.episode import UNSEEN, Episode, Frames, Key, Reader, use_of
from octo_integration.convert.video import frames_at

INFO = "meta/info.json"
IMAGE, VIDEO = "image", "video"
UNEVEN = 0.05  # of a frame's time, that the steps of an episode may lie off an even rhythm


def _holds(folder: Path) -> bool:
    return (folder / INFO).is_file()


def _info(folder: Path) -> dict[str, Any]:
    info = json.loads((folder / INFO).read_text())
    for name, kind in (("codebase_version", str), ("features", dict), ("data_path", str), ("fps", (int, float))):
        if not isinstance(info.get(name), kind):
            raise ValueError(f"it has no {name}")
    if not 0 < info["fps"] < 1e6:
        raise ValueError(f"fps is {info['fps']}")
    return info


def _episodes(folder: Path) -> dict[str, Key]:
    with _told(folder / INFO):
        info = _info(folder)
    version = info["codebase_version"]
    if version not in VERSIONS:
        raise ValueError(
            f"convert: {folder / INFO}: codebase_version is {version}; {' and '.join(VERSIONS)} are read: let LeRobot "
            "convert it to one of them."
        )
    with _told(folder / "meta"):
        cameras = [name for name, feature in info["features"].items() if feature["dtype"] == VIDEO]
        keys = sorted(VERSIONS[version](folder, info, cameras), key=lambda key: key["episode"])
    return {f"episode_{key['episode']:06d}": key for key in keys}


def _v21(folder: Path, info: Any, cameras: list[str]) -> Iterator[Key]:
    tasks = {row["task_index"]: row["task"] for row in _lines(folder / "meta/tasks.jsonl")}
    for row in _lines(folder / "meta/episodes.jsonl"):
        number = row["episode_index"]
        at = {"episode_index": number, "episode_chunk": number // info["chunks_size"]}
        videos = {camera: [info["video_path"].format(video_key=camera, **at), 0.0] for camera in cameras}
        yield _key(folder, info, number, row, info["data_path"].format(**at), videos, tasks)


def _v30(folder: Path, info: Any, cameras: list[str]) -> Iterator[Key]:
    import pyarrow.parquet as pq

    tasks = {}
    if (file := folder / "meta/tasks.parquet").is_file():
        for row in pq.read_table(file).to_pylist():
            number = row.pop("task_index")
            tasks[number] = next(value for value in row.values() if isinstance(value, str))
    files = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise ValueError("there is no meta/episodes")
    for file in files:
        names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
        for row in pq.read_table(file, columns=names).to_pylist():
            videos = {}
            for camera in cameras:
                where = {name: row[f"videos/{camera}/{name}"] for name in ("chunk_index", "file_index")}
                path = info["video_path"].format(video_key=camera, **where)
                videos[camera] = [path, row[f"videos/{camera}/from_timestamp"]]
            where = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
            yield _key(folder, info, row["episode_index"], row, info["data_path"].format(**where), videos, tasks)


VERSIONS: dict[str, Callable[[Path, Any, list[str]], Iterator[Key]]] = {"v2.1": _v21, "v3.0": _v30}


def _key(folder: Path, info: Any, number: int, row: Any, data: str, videos: Any, tasks: Mapping[int, str]) -> Key:
    """What the reader needs, checked: files that are there and inside, and the tasks that the episode has."""
    for path in (data, *(path for path, _ in videos.values())):
        if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir:
            raise ValueError(f"{INFO} names {path}, which is not in the directory")
        if not (folder / path).is_file():
            raise ValueError(f"episode {number}: there is no {path}")
    own = {index: task for index, task in tasks.items() if task in row.get("tasks", [task])}
    return {
        **{"episode": number, "length": row["length"], "data": data, "videos": videos, "fps": info["fps"]},
        "tasks": [[index, task] for index, task in own.items()],
        "features": {name: feature["dtype"] for name, feature in info["features"].items()},
    }


def _lines(path: Path) -> Iterator[Any]:
    """The rows of a file of JSON lines; none where it is missing."""
    if path.is_file():
        yield from map(json.loads, filter(str.strip, path.read_text().splitlines()))


@contextlib.contextmanager
def _opened(folder: Path, key: Key) -> Iterator[Episode]:
    import pyarrow.parquet as pq

    file = folder / key["data"]
    with _told(file):
        own = [("episode_index", "==", key["episode"])]
        stored = {name for name, dtype in key["features"].items() if dtype == IMAGE}
        there = pq.read_schema(file).names
        table = pq.read_table(file, columns=[name for name in there if name not in stored], filters=own)
        if len(table) != key["length"]:
            raise ValueError(f"episode {key['episode']} has {len(table)} rows, meta/ says {key['length']}")
        columns = {name: table.column(name) for name in key["features"] if name in table.column_names}
        times = _numbers("timestamp", columns["timestamp"]).astype(np.float64).reshape(-1)
        _check_even(times, key)
        vectors: dict[str, np.ndarray] = {}
        images: dict[str, Any] = {}
        left_out: dict[str, str] = {}
        for name, dtype in key["features"].items():
            if name.split(".")[0] in UNSEEN:
                continue
            if dtype == VIDEO:
                path, start = key["videos"][name]
                images[name] = Frames(len(times), _video(folder / path, start + times, key["fps"]))
            elif dtype == IMAGE and name in there:
                images[name] = Frames(len(table), _stored(file, name, own))
            elif dtype not in ("string", IMAGE) and name in columns:
                values = _numbers(name, columns[name])
                use = use_of(values.shape, values.dtype)
                vectors |= {name: values} if use == "vector" else {}
                left_out |= {name: use} if use != "vector" else {}
            else:
                left_out[name] = f"of dtype {dtype}"
        tasks = dict(key["tasks"])
        indices = columns["task_index"].to_pylist() if "task_index" in columns else [None] * len(table)
    yield Episode(vectors, images, [tasks.get(index, "") for index in indices], left_out)


def _numbers(name: str, column: Any) -> np.ndarray:
    try:
        values = np.asarray(column.to_pylist())
    except ValueError:
        raise ValueError(f"{name} has rows of different lengths") from None
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{name} has rows without numbers")
    return values


def _check_even(times: np.ndarray, key: Key) -> None:
    off = np.abs(np.diff(times) * key["fps"] - 1)
    if len(off) and off.max() > UNEVEN:
        step = int(off.argmax())
        raise ValueError(
            f"the frame rate of episode {key['episode']} varies: from step {step} to {step + 1} pass "
            f"{times[step + 1] - times[step]:.4f} s, at {key['fps']:g} frames per second"
        )


def _video(path: Path, times: np.ndarray, fps: float) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: frames_at(path, times, fps)


def _stored(file: Path, name: str, own: Any) -> Callable[[], Iterator[np.ndarray]]:
    """Images that stand in the table, as PNG; those of the rows that the filters `own` let pass."""

    def frames() -> Iterator[np.ndarray]:
        import PIL.Image
        import pyarrow.parquet as pq

        with _told(file):
            column = pq.read_table(file, columns=[name], filters=own).column(name)
        for row, value in enumerate(column):
            try:
                with PIL.Image.open(io.BytesIO(value.as_py()["bytes"])) as image:
                    frame = np.asarray(image.convert("RGB"))
            except (OSError, TypeError, KeyError) as error:
                raise ValueError(f"convert: {file}: {name} of row {row} is no image ({error}).") from None
            yield frame

    return frames


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Names the file in what is wrong with it."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, AttributeError, IndexError, StopIteration) as error:
        missing = isinstance(error, KeyError)
        reason = f"it has no {error}" if missing else " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"convert: {path}: {reason}; repair it, or leave the episode out by --skip.") from None


LEROBOT = Reader(_holds, _episodes, _opened)
