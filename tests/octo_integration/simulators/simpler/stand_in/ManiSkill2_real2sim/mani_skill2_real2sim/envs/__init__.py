"""What the adapter touches of SimplerEnv's WidowX tasks, with their names and shapes, over a table without physics.

The hand is where it is told to be. Closed fingers hold a thing that is between them, and drop it where they open.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import sapien.core as sapien
from scipy.spatial.transform import Rotation

from mani_skill2_real2sim import ASSET_DIR
from mani_skill2_real2sim.utils.registration import register

TABLE, CAMERA = 0.87, "3rd_view_camera"
BASE = sapien.Pose([0.147, 0.028, TABLE], [0, 0, 0, 1])
HAND = sapien.Pose([0.292, -0.006, 0.135], [0.687, 0.005, 0.727, -0.008])
INTRINSIC = [[623.588, 0, 319.501], [0, 623.588, 239.545], [0, 0, 1]]


class Camera(SimpleNamespace):
    uid: str
    width: int
    height: int
    intrinsic: np.ndarray
    texture_names: tuple[str, ...]


class Agent:
    control_mode = "arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos"

    def __init__(self) -> None:
        self.robot, self.goal, self.closed = SimpleNamespace(pose=BASE), HAND, False
        self.controller = self

    def get_state(self) -> dict[str, Any]:
        return {"arm": {"target_pose": np.hstack([self.goal.p, self.goal.q])}}

    def get_gripper_closedness(self) -> float:
        return 1.0 if self.closed else 0.0

    def move(self, action: np.ndarray) -> None:
        assert action.shape == (7,) and action[6] in (-1, 1)
        turn = Rotation.from_rotvec(action[3:6]) * Rotation.from_quat(self.goal.q[[1, 2, 3, 0]])
        self.goal = sapien.Pose(self.goal.p + action[:3], turn.as_quat()[[3, 0, 1, 2]])
        self.closed = action[6] < 0


class PutOnBridgeInSceneEnv:
    names: tuple[str, str]
    words: str
    turns: tuple[float, ...]
    halves: tuple[float, ...] = (0.075,)

    def __init__(self, obs_mode: str, prepackaged_config: bool) -> None:
        print("what a simulator prints")
        assert prepackaged_config
        overlay = ASSET_DIR / "real_inpainting/bridge_real_eval_1.png"
        if not overlay.exists():
            raise FileNotFoundError(f"rgb_overlay_path {overlay} is not found.If you installed this repo through ...")
        self._obs_mode, self.scene_name, self.scene_root = (
            obs_mode,
            "bridge_table_1_v1",
            ASSET_DIR / "hab2_bench_assets",
        )
        corners = [np.array([-0.16 + x * h, y * h]) for h in self.halves for x in (-1, 1) for y in (-1, 1)]
        squares = [corners[at : at + 4] for at in range(0, len(corners), 4)]
        self._xy_configs = [np.array([a, b]) for four in squares for a in four for b in four if a is not b]
        still = [1.0, 0, 0, 0]
        self._quat_configs = [np.array([[np.cos(t / 2), 0, 0, np.sin(t / 2)], still]) for t in self.turns]
        self._configure_cameras()
        self._camera_cfgs[CAMERA].texture_names += ("Segmentation",)
        self._load_arena_helper()
        for name in self.names:
            self._build_actor_helper(name, None)
        self.reset(seed=2022, options={})

    def _configure_cameras(self) -> None:
        camera = Camera(uid=CAMERA, width=640, height=480, intrinsic=np.array(INTRINSIC), texture_names=("Color", "P"))
        self._camera_cfgs = {"base_camera": None, CAMERA: camera}

    def _load_arena_helper(self, add_collision: bool = True) -> None:
        pass

    @staticmethod
    def _build_actor_helper(model_id: str, scene: Any) -> Any:
        return None

    @property
    def control_mode(self) -> str:
        return self.agent.control_mode

    @property
    def tcp(self) -> Any:
        return SimpleNamespace(pose=BASE * self.agent.goal)

    def get_language_instruction(self) -> str:
        return self.words

    def reset(self, seed: int, options: dict[str, Any]) -> Any:
        number = options.get("obj_init_options", {}).get("episode_id", 0)
        places = self._xy_configs[number // len(self._quat_configs)]
        turns = self._quat_configs[number % len(self._quat_configs)]
        things = [sapien.Pose([*place, TABLE + 0.015], turn) for place, turn in zip(places, turns)]
        self.episode_source_obj, self.episode_target_obj = (SimpleNamespace(pose=pose) for pose in things)
        self.agent, self.held = Agent(), False
        return self.get_obs(), {}

    def step(self, action: np.ndarray) -> Any:
        was_closed = self.agent.closed
        self.agent.move(action)
        thing, goal, hand = self.episode_source_obj, self.episode_target_obj.pose.p, self.tcp.pose
        if self.agent.closed and not was_closed:
            self.between = thing.pose.p - hand.p
            self.held = bool(np.linalg.norm(self.between) < 0.045)
        on = np.linalg.norm(thing.pose.p[:2] - goal[:2]) < 0.05
        if self.held:
            self.held = self.agent.closed
            x, y, z = hand.p + self.between
            thing.pose = sapien.Pose([x, y, z if self.held else TABLE + (0.04 if on else 0.015)], thing.pose.q)
        return self.get_obs(), 0.0, False, False, {"success": bool(on and not self.held)}

    def get_obs(self) -> dict[str, Any]:
        if self._obs_mode != "image":
            return {}
        cameras = {}
        for name, camera in self._camera_cfgs.items():
            # What a point shows tells which way the ray through it goes.
            (fx, _, cx), (_, fy, cy), _ = camera.intrinsic
            color = np.ones((camera.height, camera.width, 4), np.float32)
            color[..., 0] = 0.5 + (np.arange(camera.width)[None] + 0.5 - cx) / fx
            color[..., 1] = 0.5 + (np.arange(camera.height)[:, None] + 0.5 - cy) / fy
            color[..., 2] = self.agent.goal.p[2]
            cameras[name] = {"Color": color.clip(0, 1), "Segmentation": None}
        return {"image": cameras}


class PutSpoonOnTableClothInScene(PutOnBridgeInSceneEnv):
    names = ("bridge_spoon_generated_modified", "table_cloth_generated_shorter")
    words, turns = "put the spoon on the towel", (0.0, np.pi / 2)


class PutCarrotOnPlateInScene(PutOnBridgeInSceneEnv):
    names = ("bridge_carrot_generated_modified", "bridge_plate_objaverse_larger")
    words, turns = "put carrot on plate", (np.pi, -np.pi / 2)


class StackGreenCubeOnYellowCubeBakedTexInScene(PutOnBridgeInSceneEnv):
    names = ("baked_green_cube_3cm", "baked_yellow_cube_3cm")
    words, turns, halves = "stack the green block on the yellow block", (0.0,), (0.05, 0.1)


for _cls in (PutSpoonOnTableClothInScene, PutCarrotOnPlateInScene, StackGreenCubeOnYellowCubeBakedTexInScene):
    register(f"{_cls.__name__}-v0", _cls)
