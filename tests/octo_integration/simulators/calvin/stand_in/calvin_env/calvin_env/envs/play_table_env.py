"""What the adapter touches of CALVIN's environment, with its names and shapes, over a table without physics.

The hand is where it is told to be. Blocks that closed fingers hold go with it, and fall at once when these open. A
button is pressed from above, a drawer is pulled and pushed at its handle.
"""

from typing import Any

import numpy as np

TABLE, ROBOT = 10, 20  # body ids
BASE, PLANK = -1, 7  # links of the table


class Camera:
    def __init__(self, env: "PlayTableSimEnv", name: str, width: int, height: int) -> None:
        self.env, self.name, self.width, self.height = env, name, width, height

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        rgb = np.full((self.height, self.width, 3), 100 if self.name == "static" else 50, np.uint8)
        rgb[: max(1, int(self.height * self.env.robot.tcp[2]))] = 200
        return rgb, np.zeros((self.height, self.width))


class Robot:
    gripper_action: Any = 1

    def reset(self, robot_obs: np.ndarray) -> None:
        self.tcp = np.array(robot_obs[:6])
        self.target_pos, self.target_orn = self.tcp[:3].copy(), self.tcp[3:].copy()
        self.joints, self.width = robot_obs[7:14], robot_obs[6]

    def apply_action(self, action: np.ndarray) -> None:
        assert len(action) == 7 and action[6] in (-1, 1)
        self.target_pos = self.target_pos + 0.02 * action[:3]
        self.target_orn = self.target_orn + 0.05 * action[3:6]
        self.gripper_action = action[6]
        self.tcp = np.concatenate([self.target_pos, self.target_orn])
        self.width = 0.08 if action[6] > 0 else 0.0

    def get_observation(self) -> tuple[np.ndarray, dict[str, Any]]:
        state = np.array([*self.tcp, self.width, *self.joints, self.gripper_action])
        return state, {"uid": ROBOT, "contacts": ()}


class Scene:
    def __init__(self, cfg: Any) -> None:
        self.names = list(cfg.objects.movable_objects)
        self.button_x, self.drawer_x = cfg.button_x, cfg.drawer_x
        self.held = ""

    def reset(self, scene_obs: np.ndarray) -> None:
        self.joints = np.array(scene_obs[:6])
        self.blocks = dict(zip(self.names, np.reshape(scene_obs[6:], (3, 6)).copy()))
        self.held, self.pressed = "", False

    def step(self, robot: Robot) -> None:
        x, y, z = robot.tcp[:3]
        closed = robot.gripper_action < 0
        pressed = closed and abs(x - self.button_x) < 0.03 and abs(y + 0.12) < 0.03 and z < 0.46
        if pressed and not self.pressed:
            self.joints[5] = 1 - self.joints[5]
        self.pressed = pressed
        handle = -0.25 - self.joints[1]
        if closed and abs(x - self.drawer_x) < 0.1 and abs(z - 0.36) < 0.03 and abs(y - handle) < 0.04:
            behind = y > handle - 0.01
            moved = -0.25 - (y - 0.04) if behind else -0.25 - (y + 0.04)
            self.joints[1] = min(max(moved, self.joints[1]) if behind else min(moved, self.joints[1]), 0.22)
            self.joints[1] = max(self.joints[1], 0.0)
        for name, pose in self.blocks.items():
            if closed and not self.held and np.linalg.norm(pose[:3] - robot.tcp[:3]) < 0.02:
                self.held = name
            if name == self.held:
                if closed:
                    pose[:3] = robot.tcp[:3]
                else:
                    pose[2], self.held = 0.46, ""

    def get_obs(self) -> np.ndarray:
        return np.concatenate([self.joints, *self.blocks.values()])

    def get_info(self) -> dict[str, Any]:
        blocks = {}
        for number, (name, pose) in enumerate(self.blocks.items()):
            touched = ROBOT if name == self.held else TABLE
            contact = (0, number, touched, -1, PLANK if pose[1] > 0.02 else BASE)
            blocks[name] = {"current_pos": tuple(pose[:3]), "contacts": [contact], "uid": number}
        return {
            "movable_objects": blocks,
            "fixed_objects": {"table": {"uid": TABLE, "links": {"base_link": BASE, "plank_link": PLANK}}},
            "doors": {
                "base__slide": {"current_state": self.joints[0]},
                "base__drawer": {"current_state": self.joints[1]},
            },
            "lights": {"lightbulb": {"logical_state": self.joints[4]}, "led": {"logical_state": self.joints[5]}},
        }


class PlayTableSimEnv:
    def __init__(
        self,
        robot_cfg: Any,
        seed: int,
        use_vr: bool,
        bullet_time_step: float,
        cameras: Any,
        show_gui: bool,
        scene_cfg: Any,
        use_scene_info: bool,
        use_egl: bool,
        control_freq: int = 30,
    ) -> None:
        print("what a simulator prints")
        assert use_scene_info and not use_egl and not show_gui and robot_cfg.filename.endswith("finger.urdf")
        self.robot, self.scene = Robot(), Scene(scene_cfg)
        self.cameras = [Camera(self, name, cfg.width, cfg.height) for name, cfg in cameras.items()]

    def reset(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> dict[str, Any]:
        self.scene.reset(scene_obs)
        self.robot.reset(robot_obs)
        return self.get_obs()

    def step(self, action: np.ndarray) -> tuple[Any, int, bool, dict[str, Any]]:
        self.robot.apply_action(action)
        self.scene.step(self.robot)
        return self.get_obs(), 0, False, self.get_info()

    def get_obs(self) -> dict[str, Any]:
        return {"rgb_obs": {f"rgb_{c.name}": c.render()[0] for c in self.cameras}, **self.get_state_obs()}

    def get_state_obs(self) -> dict[str, Any]:
        return {"robot_obs": self.robot.get_observation()[0], "scene_obs": self.scene.get_obs()}

    def get_info(self) -> dict[str, Any]:
        return {"robot_info": self.robot.get_observation()[1], "scene_info": self.scene.get_info()}
