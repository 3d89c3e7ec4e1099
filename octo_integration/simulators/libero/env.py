"""LIBERO as this project's models see it: two images, the pose of the hand, an instruction, a 7-d action.

Images are those of the official data (modified_libero_rlds), which are mirrored. The package's own off-screen images
begin with OpenGL's bottom row: they are upside down. The official data hold them turned by 180 degrees, and that of
an image upside down is the upright one with left and right exchanged. A policy learns to act on what it sees, so that
is what is returned here, of both cameras.
"""

import functools

import numpy as np

from octo_integration.simulators.libero.control import Controller
from octo_integration.simulators.libero.expert import Expert
from octo_integration.simulators.libero.expert.scene import Scene
from octo_integration.simulators.libero.looks import Looks, place, sensed
from octo_integration.simulators.libero.package import build, seeded
from octo_integration.simulators.libero.shifts import Shift
from octo_integration.simulators.libero.suites import TASKS
from octo_integration.simulators.protocol import Environment, Observation
from octo_integration.simulators.renderer import Renderer, import_mujoco

ACTION_SIZE = 7
OPEN, CLOSED = 1.0, 0.0  # of the gripper, in standardised episodes
STILL = (0.0,) * 6 + (OPEN,)
CAMERAS = {"primary": "agentview", "wrist": "robot0_eye_in_hand"}
COLLISION_GROUP = 0
FIXTURE_SEED = 0  # of where fixtures stand: recorded initial states do not say
SETTLING_STEPS = 10
DRAWS = 100  # of placements, some of which do not fit


