"""SimplerEnv's adapter, over a stand-in with its interface; where SIMPLER_ROOT names a real one, over that, too.

SIMULATOR_PYTHON is then the interpreter that it is installed for.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from octo_integration.cli import evaluate
from octo_integration.collect import CollectConfig, collect
from octo_integration.collect.experts import demonstrate
from octo_integration.evaluate.rollout import rollout
from octo_integration.simulators.protocol import PYTHON
from octo_integration.simulators.renderer import SimulatorMissing
from octo_integration.simulators.simpler import SIMULATOR
from octo_integration.simulators.simpler.env import CHECKOUT, SimplerEnv
from tests.octo_integration.simulators.simpler import tree

ROOT = CHECKOUT.root
REAL = os.environ.get(ROOT)
SIZE = 32


@pytest.fixture(
    scope="module", params=["stand-in", pytest.param("real", marks=pytest.mark.skipif(not REAL, reason=ROOT))]
)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stand-in":
            patch.setenv(ROOT, str(tree.make(tmp_path_factory.mktemp("simpler"))))
            patch.setenv(PYTHON, sys.executable)
        yield request.param


@pytest.fixture(scope="module")
def carrot(root: str) -> Iterator[SimplerEnv]:
    with SimplerEnv("carrot_on_plate", image_size=SIZE) as env:
        yield env


def test_observations_are_those_of_bridge(carrot: SimplerEnv) -> None:
    seen = carrot.reset(3)
    assert {name: (value.shape, value.dtype) for name, value in seen.items()} == {
        "image_primary": ((SIZE, SIZE, 3), np.uint8),
        "proprio": ((7,), np.float32),
    }
    # The hand of Bridge's data points down at angles of 0, and an open gripper is 1; x is away from the robot.
    np.testing.assert_allclose(seen["proprio"], [0.292, -0.006, 0.135, -0.005, 0.057, -0.019, 1], atol=2e-3)
    assert carrot.instruction == "put carrot on plate"


def test_actions_are_metres_and_radians_in_the_robots_frame(carrot: SimplerEnv) -> None:
    carrot.reset(3)
    before = carrot._state["goal"].copy()
    carrot.advance(np.array([0.02, -0.01, 0.03, 0, 0, 0, 1]))
    np.testing.assert_allclose(carrot._state["goal"][:3] - before[:3], [0.02, -0.01, 0.03], atol=1e-5)
    for _ in range(4):
        carrot.advance(np.array([0, 0, 0, 0, 0, 0.1, 0]))
    for _ in range(4):  # the arm follows
        carrot.advance(np.array([0, 0, 0, 0, 0, 0, 0]))
    proprio = carrot.look()["proprio"]
    np.testing.assert_allclose(proprio[3:6], [-0.018, 0.054, 0.381], atol=0.02)
    assert proprio[6] < 0.1  # closed
    with pytest.raises(ValueError, match="7 finite numbers"):
        carrot.advance(np.full(7, np.nan))


def test_a_start_depends_on_its_seed_alone(carrot: SimplerEnv) -> None:
    first, state = carrot.reset(4), carrot._state
    for _ in range(12):
        carrot.advance(carrot.expert_action())
    again = carrot.reset(4)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    np.testing.assert_array_equal(carrot._state["source"], state["source"])
    carrot.reset(5)
    assert np.abs(carrot._state["source"] - state["source"]).max() > 1e-2


def test_starts_of_the_benchmark_are_its_24_and_ours_are_between_them(carrot: SimplerEnv) -> None:
    def place() -> tuple[float, ...]:
        return tuple(np.round([*carrot._state["source"][:2], *carrot._state["target"][:2]], 2) + 0.0)

    theirs = []
    for number in range(24):
        carrot.begin_at(number)
        theirs.append(place())
    # Places of the robot's frame; each pair of them with two ways that the carrot lies.
    assert len(set(theirs)) == 12 and theirs[0] == theirs[1]
    assert {x for x, *_ in theirs} == {0.23, 0.38} and {y for _, y, *_ in theirs} == {-0.05, 0.1}
    for seed in range(3):
        carrot.begin(seed)
        assert place() not in theirs
        near, far = np.array(place()[:2]), np.array(place()[2:])
        assert ([0.22, -0.06] <= near).all() and (near <= [0.4, 0.12]).all() and np.linalg.norm(near - far) > 0.1
    with pytest.raises(ValueError, match="has 24 initial states; got 24"):
        carrot.reset_to(24)


def test_a_camera_of_another_size_sees_the_same(root: str, carrot: SimplerEnv) -> None:
    carrot.reset_to(0)
    small = carrot.look()["image_primary"].astype(float)
    with SimplerEnv("carrot_on_plate", image_size=2 * SIZE) as env:
        large = env.reset_to(0)["image_primary"].astype(float)
    np.testing.assert_allclose(large.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3)), small, atol=1 if root != "real" else 40)
    assert np.abs(large.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3)) - small).mean() < 3
    if root == "stand-in":  # its red and green are the directions of the rays: all of 640 by 480 is seen
        across, down = 0.5 * (1 - 1 / SIZE) * np.array([640, 480]) / 623.588
        np.testing.assert_allclose(
            small[[0, -1], [0, -1], :2] / 255, [[0.5 - across, 0.5 - down], [1, 0.5 + down]], atol=4e-3
        )


@pytest.mark.parametrize("task", ["carrot_on_plate", "spoon_on_towel", "stack_cube"])
def test_the_expert_does_it(root: str, task: str) -> None:
    with SimplerEnv(task, image_size=SIZE) as env:
        for seed in (2, 3):
            demonstrated = demonstrate(env, seed, noise=SIMULATOR.noise, max_steps=80, movement=3)
            assert demonstrated is not None
            assert set(np.unique(demonstrated.actions[:, 6])) == {0.0, 1.0}
            assert np.linalg.norm(demonstrated.actions[:, :3], axis=1).max() < 0.031


def test_success_is_what_lasts(carrot: SimplerEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thing that the hand holds over its goal counts as success in the benchmark for some moments."""
    carrot.begin(1)
    told = iter([True] * 4 + [False] + [True] * 5)
    ask = carrot._child.ask
    monkeypatch.setattr(carrot._child, "ask", lambda *a, **o: {**ask(*a, **o), "success": next(told)})
    assert [carrot.advance(np.array([0.0] * 6 + [1])) for _ in range(10)] == [False] * 9 + [True]


