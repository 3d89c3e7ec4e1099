"""SimplerEnv itself, for `simulators/serve.py` in an interpreter that has it. Imports nothing else of ours."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from wire import Missing

PACKAGE = "ManiSkill2_real2sim"
CAMERA = "3rd_view_camera"
KINDS = ("obj", "dae", "glb")  # of files of a thing's looks
SUPERSAMPLING = 2
# How actions are meant: metres and radians that are added to where the hand is on its way to, as Bridge's are.
CONTROL = "arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos"


class Scene:
    """One task of the WidowX."""

    def __init__(self, root: str, task: str, image_size: int) -> None:
        """Builds it from the files of a checkout."""
        sys.path[:0] = [root, os.path.join(root, PACKAGE)]
        try:
            import mani_skill2_real2sim
            import simpler_env
            from mani_skill2_real2sim.utils.registration import REGISTERED_ENVS
        except ModuleNotFoundError as error:
            raise Missing(f"{error.name} for {sys.executable}") from None
        except ImportError as error:
            raise Missing(f"a library ({str(error).splitlines()[0]})") from None
        if not _draws():
            raise Missing("a Vulkan device that sapien can draw with")
        if task not in simpler_env.ENVIRONMENT_MAP:
            raise Missing(f"the task {task} in {root}")
        data = str(mani_skill2_real2sim.ASSET_DIR)
        name, options = simpler_env.ENVIRONMENT_MAP[task]
        made = REGISTERED_ENVS[name].cls

        class Sized(made):  # type: ignore[misc, valid-type]
            def _configure_cameras(self) -> None:
                super()._configure_cameras()
                camera = self._camera_cfgs[CAMERA]
                self._camera_cfgs.pop("base_camera")  # it would be drawn for nothing
                size = SUPERSAMPLING * image_size
                # Height and width each by its own factor: what others see is the whole picture made square, too.
                scale = np.array([[size / camera.width], [size / camera.height], [1.0]])
                camera.intrinsic, camera.width, camera.height = scale * camera.intrinsic, size, size
                camera.texture_names = ("Color",)

            def _load_arena_helper(self, *args: Any, **kwargs: Any) -> None:
                _needs(os.path.join(str(self.scene_root), "stages", f"{self.scene_name}.glb"))
                super()._load_arena_helper(*args, **kwargs)

            @staticmethod
            def _build_actor_helper(model_id: str, *args: Any, **kwargs: Any) -> Any:
                _needs(*(os.path.join(data, "custom", "models", model_id, f"textured.{kind}") for kind in KINDS))
                return made._build_actor_helper(model_id, *args, **kwargs)

        try:
            self._env = Sized(obs_mode="none", prepackaged_config=True, **options)
        except FileNotFoundError as error:
            raise Missing(str(error).split(" is not found")[0].replace("rgb_overlay_path ", "")) from None
        except RuntimeError as error:
            if not str(error).startswith("vk::"):
                raise
            raise Missing(f"a Vulkan device that sapien can draw with ({str(error).splitlines()[0]})") from None
        if self._env.control_mode != CONTROL:
            raise ValueError(f"{task} is moved by {self._env.control_mode}, not {CONTROL}")
        self.about = {
            "instruction": str(self._env.get_language_instruction()),
            "places": np.array(self._env._xy_configs, np.float64),
            "turns": np.array(self._env._quat_configs, np.float64),
        }

    def start(self, places: np.ndarray, turns: np.ndarray, number: int) -> dict[str, Any]:
        """Starts one of the episodes that there are of these: places outer, turns inner."""
        self._env._xy_configs, self._env._quat_configs = places, turns
        self._env.reset(seed=0, options={"obj_init_options": {"episode_id": number}})
        return self._state(False)

    def step(self, action: np.ndarray) -> dict[str, Any]:
        """One action, and whether the task is done."""
        *_, info = self._env.step(np.array(action))
        return self._state(bool(info["success"]))

    def look(self) -> dict[str, Any]:
        """What the camera sees."""
        self._env._obs_mode = "image"
        try:
            seen = self._env.get_obs()["image"][CAMERA]["Color"][..., :3]
        finally:
            self._env._obs_mode = "none"  # a step would draw
        rows, columns, _ = seen.shape
        blocks = seen.reshape(rows // SUPERSAMPLING, SUPERSAMPLING, columns // SUPERSAMPLING, SUPERSAMPLING, 3)
        return {"image": (255 * blocks.mean((1, 3))).round().clip(0, 255).astype(np.uint8)}

    def _state(self, success: bool) -> dict[str, Any]:
        """Poses in the robot's frame: x, y, z and quaternion, w first."""
        env, agent = self._env, self._env.agent
        base = agent.robot.pose.inv()
        things = {"hand": env.tcp, "source": env.episode_source_obj, "target": env.episode_target_obj}
        poses = {name: base * thing.pose for name, thing in things.items()}
        return {
            **{name: np.concatenate([pose.p, pose.q]).astype(np.float64) for name, pose in poses.items()},
            "goal": np.array(agent.controller.get_state()["arm"]["target_pose"], np.float64),
            "opening": 1.0 - float(agent.get_gripper_closedness()),
            "success": success,
        }


def _draws() -> bool:
    """Whether there is a Vulkan device. Tried by another process: without one, sapien does not raise, it crashes."""
    process = os.fork()
    if process == 0:
        try:
            import sapien.core as sapien

            engine, renderer = sapien.Engine(), sapien.SapienRenderer(offscreen_only=True)
            engine.set_renderer(renderer)
            engine.create_scene().add_camera("", 8, 8, 1.0, 0.01, 10.0)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(process, 0)[1] == 0


def _needs(*files: str) -> None:
    """One of them."""
    if not any(map(os.path.isfile, files)):
        raise Missing(files[0] if len(files) == 1 else f"{os.path.dirname(files[0])}/textured.dae")


build = Scene
