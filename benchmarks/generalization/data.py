"""The study's demonstrations and probe frames: made once, then arrays in memory.

Workers read plain .npz files, so that none of them imports tensorflow.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from octo_integration.collect.demonstrations import CollectConfig, splits
from octo_integration.common.files import replacing, write_json
from octo_integration.pretrain.frames_reader import TEXTS, Frames, read_frames
from octo_integration.simulators.metaworld.shifts import SHIFTS
from octo_integration.simulators.metaworld.tasks import TASKS, Task

# The scene tells some of these apart, others only the instruction: point (which shape), faucet-open and -close.
STUDY_TASKS = ("point", "faucet-open", "faucet-close", "drawer-open", "door-open", "button-press")
ZERO_SHOT = ("handle-press", "window-close")
PARTS = ("dev", "test")
PROBE_FRAMES = "probe_frames"
PROBE_SEED = 1000  # frames that pretraining, which has seed 0, 10, 11 or 12, never saw
YOUNGER = {"simulator": "metaworld", "seed": 0}  # of data that were made before there was a choice


@dataclasses.dataclass(frozen=True)
class DataSizes:
    """What is collected: training and held-out episodes per task, frames for the probes, size of images, and where."""

    train: int = 20
    heldout: int = 6
    frames: int = 1600
    image_size: int = 64
    simulator: str = "metaworld"


class Windows(NamedTuple):
    """One split: N windows of E episodes, in order.

    Attributes:
      image: uint8[N, H, W, 3].
      text: int32[N], which of `texts` is the instruction; texts: the instructions.
      action: f32[N, chunk, A] normalised; mask: bool[N, chunk, A], True where real.
      episode: int32[N]; task: int32[N], which of `tasks`; tasks: their names.
    """

    image: np.ndarray
    text: np.ndarray
    texts: np.ndarray
    action: np.ndarray
    mask: np.ndarray
    episode: np.ndarray
    task: np.ndarray
    tasks: np.ndarray


def conditions() -> tuple[str, ...]:
    """What the policy is measured under; the first is in-distribution."""
    return (*SHIFTS, "zero_shot")


def collect_config(out: Path, sizes: DataSizes, workers: int, seed: int = 0) -> CollectConfig:
    """The data set of the study."""
    return CollectConfig(
        out=str(out),
        simulator=sizes.simulator,
        seed=seed,
        tasks=STUDY_TASKS,
        episodes_per_task=sizes.train,
        heldout_per_task=sizes.heldout,
        evaluation=PARTS,
        shifts=tuple(shift for shift in SHIFTS if shift != "none"),
        zero_shot=ZERO_SHOT,
        layouts="restricted",
        workers=workers,
        image_size=sizes.image_size,
    )


def prepare(out: Path, sizes: DataSizes, workers: int, seed: int = 0) -> None:
    """Makes what is not there yet: demonstrations, drawn by `seed`, probe frames, and the arrays of both.

    Raises:
      ValueError: `out` holds data of another size.
      Whatever `collect` and `render_frames` raise.
    """
    from octo_integration.collect import collect, render_frames

    demos, frames = out / "demonstrations", out / PROBE_FRAMES
    made, wanted = out / "sizes.json", {**dataclasses.asdict(sizes), "seed": seed}
    found = {**YOUNGER, **json.loads(made.read_text())} if made.exists() else None
    if demos.exists() and found != wanted:
        raise ValueError(f"{out} holds data of sizes {found}, not {wanted}; give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(made, wanted)
    if not demos.exists():
        collect(collect_config(demos, sizes, workers, seed))
    if not frames.exists():
        render_frames(frames, count=sizes.frames, image_size=sizes.image_size, seed=PROBE_SEED, workers=workers)
    names = splits(collect_config(demos, sizes, workers, seed))
    if not all(_path(out, name).exists() for name in names):
        _write_windows(out, names)
    if not _path(out, PROBE_FRAMES).exists():
        read = read_frames(frames)
        texts = {name: getattr(read, name).astype(str) for name in TEXTS}
        _write(_path(out, PROBE_FRAMES), {**vars(read), **texts})


def load(out: Path, split: str) -> Windows:
    """What `prepare` wrote of one split."""
    with np.load(_path(out, split)) as file:
        return Windows(**{name: file[name] for name in Windows._fields})


def load_frames(out: Path) -> Frames:
    """The probe frames that `prepare` wrote."""
    with np.load(_path(out, PROBE_FRAMES)) as file:
        return Frames(**{name: file[name] for name in file.files})


def take(windows: Windows, index: np.ndarray) -> Windows:
    """Some of the windows."""
    tables = {"texts", "tasks"}
    return Windows(**{n: x if n in tables else x[index] for n, x in windows._asdict().items()})


def first_episodes(windows: Windows, count: int) -> Windows:
    """The windows of the first `count` episodes of every task."""
    kept = []
    for task in range(len(windows.tasks)):
        kept += sorted(set(windows.episode[windows.task == task].tolist()))[:count]
    return take(windows, np.flatnonzero(np.isin(windows.episode, kept)))


def _path(out: Path, split: str) -> Path:
    return out / "arrays" / f"{split}.npz"


def _write_windows(out: Path, names: tuple[str, ...]) -> None:
    from octo_integration import data

    config = data.DataConfig(path=str(out / "demonstrations"), batch_size=256, augment=False)
    statistics = data.compute_statistics(config)
    (out / "arrays").mkdir(parents=True, exist_ok=True)
    (out / "arrays" / "statistics.json").write_text(statistics.to_json())
    for name in names:
        batches = list(data.eval_batches(config, statistics, split=name))
        texts, text = np.unique([str(t) for b in batches for t in b["task"]["instruction"]], return_inverse=True)
        owner = [task_of(str(t)) for t in texts]
        tasks = sorted(set(owner))
        arrays = Windows(
            image=np.concatenate([b["observation"]["image_primary"][:, -1] for b in batches]),
            text=text.astype(np.int32),
            texts=texts,
            action=np.concatenate([b["action"] for b in batches]),
            mask=np.concatenate([b["action_pad_mask"] for b in batches]),
            episode=np.unique(np.concatenate([b["episode"] for b in batches]), return_inverse=True)[1].astype(np.int32),
            task=np.array([tasks.index(o) for o in owner], np.int32)[text],
            tasks=np.array(tasks),
        )
        _write(_path(out, name), arrays._asdict())


def _write(path: Path, arrays: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


def task_of(instruction: str) -> str:
    """The task of the study that an instruction, in any wording, belongs to.

    Raises:
      ValueError: none, or more than one.
    """
    found = [name for name in (*STUDY_TASKS, *ZERO_SHOT) if _says(TASKS[name], instruction)]
    if len(found) != 1:
        raise ValueError(f"instruction {instruction!r} belongs to {found or 'no task'}; change tasks.csv.")
    return found[0]


def _says(task: Task, instruction: str) -> bool:
    wordings = (task.instruction, task.synonym, *task.paraphrases)
    return any(re.fullmatch(re.escape(w).replace(r"\{goal\}", r"\w+ \w+"), instruction) for w in wordings)
