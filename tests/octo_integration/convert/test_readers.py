"""What every reader gives of an episode, and that what is wrong is said by its name, in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octo_integration.convert.episode import target
from octo_integration.convert.write import READERS, ConvertConfig, describe, example_of, plan_of

from . import recordings
from .recordings import TASKS, arrays

FORMS: dict[str, Callable[[Path], Path]] = {
    "npz": recordings.npz,
    "hdf5": recordings.hdf5,
    "v2.1": lambda folder: recordings.lerobot(folder, "v2.1"),
    "v3.0": lambda folder: recordings.lerobot(folder, "v3.0"),
}
NEEDS = {"npz": "numpy", "hdf5": "h5py", "v2.1": "pyarrow", "v3.0": "pyarrow"}


def examples(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """The records that a folder's episodes become."""
    config = ConvertConfig(str(folder), "out", **{"images": "png", **options})
    plan, made = plan_of(config), []
    for name, key in plan.episodes.items():
        with READERS[plan.kind].opened(folder, key) as episode:
            made.append(example_of(episode, plan.fields, name, config))
    return made


def refused(folder: Path, *parts: str, **options: Any) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        examples(folder, **options)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_every_number_and_every_pixel_arrives(tmp_path: Path, form: str) -> None:
    pytest.importorskip(NEEDS[form])
    made = examples(FORMS[form](tmp_path / "set"))
    assert [len(example["steps"]) for example in made] == [3, 2]
    lerobot = form.startswith("v")
    image, state = ("images_top", "state") if lerobot else ("image", "joints")
    for number, example in enumerate(made):
        recorded = arrays(len(example["steps"]), number)
        for t, step in enumerate(example["steps"]):
            np.testing.assert_array_equal(step["action"], recorded["actions"][t].astype(np.float32))
            np.testing.assert_array_equal(step["observation"][state], recorded["joints"][t].astype(np.float32))
            assert step["observation"][image] == recordings.png(recorded["image"][t])
            assert (step["is_first"], step["is_last"]) == (t == 0, t == len(example["steps"]) - 1)
            if not lerobot:
                np.testing.assert_array_equal(step["observation"]["gripper"], recorded["gripper"][t : t + 1])
                assert step["observation"]["wrist_image"] == recordings.png(recorded["wrist_image"][t])
    told = {"npz": ("", ""), "hdf5": (TASKS[0], TASKS[0])}.get(form, TASKS)
    assert [example["steps"][0]["language_instruction"] for example in made] == [*told]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_frames_of_a_video_are_those_of_their_steps(tmp_path: Path, version: str) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    folder = recordings.lerobot(tmp_path / "set", version, (5, 4), video=True)
    config = ConvertConfig(str(folder), "out")
    plan = plan_of(config)
    for number, key in enumerate(plan.episodes.values()):
        with READERS["lerobot"].opened(folder, key) as episode:
            count, frames, _ = episode.images["observation.images.top"]
            seen = np.stack([*frames()])
        assert count == len(seen) == (5, 4)[number]
        np.testing.assert_allclose(seen.mean((1, 2, 3)), recordings.smooth(count, number)[:, 0, 0, 0], atol=4)


def test_names_of_fields() -> None:
    fields = ("actions", "obs/image", "observation.images.top", "qpos", "observations/a/b")
    paths = ("action", "observation/image", "observation/images_top", "observation/qpos", "observation/a_b")
    assert tuple(map(target, fields)) == paths


