"""LayerStack: how patterns become positions in the stack."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import maps_optax as mx
from tests.maps_optax.positions import positions

W = np.zeros((2, 3), np.float32)


def tower(**changes: Any) -> mx.LayerStack:
    modules = {
        "vision": {r"v/embed": "first", r"v/block_(\d+)/": "block", r"v/norm": "last"},
        "bridge": {r"bridge/": "first"},
        "language": {r"l/embed": "first", r"l/blocks/": "stacked", r"l/norm": "last"},
    }
    return mx.LayerStack(**{"modules": modules, "free": [r"head/"], **changes})


def params(blocks: tuple[int, ...] = (2, 10, 1), stacked: int = 3) -> dict[str, Any]:
    rows = np.zeros((stacked, 4), np.float32)
    return {
        "v": {"embed": W, "norm": W, **{f"block_{n}": {"w": W, "b": W} for n in blocks}},
        "bridge": {"w": W},
        "l": {"embed": W, "norm": W, "blocks": {"w": rows, "b": rows}},
        "head": {"w": W},
    }


def test_every_place() -> None:
    assert positions(tower(), params()) == {
        "v/embed": 1,
        "v/block_1/w": 1,
        "v/block_1/b": 1,
        "v/block_2/w": 2,
        "v/block_2/b": 2,
        "v/block_10/w": 3,  # the next after 2: numbers order the blocks, gaps are no layers
        "v/block_10/b": 3,
        "v/norm": 3,
        "bridge/w": 4,
        "l/embed": 5,
        "l/blocks/w": [5, 6, 7],
        "l/blocks/b": [5, 6, 7],
        "l/norm": 7,
        "head/w": None,
    }


def test_names_are_those_of_the_blocks() -> None:
    names = {s.position: (s.module, s.block) for s in mx.slices(tower(), params())}
    assert names[3] == ("vision", "10") and names[4] == ("bridge", "") and names[6] == ("language", "1")
    assert names[None] == ("free", "")


def test_the_first_match_wins() -> None:
    general_last = mx.LayerStack({"a": {r"x/w": "first"}, "b": {r"x/": "first"}})
    assert positions(general_last, {"x": {"w": W, "v": W}}) == {"x/w": 1, "x/v": 2}
    general_first = mx.LayerStack({"b": {r"x/": "first"}, "a": {r"x/w": "first"}}, optional=[r"x/w"])
    assert positions(general_first, {"x": {"w": W, "v": W}}) == {"x/w": 1, "x/v": 1}


def test_free_wins_over_modules_and_leaves_the_depth_as_it_was() -> None:
    before = positions(tower(), params())
    freed = positions(tower(free=[r"head/", r"^v/block_(?:1|10)/", r"^l/blocks/b", r".*bridge/"]), params())
    gone = {"v/block_1/w", "v/block_1/b", "v/block_10/w", "v/block_10/b", "l/blocks/b", "bridge/w"}
    assert {k for k, v in freed.items() if v is None} == gone | {"head/w"}
    assert {k: v for k, v in freed.items() if k not in gone} == {k: v for k, v in before.items() if k not in gone}


def test_a_free_pattern_that_reaches_into_a_module_says_so() -> None:
    """PaliGemma's bridge is img/head; free=["head/"] is meant for a new head."""
    weights = {"img": {"Transformer": {"encoderblock": {"w": W}}, "head": {"w": W}}, "llm": {"layers": {"w": W}}}
    preset = mx.presets.paligemma()

    def free(*patterns: str) -> dict[str, Any]:
        return positions(dataclasses.replace(preset, free=(*preset.free, *patterns)), weights)

    with pytest.raises(
        ValueError, match=r"free pattern 'head/' .* leaf 'img/head/w', which rule .* of module 'bridge'"
    ):
        free("head/")
    before = positions(preset, weights)
    assert before == {"img/Transformer/encoderblock/w": [1, 2], "img/head/w": 3, "llm/layers/w": [4, 5]}
    assert free("^img/head/") == free(".*head/") == {**before, "img/head/w": None}
    with pytest.raises(ValueError, match=r"rule '\^head/' of the LayerStack matches no leaf"):
        free("^head/")


@pytest.mark.parametrize("pattern", [r"block_(\d)", r"block_\d?(\d)(?=/)", r".*(\d+)/"])
def test_a_group_takes_a_whole_number(pattern: str) -> None:
    """block_1 and block_10 were one layer."""
    weights = {f"block_{i}": {"w": W} for i in range(11)}
    assert positions(mx.LayerStack({"vision": {r"block_(\d+)/": "block"}}), weights)["block_10/w"] == 11
    with pytest.raises(ValueError, match="leaf 'block_10/w', where it is a part of a longer number"):
        positions(mx.LayerStack({"vision": {pattern: "block"}}), weights)


def test_a_group_that_took_no_part_in_the_match_is_no_number() -> None:
    with pytest.raises(ValueError, match="reads block number '' from leaf 'block_/w'"):
        positions(mx.LayerStack({"vision": {r"block_(\d+)?/": "block"}}), {"block_": {"w": W}})


def test_an_optional_module_that_is_absent_takes_no_layer() -> None:
    stack = tower(optional=[r"bridge/"])
    without = {k: v for k, v in params().items() if k != "bridge"}
    assert positions(stack, without)["l/embed"] == 4
    assert positions(stack, params())["l/embed"] == 5


def test_stacked_leaves_of_several_lengths_share_their_blocks() -> None:
    stack = mx.LayerStack({"a": {r"x/": "stacked"}})
    found = positions(stack, {"x": {"long": np.zeros((3, 2)), "short": np.zeros((2, 2))}})
    assert found == {"x/long": [1, 2, 3], "x/short": [1, 2]}


def test_phantom_layers_keep_the_last_from_zero() -> None:
    for tail, last in ((0, 0.0), (1, 1 / 7), (3, 3 / 9)):
        strengths = mx.strengths(tower(tail=tail), params(), 1.0)
        assert strengths["l"]["norm"] == pytest.approx(last, abs=1e-15)
        assert strengths["v"]["embed"] == 1.0


def test_positions_given_as_a_tree() -> None:
    found = positions({"a": 3, "b": np.array([1, 3]), "c": None}, {"a": W, "b": W, "c": W})
    assert found == {"a": 3, "b": [1, 3], "c": None}
    strengths = mx.strengths({"a": 3, "b": np.array([1, 2]), "c": None}, {"a": W, "b": W, "c": W}, 2.0)
    assert strengths["a"] == 0.0 and strengths["b"].tolist() == [2.0, 1.0] and strengths["c"] == 0.0


def test_many_unmatched_leaves_are_counted() -> None:
    extra: Mapping[str, Any] = {f"x{i}": W for i in range(5)}
    with pytest.raises(ValueError, match=r"matches leaf 'x0', 'x1', 'x2' and 2 more; .*\(vision, bridge, language\)"):
        mx.strengths(tower(), {**params(), **extra}, 1.0)
