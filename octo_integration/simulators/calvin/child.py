"""CALVIN itself, for `simulators/serve.py` in an interpreter that has it. Imports nothing else of ours; Python 3.8."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from wire import Missing

CONF = ("calvin_env", "conf")
WORDS = ("calvin_models", "conf", "annotations")


class Table:
    """One scene, and what a task is judged by."""

    def __init__(self, root: str, scene: str, image_size: int) -> None:
        """Builds it from the files of a checkout."""
        sys.path.insert(0, os.path.join(root, "calvin_env"))
        try:
            from calvin_env.envs.play_table_env import PlayTableSimEnv
            from calvin_env.envs.tasks import Tasks
            from omegaconf import OmegaConf
        except ModuleNotFoundError as error:
            raise Missing(f"{error.name} for {sys.executable}") from None

        def load(*path: str) -> Any:
            file = os.path.join(root, *path)
            if not os.path.isfile(file):
                raise Missing(file)
            return OmegaConf.load(file)

        cameras = {}
        for name in ("static", "gripper"):
            cameras[name] = load(*CONF, "cameras", "cameras", f"{name}.yaml")
            cameras[name].width = cameras[name].height = image_size
        settings = OmegaConf.create(
            {
                "robot": OmegaConf.merge(
                    *(load(*CONF, "robot", f"panda{kind}.yaml") for kind in ("", "_longer_finger"))
                ),
                "scene": load(*CONF, "scene", f"calvin_scene_{scene}.yaml"),
                "env": load(*CONF, "env", "play_table_env.yaml"),
                "cameras": cameras,
                "data_path": os.path.join(root, "calvin_env", "data"),
                "use_vr": False,
            }
        )
        OmegaConf.resolve(settings)
        table = os.path.join(settings.data_path, settings.scene.objects.fixed_objects.table.file)
        if not os.path.isfile(table):
            raise Missing(table)
        options = {name: value for name, value in settings.env.items() if not name.startswith("_")}
        try:
            self._env = PlayTableSimEnv(**{**options, "use_egl": False, "use_scene_info": True})
        except Exception as error:
            if type(error).__name__ == "InvalidGitRepositoryError":
                raise Missing(f"the git history of {root}/calvin_env, whose commit CALVIN reads") from None
            raise
        self._cameras, self._env.cameras = self._env.cameras, []  # a step would render them
        self._oracle = Tasks(load(*CONF, "tasks", "new_playtable_tasks.yaml").tasks)
        words = (OmegaConf.to_container(load(*WORDS, f"new_playtable{kind}.yaml")) for kind in ("", "_validation"))
        self.about = dict(zip(("training", "validation"), words), blocks=list(settings.scene.objects.movable_objects))
        self._task = ""
        self._start: dict[str, Any] = {}

    def reset(self, robot: np.ndarray, scene: np.ndarray) -> dict[str, Any]:
        """Starts an episode."""
        self._env.robot.gripper_action = int(robot[14])
        self._env.reset(robot_obs=robot, scene_obs=scene)
        return self.state()

    def begin(self, task: str) -> dict[str, Any]:
        """What is done from now on is judged as this task."""
        self._task, self._start = task, self._env.get_info() if task else {}
        return {}

    def step(self, action: np.ndarray) -> dict[str, Any]:
        """One action, and whether the task is done."""
        _, _, _, info = self._env.step(np.array(action))
        done = self._oracle.get_task_info_for_set(self._start, info, {self._task}) if self._task else ()
        return {**self.state(), "done": len(done) > 0}

    def state(self) -> dict[str, Any]:
        """The robot, the scene, and the pose that the robot is told to take."""
        observation = self._env.get_state_obs()
        target = np.concatenate([self._env.robot.target_pos, self._env.robot.target_orn])
        return {"robot": observation["robot_obs"], "scene": observation["scene_obs"], "target": target}

    def look(self) -> dict[str, Any]:
        """What the cameras see."""
        return {camera.name: np.asarray(camera.render()[0], np.uint8) for camera in self._cameras}


build = Table
