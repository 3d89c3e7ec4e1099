"""Gives a compiled LIBERO model, and its images, the looks of a `Shift`, in memory only, and takes them back."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from octo_integration.simulators.appearance import Camera, Light, Texture, pixels, stretch, tile
from octo_integration.simulators.libero.control import rotation
from octo_integration.simulators.libero.shifts import Distractor, Shift
from octo_integration.simulators.renderer import Geom, Renderer, import_mujoco

TABLES = ("tex-table", "textable", "tex-living_room_table", "tex-desk")
GROUNDS = ("texplane", "tex-wall")
AROUND = 0.15  # metres around the task's things where distractors may stand
CLEAR = 0.07  # metres between them and those
TURNS = 24  # other places that a distractor tries


class Looks:
    """The looks of one model. Physics is not touched: geometry, masses and contacts stay as they are."""

    def __init__(self, model: Any, camera: int, target: np.ndarray) -> None:
        """Remembers the looks to come back to.

        Args:
          model: mujoco.MjModel, unchanged so far.
          camera: number of the one that shifts move; target: what it moves around, f64[3].
        """
        mujoco = import_mujoco()
        self._model, self._camera = model, camera
        axes = np.empty(9)
        mujoco.mju_quat2Mat(axes, model.cam_quat[camera])
        self._axes, self._home = axes.reshape(3, 3), model.cam_pos[camera].copy()
        # The point of the optical axis (cameras look along -z) that is nearest to the target.
        self._center = self._home + self._axes[:, 2] * ((target - self._home) @ self._axes[:, 2])
        names = {model.texture(number).name: number for number in range(model.ntex)}
        self._tables, self._grounds = ([names[name] for name in kind if name in names] for kind in (TABLES, GROUNDS))
        headlight = model.vis.headlight
        self._lamps = (model.light_diffuse.copy(), headlight.ambient.copy(), headlight.diffuse.copy())
        self._surfaces = {number: pixels(model, number).copy() for number in (*self._tables, *self._grounds)}
        self._worn: tuple[Texture | None, float] = (None, 0.0)

    def apply(self, shift: Shift, renderer: Renderer) -> None:
        """Makes the model look like `shift` and like nothing before it."""
        self._apply_texture(shift.texture, shift.share, renderer)
        self._apply_light(shift.light or Light(1.0, (1.0, 1.0, 1.0), 0.0))
        self._apply_camera(shift.camera or Camera(0.0, 0.0, 1.0))

    def _apply_texture(self, texture: Texture | None, share: float, renderer: Renderer) -> None:
        if (texture, share) == self._worn:
            return
        for number, own in self._surfaces.items():
            surface = pixels(self._model, number)
            surface[:] = own
            if texture is not None:
                colors = texture.table if number in self._tables else texture.floor
                drawn = stretch(tile(texture.pattern, colors, texture), surface.shape)
                surface[:] = ((1 - share) * own + share * drawn.astype(np.float32)).astype(np.uint8)
            renderer.upload_texture(number)
        self._worn = (texture, share)

    def _apply_light(self, light: Light) -> None:
        gain = light.intensity * np.array(light.tint)
        lamps, ambient, diffuse = self._lamps
        sides = 1 + light.side * (-1.0) ** np.arange(len(lamps))
        self._model.light_diffuse[:] = lamps * gain * sides[:, None]
        headlight = self._model.vis.headlight
        headlight.ambient[:], headlight.diffuse[:] = ambient * gain, diffuse * gain

    def _apply_camera(self, camera: Camera) -> None:
        aside = rotation(np.radians(camera.azimuth) * np.array([0.0, 0.0, 1.0]))
        up = rotation(-np.radians(camera.elevation) * (aside @ self._axes[:, 0]))
        turn, number = up @ aside, self._camera
        self._model.cam_pos[number] = self._center + camera.distance * turn @ (self._home - self._center)
        quaternion = np.empty(4)
        import_mujoco().mju_mat2Quat(quaternion, (turn @ self._axes).ravel())
        self._model.cam_quat[number] = quaternion


def place(distractors: Sequence[Distractor], things: Sequence[np.ndarray]) -> list[Geom]:
    """Distractors on what the task's things stand on, clear of them.

    Args:
      things: points on each of them, f64[N, 3].
    """
    if not distractors:
        return []
    points = np.concatenate(things)
    low, high = points[:, :2].min(0) - AROUND, points[:, :2].max(0) + AROUND
    ground = points[:, 2].min()
    found: list[Geom] = []
    for kind, size, share, color in distractors:
        taken = [points[:, :2], *[np.array([geom.position[:2]]) for geom in found]]
        # The first of some places, all of which follow from the drawn one, that is free.
        for turn in range(TURNS):
            spot = low + (np.array(share) + turn * np.array([0.382, 0.618])) % 1.0 * (high - low)
            if min(np.linalg.norm(other - spot, axis=1).min() for other in taken) > CLEAR:
                break
        else:
            continue
        found.append(
            Geom(kind, (size, size, size), (float(spot[0]), float(spot[1]), float(ground + size)), (*color, 1))
        )
    return found


def sensed(image: np.ndarray, shift: Shift, *moment: int) -> np.ndarray:
    """An image, uint8[S, S, 3], as a blurred and noisy sensor has it; the noise follows from `moment`."""
    if not shift.blur and not shift.noise:
        return image
    from scipy.ndimage import gaussian_filter  # of LIBERO's requirements

    values = image.astype(np.float32)
    if shift.blur:
        width = shift.blur * image.shape[1]
        values = gaussian_filter(values, (width, width, 0))
    if shift.noise:
        rng = np.random.default_rng([shift.seed, *moment])
        values = values + shift.noise * rng.standard_normal(values.shape, np.float32)
    return np.asarray(values.round().clip(0, 255), np.uint8)
