"""Movements: generators that look at the scene before every action, so that a disturbed one is corrected by the next.

Each waits until it has got where it wanted or its steps are used up; whoever calls looks whether it helped.
"""

from collections.abc import Callable, Generator, Iterator

import numpy as np

from octo_integration.simulators.libero.expert.grasps import Grasp, choose, downward, nearest_yaw
from octo_integration.simulators.libero.expert.scene import UP, Scene

OPEN, CLOSED = 1.0, 0.0
REACH, TURN = 0.05, 0.5  # metres and radians of a full action
ANYHOW = 9.0  # radians: any orientation will do
TRAVEL = 0.05  # metres: nearer than that over the goal, a thing may be lowered
PROGRESS, PATIENCE = 0.002, 12  # metres in so many steps, or something is in the way
OVER = 0.04  # metres between what moves and what it moves over
SLIPPED = 0.06  # metres that a thing has moved in the hand
TILT = 1.2  # radians from straight down, for drawers
TRIES = 4

Moves = Iterator[np.ndarray]


def toward(
    scene: Scene, target: np.ndarray, rotation: np.ndarray, grip: float, gain: float = 4.0, limit: float = 1.0
) -> np.ndarray:
    """One action: f64[7]."""
    move = np.clip(gain * (target - scene.hand()) / REACH, -limit, limit)
    turn = np.clip(1.5 * scene.turn_to(rotation) / TURN, -0.5, 0.5)
    return np.concatenate([move, turn, [grip]])


def go(
    scene: Scene,
    target: np.ndarray | Callable[[], np.ndarray],
    rotation: np.ndarray,
    grip: float,
    *,
    within: float = 0.01,
    turned: float = 0.1,
    steps: int = 60,
    gain: float = 4.0,
    limit: float = 1.0,
    holds: Callable[[], bool] = lambda: True,
) -> Moves:
    """Moves the hand to a point, or to where a thing that moves wants it, for as long as it `holds` that and helps."""
    best, since = float("inf"), 0
    for _ in range(steps):
        point = target() if callable(target) else target
        off, twisted = np.linalg.norm(point - scene.hand()), np.linalg.norm(scene.turn_to(rotation))
        if off + 0.1 * twisted < best - PROGRESS:
            best, since = float(off + 0.1 * twisted), 0
        since += 1
        if (off < within and twisted < turned) or since > PATIENCE or not holds():
            return
        yield toward(scene, point, rotation, grip, gain, limit)


def stay(scene: Scene, rotation: np.ndarray, grip: float, steps: int) -> Moves:
    """Holds the hand where it is now."""
    point = scene.hand()
    for _ in range(steps):
        yield toward(scene, point, rotation, grip, gain=2.0)


def approach(scene: Scene, name: str, grasp: Grasp) -> Moves:
    """Brings the open hand down on a thing, over what is in between."""
    down = downward(grasp.yaw)
    above = np.append(grasp.point[:2], max(scene.thing(name)[:, 2].max(), grasp.point[2]) + 0.08)
    travel = max(above[2], scene.highest(name, above) + OVER)
    if scene.hand()[2] < travel - 0.03:
        first = np.append(scene.hand()[:2], travel + 0.03)
        yield from go(scene, first, down, OPEN, within=0.03, turned=ANYHOW, steps=40)
    yield from go(scene, np.append(above[:2], travel), down, OPEN, within=0.05, turned=0.3, steps=70)
    yield from go(scene, above, down, OPEN, within=0.012, steps=70)
    yield from go(scene, grasp.point, down, OPEN, within=0.006, steps=40, gain=3.0)


def pick(scene: Scene, name: str, goal: np.ndarray, lift: float = 0.12) -> Generator[np.ndarray, None, float | None]:
    """Takes a thing up that shall be put down with its lowest point at f64[3]: the hand's yaw, or None if it failed."""
    failed: list[Grasp] = []
    for _ in range(TRIES):
        before, lowest = scene.where(name)[2], scene.thing(name)[:, 2].min()
        grasp = choose(scene, name, failed, goal - [*scene.where(name)[:2], lowest])
        down = downward(grasp.yaw)
        yield from approach(scene, name, grasp)
        yield from stay(scene, down, CLOSED, 10)
        up = np.append(grasp.point[:2], scene.hand()[2] + lift)
        yield from go(scene, up, down, CLOSED, within=0.03, steps=40)
        if scene.where(name)[2] > before + lift / 3:
            return grasp.yaw
        failed.append(grasp)
        yield from stay(scene, down, OPEN, 8)
    return None


