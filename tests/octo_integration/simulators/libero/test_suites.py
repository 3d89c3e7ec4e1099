"""What is known of LIBERO without its package."""

import dataclasses

import pytest

from octo_integration.simulators.libero import SIMULATOR
from octo_integration.simulators.libero.shifts import LOOKS, SHIFTS, STARTS, draw_shift


def test_tasks_are_numbered_in_their_suite() -> None:
    sizes = {name: len(tasks) for name, tasks in SIMULATOR.suites.items()}
    assert len(sizes) == 31 and sum(sizes.values()) == len(SIMULATOR.tasks) == 388
    assert {name for name, size in sizes.items() if size != 10} == {"libero_90", "libero_10_with_milk"}
    assert sizes["libero_90"] == 90 and sizes["libero_10_with_milk"] == 8
    assert SIMULATOR.suite("libero_goal_swap")[:2] == ("libero_goal_swap/0", "libero_goal_swap/1")
    assert set(SIMULATOR.default_tasks) < set(SIMULATOR.tasks)


@pytest.mark.parametrize(
    ("task", "steps", "states"),
    [
        ("libero_spatial/0", 220, 50),
        ("libero_object_lan/9", 280, 50),
        ("libero_goal_with_milk/0", 300, 10),
        ("libero_10_task/1", 520, 50),
        ("libero_90/89", 400, 50),
    ],
)
def test_steps_are_those_that_others_count(task: str, steps: int, states: int) -> None:
    assert SIMULATOR.task(task).steps == steps and SIMULATOR.task(task).initial_states == states


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("libero_goal_env/0", "libero_goal_env cannot be had: the package has no scene files of it"),
        ("libero_spatial_with_red_stick/3", "libero_spatial_with_red_stick cannot be had: the package lacks meshes"),
        ("libero_10_with_milk/3", "libero_10_with_milk/3 cannot be had: the package records no initial states of it"),
        ("libero_goal/10", "unknown task 'libero_goal/10'; there are libero_goal/0, libero_goal/1"),
        ("libero_gaol/0", "unknown suite 'libero_gaol'; there are libero_spatial, libero_object"),
        ("push", "unknown task 'push'; one is called like libero_spatial/0"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(ValueError) as refused:
        SIMULATOR.task(name)
    assert str(refused.value).startswith(reason) and "\n" not in str(refused.value)


def test_shifts_follow_from_their_seed_and_grow_with_their_strength() -> None:
    assert set(SIMULATOR.shifts) == set(SHIFTS)
    assert {name for name in SHIFTS if SIMULATOR.shift(name).changes == "looks"} == set(LOOKS)
    assert {name for name in SHIFTS if SIMULATOR.shift(name).changes == "episode"} == set(STARTS)
    for name in SHIFTS[1:]:
        assert draw_shift(name, 5) == draw_shift(name, 5) != draw_shift(name, 6)
        assert draw_shift(name, 5).name == name
    weak, medium, strong = (draw_shift(f"camera_{strength}", 5).camera for strength in (1, 2, 3))
    assert weak and medium and strong
    assert 2 * weak.azimuth == pytest.approx(medium.azimuth) and abs(strong.azimuth) > abs(medium.azimuth)
    assert 0.7 * 22 <= abs(strong.azimuth) <= 22
    everything, texture = draw_shift("all_2", 5), draw_shift("texture_2", 5)
    assert everything.texture == texture.texture and everything.share == texture.share == 0.7
    assert not everything.start and len(everything.distractors) == 4
    assert draw_shift("none", 5) == dataclasses.replace(draw_shift("none", 6))
    with pytest.raises(ValueError, match="unknown shift 'fog'; there are none, camera_1"):
        draw_shift("fog", 0)
    with pytest.raises(ValueError, match="unknown layout 'left'; LIBERO has all"):
        draw_shift("none", 0, "left")
