"""What the tasks need: each plans from what is seen when it begins."""

import numpy as np

from octo_integration.simulators.calvin.expert import moves
from octo_integration.simulators.calvin.expert.moves import CLOSED, DOWN, OPEN, Hand, Moves, front, go, grip, turned
from octo_integration.simulators.calvin.scenes import BLOCK_HEIGHT, PLANK_Y, Scene

# Metres from the left edge of the slider to its handle; where handles and button are.
SLIDER_HANDLE, SLIDER_Y, SLIDER_Z = 0.14, 0.012, 0.575
FREE_Y = -0.12  # in front of all handles
DRAWER_Y, DRAWER_Z = -0.25, 0.362
BUTTON_Y, BUTTON_Z = -0.12, 0.45
SWITCH_WAY = np.array([0.0, 0.5, 0.866])  # which way the switch goes on
SWITCH_OFF, SWITCH_ON = np.array([0.02, 0.528]), np.array([0.064, 0.604])  # y and z of its handle
HOOK, REACH = 0.6, 0.7  # radians that the hand is tilted to reach under it, and over it
BASE = (-0.34, -0.46)  # x and y of the robot
TIP = 0.0145  # metres that the fingers reach beyond the hand's point
LIFT = 0.14  # metres
TURN = 1.3  # radians, where 60 degrees are asked for
PUSH = 0.13  # metres, where 0.1 are asked for
YAWS = (0.1, 3.0)  # that the wrist can have with ease


def slide(hand: Hand, scene: Scene, way: float) -> Moves:
    """Takes the slider's handle between the fingers and moves it: way -1 to the left, 1 to the right."""
    angles, left = turned(DOWN[2]), scene.slider - hand.view.state.slider
    x = left + SLIDER_HANDLE
    goal = scene.slider + SLIDER_HANDLE - (scene.slider_open if way < 0 else 0.0)
    yield from front(hand, x, angles)
    yield from go(hand, (x, -0.11, SLIDER_Z), angles)
    yield from go(hand, (x, SLIDER_Y, SLIDER_Z), angles)
    yield from go(hand, (goal + 0.02 * way, SLIDER_Y, SLIDER_Z), angles)
    yield from go(hand, (goal, FREE_Y, SLIDER_Z), angles)


def drawer(hand: Hand, scene: Scene, way: float) -> Moves:
    """Reaches behind the drawer's handle and pulls (way -1), or before it and pushes (way 1)."""
    angles = turned(DOWN[2])
    handle = DRAWER_Y - hand.view.state.drawer
    y = handle - 0.045 * way
    hand.gripper = CLOSED
    yield from front(hand, scene.drawer, angles)
    yield from go(hand, (scene.drawer, y, 0.48), angles)
    yield from go(hand, (scene.drawer, y, DRAWER_Z), angles)
    yield from go(hand, (scene.drawer, y + 0.25 * way, DRAWER_Z), angles)
    yield from go(hand, (scene.drawer, hand.view.hand[1] - 0.03 * way, DRAWER_Z), angles)
    yield from go(hand, (scene.drawer, hand.view.hand[1], 0.5), angles)


def press(hand: Hand, scene: Scene) -> Moves:
    """Presses the button once."""
    angles = turned(DOWN[2])
    hand.gripper = CLOSED
    yield from front(hand, scene.button, angles)
    yield from go(hand, (scene.button, BUTTON_Y, 0.54), angles)
    yield from go(hand, (scene.button, BUTTON_Y, BUTTON_Z), angles, 0.5)
    yield from go(hand, (scene.button, BUTTON_Y, 0.54), angles)


def switch_on(hand: Hand, scene: Scene) -> Moves:
    """Pushes the switch up from below, with a tilted hand."""
    angles = turned(DOWN[2], HOOK)
    hand.gripper = CLOSED
    below = np.array([scene.switch, *SWITCH_OFF]) - 0.045 * SWITCH_WAY
    yield from front(hand, scene.switch, angles)
    yield from go(hand, below + [0, -0.1, 0.06], angles)
    yield from go(hand, below, angles)
    yield from go(hand, below + 0.13 * SWITCH_WAY, angles)
    yield from go(hand, (scene.switch, FREE_Y, SWITCH_ON[1]), angles)


def switch_off(hand: Hand, scene: Scene) -> Moves:
    """Pushes the switch down from above, with the hand tilted away from the robot: it is far."""
    away = np.arctan2(SWITCH_ON[0] - BASE[1], scene.switch - BASE[0])
    angles = turned(DOWN[2] + 0.6 * (away - DOWN[2]), REACH)
    hand.gripper = CLOSED
    above = np.array([scene.switch, *SWITCH_ON]) + 0.04 * SWITCH_WAY
    yield from front(hand, scene.switch - 0.05, angles)
    yield from go(hand, above + [0, -0.1, 0.03], angles)
    yield from go(hand, above, angles)
    yield from go(hand, above - 0.12 * SWITCH_WAY, angles)
    yield from go(hand, (scene.switch, FREE_Y, 0.6), angles)


def yaw_for(pose: np.ndarray, turn: float = 0.0) -> float:
    """Of a hand whose fingers close on the block's narrow sides, and that can turn so much then."""
    options = [pose[5] + k * np.pi for k in (-2, -1, 0, 1, 2)]
    return float(min(options, key=lambda yaw: max(abs(yaw - np.mean(YAWS)), abs(yaw + turn - np.mean(YAWS)))))


