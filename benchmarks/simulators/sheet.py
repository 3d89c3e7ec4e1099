"""Draws one picture of every suite of LIBERO, and one of every look of a scene.

python -m benchmarks.simulators.sheet
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw

from octo_integration.simulators.libero import SIMULATOR
from octo_integration.simulators.libero.env import LiberoEnv

HERE = Path(__file__).parent
SIZE, LABEL, COLUMNS = 112, 14, 7
TASK = 3  # of every suite


def sheet(pictures: Iterable[tuple[str, np.ndarray]], path: Path) -> None:
    """Writes pictures, uint8[SIZE, SIZE, 3], with their names."""
    pictures = list(pictures)
    rows = -(-len(pictures) // COLUMNS)
    canvas = PIL.Image.new("RGB", (COLUMNS * (SIZE + 4), rows * (SIZE + LABEL + 4)), "white")
    draw = PIL.ImageDraw.Draw(canvas)
    for number, (name, picture) in enumerate(pictures):
        x, y = number % COLUMNS * (SIZE + 4), number // COLUMNS * (SIZE + LABEL + 4)
        draw.text((x, y), name, "black")
        canvas.paste(PIL.Image.fromarray(picture), (x, y + LABEL))
    canvas.save(path, quality=80)


def suite_pictures() -> Iterable[tuple[str, np.ndarray]]:
    """The first recorded state of a task of every suite."""
    for suite, tasks in SIMULATOR.suites.items():
        with LiberoEnv(tasks[TASK], image_size=SIZE) as env:
            yield suite.removeprefix("libero_"), env.reset_to(0)["image_primary"]


def look_pictures() -> Iterable[tuple[str, np.ndarray]]:
    """The same state under every shift."""
    with LiberoEnv(f"libero_spatial/{TASK}", image_size=SIZE) as env:
        for name in SIMULATOR.shifts:
            env.set_shift(SIMULATOR.draw_shift(name, 1, "all"))
            yield name, env.reset_to(0)["image_primary"]


if __name__ == "__main__":
    os.environ.setdefault("MUJOCO_GL", "egl")
    sheet(look_pictures(), HERE / "looks.jpg")
    sheet(suite_pictures(), HERE / "suites.jpg")
