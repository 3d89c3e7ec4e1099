"""A collection that was stopped goes on where it was, and ends in the same data set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from octo_integration.collect import CollectConfig, collect, demonstrations, resume
from octo_integration.simulators.protocol import find
from tests.octo_integration.toy.simulator import SIMULATOR

TOY = "tests.octo_integration.toy.simulator:SIMULATOR"


def config(out: Path, **changes: Any) -> CollectConfig:
    options: dict[str, Any] = {"episodes_per_task": 3, "heldout_per_task": 1, "workers": 1, "noise": 0.1}
    return CollectConfig(out=str(out), simulator=TOY, **{**options, **changes})


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Task, split and number of what was recorded, in order; in this process, and ended after `stop` of them."""
    done: list[tuple[str, str, int]] = []

    def here(function: Any, jobs: Any, **options: Any) -> Any:
        for job, file in list(jobs):
            if len(done) == stop[0]:
                raise KeyboardInterrupt
            function((job, file))
            done.append((job.task, job.split, job.index))
            yield None

    monkeypatch.setattr(demonstrations, "parallel_map", here)
    return done


stop = [-1]


def episodes(path: Path) -> dict[str, list[Any]]:
    builder = tfds.builder_from_directory(path)
    return {
        split: [(e["episode_metadata"], list(e["steps"])) for e in tfds.as_numpy(builder.as_dataset(split=split))]
        for split in builder.info.splits
    }