def test_demonstrations_are_written_as_bridge_and_read_back(root: str, tmp_path: Path) -> None:
    from octo_integration.data.standardize import episode, find
    from octo_integration.data.tf import tfds

    out = tmp_path / "demos"
    config = CollectConfig(
        out=str(out), simulator="simpler", tasks=("carrot_on_plate",), episodes_per_task=1, heldout_per_task=0,
        image_size=SIZE, workers=1,
    )  # fmt: skip
    builder = tfds.builder_from_directory(collect(config))
    step = builder.info.features["steps"]
    assert {name: (tuple(f.shape), f.np_dtype) for name, f in step["observation"].items()} == {
        "image_0": ((SIZE, SIZE, 3), np.uint8),
        "state": ((7,), np.float32),
    }
    (raw,) = builder.as_dataset("train")
    steps = next(iter(raw["steps"].batch(10_000)))
    flat = {
        **{f"observation/{name}": value for name, value in steps["observation"].items()},
        "action": steps["action"],
        "language_instruction": steps["language_instruction"],
    }
    known = episode(find(SIMULATOR.layout.standardize), flat)
    state, action = steps["observation"]["state"].numpy(), steps["action"].numpy()
    np.testing.assert_array_equal(known["observation"]["proprio"].numpy(), state[:-1])
    # Bridge's standardisation takes the movement that was made; here it is the one wanted, but for the noise.
    moved = known["action"].numpy()
    np.testing.assert_allclose(moved[:, :3].sum(0), action[:-1, :3].sum(0), atol=0.06)
    np.testing.assert_array_equal(moved[:, 6], action[:-1, 6])
    assert np.abs(moved[:, 5]).max() > 0.02 and abs(moved[:, 5].sum() - action[:-1, 5].sum()) < 0.05


class Still:
    looks_back = 0

    def reset(self) -> None:
        pass

    def observe(self, observation: object) -> None:
        pass

    def __call__(self, observation: object, instruction: str) -> np.ndarray:
        return np.array([[0.0] * 6 + [1]], np.float32)


