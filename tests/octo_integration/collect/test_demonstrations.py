"""Data sets written by the simulator: complete, readable, repeatable, and nothing at all where something went wrong."""

import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from octo_integration.collect import CollectConfig, collect, demonstrations, frames, render_frames, writer
from octo_integration.data import DataConfig, compute_statistics
from octo_integration.simulators.metaworld.goals import KNOWN_PAIRS, NEW_PAIRS
from octo_integration.simulators.metaworld.tasks import TASKS
from tests.octo_integration.simulator import simulated

os.environ.setdefault("MUJOCO_GL", "egl")

SHIPPED = Path(demonstrations.__file__).parents[1] / "assets" / "metaworld_tiny" / "1.0.0"
SHIPPED_BYTES = 7_500_000
SHIPPED_SHIFTS = ("texture", "light", "camera", "color")
SPLITS = ("train", "heldout", *(f"heldout_{shift}" for shift in SHIPPED_SHIFTS))


@pytest.fixture(scope="module", autouse=True)
def simulator() -> None:
    with simulated("handle-press", image_size=8):
        pass


def small(out: Path, **changes: Any) -> CollectConfig:
    options: dict[str, Any] = dict(
        tasks=("handle-press", "reach"), episodes_per_task=1, heldout_per_task=1, image_size=32
    )
    return CollectConfig(out=str(out), **{**options, **changes})


def read(path: Path, split: str) -> list[dict[str, Any]]:
    """Episodes with their steps stacked."""
    episodes = tfds.as_numpy(tfds.builder_from_directory(path).as_dataset(split=split))
    return [
        {
            "metadata": episode["episode_metadata"],
            "image": np.stack([s["observation"]["image"] for s in steps]),
            "state": np.stack([s["observation"]["state"] for s in steps]),
            **{k: np.array([s[k] for s in steps]) for k in steps[0] if k != "observation"},
        }
        for episode in episodes
        for steps in [list(episode["steps"])]
    ]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect(small(tmp_path_factory.mktemp("collected") / "demos"))


def test_splits_hold_what_was_asked_for(collected: Path) -> None:
    assert [path.name for path in collected.parent.iterdir()] == ["demos"]
    for split in SPLITS:
        episodes = read(collected, split)
        assert [e["metadata"]["task"] for e in episodes] == [b"handle-press", b"reach"]
        for episode in episodes:
            n = len(episode["action"])
            assert episode["image"].shape == (n, 32, 32, 3) and episode["image"].std() > 10
            assert episode["action"].shape == episode["state"].shape == (n, 4)
            assert np.abs(episode["action"]).max() <= 1
            ends = np.arange(n) == n - 1
            for key in ("is_last", "is_terminal", "reward"):
                np.testing.assert_array_equal(episode[key], ends)
            np.testing.assert_array_equal(episode["discount"], ~ends)
            np.testing.assert_array_equal(episode["is_first"], np.arange(n) == 0)
            task = TASKS[episode["metadata"]["task"].decode()]
            assert set(episode["language_instruction"]) == {task.instruction.encode()}


def test_shifted_splits_show_the_held_out_episodes(collected: Path) -> None:
    heldout = read(collected, "heldout")
    for train, plain in zip(read(collected, "train"), heldout, strict=True):
        assert train["metadata"]["seed"] != plain["metadata"]["seed"]
    for shift in SHIPPED_SHIFTS:
        for plain, shifted in zip(heldout, read(collected, f"heldout_{shift}"), strict=True):
            assert plain["metadata"] == shifted["metadata"]
            for key in ("action", "state", "is_last"):
                np.testing.assert_array_equal(plain[key], shifted[key])
            difference = np.abs(plain["image"].astype(int) - shifted["image"]).mean((1, 2, 3))
            assert difference.min() > (0.2 if shift == "color" else 2), shift


def test_same_seed_same_episodes_whatever_the_workers(collected: Path, tmp_path: Path) -> None:
    again = collect(small(tmp_path / "again", workers=1))
    # Not the files' bytes: protocol buffers keep their fields in no order.
    for split in SPLITS:
        for one, other in zip(read(collected, split), read(again, split), strict=True):
            np.testing.assert_equal(one, other)
    different = collect(small(tmp_path / "different", seed=1, heldout_per_task=0, tasks=("handle-press",)))
    assert list(tfds.builder_from_directory(different).info.splits) == ["train"]
    assert not np.array_equal(read(different, "train")[0]["action"][:9], read(collected, "train")[0]["action"][:9])