def test_what_no_robot_sees_is_left_out_and_said(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    folder = recordings.hdf5(tmp_path / "set")
    config = ConvertConfig(str(folder), "out")
    text = describe(config, plan_of(config))
    assert "next_obs/joints  left out: nothing that a robot sees" in text
    assert "robot_states     left out: nothing that a robot sees" in text
    assert "left out: images are uint8[N, height, width, 3], and it is float32[3, 16, 16, 1]" in text
    assert "obs/joints       -> steps/observation/joints  float32[6]" in text
    assert (
        TASKS[0] in text and '"primary": "observation/image"' in text and '"wrist": "observation/wrist_image"' in text
    )


def test_images_are_turned(tmp_path: Path) -> None:
    (example,) = examples(recordings.npz(tmp_path / "set", (1,)), turn_images=True)
    assert example["steps"][0]["observation"]["image"] == recordings.png(arrays(1)["image"][0, ::-1, ::-1])


def test_an_instruction_is_given_where_there_is_none(tmp_path: Path) -> None:
    made = examples(recordings.npz(tmp_path / "none"), instruction="lift the cube")
    assert {step["language_instruction"] for example in made for step in example["steps"]} == {"lift the cube"}
    own = recordings.npz(tmp_path / "own", (2,), instruction=np.array(["grüß", " "]))
    (example,) = examples(own, instruction="lift")
    assert [step["language_instruction"] for step in example["steps"]] == ["grüß", "lift"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"joints": None}, "episode_1.npz has no joints, which the first episode has"),
        ({"joints": np.zeros((3, 6))}, "steps of different numbers: 3 joints, 2 gripper, 2 actions, 2 image"),
        ({"joints": np.zeros((2, 5))}, "episode_1.npz: joints is of shape (5,), in the first episode (6,)"),
        ({"actions": np.full((2, 7), np.nan)}, "episode_1.npz, step 0: actions[0] is nan"),
        ({"gripper": np.array([1, 2**24 + 1])}, "gripper has numbers that float32 does not hold"),
        (
            {"image": np.zeros((2, 8, 8, 3), np.uint8)},
            "episode_1.npz: image is of shape (8, 8, 3), in the first episode (16",
        ),
        ({name: values[:0] for name, values in arrays(1).items()}, "episode_1.npz has no steps"),
        ({"instruction": np.array(["a", "b", "c"])}, "different numbers"),
    ],
)
def test_a_bad_episode_is_named_and_can_be_skipped(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = recordings.npz(tmp_path / "set")
    bad = {name: values for name, values in {**arrays(2, 1), **changes}.items() if values is not None}
    np.savez(folder / "episode_1.npz", **bad)
    refused(folder, "convert: ", said, "--skip")
    assert len(examples(folder, skip=("episode_1.npz",))) == 1


def test_a_first_episode_without_what_a_model_needs(tmp_path: Path) -> None:
    lacks = {"actions": "no action or actions, but joints, image", "joints": "no state", "image": "no camera"}
    for missing, said in lacks.items():
        folder = tmp_path / missing
        folder.mkdir()
        kept = {name: v for name, v in arrays(2).items() if name not in (missing, "gripper", "wrist_image")}
        np.savez(folder / "a.npz", **kept)
        refused(folder, "a.npz", said)


def test_demonstrations_as_robosuite_records_them_hold_nothing_that_a_robot_sees(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        demo = file.create_group("data/demo_1")
        demo["actions"], demo["states"] = np.zeros((3, 7)), np.zeros((3, 32))
        for number in range(20):
            demo[f"user_info/{number}"] = np.zeros((3, 3, 3))
    refused(tmp_path, "demo.hdf5/demo_1 has no camera beside the action, but actions, states, user_info/0, ")
    refused(tmp_path, " and 10 more; a model needs one; states are a simulator's: let robomimic or LIBERO render")


def test_folders_of_something_else(tmp_path: Path) -> None:
    refused(tmp_path / "none", f"there is no directory {tmp_path}/none")
    refused(tmp_path, "has no meta/info.json (LeRobot), no .hdf5 or .h5 and no .npz files")
    folder = recordings.npz(tmp_path / "set")
    refused(folder, "skip names 'x'", "it has episode_0.npz, episode_1.npz", skip=("x",))
    (folder / "episode_0.npz").write_bytes(b"no zip")
    refused(folder, "episode_0.npz cannot be read", "copy it again")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    folder = recordings.npz(tmp_path / "set")
    np.savez(folder / "episode_0.npz", actions=np.array([{}], object))
    refused(folder, "episode_0.npz cannot be read", "actions is a pickle, which is not read")


def lerobot(folder: Path, version: str = "v2.1", **options: Any) -> Path:
    pytest.importorskip("pyarrow")
    return recordings.lerobot(folder, version, **options)


def test_other_versions_of_lerobot(tmp_path: Path) -> None:
    folder = lerobot(tmp_path / "set")
    info = json.loads((folder / "meta/info.json").read_text())
    for changes, said in (
        ({"codebase_version": "v1.6"}, "codebase_version is v1.6; v2.1 and v3.0 are read"),
        ({"features": None}, "info.json: it has no features"),
        ({"data_path": "../x/{episode_index}.parquet"}, "names ../x/0.parquet, which is not in the directory"),
        ({"data_path": "data/{nothing}.parquet"}, "it has no 'nothing'"),
    ):
        (folder / "meta/info.json").write_text(json.dumps(info | changes))
        refused(folder, said)


def test_a_frame_rate_that_varies(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = lerobot(tmp_path / "set")
    path = folder / "data/chunk-000/episode_000001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1]["timestamp"] = 0.17
    pq.write_table(pa.Table.from_pylist(rows), path)
    refused(folder, "frame rate of episode 1 varies: from step 0 to 1 pass 0.1700 s, at 10 frames", "--skip")
    rows = rows[:1]
    pq.write_table(pa.Table.from_pylist(rows), path)
    refused(folder, "episode_000001.parquet", "episode 1 has 1 rows, meta/ says 2")
    path.unlink()
    refused(folder, "episode 1: there is no data/chunk-000/episode_000001.parquet")


def test_a_broken_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    folder = lerobot(tmp_path / "set", video=True, lengths=(4, 4))
    path = folder / "videos/chunk-000/observation.images.top/episode_000001.mp4"
    recordings.encode(path, recordings.smooth(3, 1))
    refused(folder, "episode_000001.mp4 ends after 3 of 4 frames", "--skip")
    recordings.encode(path, recordings.smooth(4, 1), times=(0, 1, 3, 4))
    refused(folder, "episode_000001.mp4: its frame rate varies: there is no frame at 0.2000 s, but one at 0.3000 s")
    path.write_bytes(path.read_bytes()[:100])
    refused(folder, "episode_000001.mp4 is broken at frame 0 of 4")


def test_tasks_that_nobody_wrote_down_are_missing_instructions(tmp_path: Path) -> None:
    folder = lerobot(tmp_path / "set")
    (folder / "meta/tasks.jsonl").unlink()
    made = examples(folder)
    assert [example["steps"][0]["language_instruction"] for example in made] == ["", ""]
