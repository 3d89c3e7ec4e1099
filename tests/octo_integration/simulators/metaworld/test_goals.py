"""Scenes of coloured shapes: what is held out stays out, and everything lies where it can be seen and reached."""

import numpy as np
import pytest

from octo_integration.simulators.metaworld import goals
from octo_integration.simulators.metaworld.shifts import HUE_NAMES

SCENES = 300


def test_pairs_are_split_and_every_word_is_known() -> None:
    assert not goals.KNOWN_PAIRS & goals.NEW_PAIRS
    assert len(goals.KNOWN_PAIRS) == 20 and len(goals.NEW_PAIRS) == 10
    for pairs in (goals.KNOWN_PAIRS, goals.NEW_PAIRS):
        assert {color for color, _ in pairs} == set(goals.COLORS)
        assert {shape for _, shape in pairs} == set(goals.SHAPES)
    assert not set(goals.COLORS) & set(goals.NEW_COLORS) and not set(goals.SHAPES) & set(goals.NEW_SHAPES)
    assert {*goals.COLORS, *goals.NEW_COLORS} == set(HUE_NAMES)


@pytest.mark.parametrize("kind", goals.GOALS)
@pytest.mark.parametrize("x_range", [goals.X_RANGE, (0.1, 0.2)])
def test_scenes(kind: str, x_range: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(SCENES):
        shapes, goal = goals.draw_scene(rng, kind, x_range)
        assert len(shapes) == 3 == len({shape.color for shape in shapes})
        for number, shape in enumerate(shapes):
            pair, (x, y, z) = (shape.color, shape.shape), shape.position
            assert number == goal or pair in goals.KNOWN_PAIRS
            assert x_range[0] <= x <= x_range[1] and 0.5 <= y <= 0.8 and 0 < z < 0.06
            for other in shapes[:number]:
                assert np.hypot(x - other.position[0], y - other.position[1]) >= 0.09
        found.add((shapes[goal].color, shapes[goal].shape))
    wanted = {
        "known": goals.KNOWN_PAIRS,
        "new_pairs": goals.NEW_PAIRS,
        "new_shapes": {(color, shape) for color in goals.COLORS for shape in goals.NEW_SHAPES},
    }
    assert found == wanted[kind]


def test_distractors_are_held_out_and_near() -> None:
    rng = np.random.default_rng(0)
    center = np.array([0.0, 0.6, 0.3])
    for _ in range(50):
        distractors = goals.draw_distractors(rng)
        shapes = goals.place(distractors, center, (), ())
        assert all(d.color in goals.NEW_COLORS or d.shape in goals.NEW_SHAPES for d in distractors)
        spots = np.array([shape.position for shape in shapes])
        distances = np.linalg.norm(spots[:, :2] - center[:2], axis=1)
        assert (distances >= 0.08).all() and (distances <= 0.15).all() and (spots[:, 2] < 0.06).all()
        gaps = np.linalg.norm(spots[:, None] - spots, axis=-1) + np.eye(3)
        assert gaps.min() > 0.05


def test_distractors_make_room() -> None:
    rng = np.random.default_rng(0)
    scene = goals.draw_scene(rng)
    others = [shape for number, shape in enumerate(scene.shapes) if number != scene.goal]
    center = np.array(scene.shapes[scene.goal].position)
    for shape in goals.place(goals.draw_distractors(rng), center, others, ()):
        assert all(np.linalg.norm(np.subtract(shape.position, other.position)[:2]) > 0.04 for other in others)
    box = (center[:2] - 0.2, center[:2] + 0.2)
    for shape in goals.place(goals.draw_distractors(rng), center, (), [box]):
        assert np.abs(shape.position[:2] - center[:2]).max() > 0.2


def test_expert_and_success() -> None:
    goal = np.array([0.1, 0.6, 0.03])
    action = goals.approach(np.array([0.0, 0.6, 0.2]), goal)
    np.testing.assert_allclose(action, [1, 0, -0.9, -1], atol=1e-6)
    assert goals.is_reached(np.array([0.06, 0.6, 0.14]), goal)
    assert not goals.is_reached(np.array([0.04, 0.6, 0.14]), goal)
    assert not goals.is_reached(np.array([0.1, 0.6, 0.16]), goal)
