"""When each of CALVIN's 34 tasks can be done, what it changes, and chains of five that follow from it.

A situation is symbolic: where slider, drawer, lamps and blocks are, and whether a block is held.
"""

import itertools
from typing import NamedTuple

import numpy as np

COLORS = ("red", "blue", "pink")
CHAIN = 5  # tasks in a row
CHAINS = 1000  # that the benchmark evaluates

Situation = dict[str, str | int]


class Rule(NamedTuple):
    """Where `needs` holds, the task leads to `gives`."""

    needs: Situation
    gives: Situation


def _block(color: str) -> str:
    return f"{color}_block"


def _moves() -> dict[str, tuple[Rule, ...]]:
    """Tasks that hold nothing before and after."""
    pairs: dict[tuple[str, str], tuple[str, str | int, str | int]] = {
        ("move_slider_left", "move_slider_right"): ("slider", "right", "left"),
        ("open_drawer", "close_drawer"): ("drawer", "closed", "open"),
        ("turn_on_lightbulb", "turn_off_lightbulb"): ("lightbulb", 0, 1),
        ("turn_on_led", "turn_off_led"): ("led", 0, 1),
    }
    found: dict[str, tuple[Rule, ...]] = {}
    for (there, back), (thing, first, second) in pairs.items():
        found[there] = (Rule({thing: first, "held": 0}, {thing: second}),)
        found[back] = (Rule({thing: second, "held": 0}, {thing: first}),)
    for color in COLORS:
        for way in ("right", "left"):
            for verb in ("rotate", "push"):
                found[f"{verb}_{color}_block_{way}"] = (Rule({_block(color): "table", "held": 0}, {}),)
    return found


def _lifts(color: str) -> dict[str, tuple[Rule, ...]]:
    block = _block(color)
    held: Situation = {block: "held", "held": 1}
    shelves = (
        Rule({block: "slider_left", "slider": "right", "held": 0}, held),
        Rule({block: "slider_right", "slider": "left", "held": 0}, held),
    )
    return {
        f"lift_{block}_table": (Rule({block: "table", "held": 0}, held),),
        f"lift_{block}_slider": shelves,
        f"lift_{block}_drawer": (Rule({block: "drawer", "drawer": "open", "held": 0}, held),),
    }


def _others() -> dict[str, tuple[Rule, ...]]:
    found: dict[str, list[Rule]] = {
        name: [] for name in ("place_in_slider", "place_in_drawer", "stack_block", "unstack_block", "push_into_drawer")
    }
    for color in COLORS:
        block, rest = _block(color), [_block(other) for other in COLORS if other != color]
        held: Situation = {block: "held", "held": 1}
        for side in ("right", "left"):
            found["place_in_slider"].append(Rule({**held, "slider": side}, {block: f"slider_{side}", "held": 0}))
        found["place_in_drawer"].append(Rule({**held, "drawer": "open"}, {block: "drawer", "held": 0}))
        for other in rest:
            stacked: Situation = {block: "top", other: "bottom"}
            found["stack_block"].append(Rule({**held, other: "table"}, {**stacked, "held": 0}))
            found["unstack_block"].append(Rule({**stacked, "held": 0}, {block: "table", other: "table"}))
        for first, second in ((0, 1), (1, 0)):
            away: Situation = {rest[first]: "slider_left", rest[second]: "slider_right"}
            ready: Situation = {block: "table", "drawer": "open", "held": 0}
            found["push_into_drawer"].append(Rule({**ready, **away}, {block: "drawer"}))
    return {name: tuple(rules) for name, rules in found.items()}


RULES: dict[str, tuple[Rule, ...]] = {
    **_moves(),
    **{name: rules for color in COLORS for name, rules in _lifts(color).items()},
    **_others(),
}


def kind(task: str) -> str:
    """Of the tasks of one kind a chain has at most one.

    Opening and closing are of one kind; so are lifts of any block off a place, turning and pushing, and the lamps.
    """
    words = [word for word in task.split("_") if word not in (*COLORS, "left", "right", "on", "off")]
    if words[0] in ("rotate", "push") and task != "push_into_drawer":
        return "rotate or push"
    return {"open": "drawer", "close": "drawer", "turn": "lamp", "place": "place"}.get(words[0], "_".join(words))


def outcomes(situation: Situation, task: str) -> list[Situation]:
    """What the task can lead to; none: it cannot be done."""
    return [
        {**situation, **rule.gives}
        for rule in RULES[task]
        if all(situation[thing] == value for thing, value in rule.needs.items())
    ]


def situations() -> list[Situation]:
    """All that a chain may begin with: one or two blocks on the table, the others on either side of the cabinet."""
    places = ("table", "slider_right", "slider_left")
    values: dict[str, tuple[str | int, ...]] = {
        "led": (0, 1),
        "lightbulb": (0, 1),
        "slider": ("right", "left"),
        "drawer": ("closed", "open"),
        **{_block(color): places for color in COLORS},
    }
    found = [{**dict(zip(values, drawn)), "held": 0} for drawn in itertools.product(*values.values())]
    return [situation for situation in found if _apart([str(situation[_block(color)]) for color in COLORS])]


def _apart(places: list[str]) -> bool:
    return places.count("table") in (1, 2) and max(places.count("slider_right"), places.count("slider_left")) < 2


class Chain(NamedTuple):
    """Where it begins, and five tasks of different kinds, each possible after the one before and in one way only."""

    start: Situation
    tasks: tuple[str, ...]


def chain(number: int) -> Chain:
    """The chain of that number, always the same; the situations take turns."""
    starts = situations()
    start = starts[number % len(starts)]
    rng = np.random.default_rng([number, CHAIN])
    names = list(RULES)
    while True:
        tasks = tuple(names[index] for index in rng.choice(len(names), CHAIN, replace=False))
        if len(set(map(kind, tasks))) == CHAIN and _possible(start, tasks):
            return Chain(start, tasks)


def _possible(situation: Situation, tasks: tuple[str, ...]) -> bool:
    for task in tasks:
        after = outcomes(situation, task)
        if len(after) != 1:
            return False
        situation = after[0]
    return True
