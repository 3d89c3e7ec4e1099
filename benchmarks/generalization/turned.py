"""Meta-World with the camera elsewhere: every look is drawn as always, and then turned."""

import dataclasses

from octo_integration.simulators import metaworld
from octo_integration.simulators.appearance import Camera
from octo_integration.simulators.metaworld.shifts import Shift, draw_shift

AZIMUTH = 12.0  # degrees; pretraining's camera never moves


def draw_turned(name: str, seed: int, layout: str = "all") -> Shift:
    """As `draw_shift`, seen from AZIMUTH further round the table."""
    shift = draw_shift(name, seed, layout)
    camera = shift.camera or Camera(0.0, 0.0, 1.0)
    return dataclasses.replace(shift, camera=dataclasses.replace(camera, azimuth=camera.azimuth + AZIMUTH))


SIMULATOR = dataclasses.replace(metaworld.SIMULATOR, draw_shift=draw_turned)
