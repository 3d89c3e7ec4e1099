"""A simulator, a standardisation, a rule for λ: somebody else's, and no file of ours names them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from octo_integration import simulators
from octo_integration.cli import commands
from octo_integration.collect import CollectConfig
from octo_integration.data import standardisations, standardize
from octo_integration.evaluate.rollout import rollout
from octo_integration.model.sizes import CONFIGS
from octo_integration.simulators.protocol import find
from tests.octo_integration import micro_vla
from tests.octo_integration.toy.simulator import STARTS

HERE = "tests.octo_integration.toy"
SIMULATOR, STANDARDISATION = f"{HERE}.simulator:SIMULATOR", f"{HERE}.standardisation:STANDARDISATION"
SCHEDULE = f"{HERE}.rule:thirds"


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "line" / "1.0.0"
    sizes = ("--episodes-per-task", "2", "--heldout-per-task", "1", "--workers", "1", "--noise", "0.1")
    shifts = ("--shifts", "bright", "far")
    assert commands.main(["collect", "--out", str(out), "--simulator", SIMULATOR, *sizes, *shifts]) == 0
    return out


@pytest.fixture(scope="module")
def run(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "micro", micro_vla.CONFIG)
        patch.setenv("XDG_CACHE_HOME", str(out.parent))
        arguments = {
            "out": out, "model": "micro", "weights": "None", "data.path": demos, "data.standardize": STANDARDISATION,
            "maps.schedule": SCHEDULE,
            "data.batch-size": "4", "optimizer.steps": "2", "optimizer.warmup": "1", "eval-splits": "heldout",
        }  # fmt: skip
        options = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
        assert commands.main(["finetune", *options, "--data.cameras", "primary", "wrist"]) == 0
    return out


@pytest.fixture(scope="module")
def evaluated(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The exit code of `evaluate` for a run of someone else's, whose config.json names a module that must not run."""
    planted, file = tmp_path_factory.mktemp("planted"), run / "config.json"
    (planted / "planted.py").write_text("raise SystemExit('it was run')")
    text = file.read_text()
    for named, planted_name in ((STANDARDISATION, "planted:SET"), (SCHEDULE, "planted:rule")):
        assert named in text
        text = text.replace(named, planted_name)
    file.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(planted)
        patch.setitem(CONFIGS, "micro", micro_vla.CONFIG)
        options = ("--episodes", "2", "--tasks", "right", "--shifts", "none", "far", "--max-steps", "5")
        yield commands.main(["evaluate", "--run", str(run), "--simulator", SIMULATOR, *options])


def steps(path: Path, split: str) -> list[list[dict[str, Any]]]:
    episodes = tfds.as_numpy(tfds.builder_from_directory(path).as_dataset(split=split))
    return [list(episode["steps"]) for episode in episodes]


def test_its_expert_is_recorded(demos: Path) -> None:
    train, heldout, bright, far = (steps(demos, s) for s in ("train", "heldout", "heldout_bright", "heldout_far"))
    words = [episode[0]["language_instruction"].decode() for episode in train]
    assert words == ["go left", "go right"] * 2
    starts = [episode[0]["observation"]["state"].tolist() for episode in train]
    np.testing.assert_allclose(np.ravel(starts), np.repeat(STARTS[:2], 2))
    for episode in train:
        sign = 1 if episode[0]["language_instruction"] == b"go right" else -1
        np.testing.assert_array_equal(episode[0]["action"], [sign, 1])
        moved = [np.diff([s["observation"]["state"][0] for s in episode])]
        assert (np.sign(moved) == sign).mean() > 0.5 and len(np.unique(np.abs(moved))) > 1  # with noise
    for plain, other in zip(heldout, bright, strict=True):
        for key in ("image", "wrist_image"):
            assert np.median(plain[0]["observation"][key]) < 50 and np.median(other[0]["observation"][key]) > 150
        np.testing.assert_array_equal([s["action"] for s in plain], [s["action"] for s in other])
    assert [e[0]["language_instruction"] for e in far] == [b"go right"]
    np.testing.assert_allclose(far[0][0]["observation"]["state"], [0.9], atol=1e-6)


def test_a_policy_learns_from_it_and_acts_in_it(
    run: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    statistics = json.loads((run / "statistics.json").read_text())
    assert len(statistics["action"]["mean"]) == 2 and len(statistics["proprio"]["mean"]) == 1
    strengths = {row["strength"] for row in json.loads((run / "drift.json").read_text())["tensors"]}
    assert strengths == {3.2, 0.8}
    capsys.readouterr()
    assert request.getfixturevalue("evaluated") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split()[:5] for line in lines if line.startswith("right")]
    assert [row[:2] + row[3:] for row in rows] == [["right", "none", "of", "2"], ["right", "far", "of", "2"]]


class Expert:
    """Goes where it is told."""

    looks_back = 0

    def __init__(self) -> None:
        self.starts: list[float] = []

    def reset(self) -> None:
        self.begun = False

    def observe(self, observation: Any) -> None:
        if not self.begun:
            self.starts.append(float(observation["proprio"][0]))
        self.begun = True

    def __call__(self, observation: Any, instruction: str) -> np.ndarray:
        self.observe(observation)
        return np.tile([1.0 if instruction == "go right" else -1.0, 0.0], (4, 1))


def test_success_is_counted_over_its_initial_states_and_steps() -> None:
    expert = Expert()
    results = rollout(expert, simulator=SIMULATOR, episodes=3, image_size=8)
    assert [(r.task, r.outcomes) for r in results] == [("left", (True,) * 3), ("right", (True,) * 3)]
    np.testing.assert_allclose(expert.starts, STARTS * 2, atol=1e-6)
    (short,) = rollout(expert, ["left"], simulator=SIMULATOR, episodes=3, image_size=8, max_steps=2)
    assert short.outcomes == (True, False, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("push",)}, "unknown task 'push'; there are left, right, up"),
        ({"tasks": ("up",)}, "task 'up' has no expert"),
        ({"zero_shot": ("up",)}, "task 'up' has no expert"),
        ({"shifts": ("texture",)}, "unknown shift 'texture'; there are none, bright, far"),
        ({"tasks": ("left",), "shifts": ("far",)}, "far needs a task with a way to the right; add right to tasks"),
        ({"layouts": "restricted"}, "layouts is 'restricted'; give all"),
        (
            {"simulator": "libero2"},
            "simulator is 'libero2'; there are calvin, libero, metaworld, simpler, and module:NAME",
        ),
    ],
)
def test_what_it_does_not_have_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CollectConfig(**{"out": "demos", "simulator": SIMULATOR, **changes})


def test_a_folder_and_a_file_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "__init__.py").write_text(f"from {HERE}.simulator import SIMULATOR")
    (tmp_path / "column.py").write_text(f"from {HERE}.standardisation import STANDARDISATION")
    monkeypatch.setattr(simulators, "__path__", [*simulators.__path__, str(tmp_path)])
    monkeypatch.setattr(standardisations, "__path__", [*standardisations.__path__, str(tmp_path)])
    assert find("line").data_set == "line" and standardize.find("column").vectors["action"] == 2
    with pytest.raises(ValueError, match="there are calvin, libero, line, metaworld, simpler, and"):
        find("column")
    with pytest.raises(ValueError, match="there are bridge, calvin, column, libero, metaworld, and"):
        standardize.find("line")
    del sys.modules[f"{simulators.__name__}.line"], sys.modules[f"{standardisations.__name__}.column"]


def test_a_given_run_has_nothing_imported(evaluated: int) -> None:
    assert evaluated == 0 and "planted" not in sys.modules
