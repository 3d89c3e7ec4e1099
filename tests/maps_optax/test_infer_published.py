"""infer_layers on the trees of published models, with a forward pass that reads them in their order.

Stand-ins, for their code has other dependencies.
"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import maps_optax as mx

N = 3
X = jax.ShapeDtypeStruct((2, N), jnp.float32)


def mix(x: Any, part: Any) -> Any:
    """Reads every leaf of a part of a tree, in one place of the data flow."""
    return sum([x * jnp.sum(leaf) for leaf in jax.tree_util.tree_leaves(part)], x)


def small(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def block(*outer: int) -> Any:
    return {"LayerNorm_0": {"scale": small(*outer, N)}, "MlpBlock_0": {"Dense_0": {"kernel": small(*outer, N, N)}}}


def vit(p: Any, x: Any) -> Any:
    x = mix(mix(x, p["embedding"]), p["pos_embedding"])
    body = p["Transformer"]
    if "encoderblock" in body:
        x = jax.lax.scan(lambda x, q: (mix(x, q), None), x, body["encoderblock"])[0]
    else:
        for i in range(sum(name.startswith("encoderblock_") for name in body)):
            x = mix(x, body[f"encoderblock_{i}"])
    return mix(x, body["encoder_norm"])


def vit_tree(count: int, scan: bool) -> Any:
    blocks = {"encoderblock": block(count)} if scan else {f"encoderblock_{i}": block() for i in range(count)}
    return {
        "embedding": {"kernel": small(N, N)},
        "pos_embedding": small(1, N),
        "Transformer": {**blocks, "encoder_norm": {"scale": small(N)}},
    }


def gemma(p: Any, x: Any) -> Any:
    x = mix(x, p["embedder"])
    return mix(jax.lax.scan(lambda x, q: (mix(x, q), None), x, p["layers"])[0], p["final_norm"])


def gemma_tree(count: int, expert: bool = False) -> Any:
    layers = {"attn": {"q_einsum": {"w": small(count, N, N)}}, "mlp": {"linear": small(count, N)}}
    norm = {"final_norm": {"scale": small(N)}}
    if expert:
        layers["attn"]["q_einsum_1"] = {"w": small(count, N, N)}
        norm["final_norm_1"] = {"scale": small(N)}
    return {"embedder": {"input_embedding": small(N, N)}, "layers": layers, **norm}


@pytest.mark.parametrize("scan", [True, False])
def test_big_vision_is_found_as_its_preset_has_it(scan: bool) -> None:
    params = {"img": vit_tree(11, scan), "llm": gemma_tree(2)}
    params["img"]["head"] = {"kernel": small(N, N)}

    def apply(p: Any, x: Any) -> Any:
        return gemma(p["llm"], mix(vit(p["img"], x), p["img"]["head"]))

    stack = mx.infer_layers(apply, params, X)
    found, wanted = (mx.slices(s, params) for s in (stack, mx.presets.paligemma()))
    head = [s for s in found if "head" in s.path]
    assert {s.position for s in head} == {11}  # the preset has it as a layer of its own, the bridge
    offset = {s.path: int(s.path.startswith("llm")) for s in found}
    assert [(s.path, s.position + offset[s.path]) for s in found if s not in head and s.position] == [
        (s.path, s.position) for s in wanted if "head" not in s.path
    ]


def test_gemma_without_a_scan_has_numbered_layers_in_the_preset_too() -> None:
    layers = {str(i): {"mlp": {"linear": small(N)}} for i in range(11)}
    params = {"img": vit_tree(2, True), "llm": {**gemma_tree(2), "layers": layers}}
    found = {s.path: s.position for s in mx.slices(mx.presets.paligemma(), params) if s.module == "language"}
    assert [found[f"llm/layers/{i}/mlp/linear"] for i in range(11)] == list(range(3, 14))


def test_openpi_is_found_as_its_preset_has_it() -> None:
    params = {"PaliGemma": {"img": vit_tree(3, True), "llm": gemma_tree(2, expert=True)}}
    params["PaliGemma"]["img"]["head"] = {"kernel": small(N, N)}
    params["action_in_proj"] = {"kernel": small(N, N)}

    def apply(p: Any, x: Any, actions: Any) -> Any:
        seen = mix(vit(p["PaliGemma"]["img"], x), p["PaliGemma"]["img"]["head"])
        llm = dict(p["PaliGemma"]["llm"])
        last = llm.pop("final_norm_1")
        return mix(gemma(llm, seen + mix(actions, p["action_in_proj"])), last)

    free = [r"PaliGemma/llm/(?:.*/)?\w+_1(?:/|$)", "action_in_proj/"]
    found = mx.slices(mx.infer_layers(apply, params, X, X, free=free), params)
    wanted = mx.slices(mx.presets.openpi(), params)

    def order(slices: Any) -> list[Any]:
        kept = [s for s in slices if s.position is not None and "img/head" not in s.path]
        return [[(s.path, s.row) for s in kept if s.position == k] for k in sorted({s.position for s in kept})]

    assert order(found) == order(wanted)
    assert {s.path for s in found if s.position is None} == {s.path for s in wanted if s.position is None}


def test_octo_is_found_as_its_preset_has_it() -> None:
    stem = {f"StdConv_{i}": {"kernel": small(N, N)} for i in range(4)}
    stem.update({f"GroupNorm_{i}": {"scale": small(N)} for i in range(4)}, embedding={"kernel": small(N, N)})
    body = {f"encoderblock_{i}": block() for i in range(11)}
    params = {
        "octo_transformer": {
            "observation_tokenizers_primary": {"SmallStem16_0": stem},
            "obs_primary_projection": {"kernel": small(N, N)},
            "obs_primary_pos_embedding": small(1, N),
            "readout_action_pos_embedding": small(1, N),
            "BlockTransformer_0": {"Transformer_0": {**body, "encoder_norm": {"scale": small(N)}}},
        },
        "heads_action": {"mean_proj": {"kernel": small(N, N)}},
    }

    def apply(params: Any, x: Any) -> Any:
        p = params["octo_transformer"]
        for i in range(4):
            x = mix(mix(x, stem_of(p)[f"StdConv_{i}"]), stem_of(p)[f"GroupNorm_{i}"])
        x = mix(mix(mix(x, stem_of(p)["embedding"]), p["obs_primary_projection"]), p["obs_primary_pos_embedding"])
        x = jnp.concatenate([x, jnp.broadcast_to(p["readout_action_pos_embedding"], (1, N))])
        body = p["BlockTransformer_0"]["Transformer_0"]
        for i in range(11):
            x = mix(x, body[f"encoderblock_{i}"])
        return mix(mix(x, body["encoder_norm"]), params["heads_action"])

    def stem_of(p: Any) -> Any:
        return p["observation_tokenizers_primary"]["SmallStem16_0"]

    stack = mx.infer_layers(apply, params, X, free=[r"heads_\w+/"])
    found, wanted = ({s.path: s.position for s in mx.slices(x, params)} for x in (stack, mx.presets.octo()))
    # The preset has one bridge of what stands between stem and transformer; here it is three layers, as the data flows.
    between = [path for path in found if "obs_primary_" in path or "readout" in path]
    assert sorted(found[path] for path in between) == [5, 6, 7] and {wanted[path] for path in between} == {5}
    for path, k in wanted.items():
        if path not in between:
            assert found[path] == (k if k is None or k < 5 else k + 2), path