def test_what_was_recorded_is_kept_and_not_recorded_again(
    tmp_path: Path, recorded: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(globals(), "stop", [5])
    with pytest.raises(KeyboardInterrupt):
        collect(config(tmp_path / "a"))
    assert [path.name for path in tmp_path.iterdir()] == [".a.parts"]
    monkeypatch.setitem(globals(), "stop", [-1])
    collect(config(tmp_path / "a", workers=2))
    assert "5 of 8 episodes are recorded already" in capsys.readouterr().out
    assert len(recorded) == len(set(recorded)) == 8
    # One task after the other: its environment is built once.
    assert [task for task, _, _ in recorded] == sorted(task for task, _, _ in recorded)
    whole = collect(config(tmp_path / "b"))
    np.testing.assert_equal(episodes(tmp_path / "a"), episodes(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_other_options_do_not_go_on_with_it(
    tmp_path: Path, recorded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "stop", [2])
    with pytest.raises(KeyboardInterrupt):
        collect(config(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"\.a\.parts holds episodes recorded with noise=0.1, not 0.3; give the same"):
        collect(config(tmp_path / "a", noise=0.3))
    (tmp_path / ".a.parts" / "000000.json").write_text("{")
    monkeypatch.setitem(globals(), "stop", [-1])
    with pytest.raises(ValueError, match=r"000000\.json is damaged"):
        collect(config(tmp_path / "a"))


def test_parts_come_back_to_the_bit(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=50).astype(np.float32)
    numbers[:3] = 1e-45, 3.4e38, 0.1
    resume.write(tmp_path / "x.json", {"a": numbers, "image": b"\x00\xff", "words": "ö", "n": 3, "last": True})
    found = resume.read(tmp_path / "x.json")
    np.testing.assert_array_equal(np.asarray(found.pop("a"), np.float32), numbers)
    assert found == {"image": b"\x00\xff", "words": "ö", "n": 3, "last": True}


def test_a_full_disk_says_that_the_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device; make room, .* The same command then goes on"):
        resume.write(tmp_path / "x.json", 1)
    assert not list(tmp_path.iterdir())


def test_liberos_layout_is_that_of_the_official_data() -> None:
    """features.json of modified_libero_rlds: names, shapes, types."""
    features = demonstrations.rlds_features(find("libero"), 256)
    image = ("Image", (256, 256, 3), "uint8")
    assert leaves(features) == {
        "episode_metadata/file_path": ("Text", (), "object"),
        "steps/action": ("Tensor", (7,), "float32"),
        "steps/discount": ("Scalar", (), "float32"),
        "steps/is_first": ("Scalar", (), "bool"),
        "steps/is_last": ("Scalar", (), "bool"),
        "steps/is_terminal": ("Scalar", (), "bool"),
        "steps/language_instruction": ("Text", (), "object"),
        "steps/observation/image": image,
        "steps/observation/joint_state": ("Tensor", (7,), "float32"),
        "steps/observation/state": ("Tensor", (8,), "float32"),
        "steps/observation/wrist_image": image,
        "steps/reward": ("Scalar", (), "float32"),
    }
    assert features["steps"].feature["observation"]["image"].encoding_format == "jpeg"


def leaves(feature: Any, path: str = "") -> dict[str, tuple[str, tuple[int, ...], str]]:
    if isinstance(feature, tfds.features.Dataset):
        feature = feature.feature
    if not isinstance(feature, tfds.features.FeaturesDict):
        return {path: (type(feature).__name__, feature.shape, np.dtype(feature.np_dtype).name)}
    return {k: v for name, part in feature.items() for k, v in leaves(part, f"{path}/{name}".lstrip("/")).items()}


def test_liberos_gripper_is_written_as_robosuite_takes_it_and_read_back() -> None:
    from octo_integration.data.standardisations.libero import libero

    layout = find("libero").layout
    assert layout is not None
    actions = np.array([[0.1, -0.2, 0.3, 0, 0, 0.5, 1], [0.1, -0.2, 0.3, 0, 0, 0.5, 0]], np.float32)
    raw = np.stack([layout.act(action) for action in actions])
    np.testing.assert_array_equal(raw[:, 6], [-1, 1])  # open, closed
    state = np.arange(16, dtype=np.float32).reshape(2, 8)
    proprio, standardised, _ = libero({"action": raw, "observation/state": state})
    np.testing.assert_array_equal(standardised, actions)
    np.testing.assert_array_equal(proprio, state)
    observed = layout.observe({"proprio": state[0], "joints": state[1, :7]})
    np.testing.assert_array_equal(observed["state"], state[0])
    assert layout.last_discount == 1 and layout.metadata("libero_goal/2", 7) == {"file_path": "libero_goal/2/seed_7"}


def test_one_environment_is_kept_and_the_one_before_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    from octo_integration.collect import parallel

    closed: list[str] = []

    class Env:
        def __init__(self, task: str, *, image_size: int) -> None:
            self.task = task

        def __exit__(self, *error: object) -> None:
            closed.append(self.task)

    monkeypatch.setattr(parallel, "_BUILT", {})
    found = [parallel.environment(Env, task, 8, keep=1) for task in ("a", "a", "b", "a")]  # type: ignore[type-var]
    assert found[0] is found[1] is not found[3] and closed == ["a", "b"] and len(parallel._BUILT) == 1


def test_suites_and_tasks_are_the_simulators(tmp_path: Path) -> None:
    made = CollectConfig(
        out="x", simulator="libero", suite=("libero_goal",), tasks=("libero_object/1", "libero_goal/0")
    )
    assert demonstrations.plan(made).tasks == (*(f"libero_goal/{n}" for n in range(10)), "libero_object/1")
    for options, message in (
        ({"suite": ("libero_gaol",)}, "unknown suite 'libero_gaol'"),
        ({"suite": ("libero_goal_env",)}, "libero_goal_env cannot be had"),
        ({"tasks": ("libero_goal/10",)}, "unknown task 'libero_goal/10'"),
    ):
        with pytest.raises(ValueError, match=message):
            CollectConfig(out="x", simulator="libero", **options)
    with pytest.raises(ValueError, match="unknown suite 'left'; this simulator has none, give tasks"):
        config(tmp_path / "a", suite=("left",))
    assert SIMULATOR.suites == {}