def take(hand: Hand, color: str, turn: float = 0.0) -> Moves:
    """Closes the hand around a block, from above; in the cabinet, with the hand tilted into it."""
    pose = hand.view.state.blocks[color]
    tilt = HOOK if pose[1] > 0 else 0.0
    angles = turned(yaw_for(pose, turn), tilt)
    hand.gripper = OPEN
    yield from front(hand, pose[0], angles)
    yield from go(hand, pose[:3] + 0.1 * np.array([0, -np.sin(tilt), np.cos(tilt)]), angles)
    yield from go(hand, hand.view.state.blocks[color][:3], angles)
    yield from grip(hand, CLOSED)


def lift(hand: Hand, color: str) -> Moves:
    """Takes a block, and holds it up."""
    yield from take(hand, color)
    (x, y, z), (_, pitch, yaw) = hand.view.hand, hand.view.robot[3:6]
    yield from go(hand, (x, y + LIFT * np.sin(pitch), z + LIFT), turned(yaw, -pitch))


def rotate(hand: Hand, color: str, way: float) -> Moves:
    """Takes a block and turns it where it lies: way -1 clockwise, that is right."""
    yield from take(hand, color, way * TURN)
    (x, y, z), yaw = hand.view.hand, hand.view.robot[5]
    y = min(y, FREE_Y)  # the hand would meet the slider's handle
    yield from go(hand, (x, y, z), turned(yaw), 0.5)
    yield from go(hand, (x, y, z), turned(yaw + way * TURN), 0.6)
    yield from grip(hand, OPEN)


def push(hand: Hand, color: str, way: float) -> Moves:
    """Pushes a block along x with closed fingers, and stays behind it."""
    pose, angles = hand.view.state.blocks[color], turned(DOWN[2])
    hand.gripper = CLOSED
    x, y = pose[0] - 0.08 * way, pose[1]
    yield from front(hand, x, angles)
    yield from go(hand, (x, y, 0.54), angles)
    yield from go(hand, (x, y, 0.465), angles)
    goal = pose[0] + (PUSH - 0.03) * way
    while (goal - hand.view.hand[0]) * way > 0.005:
        side = hand.view.state.blocks[color][1]
        yield moves.action(hand, np.array([goal, side, 0.465]), angles, 0.6)
    yield from go(hand, (*hand.view.hand[:2], 0.56), angles)


def carry(hand: Hand, x: float, y: float, z: float, tilt: float = 0.0) -> Moves:
    """Puts down what is held."""
    angles = turned(hand.view.robot[5], tilt)
    back = np.array([0, -np.sin(tilt), np.cos(tilt)])
    yield from front(hand, x, angles)
    yield from go(hand, np.array([x, y, z]) + 0.1 * back, angles)
    yield from go(hand, (x, y, z), angles, 0.5)
    yield from grip(hand, OPEN)
    yield from go(hand, np.array([x, y, z]) + 0.12 * back, angles)


def held(hand: Hand) -> str:
    """The block nearest to the hand."""
    blocks = hand.view.state.blocks
    return min(blocks, key=lambda color: float(np.linalg.norm(blocks[color][:3] - hand.view.hand)))


def into_drawer(hand: Hand, scene: Scene) -> Moves:
    """Lets go of what is held above the open drawer."""
    yield from carry(hand, scene.drawer, -0.06 - hand.view.state.drawer, 0.4)


def into_cabinet(hand: Hand, scene: Scene) -> Moves:
    """Puts what is held where the cabinet is open."""
    free = scene.slider_left if hand.view.state.slider < scene.slider_open / 2 else scene.slider_right
    yield from carry(hand, float(np.mean(free)), float(np.mean(PLANK_Y)), 0.475, HOOK)


def stack(hand: Hand, scene: Scene) -> Moves:
    """Puts what is held on the nearest block on the table."""
    blocks, top = hand.view.state.blocks, held(hand)
    on_table = [pose for color, pose in blocks.items() if color != top and -0.16 < pose[1] < 0 and pose[2] > 0.44]
    below = min(on_table, key=lambda pose: float(np.linalg.norm(pose[:3] - hand.view.hand)))
    offset = hand.view.hand[2] - blocks[top][2]
    yield from carry(hand, below[0], below[1], below[2] + BLOCK_HEIGHT + offset + 0.003)


def unstack(hand: Hand, scene: Scene) -> Moves:
    """Takes the highest block and puts it aside."""
    blocks = hand.view.state.blocks
    top = max(blocks, key=lambda color: blocks[color][2])
    yield from lift(hand, top)


def shove(hand: Hand, scene: Scene) -> Moves:
    """Slides the block that is on the table over the edge, into the open drawer."""
    blocks = hand.view.state.blocks
    color = min(blocks, key=lambda color: blocks[color][1])
    yield from take(hand, color)
    (x, _, z), yaw = hand.view.hand, hand.view.robot[5]
    x = float(np.clip(x, scene.drawer - 0.13, scene.drawer + 0.13))
    yield from go(hand, (x, -0.17, z), turned(yaw), 0.6)
    yield from go(hand, (x, -0.25, z + 0.01), turned(yaw), 0.6)
    yield from grip(hand, OPEN)
    yield from go(hand, (x, -0.25, 0.58), turned(yaw))
