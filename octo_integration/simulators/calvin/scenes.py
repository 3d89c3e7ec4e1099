"""The four scenes: where things are, and numbers for a situation, in the order that each scene's own file has."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from octo_integration.simulators.calvin.rules import COLORS, Situation

# The arm's first pose, of the benchmark's evaluation and of its data: hand, fingers, joints, gripper.
ROBOT = np.array(
    [0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963]
    + [-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0]
)
BLOCK_Z, BLOCK_HEIGHT, DRAWER_Z = 0.46, 0.04, 0.375  # metres: centres of blocks on table and plank, and in the drawer
DRAWER_OPEN, BULB_ON = 0.22, 0.088  # of their joints
TABLE_Y, PLANK_Y = (-0.13, -0.06), (0.06, 0.11)
APART = 0.1  # metres between blocks
TRIES = 1000

Range = tuple[float, float]


class Scene(NamedTuple):
    """Metres along x, the table's width, from the left: of handles, and where blocks may lie."""

    button: float
    switch: float
    drawer: float
    slider: float  # its left edge where it is closed, that is right
    slider_open: float  # how far it goes to the left
    table: Range
    slider_left: Range  # of the plank under the cabinet
    slider_right: Range


SCENES = {
    "A": Scene(-0.28, 0.3, 0.1, -0.1, 0.28, (-0.17, 0.2), (-0.3, -0.18), (-0.03, 0.11)),
    "B": Scene(0.28, -0.32, 0.18, 0.088, 0.304, (-0.25, 0.15), (-0.1, 0.04), (0.17, 0.3)),
    "C": Scene(-0.12, -0.32, 0.1, 0.06, 0.24, (0.0, 0.3), (-0.1, 0.02), (0.17, 0.28)),
    "D": Scene(-0.12, 0.3, 0.18, -0.1, 0.28, (0.0, 0.3), (-0.3, -0.18), (-0.03, 0.11)),
}


class State(NamedTuple):
    """What `scene_obs` says. Blocks: colour -> x, y, z, and angles about these."""

    slider: float
    drawer: float
    button: float
    switch: float
    bulb: float
    led: float
    blocks: dict[str, np.ndarray]


def read(scene_obs: np.ndarray, order: Sequence[str]) -> State:
    """`order`: the scene's blocks, as its file names them (block_red, ...)."""
    poses = np.reshape(scene_obs[6:], (len(order), 6))
    blocks = {name.removeprefix("block_"): pose for name, pose in zip(order, poses)}
    slider, drawer, button, switch, bulb, led = map(float, scene_obs[:6])
    return State(slider, drawer, button, switch, bulb, led, blocks)


def write(state: State, order: Sequence[str]) -> np.ndarray:
    """The way back: f64[24]."""
    return np.concatenate([state[:6], *(state.blocks[name.removeprefix("block_")] for name in order)])


def draw(scene: Scene, situation: Situation, rng: np.random.Generator) -> State:
    """A state of that situation; a block that is held lies on the table still.

    Raises:
      RuntimeError: there is no place for all blocks.
    """
    for _ in range(TRIES):
        blocks = {color: _place(scene, str(situation[f"{color}_block"]), rng) for color in COLORS}
        for color in COLORS:
            if situation[f"{color}_block"] == "top":
                (below,) = (blocks[other] for other in COLORS if situation[f"{other}_block"] == "bottom")
                blocks[color] = below + [0, 0, BLOCK_HEIGHT, 0, 0, 0]
        level = [pose for color, pose in blocks.items() if situation[f"{color}_block"] != "top"]
        if all(np.linalg.norm(a[:2] - b[:2]) > APART for i, a in enumerate(level) for b in level[:i]):
            return State(
                slider=scene.slider_open if situation["slider"] == "left" else 0.0,
                drawer=DRAWER_OPEN if situation["drawer"] == "open" else 0.0,
                button=0.0,
                switch=BULB_ON if situation["lightbulb"] else 0.0,
                bulb=float(situation["lightbulb"]),
                led=float(situation["led"]),
                blocks=blocks,
            )
    raise RuntimeError(f"no place for all blocks in {TRIES} draws.")


def _place(scene: Scene, where: str, rng: np.random.Generator) -> np.ndarray:
    x, y, z = scene.table, TABLE_Y, BLOCK_Z
    if where in ("slider_left", "slider_right"):
        x, y = getattr(scene, where), PLANK_Y
    elif where == "drawer":
        x, y, z = (scene.drawer - 0.1, scene.drawer + 0.1), (-0.32, -0.24), DRAWER_Z
    turn = np.pi / 2 + rng.uniform(-1, 1) * np.pi / 8
    return np.array([rng.uniform(*x), rng.uniform(*y), z, 0.0, 0.0, turn])


def start_of(needs: Sequence[Situation], rng: np.random.Generator) -> Situation:
    """A situation that is one of these in what they say, and else at random."""
    places = ("table", "slider_left", "slider_right")
    wanted = needs[int(rng.integers(len(needs)))]
    while True:
        found: Situation = {
            "slider": str(rng.choice(["left", "right"])),
            "drawer": str(rng.choice(["open", "closed"])),
            "lightbulb": int(rng.integers(2)),
            "led": int(rng.integers(2)),
            "held": 0,
            **{f"{color}_block": str(rng.choice(places)) for color in COLORS},
            **wanted,
        }
        where = [found[f"{color}_block"] for color in COLORS]
        if max(where.count("slider_left"), where.count("slider_right")) < 2 and where.count("table") < 3:
            return found
