"""Meta-World as this project's models see it: one small image, the hand's position, an instruction, a 4-d action.

One step here holds its action for ACTION_REPEAT steps of Meta-World: a frame costs ten times a step of physics, and
an episode then takes 15-50 steps.
"""

import colorsys
import dataclasses
import warnings
from typing import Any, NamedTuple

import numpy as np

from octo_integration.simulators.metaworld.goals import (
    X_RANGE,
    ColoredShape,
    Scene,
    approach,
    draw_scene,
    geom,
    is_reached,
    place,
)
from octo_integration.simulators.metaworld.looks import CAMERA, FIELD_OF_VIEW, Looks
from octo_integration.simulators.metaworld.shifts import LAYOUTS, Shift, hue_name
from octo_integration.simulators.metaworld.tasks import get_task
from octo_integration.simulators.protocol import Environment, Observation
from octo_integration.simulators.renderer import Renderer, SimulatorMissing, import_mujoco
from octo_integration.simulators.seeds import seed_of

ACTION_REPEAT = 2
ACTION_SIZE = 4
MIN_EXTENT = 0.01  # metres; some of Meta-World's axes vary by 2 mm
FIRST_AXIS = {"reach-v3": 3, "reach-wall-v3": 3}  # of the goal; their puck is scenery
# The same as faucet-open's: the place of the faucet must not tell which of the two tasks it is.
X_OF_TWINS = {"faucet-close-v3": (-0.05, 0.05)}


class Positions(NamedTuple):
    """Where things are, in metres: f32[3] each."""

    hand: np.ndarray
    object: np.ndarray
    goal: np.ndarray


