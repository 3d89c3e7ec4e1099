"""The λ of real models: the released table to the digit, and every leaf of every known tree."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import maps_optax as mx

REFERENCE = Path(__file__).parents[3] / "shared/reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no reference tables: {REFERENCE} is not here")

TREES = {
    "octo_small": mx.presets.octo,
    "octo_debug": mx.presets.octo,
    "openpi_pi0": mx.presets.openpi,
    "openpi_pi05": mx.presets.openpi,
    "openpi_pi0_fast": mx.presets.openpi,
    "openpi_pi0_lora": mx.presets.openpi,
    "openpi_pi0_fast_lora": mx.presets.openpi,
    "openpi_debug": mx.presets.openpi,
    "openpi_debug_pi05": mx.presets.openpi,
    "bv_paligemma_3b_scan": mx.presets.paligemma,
    "bv_siglip_so400m14_scan": mx.presets.paligemma,
    "bv_siglip_so400m14_noscan": mx.presets.paligemma,
    "hf_paligemma_3b_224_tf5": mx.presets.paligemma,
}


@needs_reference
@pytest.mark.parametrize("schedule, column", [("linear", ""), ("cosine", "_cosine")])
@pytest.mark.parametrize("model", ["minivla", "openvla7b", "openvla7b_lora"])
def test_released_gives_the_official_table(model: str, schedule: str, column: str) -> None:
    rows = official(model)
    params = {row["name"]: shape(row) for row in rows}
    strengths = mx.strengths(mx.presets.prismatic("released"), params, 1.0, schedule)
    for row in rows:
        assert strengths[row["name"]] == pytest.approx(row["lambda_over_lambda_max" + column], abs=1e-12), row["name"]


@needs_reference
@pytest.mark.parametrize("nested", [False, True])
def test_paper_follows_the_formula_and_ends_at_exactly_zero(nested: bool) -> None:
    rows = official("minivla")
    params: Any = {row["name"]: shape(row) for row in rows}
    if nested:
        params = nest((row["name"].split("."), shape(row)) for row in rows)
    found = {s.path.replace("/", "."): s for s in mx.slices(mx.presets.prismatic(), params)}
    layers = 24 + 27 + 1 + 24
    expected = {
        "vision_backbone.featurizer.patch_embed.proj.weight": 1,
        "vision_backbone.featurizer.pos_embed": 1,
        "vision_backbone.featurizer.blocks.2.mlp.fc1.bias": 3,
        "vision_backbone.featurizer.blocks.10.mlp.fc1.bias": 11,
        "vision_backbone.featurizer.norm.weight": 24,
        "vision_backbone.fused_featurizer.patch_embed.proj.weight": 25,
        "vision_backbone.fused_featurizer.attn_pool.latent": 51,
        "projector.fc2.weight": 52,
        "language_model.model.embed_tokens.weight": 53,
        "language_model.model.norm.weight": layers,
        "action_head.model.fc1.weight": None,
        "proprio_projector.fc1.weight": None,
    }
    for name, position in expected.items():
        assert found[name].position == position, name
        if position is not None:
            assert found[name].ratio == pytest.approx(1 - (position - 1) / (layers - 1), abs=1e-15)
    assert found["language_model.model.norm.weight"].ratio == 0.0


@needs_reference
@pytest.mark.parametrize("tree", TREES)
def test_every_leaf_has_its_place_in_the_order_of_the_stack(tree: str) -> None:
    rows = json.loads((REFERENCE / f"param_trees/{tree}.json").read_text())
    params = nest((path(row), shape(row)) for row in rows)
    stack = TREES[tree]()
    slices = mx.slices(stack, params)
    assert {s.path for s in slices} == {"/".join(path(row)) for row in rows}
    positions = {s.module: [] for s in slices}
    for s in slices:
        positions[s.module].append(s.position)
        name = s.path.lower()
        from_scratch = "lora" in name or "heads_" in name or name.startswith(("action_", "time_", "state_"))
        assert (s.position is None) == (from_scratch or is_expert(s.path)), s.path
    modules = [m for m in stack.modules if m in positions]
    for before, after in zip(modules, modules[1:]):
        assert max(positions[before]) < min(positions[after])
    for row in rows:
        if row.get("stacked_axis0") and "siglip" in modules:
            n = row["stacked_axis0"]
            mine = [s for s in slices if s.path == "/".join(path(row))]
            if mine[0].position is not None:
                assert [s.row for s in mine] == list(range(n))
                assert list(np.diff([s.position for s in mine])) == [1] * (n - 1)


@needs_reference
def test_blocks_are_read_as_integers() -> None:
    rows = json.loads((REFERENCE / "param_trees/octo_small.json").read_text())
    slices = mx.slices(mx.presets.octo(), nest((path(row), shape(row)) for row in rows))
    first = {s.path.split("encoderblock_")[1].split("/")[0]: s.position for s in slices if "encoderblock_" in s.path}
    assert first["2"] < first["10"]
    assert [first[str(i)] for i in range(12)] == list(range(first["0"], first["0"] + 12))


@needs_reference
def test_frozen_leaves_that_never_arrive_do_not_move_the_others() -> None:
    rows = json.loads((REFERENCE / "param_trees/openpi_pi0_lora.json").read_text())
    whole = mx.strengths(mx.presets.openpi(), nest((path(r), shape(r)) for r in rows), 1.0)
    trained = nest((path(r), shape(r)) for r in rows if not r["frozen"])
    part = mx.strengths(mx.presets.openpi(), trained, 1.0)
    block = ("PaliGemma", "img", "Transformer", "encoderblock", "LayerNorm_0", "scale")
    for key in block:
        whole, part = whole[key], part[key]
    np.testing.assert_array_equal(whole, part)
    assert part[0] == 1.0 and part[-1] > 0.3


MASKABLE = {
    "octo_debug": mx.presets.octo,
    "openpi_pi05": mx.presets.openpi,
    "bv_paligemma_3b_scan": mx.presets.paligemma,
    "hf_paligemma_3b_224_tf5": mx.presets.paligemma,
    "minivla": mx.presets.prismatic,
    "minivla, released": lambda: mx.presets.prismatic("released"),
}


@needs_reference
@pytest.mark.parametrize("tree", MASKABLE)
def test_masks_of_any_granularity_leave_lambda_as_it_is_or_say_that_they_hide_it(tree: str) -> None:
    if tree.startswith("minivla"):
        rows = official("minivla")
    else:
        rows = json.loads((REFERENCE / f"param_trees/{tree}.json").read_text())
    rows = [row for row in rows if not any(key.isdigit() and int(key) > 2 for key in path(row))]
    params = nest((path(row), shape(row)) for row in rows)
    whole = by_path(mx.strengths(MASKABLE[tree](), params, 1.0))
    kept = refused = 0
    for subtree in subtrees(params):
        for masked in (without(params, subtree), only(params, subtree)):
            try:
                part = by_path(mx.strengths(MASKABLE[tree](), masked, 1.0))
            except ValueError as error:
                assert "is masked out here" in str(error) and "mx.spd(mx.strengths(" in str(error)
                refused += 1
            else:
                assert all(np.array_equal(value, whole[key]) for key, value in part.items()), subtree
                kept += 1
    assert kept > 50 and refused > 0


@needs_reference
@pytest.mark.parametrize("subtree", ["img/head", "img/embedding", "llm/embedder", "img/Transformer/encoder_norm"])
def test_a_subtree_that_is_one_layer_may_be_masked_out_whole(subtree: str) -> None:
    rows = json.loads((REFERENCE / "param_trees/bv_paligemma_3b_scan.json").read_text())
    params = nest((path(row), shape(row)) for row in rows)
    part = by_path(mx.strengths(mx.presets.paligemma(), without(params, tuple(subtree.split("/"))), 1.0))
    whole = by_path(mx.strengths(mx.presets.paligemma(), params, 1.0))
    assert 0 < len(part) < len(whole)
    assert all(np.array_equal(value, whole[key]) for key, value in part.items())


def subtrees(tree: Any, prefix: tuple[str, ...] = ()) -> Any:
    """The paths of all subtrees and leaves but the root."""
    if prefix:
        yield prefix
    for key, below in tree.items() if isinstance(tree, dict) else ():
        yield from subtrees(below, (*prefix, key))


def without(tree: Any, place: tuple[str, ...]) -> Any:
    """`tree` as a wrapper shows it that masks out one place."""
    return {**tree, place[0]: without(tree[place[0]], place[1:])} if place else optax.MaskedNode()


def only(tree: Any, place: tuple[str, ...]) -> Any:
    """`tree` as a wrapper shows it that masks out all but one place, by masks as large as can be."""
    if not place:
        return tree
    return {key: only(below, place[1:]) if key == place[0] else optax.MaskedNode() for key, below in tree.items()}


def by_path(tree: Any) -> dict[Any, Any]:
    return {tuple(k.key for k in keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def test_an_unknown_variant() -> None:
    with pytest.raises(ValueError, match="'paper' or 'released'"):
        mx.presets.prismatic("papre")


def official(model: str) -> list[dict[str, Any]]:
    return json.loads((REFERENCE / f"official_lambda/lambda_{model}_official.json").read_text())["parameters"]


def shape(row: dict[str, Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(row["shape"]), np.dtype(row.get("dtype", "float32")))


def path(row: dict[str, Any]) -> list[str]:
    keys = row["path"] if "path" in row else row["name"]
    return keys if isinstance(keys, list) else keys.split(".")


def is_expert(name: str) -> bool:
    """openpi's action expert: keys ending in _1, under llm only."""
    return "/llm/" in name and any(key.endswith("_1") for key in name.split("/"))


def nest(leaves: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for keys, leaf in leaves:
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = leaf
    return tree
