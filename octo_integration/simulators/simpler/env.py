"""SimplerEnv's WidowX as this project's models see it: an image, the pose of the hand, an instruction, a 7-d action."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from octo_integration.simulators.process import Checkout, Child
from octo_integration.simulators.protocol import Environment, Observation
from octo_integration.simulators.simpler.expert import Expert, View
from octo_integration.simulators.simpler.tasks import TASKS, draw, starts

CHECKOUT = Checkout(
    "SimplerEnv",
    root="SIMPLER_ROOT",
    part="ManiSkill2_real2sim/mani_skill2_real2sim",
    install="benchmarks/simulators/simpler.md says how",
    child=Path(__file__).with_name("child.py"),
)
ACTION_SIZE = 7
STEADY = 5  # steps in a row with success: before, the hand may hold the thing over its goal
DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # a hand of angles 0, in Bridge's data


class SimplerEnv(Environment):
    """One task of the WidowX.

    Building one takes 12 s of which 10 are the first image's: reuse it. An observation is {"image_primary":
    uint8[S, S, 3], "proprio": f32[7]}; proprio is Bridge's state: the hand's x, y, z in metres and angles about these
    (0: it points down), in the robot's frame; the gripper from 0 (closed) to 1 (open).
    """

    def __init__(self, task: str, *, image_size: int = 128) -> None:
        """Builds the scene.

        Args:
          task: key of `tasks.TASKS`.
          image_size: height and width of the image in pixels.

        Raises:
          SimulatorMissing: SimplerEnv, or something of it, is not installed; the message says what.
          ChildProcessError: it fails.
        """
        self._task = TASKS[task]
        self._child = Child(CHECKOUT, task=self._task.name, image_size=image_size)
        self._state: dict[str, Any] = {}
        self._steady = 0
        self._expert: Expert | None = None

    @property
    def instruction(self) -> str:
        """What to do, in the benchmark's words."""
        return str(self._child.about["instruction"])

    def reset(self, seed: int) -> Observation:
        """Starts an episode, the two things anywhere in the benchmark's area."""
        self.begin(seed)
        return self.look()

    def begin(self, seed: int) -> None:
        """`reset`, without a look."""
        places, turn = draw(self._task, self._child.about["places"], np.random.default_rng(seed))
        turns = np.stack([turn, self._child.about["turns"][0, 1]])
        self._start(places[None], turns[None], 0)

    def reset_to(self, index: int) -> Observation:
        """Starts one of the benchmark's own episodes.

        Raises:
          ValueError: there is none of that number.
        """
        self.begin_at(index)
        return self.look()

    def begin_at(self, index: int) -> None:
        """`reset_to`, without a look."""
        about = self._child.about
        if not 0 <= index < starts(about):
            raise ValueError(f"{self._task.name} has {starts(about)} initial states; got {index}.")
        self._start(about["places"], about["turns"], index)

    def advance(self, action: np.ndarray) -> bool:
        """Carries out f32[7]: x, y, z in metres, angles about these in radians, gripper 1 (open) or 0 (closed).

        Returns:
          Whether SimplerEnv has called the task done in this step and the four before.

        Raises:
          ValueError: not seven finite numbers.
          RuntimeError: before `reset`.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (ACTION_SIZE,) or not np.isfinite(action).all():
            raise ValueError(f"an action is {ACTION_SIZE} finite numbers; got {action}.")
        if not self._state:
            raise RuntimeError("call reset(seed) before the first step.")
        turn = Rotation.from_euler("xyz", action[3:6]).as_rotvec()
        own = np.concatenate([action[:3], turn, [1.0 if action[6] > 0.5 else -1.0]])
        self._state = self._child.ask("step", action=own)
        self._steady = self._steady + 1 if self._state["success"] else 0
        return self._steady >= STEADY

    def look(self) -> Observation:
        """What is seen now."""
        pose = self._state["hand"]
        angles = (_rotation(pose) * Rotation.from_matrix(DOWN.T)).as_euler("xyz")
        proprio = np.concatenate([pose[:3], angles, [self._state["opening"]]]).astype(np.float32)
        return {"image_primary": self._child.ask("look")["image"], "proprio": proprio}

    def expert_action(self) -> np.ndarray:
        """What our script does now: f32[7]."""
        view = self._view()
        if self._expert is None:
            self._expert = Expert(self._task, view)
        return self._expert.action(view)

    def close(self) -> None:
        """Ends the simulator."""
        self._child.close()

    def _start(self, places: np.ndarray, turns: np.ndarray, number: int) -> None:
        self._state = self._child.ask("start", places=places, turns=turns, number=number)
        self._steady, self._expert = 0, None

    def _view(self) -> View:
        goal, state = self._state["goal"], self._state
        turn = _rotation(goal) * Rotation.from_matrix(DOWN.T)
        return View(
            state["hand"][:3], goal[:3], turn, state["source"][:3], _rotation(state["source"]), state["target"][:3]
        )


def _rotation(pose: np.ndarray) -> Rotation:
    """Of x, y, z and a quaternion, w first."""
    return Rotation.from_quat(pose[[4, 5, 6, 3]])