class MetaWorldEnv(Environment):
    """One task of Meta-World with its scripted expert.

    Building one takes 0.2 s and resetting it 10 ms: reuse it. Close it, or use it as a context manager.
    An observation is {"image_primary": uint8[H, W, 3], "proprio": f32[4]}; proprio is the hand's x, y, z in metres and
    how far the gripper is open, 0..1.
    """

    def __init__(self, task: str, *, image_size: int = 64, shift: Shift | None = None) -> None:
        """Builds the scene.

        Args:
          task: key of `tasks.TASKS`.
          image_size: height and width of the images in pixels.
          shift: looks that differ from Meta-World's.

        Raises:
          ValueError: unknown task.
          SimulatorMissing, RenderingUnavailable: a library is missing; the message says which.
        """
        self._task = get_task(task)
        self._mujoco = import_mujoco()
        self._env, self._policy_class = _build(self._task.environment)
        self._model, self._data = self._env.model, self._env.data
        self._looks = Looks(self._model, hide_marker=not self._task.marker, hide_object=self._task.has_goals)
        self._camera = self._model.camera(CAMERA).id
        self._renderer = Renderer(self._model, image_size, self._camera)
        self._space = self._env._random_reset_space
        self._low, self._high = self._space.low.copy(), self._space.high.copy()
        if self._task.environment in X_OF_TWINS:
            self._low[0], self._high[0] = X_OF_TWINS[self._task.environment]
        self._first_axis = FIRST_AXIS.get(self._task.environment, 0)
        self._shift = Shift()
        self._scene = Scene((), 0)
        self._start = np.zeros(3)
        self._footprints: list[tuple[np.ndarray, np.ndarray]] = []
        self._state: np.ndarray | None = None
        self.set_shift(shift or Shift())

    @property
    def instruction(self) -> str:
        """What to do, in words."""
        words = self._task.wording(self._shift.wording, self._shift.paraphrase)
        return words.replace("{goal}", self.shapes()[self._scene.goal].name) if self._task.has_goals else words

    def set_shift(self, shift: Shift) -> None:
        """Changes looks and words from the next image on, and layouts from the next `reset` on."""
        self._shift = shift
        self._looks.apply(shift, self._renderer)
        self._mujoco.mj_camlight(self._model, self._data)

    def reset(self, seed: int) -> Observation:
        """Starts an episode whose initial state depends on `seed` alone."""
        self._env.seed(seed)
        layout = LAYOUTS[self._shift.layout]
        restrict(self._space, self._low, self._high, layout, self._first_axis)
        self._env.reset()
        # Meta-World leaves bodies where the last episode had them until the first step of physics.
        self._mujoco.mj_forward(self._model, self._data)
        self._state = self._env._get_obs()
        self._policy = self._policy_class()
        if self._task.has_goals:
            low, high = (X_RANGE[0] + share * (X_RANGE[1] - X_RANGE[0]) for share in layout)
            rng = np.random.default_rng(seed_of(seed, "goals"))
            self._scene = draw_scene(rng, self._shift.goals, (low, high))
        self._start = self.positions().object
        self._footprints = [] if self._task.has_goals else self._looks.footprints(self._data)
        return self.look()

    def set_goal(self, number: int) -> None:
        """Makes another of `shapes` the goal, until the next `reset`."""
        self._scene = self._scene._replace(goal=number)

    def shapes(self) -> tuple[ColoredShape, ...]:
        """The coloured shapes on the table, as they look now: none in Meta-World's own tasks."""
        shapes, goal = self._scene
        color = self._shift.color
        if color is None or not shapes:
            return shapes
        rgb = colorsys.hsv_to_rgb(color.hue, color.saturation, 0.9)
        painted = dataclasses.replace(shapes[goal], color=hue_name(color.hue), rgb=rgb)
        return (*shapes[:goal], painted, *shapes[goal + 1 :])

    def advance(self, action: np.ndarray) -> bool:
        """Carries out f32[4] in [-1, 1]: hand movement (1 is a centimetre per Meta-World step), closing of the gripper.

        Returns:
          Whether Meta-World calls the task done at this moment, or the hand is above the goal of the task `point`.

        Raises:
          ValueError: not four finite numbers.
          RuntimeError: before `reset`.
        """
        action = np.asarray(action, np.float32)
        if action.shape != (ACTION_SIZE,) or not np.isfinite(action).all():
            raise ValueError(f"an action is {ACTION_SIZE} finite numbers; got {action}.")
        self._started()
        success = False
        for _ in range(ACTION_REPEAT):
            self._state, _, _, _, info = self._env.step(action.clip(-1, 1))
            done = bool(info["success"])
            if self._task.has_goals:
                done = is_reached(*self.positions()[::2])
            success = success or done
        return success

    def expert_action(self) -> np.ndarray:
        """What the script for this task, Meta-World's or ours, does now: f32[4] in [-1, 1].

        Raises:
          RuntimeError: before `reset`.
        """
        state = self._started()
        if self._task.has_goals:
            return approach(*self.positions()[::2])
        with warnings.catch_warnings():
            # The scripts ask for more than the environment allows and warn about it every time.
            warnings.simplefilter("ignore")
            action = self._policy.get_action(state)
        return np.asarray(action, np.float32).clip(-1, 1)

    def snapshot(self) -> np.ndarray:
        """The state of the physics, for `restore` until the next `reset`."""
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(self._mujoco.mj_stateSize(self._model, kind))
        self._mujoco.mj_getState(self._model, self._data, state, kind)
        return state

    def restore(self, snapshot: np.ndarray) -> None:
        """Puts back a state of this episode, to look at it again; do not step from it."""
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._mujoco.mj_setState(self._model, self._data, snapshot, kind)
        self._mujoco.mj_forward(self._model, self._data)

    def render(self) -> np.ndarray:
        """The scene as it is now: uint8[H, W, 3], upright."""
        # Physics moves goal markers that Meta-World keeps in Python.
        for name, position in self._env._target_site_config:
            self._env._set_pos_site(name, position)
        others = [shape for number, shape in enumerate(self._scene.shapes) if number != self._scene.goal]
        distractors = place(self._shift.distractors, self._start, others, self._footprints)
        return self._renderer.render(self._data, map(geom, (*self.shapes(), *distractors)))

    def look(self) -> Observation:
        """What is seen now."""
        return {"image_primary": self.render(), "proprio": self._started()[:4].astype(np.float32)}

    def look_again(self, snapshot: np.ndarray) -> Observation:
        """`restore`, and what the camera sees."""
        self.restore(snapshot)
        return {"image_primary": self.render()}

    def positions(self) -> Positions:
        """Where hand, object and goal are; object and goal are the same shape in the task `point`."""
        env = self._env
        found = [env.get_endeff_pos(), env._get_pos_objects()[:3], env._target_pos]
        if self._scene.shapes:
            found[1:] = 2 * [self._scene.shapes[self._scene.goal].position]
        return Positions(*(np.array(position, np.float32) for position in found))

    def opening(self) -> float:
        """How far the gripper is open, 0..1."""
        return float(self._started()[3])

    def project(self, position: np.ndarray) -> np.ndarray:
        """Where a point (f32[3], metres) appears: f32[2], column and row as fractions of the image, clipped to 0..1."""
        axes = self._data.cam_xmat[self._camera].reshape(3, 3)
        x, y, z = axes.T @ (position - self._data.cam_xpos[self._camera])
        half = np.tan(np.radians(FIELD_OF_VIEW) / 2)
        uv = 0.5 + 0.5 * np.array([x, -y]) / (-z * half)
        return np.asarray(uv.clip(0, 1), np.float32)

    def close(self) -> None:
        """Frees the renderer and the scene."""
        self._renderer.close()
        self._env.close()

    def _started(self) -> np.ndarray:
        if self._state is None:
            raise RuntimeError("call reset(seed) before the first step.")
        return self._state


def restrict(space: Any, low: np.ndarray, high: np.ndarray, layout: tuple[float, float], first: int = 0) -> None:
    """Narrows a space of initial states to a share of the first axis, from number `first` on, along which it varies.

    Args:
      space: gymnasium.spaces.Box, changed in place; low, high: its bounds before that.
      layout: the share, from and to, 0..1.
    """
    space.low[:], space.high[:] = low, high
    axis = first + int(np.argmax((high - low)[first:] > MIN_EXTENT))
    space.low[axis], space.high[axis] = (low[axis] + share * (high[axis] - low[axis]) for share in layout)


def _build(name: str) -> tuple[Any, Any]:
    """Meta-World's environment with its goal in the state (its experts need it), and its expert's class."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ModuleNotFoundError as error:
        raise SimulatorMissing(error.name) from None
    env = ALL_V3_ENVIRONMENTS[name]()
    # What Meta-World's benchmark wrappers do through a pickled task: free, seeded, fully observed.
    env._partially_observable = False
    del env.sawyer_observation_space
    env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
    env.max_path_length = np.iinfo(np.int64).max
    return env, ENV_POLICY_MAP[name]
