"""Gives a compiled Meta-World model the looks of a `Shift`, in memory only, and takes them back."""

import colorsys
from typing import Any

import numpy as np

from octo_integration.simulators.appearance import Camera, Light, Texture, pixels, stretch, tile
from octo_integration.simulators.metaworld.shifts import Color, Shift
from octo_integration.simulators.renderer import Renderer

CAMERA = "corner2"
WORKSPACE = np.array([0.0, 0.68, 0.12])  # metres; what the camera looks at
FIELD_OF_VIEW = 32.0  # degrees; Meta-World's own 60 leaves the goal a single pixel of 64
GOAL_RADIUS = 0.03  # metres; Meta-World's 0.02 is a pixel wide
SCENERY = (
    "world",
    "tablelink",
    "RetainingWall",
    "base",
    "mocap",
)  # roots that are not the task's object
COLLISION_GROUP = 3  # geoms and sites of this group and above are not drawn
LOW = 0.05  # metres: what begins above it stands in nothing's way


class Looks:
    """The looks of one model. Physics is not touched: geometry, masses and contacts stay as they are."""

    def __init__(self, model: Any, *, hide_marker: bool = False, hide_object: bool = False) -> None:
        """Sets the camera and the goal's size, and remembers the looks to come back to.

        Args:
          model: mujoco.MjModel of a Meta-World environment, unchanged so far.
          hide_marker, hide_object: whether the goal's marker and the task's object stay invisible.
        """
        self._model = model
        self._camera = model.camera(CAMERA).id
        self._home = model.cam_pos[self._camera].copy()
        model.cam_fovy[self._camera] = FIELD_OF_VIEW
        model.cam_quat[self._camera] = _look_at(self._home)
        for site in range(model.nsite):
            if "goal" in model.site(site).name:
                model.site_size[site] = GOAL_RADIUS
                if hide_marker:
                    model.site_group[site] = COLLISION_GROUP
        self._objects = _object_geoms(model)
        if hide_object:
            model.geom_group[self._objects] = COLLISION_GROUP
        self._textures = {name: model.texture(name).id for name in ("T_table", "T_floor")}
        headlight = model.vis.headlight
        self._pristine = {
            "light_diffuse": model.light_diffuse.copy(),
            "headlight": (headlight.ambient.copy(), headlight.diffuse.copy()),
            "geom_rgba": model.geom_rgba.copy(),
            "geom_matid": model.geom_matid.copy(),
            "textures": {i: pixels(model, i).copy() for i in self._textures.values()},
        }
        self._texture: Texture | None = None

    def apply(self, shift: Shift, renderer: Renderer) -> None:
        """Makes the model look like `shift` and like nothing before it."""
        self._apply_texture(shift.texture, renderer)
        self._apply_light(shift.light or Light(1.0, (1.0, 1.0, 1.0), 0.0))
        self._apply_camera(shift.camera or Camera(0.0, 0.0, 1.0))
        self._apply_color(shift.color)

    def footprints(self, data: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        """What the parts of the task's object cover of the table: rectangles, f64[2] and f64[2], metres."""
        found = []
        for geom in self._objects:
            center, half = self._model.geom_aabb[geom].reshape(2, 3)
            axes = data.geom_xmat[geom].reshape(3, 3)
            middle, extent = data.geom_xpos[geom] + axes @ center, np.abs(axes) @ half
            if middle[2] - extent[2] < LOW:
                found.append(((middle - extent)[:2], (middle + extent)[:2]))
        return found

    def _apply_texture(self, texture: Texture | None, renderer: Renderer) -> None:
        if texture == self._texture:
            return
        for name, number in self._textures.items():
            surface = pixels(self._model, number)
            if texture is None:
                surface[:] = self._pristine["textures"][number]
            else:
                drawn = _table_tile(texture) if name == "T_table" else _floor_tile(texture)
                surface[:] = stretch(drawn, surface.shape)
            renderer.upload_texture(number)
        self._texture = texture

    def _apply_light(self, light: Light) -> None:
        gain = light.intensity * np.array(light.tint)
        # Meta-World's first two lamps stand left and right of the table, the third behind it.
        sides = np.array([1 + light.side, 1 - light.side, 1.0])
        self._model.light_diffuse[:] = self._pristine["light_diffuse"] * gain * sides[:, None]
        headlight = self._model.vis.headlight
        headlight.ambient[:], headlight.diffuse[:] = (value * gain for value in self._pristine["headlight"])

    def _apply_camera(self, camera: Camera) -> None:
        offset = self._home - WORKSPACE
        radius = np.linalg.norm(offset) * camera.distance
        azimuth = np.arctan2(offset[1], offset[0]) + np.radians(camera.azimuth)
        elevation = np.arcsin(offset[2] / np.linalg.norm(offset)) + np.radians(camera.elevation)
        flat = np.cos(elevation)
        direction = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
        position = WORKSPACE + radius * direction
        self._model.cam_pos[self._camera] = position
        self._model.cam_quat[self._camera] = _look_at(position)

    def _apply_color(self, color: Color | None) -> None:
        model = self._model
        model.geom_rgba[:] = self._pristine["geom_rgba"]
        model.geom_matid[:] = self._pristine["geom_matid"]
        if color is None:
            return
        for geom in self._objects:
            material = model.geom_matid[geom]
            own = model.geom_rgba[geom] if material < 0 else model.mat_rgba[material]
            # Dark parts would show no hue at all.
            value = 0.45 + 0.5 * float(own[:3].max())
            model.geom_rgba[geom, :3] = colorsys.hsv_to_rgb(color.hue, color.saturation, value)
            model.geom_rgba[geom, 3] = own[3]
            model.geom_matid[geom] = -1


def _table_tile(texture: Texture) -> np.ndarray:
    return tile(texture.pattern, texture.table, texture)


def _floor_tile(texture: Texture) -> np.ndarray:
    # The floor repeats its tile a dozen times: a gradient there would be (held-out) stripes.
    pattern = "plain" if texture.pattern == "gradient" else texture.pattern
    return tile(pattern, texture.floor, texture)


def _object_geoms(model: Any) -> list[int]:
    """The geoms of the task's object that are drawn."""
    roots = [model.body(model.body_rootid[body]).name for body in model.geom_bodyid]
    return [geom for geom, root in enumerate(roots) if root not in SCENERY and model.geom_group[geom] < COLLISION_GROUP]


def _look_at(position: np.ndarray) -> np.ndarray:
    """Orientation (w, x, y, z) of a camera at `position` that sees WORKSPACE in the middle, upright.

    MuJoCo's cameras look along -z with y up.
    """
    z = (position - WORKSPACE) / np.linalg.norm(position - WORKSPACE)
    x = np.cross((0.0, 0.0, 1.0), z)
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    # Rotation matrix -> quaternion; w > 0 for every camera above the table and in front of it.
    w = 0.5 * np.sqrt(1 + x[0] + y[1] + z[2])
    return np.array([w, (y[2] - z[1]) / (4 * w), (z[0] - x[2]) / (4 * w), (x[1] - y[0]) / (4 * w)])
