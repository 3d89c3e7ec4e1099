"""A scripted expert: which skill does which task."""

from collections.abc import Callable

import numpy as np

from octo_integration.simulators.calvin.expert import skills
from octo_integration.simulators.calvin.expert.moves import CLOSED, OPEN, Hand, Moves, stay
from octo_integration.simulators.calvin.expert.view import View
from octo_integration.simulators.calvin.rules import COLORS
from octo_integration.simulators.calvin.scenes import Scene

Skill = Callable[[Hand, Scene], Moves]
LEFT, RIGHT = -1.0, 1.0
STEPS = 180  # of the longest

SKILLS: dict[str, Skill] = {
    "move_slider_left": lambda hand, scene: skills.slide(hand, scene, LEFT),
    "move_slider_right": lambda hand, scene: skills.slide(hand, scene, RIGHT),
    "open_drawer": lambda hand, scene: skills.drawer(hand, scene, -1.0),
    "close_drawer": lambda hand, scene: skills.drawer(hand, scene, 1.0),
    "turn_on_led": skills.press,
    "turn_off_led": skills.press,
    "turn_on_lightbulb": skills.switch_on,
    "turn_off_lightbulb": skills.switch_off,
    "place_in_drawer": skills.into_drawer,
    "place_in_slider": skills.into_cabinet,
    "stack_block": skills.stack,
    "unstack_block": skills.unstack,
    "push_into_drawer": skills.shove,
}


def _of_block(color: str) -> dict[str, Skill]:
    places = ("table", "slider", "drawer")
    found: dict[str, Skill] = {f"lift_{color}_block_{place}": _on(skills.lift, color) for place in places}
    for name, turn, way in (("left", 1.0, LEFT), ("right", -1.0, RIGHT)):  # anticlockwise is left
        found[f"rotate_{color}_block_{name}"] = _on(skills.rotate, color, turn)
        found[f"push_{color}_block_{name}"] = _on(skills.push, color, way)
    return found


def _on(skill: Callable[..., Moves], color: str, *way: float) -> Skill:
    return lambda hand, scene: skill(hand, color, *way)


for _color in COLORS:
    SKILLS |= _of_block(_color)

EXPERT_STEPS = dict.fromkeys(SKILLS, STEPS)


class Expert:
    """Does one task once, then holds still."""

    def __init__(self, task: str, scene: Scene, view: View) -> None:
        """`view`: of the first moment."""
        self._hand = Hand(view, CLOSED if view.robot[14] < 0 else OPEN)
        self._moves = SKILLS[task](self._hand, scene)

    def action(self, view: View) -> np.ndarray:
        """What to do now: f32[7] in [-1, 1], the gripper 1 (open) or 0 (closed)."""
        self._hand.view = view
        return next(self._moves, stay(self._hand))
