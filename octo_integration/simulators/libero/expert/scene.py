"""What the expert knows: where the hand is, where things are and what space they take."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from octo_integration.simulators.renderer import import_mujoco

GRID = 5  # points across a round thing
APART = 0.015  # metres at most between points of a box: a finger is no thinner
HAND = 0.1  # half width of the hand
UP = np.array([0.0, 0.0, 1.0])


class Scene:
    """Reads one environment's physics; lengths are metres."""

    def __init__(self, env: Any) -> None:
        """`env`: the package's environment."""
        self._mujoco = import_mujoco()
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self._hand = env.robots[0].eef_site_id
        model = self.model
        self._names = {model.body(number).name: number for number in range(model.nbody)}
        # Tables and walls are not among them.
        roots = {number for name, number in self._names.items() if name.endswith("_main")}
        self._things = {body for body in range(model.nbody) if int(model.body_rootid[body]) in roots}
        self._sites = {model.site(number).name: number for number in range(model.nsite)}
        solid = map(int, np.flatnonzero(model.geom_contype))
        self._clouds = [(int(model.geom_bodyid[geom]), geom, self._cloud(geom)) for geom in solid]
        self._trees: dict[int, set[int]] = {}

    def hand(self) -> np.ndarray:
        """Where the hand is, between its fingertips: f64[3]."""
        return self.data.site_xpos[self._hand].copy()

    def orientation(self) -> np.ndarray:
        """The hand's: f64[3, 3]; its z points out of it, its x from finger to finger."""
        return self.data.site_xmat[self._hand].reshape(3, 3).copy()

    def has(self, name: str) -> bool:
        """Whether a thing of that name has a body: regions have none."""
        return f"{name}_main" in self._names

    def body(self, name: str) -> int:
        """The number of the body of that name."""
        return self._names[name]

    def where(self, name: str) -> np.ndarray:
        """The origin of a thing's body, or the middle of a region: f64[3]."""
        if self.has(name):
            return self.data.xpos[self._names[f"{name}_main"]].copy()
        return self.data.site_xpos[self._sites[name]].copy()

    def extent(self, region: str) -> np.ndarray:
        """Half lengths of a region along its own axes: f64[3]."""
        return self.model.site_size[self._sites[region]].copy()

    def thing(self, name: str) -> np.ndarray:
        """Points on a thing: f64[N, 3]."""
        return self.points(self._tree(self._names[f"{name}_main"]))

    def part(self, body: str) -> np.ndarray:
        """Points on one body: f64[N, 3]."""
        return self.points({self._names[body]})

    def others(self, name: str) -> np.ndarray:
        """Points on all other things, which a hand must not meet that wants this one: f64[N, 3]."""
        return self.points(self._things - self._tree(self._names[f"{name}_main"]))

    def highest(self, name: str, goal: np.ndarray) -> float:
        """The height of what stands between the hand and a point, besides the thing that is wanted."""
        others, start = self.others(name), self.hand()[:2]
        way = goal[:2] - start
        share = np.clip((others[:, :2] - start) @ way / max(way @ way, 1e-9), 0, 1)
        beside = np.linalg.norm(others[:, :2] - start - share[:, None] * way, axis=1)
        return float(others[beside < HAND, 2].max(initial=0.0))

    def points(self, bodies: Collection[int]) -> np.ndarray:
        """Points on the solid parts of bodies: f64[N, 3]."""
        data = self.data
        found = [
            cloud @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
            for body, geom, cloud in self._clouds
            if body in bodies
        ]
        return np.concatenate(found) if found else np.zeros((0, 3))

    def joint(self, body: str) -> tuple[float, np.ndarray, np.ndarray]:
        """The position of a body's joint, its axis and a point on the axis."""
        number = self.model.body_jntadr[self._names[body]]
        position = self.data.qpos[self.model.jnt_qposadr[number]]
        return float(position), self.data.xaxis[number].copy(), self.data.xanchor[number].copy()

    def turn_to(self, rotation: np.ndarray) -> np.ndarray:
        """The turn that brings the hand to that orientation, axis times angle: f64[3]."""
        quaternion, turn = np.zeros(4), np.zeros(3)
        self._mujoco.mju_mat2Quat(quaternion, (rotation @ self.orientation().T).ravel())
        self._mujoco.mju_quat2Vel(turn, quaternion, 1.0)
        return turn

    def _tree(self, root: int) -> set[int]:
        if root not in self._trees:
            tree = {root}
            for body in range(root + 1, self.model.nbody):  # parents come first
                if int(self.model.body_parentid[body]) in tree:
                    tree.add(body)
            self._trees[root] = tree
        return self._trees[root]

    def _cloud(self, geom: int) -> np.ndarray:
        """Points of a geom in its own frame."""
        model, kinds = self.model, self._mujoco.mjtGeom
        kind, size = int(model.geom_type[geom]), model.geom_size[geom]
        if kind == kinds.mjGEOM_MESH:
            mesh = model.geom_dataid[geom]
            start = model.mesh_vertadr[mesh]
            return model.mesh_vert[start : start + model.mesh_vertnum[mesh]].astype(np.float64)
        if kind == kinds.mjGEOM_BOX:
            return _grid([np.linspace(-half, half, max(2, int(np.ceil(2 * half / APART)) + 1)) for half in size])
        grid = _grid([np.linspace(-1, 1, GRID)] * 3)
        if kind == kinds.mjGEOM_SPHERE:
            return grid[np.linalg.norm(grid, axis=1) <= 1] * size[0]
        grid = grid * [size[0], size[0], size[1]]
        return grid[np.hypot(grid[:, 0], grid[:, 1]) <= size[0] * 1.02]


def _grid(axes: Sequence[np.ndarray]) -> np.ndarray:
    """All points with these coordinates: f64[N, 3]."""
    return np.stack(np.meshgrid(*axes), -1).reshape(-1, 3)
