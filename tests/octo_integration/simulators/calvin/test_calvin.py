"""CALVIN's adapter, over a stand-in with its interface; where CALVIN_ROOT names a real checkout, over that one, too.

SIMULATOR_PYTHON is then the interpreter that it is installed for.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from octo_integration.cli import commands
from octo_integration.collect import CollectConfig, collect
from octo_integration.collect.experts import demonstrate
from octo_integration.evaluate.rollout import rollout
from octo_integration.simulators.calvin import SIMULATOR, SUITES
from octo_integration.simulators.calvin.env import CHECKOUT, CalvinEnv
from octo_integration.simulators.calvin.rules import chain
from octo_integration.simulators.protocol import PYTHON, find, use_python
from octo_integration.simulators.renderer import SimulatorMissing
from tests.octo_integration.simulators.calvin import tree

ROOT = CHECKOUT.root
REAL = os.environ.get(ROOT)
SIZE = 32


@pytest.fixture(
    scope="module", params=["stand-in", pytest.param("real", marks=pytest.mark.skipif(not REAL, reason=ROOT))]
)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stand-in":
            patch.setenv(ROOT, str(tree.make(tmp_path_factory.mktemp("calvin"))))
            patch.setenv(PYTHON, sys.executable)
        yield request.param


@pytest.fixture(scope="module")
def led(root: str) -> Iterator[CalvinEnv]:
    with CalvinEnv("A/turn_on_led", image_size=SIZE) as env:
        yield env


def test_observations_are_those_of_the_official_data(led: CalvinEnv) -> None:
    seen = led.reset(3)
    assert {name: (value.shape, value.dtype) for name, value in seen.items()} == {
        "image_primary": ((SIZE, SIZE, 3), np.uint8),
        "image_wrist": ((SIZE, SIZE, 3), np.uint8),
        "proprio": ((8,), np.float32),
        "robot_obs": ((15,), np.float32),
    }
    assert np.abs(seen["image_primary"].astype(int) - seen["image_wrist"]).mean() > 5
    np.testing.assert_array_equal(seen["proprio"], seen["robot_obs"][[0, 1, 2, 3, 4, 5, 6, 14]])
    np.testing.assert_allclose(seen["robot_obs"][[0, 1, 2, 6, 14]], [0.026, -0.231, 0.571, 0.08, 1], atol=2e-3)


def test_actions_are_relative_and_the_gripper_is_1_where_it_opens(led: CalvinEnv) -> None:
    led.reset(3)
    before = led._state["target"].copy()
    led.advance(np.array([1, 0, -0.5, 0, 0, 0.4, 0]))
    np.testing.assert_allclose(led._state["target"] - before, [0.02, 0, -0.01, 0, 0, 0.02], atol=1e-9)
    assert led.look()["proprio"][7] == -1
    led.advance(np.array([9, 0, 0, 0, 0, 0, 1]))
    np.testing.assert_allclose(led._state["target"][0] - before[0], 0.04, atol=1e-9)  # no action goes farther
    assert led.look()["proprio"][7] == 1
    with pytest.raises(ValueError, match="7 finite numbers"):
        led.advance(np.full(7, np.nan))


def test_resets_depend_on_their_seed_alone(led: CalvinEnv) -> None:
    first, scene, words = led.reset(4), led._state["scene"], led.instruction
    for _ in range(3):
        led.advance(np.array([0, 0, -1, 0, 0, 0, 0]))
    again = led.reset(4)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    np.testing.assert_array_equal(led._state["scene"], scene)
    assert led.instruction == words
    led.reset(5)
    assert np.abs(led._state["scene"] - scene).max() > 1e-3


def test_words_are_those_of_training_or_of_the_evaluation(led: CalvinEnv) -> None:
    known = led._calvin.about
    drawn = set()
    for seed in range(8):
        led.reset(seed)
        drawn.add(led.instruction)
    assert len(drawn) > 2 and drawn <= set(known["training"]["turn_on_led"])
    led.set_shift("words")
    assert led.instruction == known["validation"]["turn_on_led"][0]
    led.set_shift("none")


@pytest.mark.parametrize("scene", ["A", "B", "C", "D"])
def test_a_block_is_where_its_name_says_in_the_order_of_the_scenes_own_file(root: str, scene: str) -> None:
    """The trap: every scene lists its blocks in an order of its own. What is lifted tells: the oracle goes by name."""
    with CalvinEnv(f"{scene}/lift_pink_block_table", image_size=SIZE) as env:
        assert env._order == [f"block_{color}" for color in tree.ORDER[scene].split()]
        episode = demonstrate(env, 1, noise=0.0, max_steps=150, movement=3)
    assert episode is not None


def test_the_expert_lights_the_led(led: CalvinEnv) -> None:
    demonstrated = demonstrate(led, 2, noise=0.1, max_steps=150, movement=3)
    assert demonstrated is not None and demonstrated.actions.shape[1] == 7
    assert set(np.unique(demonstrated.actions[:, 6])) <= {0.0, 1.0}
    assert np.abs(demonstrated.actions[:, :6]).max() <= 1


def test_chains_go_on_with_the_next_words(root: str) -> None:
    with CalvinEnv("chains/D", image_size=SIZE) as env:
        env.reset_to(2)
        tasks = chain(2).tasks
        words = env._calvin.about["validation"]
        assert env.instruction == words[tasks[0]][0]
        with pytest.raises(ValueError, match="has 1000 initial states; got 1000"):
            env.reset_to(1000)


def test_demonstrations_are_written_as_calvin_abc_rlds_and_read_back(root: str, tmp_path: Path) -> None:
    from octo_integration.data.standardize import episode, find
    from octo_integration.data.tf import tf, tfds

    out = tmp_path / "demos"
    config = CollectConfig(
        out=str(out), simulator="calvin", tasks=("A/turn_on_led",), episodes_per_task=1, heldout_per_task=0,
        image_size=SIZE, workers=1,
    )  # fmt: skip
    builder = tfds.builder_from_directory(collect(config))
    step = builder.info.features["steps"]
    assert {name: (tuple(f.shape), f.np_dtype) for name, f in step["observation"].items()} == {
        "rgb_static": ((SIZE, SIZE, 3), np.uint8),
        "rgb_gripper": ((SIZE, SIZE, 3), np.uint8),
        "state": ((15,), np.float32),
    }
    (raw,) = builder.as_dataset("train")
    steps = next(iter(raw["steps"].batch(10_000)))
    assert set(np.unique(steps["action"][:, 6])) <= {-1.0, 1.0} and steps["action"].shape[1] == 7
    flat = {
        **{f"observation/{name}": value for name, value in steps["observation"].items()},
        "action": steps["action"],
        "language_instruction": steps["language_instruction"],
    }
    known = episode(find("calvin"), flat)
    np.testing.assert_array_equal(SIMULATOR.layout.standard(steps["action"].numpy()), known["action"].numpy())
    state = steps["observation"]["state"].numpy()
    np.testing.assert_array_equal(known["observation"]["proprio"].numpy(), state[:, [0, 1, 2, 3, 4, 5, 6, 14]])
    assert tf.reduce_all(known["task"]["instruction"] == known["task"]["instruction"][0])


class Still:
    looks_back = 0

    def reset(self) -> None:
        pass

    def observe(self, observation: object) -> None:
        pass

    def __call__(self, observation: object, instruction: str) -> np.ndarray:
        return np.array([[0.0] * 6 + [1]], np.float32)


def test_a_policy_that_does_nothing_reaches_nothing(root: str) -> None:
    (result,) = rollout(Still(), ["chains/D"], episodes=2, simulator="calvin", max_steps=3, execute=1, image_size=SIZE)
    assert result.outcomes == (False, False) and result.reached == (0, 0)


def test_suites_are_scenes(root: str) -> None:
    assert list(SUITES) == ["A", "B", "C", "D", "chains"] and len(SUITES["C"]) == 34
    with pytest.raises(ValueError, match="unknown suite 'E'; there are A, B, C, D, chains"):
        SIMULATOR.task("E/open_drawer")
    with pytest.raises(ValueError, match="unknown task 'A/fly'"):
        SIMULATOR.task("A/fly")
    with pytest.raises(ValueError, match="unknown layout 'restricted'"):
        SIMULATOR.draw_shift("none", 0, "restricted")


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(PYTHON, sys.executable)
    monkeypatch.setenv(ROOT, str(tree.make(tmp_path)))
    return tmp_path


def missing(match: str) -> None:
    with pytest.raises(SimulatorMissing, match=match) as error:
        CalvinEnv("A/turn_on_led", image_size=SIZE)
    assert "\n" not in str(error.value) and "calvin.md" in str(error.value)


def test_what_is_not_there_is_said_in_one_line(standing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = standing / "calvin_env/data/calvin_table_A/urdf/calvin_table_A.urdf"
    table.unlink()
    missing(str(table))
    words = standing / "calvin_models/conf/annotations/new_playtable.yaml"
    table.write_text("")
    words.unlink()
    missing(str(words))
    shutil.rmtree(standing / "calvin_env/calvin_env")
    missing(f"calvin_env.* for {sys.executable}")
    monkeypatch.setenv(PYTHON, "/nowhere/python")
    missing("the interpreter /nowhere/python")
    monkeypatch.setenv(ROOT, "/nowhere")
    missing("CALVIN in the folder CALVIN_ROOT=/nowhere")
    monkeypatch.delenv(ROOT)
    missing("CALVIN in the folder CALVIN_ROOT=,")


def test_nothing_is_collected_or_acted_where_one_of_the_scenes_is_missing(
    standing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scene A alone would do for the first episodes."""
    table = standing / "calvin_env/data/calvin_table_D/urdf/calvin_table_D.urdf"
    table.unlink()
    arguments = ["--simulator", "calvin", "--tasks", "A/turn_on_led", "--zero-shot", "D/turn_on_led"]
    out = standing / "new" / "demos"
    assert commands.main(["collect", *arguments, "--out", str(out)]) == commands.BAD_INPUT
    error = capsys.readouterr().err
    assert str(table) in error and error.count("\n") == 1
    assert not out.parent.exists()
    never: Any = SimpleNamespace(reset=lambda: pytest.fail("an episode began"))
    with pytest.raises(SimulatorMissing, match="calvin_table_D.urdf"):
        rollout(never, ["A/turn_on_led", "D/turn_on_led"], episodes=1, simulator="calvin", image_size=SIZE)
    assert [SIMULATOR.part(task) for task in ("chains/D", "D/turn_on_led", "A/turn_on_led")] == ["D", "D", "A"]


