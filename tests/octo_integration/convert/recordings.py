"""Small recordings in every form that is read, written as their own tools lay them out."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

FPS = 10
TASKS = ("öffne die Schublade", "pick the cup")


def arrays(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """An episode: two cameras, joints in float64, a gripper as a number, and actions."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (length, 16, 16, 3), np.uint8),
        "wrist_image": rng.integers(0, 256, (length, 8, 16, 3), np.uint8),
        "joints": rng.normal(size=(length, 6)),
        "gripper": rng.integers(0, 2, length),
        "actions": np.where(np.arange(7) == 6, np.sign(rng.normal(size=(length, 7))), rng.normal(size=(length, 7))),
    }


def npz(folder: Path, lengths: tuple[int, ...] = (3, 2), **more: Any) -> Path:
    """episode_0.npz, ...; `more` entries for all of them."""
    folder.mkdir(parents=True)
    for number, length in enumerate(lengths):
        np.savez(folder / f"episode_{number}.npz", **{**arrays(length, number), **more})
    return folder


def hdf5(folder: Path, lengths: tuple[int, ...] = (3, 2), problem: str | None = TASKS[0]) -> Path:
    """demos.hdf5 as LIBERO has it, with what robomimic adds."""
    import h5py

    folder.mkdir(parents=True)
    with h5py.File(folder / "demos.hdf5", "w") as file:
        data = file.create_group("data")
        if problem is not None:
            data.attrs["problem_info"] = json.dumps({"language_instruction": problem})
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            for name, values in arrays(length, number).items():
                demo[name if name == "actions" else f"obs/{name}"] = values
            demo["next_obs/joints"] = demo["obs/joints"][()]
            demo["rewards"] = np.zeros(length)
            demo["robot_states"] = np.zeros((length, 9))
            demo["obs/depth"] = np.zeros((length, 16, 16, 1), np.float32)
    return folder


def lerobot(folder: Path, version: str, lengths: tuple[int, ...] = (3, 2), *, video: bool = False) -> Path:
    """A data set of version v2.1 or v3.0, whose images are videos or, as PNG, in the tables."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "meta").mkdir(parents=True)
    camera, kind = "observation.images.top", "video" if video else "image"
    rows: list[dict[str, Any]] = []
    episodes, frames = [], []
    for number, length in enumerate(lengths):
        recorded = arrays(length, number)
        task = number % len(TASKS)
        for t in range(length):
            rows.append(
                {
                    "observation.state": recorded["joints"][t].astype(np.float32).tolist(),
                    "action": recorded["actions"][t].astype(np.float32).tolist(),
                    "timestamp": t / FPS,
                    "frame_index": t,
                    "episode_index": number,
                    "index": len(rows),
                    "task_index": task,
                    "next.done": t == length - 1,
                }
            )
            if not video:
                rows[-1][camera] = {"bytes": png(recorded["image"][t]), "path": None}
        frames.append(smooth(length, number) if video else recorded["image"])
        episodes.append({"episode_index": number, "tasks": [TASKS[task]], "length": length})
    of = [[row for row in rows if row["episode_index"] == number] for number in range(len(lengths))]
    if version == "v2.1":
        paths = ("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",)
        paths += ("videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",)
        for number, own in enumerate(of):
            at = {"episode_chunk": number // 1000, "episode_index": number, "video_key": camera}
            _table(folder / paths[0].format(**at), own)
            if video:
                encode(folder / paths[1].format(**at), frames[number])
        _lines(folder / "meta/episodes.jsonl", episodes)
        _lines(folder / "meta/tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(TASKS)])
    else:
        paths = ("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",)
        paths += ("videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",)
        at = {"chunk_index": 0, "file_index": 0, "video_key": camera}
        _table(folder / paths[0].format(**at), rows)
        if video:
            encode(folder / paths[1].format(**at), np.concatenate(frames))
        for row, start in zip(episodes, np.cumsum([0, *lengths])):
            row |= {"data/chunk_index": 0, "data/file_index": 0, "stats/action/mean": [0.0]}
            if video:
                own = {"chunk_index": 0, "file_index": 0, "from_timestamp": start / FPS}
                row |= {f"videos/{camera}/{name}": value for name, value in own.items()}
        _table(folder / "meta/episodes/chunk-000/file-000.parquet", episodes)
        pq.write_table(
            pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)}), folder / "meta/tasks.parquet"
        )
    features = {
        camera: {"dtype": kind, "shape": [16, 16, 3]},
        "observation.state": {"dtype": "float32", "shape": [6]},
        "action": {"dtype": "float32", "shape": [7]},
        **{name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "index", "task_index")},
        **{"timestamp": {"dtype": "float32", "shape": [1]}, "next.done": {"dtype": "bool", "shape": [1]}},
    }
    info = {"codebase_version": version, "fps": FPS, "chunks_size": 1000, "features": features}
    info |= {"data_path": paths[0], "video_path": paths[1] if video else None}
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def smooth(length: int, seed: int) -> np.ndarray:
    """Frames of one grey each, which any codec keeps."""
    values = (40 * seed + 20 * np.arange(length)).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (length, 64, 64, 3)).copy()


def encode(path: Path, frames: np.ndarray, times: Any = None) -> None:
    """An MP4, frame t at times[t] frame periods."""
    import fractions

    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for t, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (t if times is None else times[t]), fractions.Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
