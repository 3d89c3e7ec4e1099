"""A picture of every shift: rows are tasks, columns are shifts, all of the same episode where the shift allows it.

    python -m benchmarks.generalization.looks --out looks.png

Grey: the task has no such shift. Instructions differ in the shifts of words alone, which are left out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from benchmarks.generalization.data import STUDY_TASKS, ZERO_SHOT
from octo_integration.simulators.metaworld.env import MetaWorldEnv
from octo_integration.simulators.metaworld.shifts import GOAL_SHIFTS, SHIFTS, WORD_SHIFTS, draw_shift
from octo_integration.simulators.metaworld.tasks import get_task
from octo_integration.simulators.seeds import seed_of

SCALE = 3
SIZE = 64  # pixels
GAP = 4
CAPTION = 14
COLUMNS = tuple(shift for shift in SHIFTS if shift not in WORD_SHIFTS)


def contact_sheet(path: str | Path, tasks: Sequence[str] = (*STUDY_TASKS, *ZERO_SHOT), seed: int = 0) -> None:
    """Draws the first image of an episode of every task under every shift, with restricted layouts.

    Args:
      path: picture to write.
      tasks: names from `octo_integration.simulators.metaworld.tasks`.
      seed: of the episode and the looks.
    """
    import PIL.Image
    import PIL.ImageDraw

    width, height = SCALE * SIZE + GAP, SCALE * SIZE + GAP + CAPTION
    sheet = PIL.Image.new("RGB", (width * len(COLUMNS), height * len(tasks)), "white")
    pen = PIL.ImageDraw.Draw(sheet)
    for row, task in enumerate(tasks):
        with MetaWorldEnv(task, image_size=SIZE) as env:
            for column, shift in enumerate(COLUMNS):
                left, top = column * width, row * height
                corner = (left, top + CAPTION)
                sheet.paste(PIL.Image.fromarray(_first_image(env, task, shift, seed)), corner)
                words = f": {env.instruction}" if get_task(task).has_goals else ""
                pen.text((left, top), f"{task}, {shift}{words}", "black")
    sheet.save(path)


def _first_image(env: MetaWorldEnv, task: str, shift: str, seed: int) -> np.ndarray:
    if shift in GOAL_SHIFTS and not get_task(task).has_goals:
        return np.full((SCALE * SIZE, SCALE * SIZE, 3), 200, np.uint8)
    start = seed_of(seed, task, "looks")
    env.set_shift(draw_shift(shift, start, "restricted"))
    return env.reset(start)["image_primary"].repeat(SCALE, 0).repeat(SCALE, 1)


def main(out: Path = Path("looks.png"), tasks: tuple[str, ...] = (*STUDY_TASKS, *ZERO_SHOT), seed: int = 0) -> None:
    """Writes the picture.

    Args:
      out: picture to write.
      tasks: rows.
      seed: of the episode and the looks.
    """
    contact_sheet(out, tasks, seed)


if __name__ == "__main__":
    tyro.cli(main)
