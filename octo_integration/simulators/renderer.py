"""Off-screen frames of a MuJoCo scene, quick on a CPU, or one line that says which library is missing.

No multisampling, no shadows, reflections only where asked for (these cost ten times the rest on a software rasteriser):
frames are rendered at twice their size and averaged instead, so that a goal of a few pixels stays visible.
"""

import atexit
import os
import platform
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

SUPERSAMPLING = 2
MAX_GEOMS = 1000
UNDRAWN_GROUP = 5

_DEBIAN = "libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libgles2 libopengl0 libosmesa6"


INSTALL = "pip install 'maps_optax[sim]'"


class SimulatorMissing(ModuleNotFoundError):
    """A simulator or one of its libraries is not installed."""

    def __init__(self, name: str | None, install: str = INSTALL) -> None:
        """`name`: the module that could not be imported; `install`: the command for it."""
        super().__init__(f"the simulator needs {name}, which is not installed: {install}", name=name)
        self._install = install

    def __reduce__(self) -> tuple[Any, ...]:
        """For coming back from a worker process."""
        return SimulatorMissing, (self.name, self._install)


class RenderingUnavailable(ImportError):
    """No OpenGL library that renders without a screen."""


def import_mujoco() -> Any:
    """The mujoco module, set up for rendering without a screen (EGL, where MUJOCO_GL is not set).

    Raises:
      SimulatorMissing: not installed.
      RenderingUnavailable: its OpenGL library cannot be loaded.
    """
    if platform.system() == "Linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise SimulatorMissing(error.name) from None
    except Exception as error:  # PyOpenGL raises whatever comes first of a library that is not there
        raise _unavailable(error) from None
    return mujoco


def _unavailable(error: Exception) -> RenderingUnavailable:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RenderingUnavailable(
        f"MuJoCo cannot render without a screen (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}: {reason}); "
        f"on Debian: apt-get install {_DEBIAN}, then set MUJOCO_GL=egl or MUJOCO_GL=osmesa."
    )


RGB = tuple[float, float, float]


class Geom(NamedTuple):
    """What a renderer draws: the name of a member of mujoco.mjtGeom, half lengths, centre, colour."""

    kind: str
    size: RGB
    position: tuple[float, float, float]
    rgba: tuple[float, float, float, float]


class Renderer:
    """Frames of one model through its cameras. Close it: a context dropped open corrupts later images under OSMesa."""

    def __init__(
        self, model: Any, size: int, camera: int, *, hidden_groups: Iterable[int] = (), reflections: bool = False
    ) -> None:
        """Opens an OpenGL context.

        Args:
          model: mujoco.MjModel; its offscreen buffer and multisampling are set here.
          size: height and width of the frames in pixels.
          camera: number of the model's camera where `render` is not told of another.
          hidden_groups: of geoms that are not drawn, besides those that MuJoCo does not draw.
          reflections: whether mirrors are drawn, each of which costs another frame.

        Raises:
          RenderingUnavailable: no context.
        """
        if "tensorflow" in sys.modules:
            raise RenderingUnavailable(
                "tensorflow is loaded in this process, where rendering would crash (both bring an LLVM): use "
                "octo_integration.simulators.isolated.isolated_env, in a script that does not import it at its top."
            )
        mujoco = self._mujoco = import_mujoco()
        self._model, self._size = model, size
        pixels = SUPERSAMPLING * size
        # The shadow map, 64 MB, would be allocated whether used or not, and with many contexts open it hid the robot.
        model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = pixels
        try:
            self._gl = mujoco.GLContext(pixels, pixels)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        except Exception as error:  # each back end has its own, some of PyOpenGL
            raise _unavailable(error) from None
        # After the context, so that it runs before the one that ends EGL.
        atexit.register(self.close)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._rectangle = mujoco.MjrRect(0, 0, pixels, pixels)
        self._scene = mujoco.MjvScene(model, MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = reflections
        self._options, self._perturbation = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._options.geomgroup[list(hidden_groups)] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._default_camera = camera
        self._pixels = np.empty((pixels, pixels, 3), np.uint8)

    def render(self, data: Any, geoms: Iterable[Geom] = (), camera: int | None = None) -> np.ndarray:
        """The scene as it stands in `data` (mujoco.MjData): uint8[size, size, 3], row 0 at the top.

        Args:
          geoms: what is drawn besides; the model does not know of it.
          camera: number of the model's camera.
        """
        mujoco = self._mujoco
        self._camera.fixedcamid = self._default_camera if camera is None else camera
        self._gl.make_current()
        groups = self._model.geom_group.copy()
        self._model.geom_group[self._out_of_sight(data)] = UNDRAWN_GROUP
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._options,
            self._perturbation,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        self._model.geom_group[:] = groups
        for geom in geoms:
            self._draw(geom)
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._context)
        shape = (self._size, SUPERSAMPLING, self._size, SUPERSAMPLING, 3)
        mean = self._pixels.reshape(shape).mean((1, 3), dtype=np.float32)
        # OpenGL's row 0 is at the bottom.
        return np.ascontiguousarray((mean[::-1] + 0.5).astype(np.uint8))

    def _out_of_sight(self, data: Any) -> np.ndarray:
        """Which geoms lie wholly outside the camera's cone, bool[N]: a CPU would work as hard for them as for any."""
        camera, radius = self._camera.fixedcamid, self._model.geom_rbound
        axes = data.cam_xmat[camera].reshape(3, 3)
        x, y, z = ((data.geom_xpos - data.cam_xpos[camera]) @ axes).T  # it looks along -z
        half = np.radians(self._model.cam_fovy[camera]) / 2
        beside = np.maximum(abs(x), abs(y)) * np.cos(half) + z * np.sin(half)
        return (radius > 0) & (np.maximum(beside, z) > radius)  # planes have no radius

    def _draw(self, geom: Geom) -> None:
        mujoco, scene = self._mujoco, self._scene
        mujoco.mjv_initGeom(
            scene.geoms[scene.ngeom],
            getattr(mujoco.mjtGeom, geom.kind),
            np.array(geom.size),
            np.array(geom.position),
            np.eye(3).ravel(),
            np.array(geom.rgba, np.float32),
        )
        scene.ngeom += 1

    def upload_texture(self, texture: int) -> None:
        """Takes over a texture of the model whose `tex_data` was changed."""
        self._gl.make_current()
        self._mujoco.mjr_uploadTexture(self._model, self._context, texture)

    def close(self) -> None:
        """Frees the context; further calls do nothing."""
        if self._context is not None:
            atexit.unregister(self.close)
            self._gl.make_current()
            self._context.free()
            self._context = None
            self._gl.free()
