"""A scripted expert: reads the goal of a task's scene file and does what is not done yet."""

from collections.abc import Callable
from typing import Any

import numpy as np

from octo_integration.simulators.libero.expert import skills
from octo_integration.simulators.libero.expert.scene import Scene
from octo_integration.simulators.libero.expert.skills import Moves

DRAWERS = ("top_region", "middle_region", "bottom_region")
PULLED = -0.1  # metres: a drawer beyond that is open


class Expert:
    """Plans and acts in one episode."""

    def __init__(self, env: Any, scene: Scene) -> None:
        """`env`: the package's environment, after a reset; `scene`: of the same."""
        self._env, self._scene = env, scene
        self._goals = env.parsed_problem["goal_state"]
        self._actions = self._act()

    def action(self) -> np.ndarray:
        """What to do now: f32[7] in [-1, 1], the gripper 1 (open) or 0 (closed)."""
        return next(self._actions).astype(np.float32)

    def _act(self) -> Moves:
        scene = self._scene
        while True:
            for predicate, *names in self._goals:
                if not self._env._eval_predicate([predicate, *names]):
                    yield from getattr(self, f"_{predicate}")(*names)
            yield from skills.stay(scene, scene.orientation(), skills.OPEN, 5)

    def _on(self, name: str, goal: str) -> Moves:
        scene = self._scene
        if "plate" in name and not scene.has(goal):
            yield from skills.slide(scene, name, scene.where(goal)[:2])
            return

        def above() -> np.ndarray:
            point = scene.where(goal)
            if scene.has(goal):
                point[2] = scene.thing(goal)[:, 2].max() - (0.012 if "plate" in goal else 0)
            return point

        yield from self._carry(name, above)

    def _in(self, name: str, region: str) -> Moves:
        scene = self._scene
        if region.endswith(DRAWERS):
            if scene.joint(_drawer(region))[0] > PULLED:
                yield from self._open(region)
            yield from self._carry(name, lambda: scene.where(region) - [0, 0, 0.03], lift=0.2, clear=0.1, drop=0.02)
            return
        owner = region.partition("_contain")[0]

        def above() -> np.ndarray:
            point = scene.where(region)
            if scene.has(owner):
                point[2] = scene.thing(owner)[:, 2].max()
            return point

        yield from self._carry(name, above, clear=0.05, drop=-0.03)

    def _carry(self, name: str, goal: Callable[[], np.ndarray], lift: float = 0.12, **height: float) -> Moves:
        yaw = yield from skills.pick(self._scene, name, goal(), lift)
        if yaw is not None:
            yield from skills.place(self._scene, name, yaw, goal, **height)

    def _open(self, region: str) -> Moves:
        yield from skills.pull_open(self._scene, _drawer(region))

    def _turnon(self, name: str) -> Moves:
        yield from skills.turn_on(self._scene, f"{name}_button")


def _drawer(region: str) -> str:
    """The body of a drawer: wooden_cabinet_1_top_region is inside wooden_cabinet_1_cabinet_top."""
    cabinet, level = region.removesuffix("_region").rsplit("_", 1)
    return f"{cabinet}_cabinet_{level}"
