"""The tasks we collect and evaluate: Meta-World's environments, in our words (Meta-World has no language).

Paraphrases never occur in collected data: they are the `language` shift of shifts.py.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Task:
    """One Meta-World task.

    Attributes:
      environment: name in Meta-World's registry; its scripted expert has the same name.
      instruction: what collected demonstrations say.
      paraphrases: the same in other words, for measuring how much hangs on the wording.
      object: what is manipulated, in one or two words; color: its colour in Meta-World.
    """

    environment: str
    instruction: str
    paraphrases: tuple[str, ...]
    object: str
    color: str


TASKS: dict[str, Task] = {
    "reach": Task(
        "reach-v3",
        "move the gripper to the red sphere",
        (
            "reach for the red ball",
            "bring the hand to the red target",
            "go to the red dot in the air",
        ),
        "puck",
        "red",
    ),
    "push": Task(
        "push-v3",
        "push the puck to the green sphere",
        ("slide the puck onto the green mark", "move the small cylinder to the green target"),
        "puck",
        "red",
    ),
    "pick-place": Task(
        "pick-place-v3",
        "pick up the puck and bring it to the blue sphere",
        (
            "lift the puck to the blue target",
            "grasp the small cylinder and carry it to the blue ball",
        ),
        "puck",
        "red",
    ),
    "drawer-open": Task(
        "drawer-open-v3",
        "open the drawer",
        ("pull the drawer out", "grab the handle and pull the drawer towards you"),
        "drawer",
        "green",
    ),
    "drawer-close": Task(
        "drawer-close-v3",
        "close the drawer",
        ("push the drawer in", "shut the drawer"),
        "drawer",
        "green",
    ),
    "button-press": Task(
        "button-press-topdown-v3",
        "press the button from above",
        ("push the button down", "press down the knob on the box"),
        "button",
        "yellow",
    ),
    "door-open": Task(
        "door-open-v3",
        "open the door of the safe",
        ("pull the door open", "swing the safe's door open by its handle"),
        "safe",
        "gray",
    ),
    "door-close": Task(
        "door-close-v3",
        "close the door of the safe",
        ("push the door shut", "shut the safe"),
        "safe",
        "gray",
    ),
    "window-open": Task(
        "window-open-v3",
        "slide the window open",
        ("open the window", "push the window's handle to the right"),
        "window",
        "brown",
    ),
    "window-close": Task(
        "window-close-v3",
        "slide the window closed",
        ("close the window", "push the window's handle back to the left"),
        "window",
        "brown",
    ),
    "handle-press": Task(
        "handle-press-v3",
        "press the handle down",
        ("push the lever down", "press down on the red handle"),
        "handle",
        "gray",
    ),
    "faucet-open": Task(
        "faucet-open-v3",
        "open the faucet",
        ("turn on the tap", "rotate the faucet's handle counterclockwise"),
        "faucet",
        "red",
    ),
    "plate-slide": Task(
        "plate-slide-v3",
        "slide the plate into the goal",
        ("push the plate to the net", "move the disc into the cabinet"),
        "plate",
        "gray",
    ),
    "coffee-button": Task(
        "coffee-button-v3",
        "press the button of the coffee machine",
        ("start the coffee machine", "push the coffee maker's button"),
        "coffee machine",
        "brown",
    ),
}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
      ValueError: there is none; lists those that there are.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; there are {', '.join(TASKS)}.")
    return TASKS[name]