def place(
    scene: Scene, name: str, yaw: float, goal: Callable[[], np.ndarray], *, clear: float = 0.06, drop: float = 0.012
) -> Moves:
    """Brings what is held over a goal, lowers it, lets go and retreats.

    Args:
      goal: where the origin of its body (x, y) and its lowest point (z) shall come, f64[3].
      clear: how far above the goal it travels; drop: how far above it is let go.
    """
    down = downward(yaw)
    held = scene.where(name) - scene.hand()

    def holds() -> bool:
        return bool(np.linalg.norm(scene.where(name) - scene.hand() - held) < SLIPPED)

    def hand_for(height: float, travel: float | None = None) -> Callable[[], np.ndarray]:
        def target() -> np.ndarray:
            origin, hand = scene.where(name), scene.hand()
            wanted = goal()
            lowest = scene.thing(name)[:, 2].min()
            point = np.append(wanted[:2] - (origin - hand)[:2], wanted[2] + height + hand[2] - lowest)
            if travel is not None and np.linalg.norm((point - hand)[:2]) > TRAVEL:
                point[2] = max(point[2], travel)
            return point

        return target

    hand = scene.hand()
    over = scene.highest(name, goal()) + OVER + hand[2] - scene.thing(name)[:, 2].min()
    needed, travel = max(over, hand_for(clear)()[2]), hand[2]
    if travel < needed - 0.02:
        travel = needed
        yield from go(scene, np.append(hand[:2], travel), down, CLOSED, within=0.03, steps=40, holds=holds)
    yield from go(scene, hand_for(clear, travel), down, CLOSED, within=0.012, steps=110, holds=holds)
    yield from go(scene, hand_for(drop), down, CLOSED, within=0.008, steps=30, gain=3.0, holds=holds)
    yield from stay(scene, down, OPEN, 8)
    yield from go(scene, scene.hand() + 0.12 * UP, down, OPEN, within=0.03, steps=20)
    yield from stay(scene, down, OPEN, 10)


def slide(scene: Scene, name: str, goal: np.ndarray) -> Moves:
    """Takes a flat thing by its rim and pushes it over the table until its origin is at f64[2], then lets go."""
    grasp = choose(scene, name, [], np.append(goal - scene.where(name)[:2], 0.0))
    down = downward(grasp.yaw)
    yield from approach(scene, name, grasp)
    yield from stay(scene, down, CLOSED, 10)
    height = scene.hand()[2]

    def target() -> np.ndarray:
        return np.append(scene.hand()[:2] + goal - scene.where(name)[:2], height)

    yield from go(scene, target, down, CLOSED, within=0.01, turned=ANYHOW, steps=100, limit=0.6)
    yield from stay(scene, down, OPEN, 8)
    yield from go(scene, scene.hand() + 0.12 * UP, down, OPEN, within=0.03, steps=20)


def pull_open(scene: Scene, drawer: str) -> Moves:
    """Grips the bar of a drawer with a tilted hand, from the front, and pulls."""
    _, axis, _ = scene.joint(drawer)
    bar, rotation = _foremost(scene, drawer, -axis), _facing(scene, axis)
    forward = rotation[:, 2]
    yield from go(scene, bar - 0.13 * forward + 0.05 * UP, rotation, OPEN, within=0.03, turned=0.2)
    yield from go(scene, bar - 0.08 * forward, rotation, OPEN, steps=40)
    yield from go(scene, bar + 0.004 * forward, rotation, OPEN, within=0.006, steps=30, gain=3.0)
    yield from stay(scene, rotation, CLOSED, 8)
    yield from go(scene, scene.hand() - 0.2 * axis, rotation, CLOSED, within=0.02, gain=3.0, limit=0.6)
    yield from stay(scene, rotation, OPEN, 6)
    back = scene.hand() - 0.1 * forward
    yield from go(scene, back, rotation, OPEN, within=0.03, steps=25)
    yield from go(scene, back + 0.08 * UP, rotation, OPEN, within=0.03, steps=15)


def _facing(scene: Scene, axis: np.ndarray) -> np.ndarray:
    """The orientation of a hand that points along a drawer's axis and down, whichever is nearer of the two."""
    forward = np.sin(TILT) * axis - np.cos(TILT) * UP
    across = -np.cos(TILT) * axis - np.sin(TILT) * UP
    if scene.orientation()[:, 0] @ axis > 0:
        across = -across
    return np.stack([across, np.cross(forward, across), forward], 1)


def _foremost(scene: Scene, drawer: str, out: np.ndarray) -> np.ndarray:
    """The middle of the bar of a drawer, which stands out farthest."""
    points = scene.part(drawer)
    reach = points @ out
    bar = points[reach > reach.max() - 0.01]
    return (bar.max(0) + bar.min(0)) / 2


def turn_on(scene: Scene, knob: str) -> Moves:
    """Takes a knob by its ridge and turns it about its axis."""
    _, axis, _ = scene.joint(knob)
    points = scene.part(knob)
    top = points[:, 2].max()
    ridge = points[points[:, 2] > top - 0.012]
    middle = (ridge.max(0) + ridge.min(0)) / 2
    middle[2] = top - 0.012
    _, directions = np.linalg.eigh(np.cov((ridge - ridge.mean(0))[:, :2].T))
    yaw = nearest_yaw(np.arctan2(directions[1, 0], directions[0, 0]))  # across the ridge
    down = downward(yaw)
    yield from go(scene, middle + 0.1 * UP, down, OPEN, within=0.012, steps=80)
    yield from go(scene, middle, down, OPEN, within=0.006, steps=40, gain=3.0)
    yield from stay(scene, down, CLOSED, 8)
    way = np.sign(axis[2])
    for step in range(40):
        yield toward(scene, middle, downward(yaw + way * min(1.2, 0.06 * step)), CLOSED)
    yield from stay(scene, scene.orientation(), OPEN, 6)
    yield from go(scene, middle + 0.12 * UP, down, OPEN, within=0.03, steps=25)
