"""What an RLDS data set holds, whatever its fields are called: ranges, pictures, and what looks wrong."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from octo_integration.data.episodes import decode_image, raw_episodes, readable
from octo_integration.data.mapping import Gripper
from octo_integration.data.missing import says, shows
from octo_integration.data.proposal import Leaf
from octo_integration.data.rlds import first_episodes, open_whole
from octo_integration.data.tf import settled

FRAMES = 3  # of an episode that are looked at: its first, middle and last
PIXELS = 128
CONSTANT = 1e-6  # of the largest value: a spread below it is rounding
SATURATED = 0.1  # share of the steps that stand at the least or the greatest value
NEAR = 0.02  # of the range, that an end reaches
ENDS = 0.9  # share of the steps at one of both ends that makes a gripper


@dataclasses.dataclass(frozen=True)
class Look:
    """What was found.

    Attributes:
      name: directory and split.
      described: path -> type and shape, of all fields.
      leaves: the fields that a mapping can name.
      vectors: path -> f32[N, n], of all steps.
      lengths: of the episodes.
      frames: path -> uint8[PIXELS, PIXELS, 3] of some steps.
      instructions: of the episodes, by their first step; None: there is no text.
    """

    name: str
    described: dict[str, str]
    leaves: dict[str, Leaf]
    vectors: dict[str, np.ndarray]
    lengths: list[int]
    frames: dict[str, list[np.ndarray]]
    instructions: list[str] | None


def look(path: str, split: str, episodes: int) -> Look:
    """Reads the first `episodes` of a split.

    Raises:
      FileNotFoundError, ValueError: as `open_whole`; or a record is damaged.
    """
    whole, described, leaves = open_whole(path, split)
    source = first_episodes(whole, episodes)
    needs = source.standardisation
    rows: dict[str, list[np.ndarray]] = {at: [] for at in needs.vectors}
    frames: dict[str, list[np.ndarray]] = {at: [] for at in needs.images}
    instructions, lengths = [], []
    with readable(source):
        for _, steps in settled(raw_episodes(source, None)):
            length = int(next(iter(steps.values())).shape[0])
            lengths.append(length)
            for at in rows:
                rows[at].append(steps[at].numpy())
            for t in sorted({*np.linspace(0, length - 1, FRAMES).astype(int)}) if length else ():
                for at in frames:
                    frames[at].append(decode_image(steps[at][t], PIXELS).numpy())
            if needs.instruction and length:
                instructions.append(steps[needs.instruction][0].numpy().decode(errors="replace"))
    vectors = {at: np.concatenate(parts) for at, parts in rows.items()}
    return Look(source.name, described, leaves, vectors, lengths, frames, instructions if needs.instruction else None)


def suspects(found: Look, actions: Iterable[str]) -> Iterator[str]:
    """What looks wrong, a line each; `actions` are the paths that a mapping joins to the action."""
    if empty := found.lengths.count(0):
        yield f"{empty} of {len(found.lengths)} episodes have no step"
    for at, values in found.vectors.items():
        if bad := int((~np.isfinite(values)).any(1).sum()):
            yield f"steps/{at} is NaN or infinite in {bad} of {len(values)} steps; such data are refused"
        elif still := [i for i, column in enumerate(values.T) if len(values) and _constant(column)]:
            yield f"steps/{at}{still} never changes"
    for at, images in found.frames.items():
        if blank := sum(not shows(image) for image in images):
            yield f"steps/{at} is of one colour in {blank} of {len(images)} images; such images count as missing"
    if found.instructions is None:
        yield "there is no text that could be an instruction"
    elif blank := sum(not says(text) for text in found.instructions):
        yield f"the instruction is empty in {blank} of {len(found.instructions)} episodes"
    for at in actions:
        for i, column in enumerate(found.vectors[at].T):
            count = _at_ends(column)
            if count - 2 > SATURATED * len(column) and count < ENDS * len(column):  # two are there always
                share = count / len(column)
                yield f"steps/{at}[{i}] is saturated: {share:.0%} of the steps stand at its least or greatest value"


def gripper_of(found: Look, actions: Sequence[str]) -> Gripper | None:
    """The last entry of the joined action, if nearly all of its steps stand at two ends; open is how episodes begin.

    That is a guess, which a person has to look at: the data do not tell what open is.
    """
    values = found.vectors[actions[-1]]
    column = values[:, -1]
    if _at_ends(column) < max(ENDS * len(column), 1):
        return None
    low, high = float(np.round(column.min(), 4)), float(np.round(column.max(), 4))
    starts = np.cumsum([0, *found.lengths[:-1]])[np.array(found.lengths) > 0]
    begins_high = np.median(column[starts]) > (low + high) / 2
    closed, opened = (low, high) if begins_high else (high, low)
    return Gripper(sum(found.leaves[at].size for at in actions) - 1, closed, opened)


def histogram(column: np.ndarray, bins: int = 24) -> str:
    """A column of numbers as a line of bars, from its least value to its greatest; empty bins are dots."""
    counts, _ = np.histogram(column, bins) if np.isfinite(column).all() and len(column) else (np.zeros(bins), 0)
    scaled = np.ceil(8 * counts / max(counts.max(), 1)).astype(int)
    return "".join("·▁▂▃▄▅▆▇█"[height] for height in scaled)


def _constant(column: np.ndarray) -> bool:
    return bool(np.ptp(column) <= CONSTANT * np.abs(column).max())


def _at_ends(column: np.ndarray) -> int:
    """How many values are at the least or the greatest one; 0 where all are the same, or one is not finite."""
    if not len(column) or not np.isfinite(column).all() or _constant(column):
        return 0
    near = NEAR * np.ptp(column)
    return int(((column <= column.min() + near) | (column >= column.max() - near)).sum())