class LiberoEnv(Environment):
    """One task of LIBERO or LIBERO-PRO.

    Building one takes seconds: reuse it. Close it, or use it as a context manager.
    An observation is {"image_primary", "image_wrist": uint8[S, S, 3], "proprio": f32[8]}; proprio is the hand's x, y, z
    in metres, its orientation as axis times angle, and the positions of the two fingers.
    """

    def __init__(self, task: str, *, image_size: int = 128) -> None:
        """Builds the scene.

        Args:
          task: key of `suites.TASKS`.
          image_size: height and width of the images in pixels.

        Raises:
          ValueError: unknown task.
          SimulatorMissing, RenderingUnavailable: a library is missing; the message says which.
        """
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; octo_integration/simulators/libero/suites.py lists them.")
        self._mujoco = import_mujoco()
        self._env, self._words, self._recorded = build(task)
        self._robot = self._env.robots[0]
        self._model, self._data = self._env.sim.model._model, self._env.sim.data._data
        self._controller = Controller(self._env)
        self._cameras = {name: self._model.camera(camera).id for name, camera in CAMERAS.items()}
        self._image_size = image_size
        self._started = False
        self._shift = Shift()
        self._things: list[np.ndarray] = []
        self._looks = Looks(self._model, self._cameras["primary"], self._data.site_xpos[self._robot.eef_site_id])
        self._scene = Scene(self._env)
        self._expert: Expert | None = None

    @functools.cached_property
    def _renderer(self) -> Renderer:
        """Takes 2 s, which those who only move the robot need not wait."""
        camera = self._cameras["primary"]
        # Without reflections the stove is black; LIBERO's lamps cast no shadows.
        return Renderer(self._model, self._image_size, camera, hidden_groups=[COLLISION_GROUP], reflections=True)

    @property
    def instruction(self) -> str:
        """What to do, in words."""
        return self._words

    def set_shift(self, shift: Shift) -> None:
        """Changes looks from the next image on, and the robot's start from the next reset on."""
        self._shift = shift
        self._looks.apply(shift, self._renderer)
        self._mujoco.mj_camlight(self._model, self._data)

    def reset(self, seed: int) -> Observation:
        """Starts an episode with things and fixtures where LIBERO's own samplers put them, drawn from `seed`."""
        self.begin(seed)
        return self.look()

    def reset_to(self, index: int) -> Observation:
        """Starts an episode from a recorded initial state, with the fixtures where they always are then.

        Raises:
          ValueError: there is none of that number.
        """
        self.begin_at(index)
        return self.look()

    def begin(self, seed: int) -> None:
        """`reset`, without a look."""
        self._place(seed)
        self._shift_start()
        self._settle()
        self._remember_things()

    def begin_at(self, index: int) -> None:
        """`reset_to`, without a look."""
        if not 0 <= index < len(self._recorded):
            raise ValueError(f"the task has {len(self._recorded)} recorded initial states; got number {index}.")
        self._place(FIXTURE_SEED)
        self._env.sim.set_state_from_flattened(self._recorded[index])
        self._shift_start()
        self._settle(steps=0)
        self._remember_things()

    def advance(self, action: np.ndarray) -> bool:
        """Carries out f32[7]: x, y, z, axis times angle in [-1, 1], gripper 1 (open) or 0 (closed).

        Returns:
          Whether LIBERO calls the task done at this moment.

        Raises:
          ValueError: not seven finite numbers.
          RuntimeError: before `reset`.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (ACTION_SIZE,) or not np.isfinite(action).all():
            raise ValueError(f"an action is {ACTION_SIZE} finite numbers; got {action}.")
        self._check_started()
        # robosuite: -1 opens, 1 closes.
        self._control(np.append(action[:6], CLOSED + OPEN - 2 * action[6]))
        return bool(self._env._check_success())

    def expert_action(self) -> np.ndarray:
        """What our script does now: f32[7].

        Raises:
          RuntimeError: before `reset`.
        """
        self._check_started()
        if self._expert is None:
            self._expert = Expert(self._env, self._scene)
        return self._expert.action()

    def snapshot(self) -> np.ndarray:
        """The state of the physics, for `look_again` until the next reset."""
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(self._mujoco.mj_stateSize(self._model, kind))
        self._mujoco.mj_getState(self._model, self._data, state, kind)
        return state

    def look_again(self, snapshot: np.ndarray) -> Observation:
        """Puts back a state of this episode, and what is seen then; do not step from it."""
        self._mujoco.mj_setState(self._model, self._data, snapshot, self._mujoco.mjtState.mjSTATE_INTEGRATION)
        self._settle(steps=0)
        return self.look()

    def look(self) -> Observation:
        """What is seen now."""
        geoms, images = place(self._shift.distractors, self._things), {}
        moment = round(self._data.time / self._model.opt.timestep)
        for name, camera in self._cameras.items():
            image = self._renderer.render(self._data, geoms, camera)[:, ::-1]
            images[f"image_{name}"] = sensed(np.ascontiguousarray(image), self._shift, moment, camera)
        joints = self._data.qpos[self._robot._ref_joint_pos_indexes].astype(np.float32)
        return {**images, "proprio": self.proprio(), "joints": joints}

    def proprio(self) -> np.ndarray:
        """f32[8]: position, axis times angle, fingers."""
        from robosuite.utils.transform_utils import convert_quat, quat2axisangle

        hand = self._robot.robot_model.eef_name
        turn = quat2axisangle(convert_quat(np.array(self._data.body(hand).xquat), to="xyzw"))
        fingers = self._data.qpos[self._robot._ref_gripper_joint_pos_indexes]
        position = self._data.site_xpos[self._robot.eef_site_id]
        return np.concatenate([position, turn, fingers]).astype(np.float32)

    def close(self) -> None:
        """Frees the renderer and the scene."""
        if "_renderer" in self.__dict__:
            self._renderer.close()
        self._env.close()

    def _check_started(self) -> None:
        if not self._started:
            raise RuntimeError("call reset(seed) before the first step.")

    def _place(self, seed: int) -> None:
        """Everything where the package's samplers put it, the robot in its first pose; a model once built is kept."""
        from robosuite.utils.errors import RandomizationError

        with seeded(seed):
            for _ in range(DRAWS):
                try:
                    self._env.reset()
                    break
                except RandomizationError:  # they overlap
                    continue
            else:
                raise RuntimeError(f"LIBERO found no place for everything in {DRAWS} draws.")
        # The package goes on closing, or opening, where the last episode ended.
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)
        self._started, self._expert = True, None

    def _shift_start(self) -> None:
        """Turns the robot's joints, and makes that the pose which it holds."""
        if self._shift.start:
            self._data.qpos[self._robot._ref_joint_pos_indexes] += self._shift.start
            self._robot.controller.update(force=True)
            self._robot.controller.reset_goal()

    def _remember_things(self) -> None:
        self._things = [self._scene.thing(name) for name in self._env.objects_dict]

    def _settle(self, steps: int = SETTLING_STEPS) -> None:
        self._mujoco.mj_forward(self._model, self._data)
        for _ in range(steps):
            self._control(np.append(np.zeros(6), -1.0))
        self._env._post_process()

    def _control(self, action: np.ndarray) -> None:
        self._controller.step(action)
        self._env._post_process()
