"""A picture of the shifts: rows are tasks, columns are looks, all of the same episode where the shift allows it.

    python -m benchmarks.generalization.looks --out looks.png

The policy sees 64 × 64 of what is drawn sharper here. Shifts of words alone, and those that not every row has, are left
out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from octo_integration.simulators.metaworld.env import MetaWorldEnv
from octo_integration.simulators.metaworld.shifts import GOAL_SHIFTS, SHIFTS, WORD_SHIFTS, draw_shift
from octo_integration.simulators.metaworld.tasks import get_task
from octo_integration.simulators.seeds import seed_of

TASKS = ("point", "drawer-open", "button-press")
PIXELS = 200
GAP = 6
TITLE, CAPTION, FONT = 30, 24, 18


def contact_sheet(path: str | Path, tasks: Sequence[str] = TASKS, seed: int = 0) -> None:
    """Draws the first image of an episode of every task under every shift, with restricted layouts.

    Args:
      path: picture to write.
      tasks: names from `octo_integration.simulators.metaworld.tasks`.
      seed: of the episode and the looks.
    """
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    columns = shifts_of(tasks)
    width, height = PIXELS + GAP, PIXELS + GAP + CAPTION
    sheet = PIL.Image.new("RGB", (width * len(columns) - GAP, TITLE + height * len(tasks)), "white")
    pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(FONT)
    for column, shift in enumerate(columns):
        name = {"none": "as demonstrated"}.get(shift, shift.replace("_", " "))
        pen.text((column * width + PIXELS / 2, TITLE / 2), name, "black", font, anchor="mm")
    for row, task in enumerate(tasks):
        with MetaWorldEnv(task, image_size=PIXELS) as env:
            for column, shift in enumerate(columns):
                left, top = column * width, TITLE + row * height
                sheet.paste(PIL.Image.fromarray(_first_image(env, task, shift, seed)), (left, top))
                words = env.instruction if get_task(task).has_goals or column == 0 else ""
                pen.text((left, top + PIXELS + 2), words, "#555555", font)
    sheet.quantize(256).save(path, optimize=True)


def shifts_of(tasks: Sequence[str]) -> tuple[str, ...]:
    """The looks that all of these tasks have."""
    goals = all(get_task(task).has_goals for task in tasks)
    return tuple(s for s in SHIFTS if s not in WORD_SHIFTS and (goals or s not in GOAL_SHIFTS))


def _first_image(env: MetaWorldEnv, task: str, shift: str, seed: int) -> np.ndarray:
    start = seed_of(seed, task, "looks")
    env.set_shift(draw_shift(shift, start, "restricted"))
    return env.reset(start)["image_primary"]


def main(out: Path = Path("looks.png"), tasks: tuple[str, ...] = TASKS, seed: int = 0) -> None:
    """Writes the picture.

    Args:
      out: picture to write.
      tasks: rows.
      seed: of the episode and the looks.
    """
    contact_sheet(out, tasks, seed)


if __name__ == "__main__":
    tyro.cli(main)