def test_a_failing_installation_says_its_last_line(standing: Path) -> None:
    module = standing / "calvin_env/calvin_env/envs/play_table_env.py"
    module.write_text(
        "import sys\nprint('no memory for a table', file=sys.stderr)\nsys.stderr.flush()\nimport os\nos._exit(3)\n"
    )
    with pytest.raises(ChildProcessError, match="CALVIN's process died: no memory for a table"):
        CalvinEnv("A/turn_on_led", image_size=SIZE)
    module.write_text("raise ValueError('a broken table')\n")
    with pytest.raises(ChildProcessError, match="CALVIN failed: ValueError: a broken table"):
        CalvinEnv("A/turn_on_led", image_size=SIZE)
    module.write_text(
        "class InvalidGitRepositoryError(Exception): pass\ndef PlayTableSimEnv(**_): raise InvalidGitRepositoryError\n"
    )
    with pytest.raises(SimulatorMissing, match="the git history of .*calvin_env"):
        CalvinEnv("A/turn_on_led", image_size=SIZE)


def test_the_interpreter_that_a_command_is_given_is_used(standing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = standing / "other-python"
    other.write_text(f'#!/bin/sh\ntouch {standing}/was-used\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    use_python(SIMULATOR, None)
    assert os.environ[PYTHON] == sys.executable
    with pytest.raises(ValueError, match="simulator_python is '/nowhere', which is no program"):
        use_python(SIMULATOR, "/nowhere")
    with pytest.raises(ValueError, match="runs in maps-vla's own interpreter; leave it out"):
        use_python(find("metaworld"), str(other))
    use_python(SIMULATOR, str(other))
    with CalvinEnv("A/turn_on_led", image_size=SIZE):
        assert (standing / "was-used").exists()
