"""`maps-vla inspect-data`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro

from octo_integration.cli.following import say_next
from octo_integration.common import limits
from octo_integration.common.files import replacing
from octo_integration.common.limits import check_limits
from octo_integration.data.mapping import FieldMapping, to_json
from octo_integration.data.proposal import propose

if TYPE_CHECKING:
    from octo_integration.data.look import Look

COLUMNS, ROWS = 9, 4  # pictures in a row of the sheet, and rows of a camera at most
SAID = 10  # instructions


@dataclasses.dataclass(frozen=True)
class Options:
    """Shows what an RLDS data set holds and what looks wrong in it, and proposes the mapping that finetune reads it by.

    maps-vla inspect-data bridge_dataset/1.0.0 --out inspected
    maps-vla finetune --out runs/bridge --data.path bridge_dataset/1.0.0 --data.standardize inspected/mapping.json
    """

    path: tyro.conf.Positional[str] = "demo"
    """RLDS directory (it has dataset_info.json), or demo: the shipped Meta-World demonstrations."""
    split: str = "train"
    """Split to look at; slices such as train[90%:] are allowed."""
    episodes: int = 64
    """How many are read, the first."""
    out: str = "inspected"
    """Directory for sheet.png, the pictures of every camera (a row or more each), and mapping.json. A mapping.json that
    is there already is kept."""

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        check_limits(self, {"episodes": limits.AT_LEAST_1})


def run(config: Options) -> int:
    """Prints what was found, and writes the sheet and the mapping."""
    from octo_integration.data.look import gripper_of, look, suspects  # tensorflow

    found = look(config.path, config.split, config.episodes)
    out, lengths = Path(config.out), found.lengths
    print(f"{found.name}: {len(lengths)} episodes looked at, of {min(lengths)} to {max(lengths)} steps")
    _print_fields(found)
    try:
        mapping = propose(found.leaves)
        mapping = dataclasses.replace(mapping, gripper=gripper_of(found, [*mapping.action]))
    except ValueError as error:
        mapping, why = None, error
    actions = [] if mapping is None else [*mapping.action]
    _print_actions(found, actions)
    if told := sorted({text for text in found.instructions or () if text.strip()}):
        print(
            f"\ninstructions ({len(told)} different):", *told[:SAID], *(["..."] if len(told) > SAID else []), sep="\n  "
        )
    wrong = list(suspects(found, actions))
    print("\nwhat looks wrong:" if wrong else "\nnothing looks wrong", *wrong, sep="\n  ")
    out.mkdir(parents=True, exist_ok=True)
    if any(found.frames.values()):
        _draw(found.frames, out / "sheet.png")
        print(f"\npictures: {out / 'sheet.png'} ({', '.join(found.frames)}, from above)")
    if mapping is None:
        print(f"\nno mapping is proposed: {why}")
        return 0
    _write(mapping, out / "mapping.json")
    split = [] if config.split == "train" else ["--data.split", config.split]
    cameras = [*mapping.images]
    chosen = ["--data.cameras", *cameras] if cameras != ["primary"] else []
    data = ["--data.path", config.path, "--data.standardize", str(out / "mapping.json"), *split, *chosen]
    say_next(["finetune", "--out", "runs/mine", *data])
    return 0


def _print_fields(found: "Look") -> None:
    print("\nfields of the steps, and with a / of the episode:")
    width, form = (max(map(len, column)) for column in (found.described, found.described.values()))
    for at, described in found.described.items():
        values = found.vectors.get(at)
        span = "" if values is None or not len(values) else f"from {values.min():.4g} to {values.max():.4g}"
        print(f"  {at:<{width}}  {described:<{form}}  {span}".rstrip())


def _print_actions(found: "Look", actions: list[str]) -> None:
    from octo_integration.data.look import histogram

    for at in actions:
        print(f"\n{at}, of {len(found.vectors[at])} steps, from the least to the greatest value:")
        for i, column in enumerate(found.vectors[at].T):
            if len(column):
                print(f"  [{i}]  {column.min():>10.4g} {histogram(column)} {column.max():<10.4g}")


def _write(mapping: FieldMapping, file: Path) -> None:
    """Writes and prints the proposal; what a person may have changed is kept."""
    print(f"\n{to_json(mapping)}")
    if mapping.gripper:
        grip = mapping.gripper
        print(
            f"check the gripper: open is taken to be {grip.open:g}, since episodes begin with it; swap closed and open "
            "if that is wrong"
        )
    if file.exists() and file.read_text() != to_json(mapping):
        print(f"{file} is there already and says otherwise; it was kept")
        return
    with replacing(file) as temporary:
        temporary.write_text(to_json(mapping))
    print(f"mapping: {file}")


def _draw(frames: Mapping[str, list[np.ndarray]], file: Path) -> None:
    """A sheet: a camera's pictures fill one row, or more."""
    import PIL.Image

    rows = []
    for images in frames.values():
        chosen = images[: COLUMNS * ROWS]
        for start in range(0, len(chosen), COLUMNS):
            row = chosen[start : start + COLUMNS]
            rows.append(np.concatenate([*row, *[np.full_like(images[0], 255)] * (COLUMNS - len(row))], axis=1))
    with replacing(file) as temporary:
        PIL.Image.fromarray(np.concatenate(rows)).save(temporary)