def test_a_policy_that_does_nothing_does_not_succeed(root: str) -> None:
    (result,) = rollout(
        Still(), ["stack_cube"], episodes=2, simulator="simpler", max_steps=3, execute=1, image_size=SIZE
    )
    assert result.outcomes == (False, False)
    with pytest.raises(ValueError, match="stack_cube has 24 recorded initial states; give at most as many"):
        rollout(Still(), ["stack_cube"], episodes=25, simulator="simpler")


def test_unknown_tasks_are_named() -> None:
    with pytest.raises(
        ValueError, match="unknown task 'fly'; there are carrot_on_plate, spoon_on_towel, stack_cube, egg"
    ):
        SIMULATOR.task("fly")


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(PYTHON, sys.executable)
    monkeypatch.setenv(ROOT, str(tree.make(tmp_path)))
    return tmp_path


def missing(match: str, task: str = "carrot_on_plate") -> None:
    with pytest.raises(SimulatorMissing, match=match) as error:
        SimplerEnv(task, image_size=SIZE)
    assert "\n" not in str(error.value) and "simpler.md" in str(error.value)


def test_what_is_not_there_is_said_in_one_line(standing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing(f"the task widowx_put_eggplant_in_basket in {standing}", "eggplant_in_basket")
    (standing / tree.MODELS / "bridge_plate_objaverse_larger/textured.dae").unlink()
    missing("needs .*/models/bridge_plate_objaverse_larger/textured.dae,")
    (standing / tree.STAGE).unlink()
    missing(f"needs {standing / tree.STAGE},")
    (standing / tree.PHOTOGRAPH).unlink()
    missing(f"needs {standing / tree.PHOTOGRAPH},")
    sapien = standing / "ManiSkill2_real2sim/sapien"
    (sapien / "no-device").write_text("")
    missing("needs a Vulkan device that sapien can draw with,")
    (sapien / "core.py").write_text("raise ImportError('libvulkan.so.1: cannot open\\nmore')\n")
    missing(r"needs a library \(libvulkan.so.1: cannot open\),")
    (sapien / "core.py").unlink()
    missing(f"needs sapien.core for {sys.executable},")
    monkeypatch.setenv(ROOT, "/nowhere")
    missing("SimplerEnv in the folder SIMPLER_ROOT=/nowhere")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "RuntimeError('vk::createDevice: ErrorExtensionNotPresent')",
            r"Vulkan device .* \(vk::createDevice: ErrorExt",
        ),
        ("RuntimeError('a broken table')", "SimplerEnv failed: RuntimeError: a broken table"),
    ],
)
def test_a_failing_scene_says_why(standing: Path, error: str, said: str) -> None:
    module = standing / "ManiSkill2_real2sim/mani_skill2_real2sim/envs/__init__.py"
    module.write_text(module.read_text().replace('print("what a simulator prints")', f"raise {error}"))
    with pytest.raises((SimulatorMissing, ChildProcessError), match=said):
        SimplerEnv("carrot_on_plate", image_size=SIZE)


def test_another_action_convention_is_refused(standing: Path) -> None:
    module = standing / "ManiSkill2_real2sim/mani_skill2_real2sim/envs/__init__.py"
    module.write_text(module.read_text().replace("arm_pd_ee_target_delta_pose_align2", "arm_pd_ee_delta_pose"))
    with pytest.raises(
        ChildProcessError, match="is moved by arm_pd_ee_delta_pose_gripper_pd_joint_pos, not arm_pd_ee_t"
    ):
        SimplerEnv("carrot_on_plate", image_size=SIZE)


def test_what_is_missing_is_noticed_before_anything_is_loaded_or_written(
    standing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every task: the first and the last could be had."""

    def load() -> None:
        raise AssertionError("a policy is loaded")

    lacks = "bridge_spoon_generated_modified/textured.dae"
    (standing / tree.MODELS / lacks).unlink()
    tasks = ("carrot_on_plate", "spoon_on_towel", "stack_cube")
    monkeypatch.setattr(evaluate, "_trained", lambda config: evaluate.Actor(SIZE, None, load))
    with pytest.raises(SimulatorMissing, match=lacks):
        evaluate.run(evaluate.Options(run=str(tmp_path), simulator="simpler", tasks=tasks))
    out = tmp_path / "made/1.0.0"
    with pytest.raises(SimulatorMissing, match=lacks):
        collect(CollectConfig(out=str(out), simulator="simpler", tasks=tasks))
    assert not out.parent.exists()