def test_dev_and_test_of_every_kind(tmp_path: Path) -> None:
    made = small(
        tmp_path / "study",
        tasks=("point", "handle-press"),
        evaluation=("dev", "test"),
        shifts=("all", "synonym", "language", "positions", "new_pairs"),
        zero_shot=("reach",),
        layouts="restricted",
    )
    names = demonstrations.splits(made)
    shifts = ("all", "synonym", "language", "positions", "new_pairs", "zero_shot")
    assert names == ("train", *(part + end for part in ("dev", "test") for end in ("", *(f"_{s}" for s in shifts))))
    out = collect(made)
    splits = {name: read(out, name) for name in names}
    tasks = {name: [e["metadata"]["task"].decode() for e in split] for name, split in splits.items()}
    for part in ("dev", "test"):
        for view in ("", "_all", "_synonym", "_language"):
            assert [e["metadata"] for e in splits[part + view]] == [e["metadata"] for e in splits[part]]
            for plain, seen in zip(splits[part], splits[part + view], strict=True):
                np.testing.assert_array_equal(plain["action"], seen["action"])
                same_image = np.array_equal(plain["image"], seen["image"])
                assert same_image == (view != "_all")
        words = [splits[part + view][1]["language_instruction"][0].decode() for view in ("", "_synonym", "_language")]
        task = TASKS["handle-press"]
        assert words[:2] == [task.instruction, task.synonym] and words[2] in task.paraphrases
        pairs = [splits[part + end][0]["language_instruction"][0].decode().split()[-2:] for end in ("", "_new_pairs")]
        assert tuple(pairs[0]) in KNOWN_PAIRS and tuple(pairs[1]) in NEW_PAIRS
        assert tasks[f"{part}_positions"] == ["point", "handle-press"]
        assert tasks[f"{part}_new_pairs"] == ["point"] and tasks[f"{part}_zero_shot"] == ["reach"]
    seeds = [e["metadata"]["seed"] for name in names if name.count("_") != 1 for e in splits[name]]
    assert len(set(seeds)) == len(seeds)


def test_our_reader_takes_it(collected: Path) -> None:
    statistics = compute_statistics(DataConfig(path=str(collected)))
    assert statistics.num_episodes == 2


def test_shipped_set_is_complete_and_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.parent.rglob("*")) < SHIPPED_BYTES
    splits = tfds.builder_from_directory(SHIPPED).info.splits
    config = CollectConfig(out="")
    tasks = len(demonstrations.plan(config).tasks)
    assert {name: split.num_examples for name, split in splits.items()} == {
        "train": config.episodes_per_task * tasks,
        **{split: config.heldout_per_task * tasks for split in SPLITS[1:]},
    }
    assert tasks >= 4 and config.episodes_per_task * tasks >= 40


