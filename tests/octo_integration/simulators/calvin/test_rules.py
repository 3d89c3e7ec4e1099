"""CALVIN's tasks as changes of a situation, and the chains of five that these allow."""

import pytest

from octo_integration.simulators.calvin.rules import CHAIN, RULES, chain, kind, outcomes, situations

START = {
    "slider": "right",
    "drawer": "open",
    "lightbulb": 0,
    "led": 1,
    "red_block": "table",
    "blue_block": "slider_left",
    "pink_block": "slider_right",
    "held": 0,
}


def test_there_are_the_benchmarks_34_tasks_of_11_kinds() -> None:
    assert len(RULES) == 34
    assert len({kind(task) for task in RULES}) == 11


@pytest.mark.parametrize(
    ("task", "gives"),
    [
        ("move_slider_left", {"slider": "left"}),
        ("move_slider_right", None),
        ("close_drawer", {"drawer": "closed"}),
        ("turn_on_led", None),
        ("turn_on_lightbulb", {"lightbulb": 1}),
        ("lift_red_block_table", {"red_block": "held", "held": 1}),
        ("lift_blue_block_slider", {"blue_block": "held", "held": 1}),
        ("lift_pink_block_slider", None),  # behind the door
        ("push_into_drawer", {"red_block": "drawer"}),
        ("place_in_drawer", None),
        ("rotate_red_block_left", {}),
        ("push_blue_block_left", None),
    ],
)
def test_what_a_task_needs_and_gives(task: str, gives: dict[str, str | int] | None) -> None:
    assert outcomes(START, task) == ([] if gives is None else [{**START, **gives}])


def test_what_is_held_can_be_put_down_or_stacked_and_that_undone() -> None:
    (held,) = outcomes(START, "lift_blue_block_slider")
    assert outcomes(held, "turn_off_led") == []
    assert outcomes(held, "place_in_slider") == [{**START, "blue_block": "slider_right"}]
    (stacked,) = outcomes(held, "stack_block")
    assert stacked == {**START, "blue_block": "top", "red_block": "bottom"}
    assert outcomes(stacked, "unstack_block") == [{**START, "blue_block": "table"}]


def test_chains_begin_in_turn_and_each_task_is_possible_in_one_way_alone() -> None:
    starts = situations()
    assert len(starts) == 192
    for number in (0, 191, 192):
        found = chain(number)
        assert found == chain(number) and found.start == starts[number % 192]
        assert len(found.tasks) == CHAIN == len({kind(task) for task in found.tasks})
        situation = found.start
        for task in found.tasks:
            (situation,) = outcomes(situation, task)
    assert chain(0).tasks != chain(192).tasks