def test_shipped_set_can_be_made_again(tmp_path: Path) -> None:
    """Its first episodes, from one task; the pixels depend on the OpenGL library."""
    made = read(collect(CollectConfig(out=str(tmp_path / "again"), tasks=("reach",), episodes_per_task=1)), "heldout")
    shipped = [e for e in read(SHIPPED, "heldout") if e["metadata"]["task"] == b"reach"]
    for again, episode in zip(made, shipped, strict=True):
        assert again["metadata"] == episode["metadata"]
        np.testing.assert_allclose(again["action"], episode["action"], atol=1e-4)
        assert np.abs(again["image"].astype(int) - episode["image"]).mean() < 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("reach", "dance")}, "unknown task 'dance'; there are assembly"),
        ({"zero_shot": ("reach",)}, "zero_shot task 'reach' is demonstrated"),
        ({"shifts": ("fog",)}, "unknown shift 'fog'"),
        ({"shifts": ("none",)}, "the shift none changes nothing"),
        ({"shifts": ("new_pairs",)}, "new_pairs needs a task with coloured shapes; add point"),
        ({"shifts": ("positions",)}, "positions needs layouts restricted"),
        ({"layouts": "shifted"}, "give all or restricted"),
        ({"evaluation": ("train",)}, "the same split twice: train, train"),
        ({"tasks": ()}, "tasks is empty"),
        ({"tasks": ("reach", "reach")}, "named twice"),
        ({"episodes_per_task": 0}, "episodes_per_task is 0"),
        ({"heldout_per_task": -1}, "heldout_per_task is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"noise": float("nan")}, "noise is nan"),
    ],
)
def test_bad_config(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(tmp_path / "demos", **changes)


def test_an_expert_that_never_succeeds_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'reach' failed 20 times in 2 steps"):
        collect(small(tmp_path / "demos", tasks=("reach",), max_steps=2, workers=1))
    assert not list(tmp_path.iterdir())


def test_existing_data_is_kept(collected: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in collected.iterdir()}
    with pytest.raises(FileExistsError, match="demos is there already"):
        collect(small(collected))
    assert before == {path: path.stat().st_mtime_ns for path in collected.iterdir()}


def interrupt(*args: object, **options: object) -> Iterator[Any]:
    yield []
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("not reached")


def ctrl_c(*args: object, **options: object) -> Iterator[Any]:
    yield []
    raise KeyboardInterrupt


@pytest.mark.parametrize(("stop", "error"), [(interrupt, SystemExit), (ctrl_c, KeyboardInterrupt)])
def test_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Any, error: type[BaseException]
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(frames, "parallel_map", stop)
    with pytest.raises(error):
        render_frames(tmp_path / "frames", count=4)
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == handler


def write_numbers(out: Path, *, bytes_each: int, expected_bytes: int = 0) -> None:
    features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    with writer.new_dataset(
        out, name="numbers", description="", features=features, splits=["train"], expected_bytes=expected_bytes
    ) as add:
        for _ in range(4):
            add({"train": [{"text": "x" * bytes_each}]})


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    write_numbers(tmp_path / "enough", bytes_each=1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What a process may write to one file; the system answers as it does when the disk is full (EFBIG for ENOSPC).
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*full: .*Nothing was kept") as caught:
            write_numbers(tmp_path / "full", bytes_each=400_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(errno.EFBIG) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(OSError, match="MiB are needed"):
        write_numbers(tmp_path / "full", bytes_each=1, expected_bytes=1 << 60)
    assert [path.name for path in tmp_path.iterdir()] == ["enough"]


def test_frames_are_labelled(tmp_path: Path) -> None:
    tasks = ("push", "drawer-close", "point")
    # Three of push and drawer-close come before one of point. Two jobs, the second shorter.
    out = render_frames(tmp_path / "frames", count=frames.FRAMES_PER_JOB + 8, seed=3, tasks=tasks, image_size=32)
    found = list(tfds.as_numpy(tfds.builder_from_directory(out).as_dataset(split="train")))
    assert [f["task"].decode() for f in found] == [tasks[0]] * frames.FRAMES_PER_JOB + [tasks[1]] * 8
    for frame in found:
        assert frame["image"].shape == (32, 32, 3)
        for key in ("hand_pixel", "object_pixel"):
            assert frame[key].shape == (2,) and (frame[key] >= 0).all() and (frame[key] <= 1).all()
        for key in ("hand", "object", "goal"):
            assert frame[key].shape == (3,) and np.abs(frame[key]).max() < 1.5
        task = TASKS[frame["task"].decode()]
        assert task.object in frame["caption"].decode()
        assert frame["instruction"].decode() in (task.instruction, task.synonym)
        assert 0 <= frame["opening"] <= 1 and not frame["shape"].any() and frame["shape_names"] == b""
    captions = {frame["caption"] for frame in found}
    images = {frame["image"].tobytes() for frame in found}
    assert len(captions) > 20 and len(images) == len(found)
    hands = np.stack([frame["hand"] for frame in found])
    assert (hands.std(0) > 0.02).all()
    for changes, message in (
        ({"count": 0}, "count is 0"),
        ({"tasks": ("dance",)}, "unknown task"),
        ({"tasks": ()}, "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            render_frames(tmp_path / "bad", **{"count": 1, **changes})  # type: ignore[arg-type]
