"""infer_layers: the stack that a forward pass shows, on functions whose order is known."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maps_optax as mx
from tests.maps_optax.positions import positions

N = 3
W = jax.ShapeDtypeStruct((N, N), jnp.float32)
X = jax.ShapeDtypeStruct((2, N), jnp.float32)


def layer(x: Any, w: Any) -> Any:
    return x + jnp.tanh(x @ w)


def rows(count: int) -> Any:
    return jax.ShapeDtypeStruct((count, N, N), jnp.float32)


def scanned(x: Any, stacked: Any, **options: Any) -> Any:
    return jax.lax.scan(lambda x, w: (layer(x, w), None), x, stacked, **options)[0]


def places(apply_fn: Any, params: Any, *inputs: Any, free: Any = ()) -> dict[str, Any]:
    """Path → position, or the positions of a stacked leaf's rows."""
    return positions(mx.infer_layers(apply_fn, params, *(inputs or (X,)), free=free), params)


def test_numbers_are_blocks_in_the_order_of_the_data_not_of_the_alphabet() -> None:
    def apply(params: Any, x: Any) -> Any:
        x = x @ params["embed"]
        for i in range(12):
            x = layer(x, params[f"block_{i}"])
        return (x * params["norm"]) @ params["head"]

    params = {"embed": W, "norm": jax.ShapeDtypeStruct((N,), jnp.float32), "head": W}
    params.update({f"block_{i}": W for i in range(12)})
    found = places(apply, params, free=["head$"])
    assert found == {"embed": 1, **{f"block_{i}": i + 1 for i in range(12)}, "norm": 12, "head": None}


def test_a_scan_over_rows_is_a_stack_whatever_is_cast_on_the_way() -> None:
    def apply(params: Any, x: Any) -> Any:
        low = jax.tree_util.tree_map(lambda p: p.astype(jnp.bfloat16), params)
        return scanned(x.astype(jnp.bfloat16), low["tower"]["layers"]) @ low["tower"]["out"]

    assert places(apply, {"tower": {"layers": rows(4), "out": W}}) == {"tower/layers": [1, 2, 3, 4], "tower/out": 4}


@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        jax.checkpoint,
        lambda f: functools.partial(jax.lax.cond, True, f, lambda w, x: x),
        lambda f: lambda w, x: jax.lax.fori_loop(0, 2, lambda _, x: f(w, x), x),
        lambda f: lambda w, x: jax.lax.while_loop(lambda x: x.sum() < w.sum(), lambda x: f(w, x), x),
        lambda f: lambda w, x: jax.lax.scan(lambda x, _: (f(w, x), None), x, jnp.arange(2))[0],
        lambda f: lambda w, x: jax.vmap(f, (None, 0))(w, x),
    ],
    ids=["jit", "remat", "cond", "fori", "while", "scan over time", "vmap"],
)
def test_programs_within_the_program_are_looked_into(wrap: Any) -> None:
    def apply(params: Any, x: Any) -> Any:
        for name in ("z", "a", "m"):
            x = wrap(lambda w, x: jnp.tanh(x @ w))(params[name]["w"], x)
        return x

    assert places(apply, {name: {"w": W} for name in "amz"}) == {"z/w": 1, "a/w": 2, "m/w": 3}


def test_custom_derivatives_are_looked_into() -> None:
    @jax.custom_vjp
    def f(w: Any, x: Any) -> Any:
        return x @ w

    f.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: (kept[1].T @ g, g @ kept[0].T))
    g = jax.custom_jvp(lambda w, x: x @ w)
    g.defjvp(lambda primals, tangents: (primals[1] @ primals[0], primals[1] @ tangents[0]))
    found = places(lambda p, x: g(p["a"], f(p["b"], x)), {"a": W, "b": W})
    assert found == {"b": 1, "a": 2}


def test_towers_side_by_side_are_modules_in_the_order_of_their_use_and_come_before_what_reads_both() -> None:
    def apply(params: Any, x: Any) -> Any:
        sees, names = scanned(x, params["z_tower"]["blocks"]), scanned(x, params["a_tower"]["blocks"])
        x = (sees + names) @ params["bridge"]["w"]
        return scanned(x, params["language"]["blocks"])

    params = {name: {"blocks": rows(2)} for name in ("a_tower", "language", "z_tower")}
    found = places(apply, {**params, "bridge": {"w": W}})
    assert found == {
        "z_tower/blocks": [1, 2],
        "a_tower/blocks": [3, 4],
        "bridge/w": 5,
        "language/blocks": [6, 7],
    }


def test_stacks_side_by_side_at_the_root_of_the_tree() -> None:
    def apply(params: Any, x: Any) -> Any:
        return scanned(scanned(x, params["second"]), params["first"])

    assert places(apply, {"first": rows(2), "second": rows(3)}) == {"second": [1, 2, 3], "first": [4, 5]}


def test_heads_with_numbers_are_no_blocks_for_none_follows_another() -> None:
    def apply(params: Any, x: Any) -> Any:
        x = scanned(x, params["body"]["blocks"])
        return [x @ params[f"head_{i}"]["w"] for i in range(2)]

    found = places(apply, {"body": {"blocks": rows(2)}, "head_0": {"w": W}, "head_1": {"w": W}})
    assert found["body/blocks"] == [1, 2]
    stack = mx.infer_layers(apply, {"body": {"blocks": rows(2)}, "head_0": {"w": W}, "head_1": {"w": W}}, X)
    assert list(stack.modules) == ["body"] and set(stack.modules["body"].values()) == {"stacked", "last"}


def test_two_numbered_dense_layers_are_an_mlp_and_no_blocks() -> None:
    def apply(params: Any, x: Any) -> Any:
        x = scanned(x @ params["embed"]["w"], params["body"]["blocks"])
        return jnp.tanh(x @ params["pool"]["Dense_0"]["w"]) @ params["pool"]["Dense_1"]["w"]

    pool = {"Dense_0": {"w": W}, "Dense_1": {"w": W}}
    found = places(apply, {"embed": {"w": W}, "body": {"blocks": rows(3)}, "pool": pool})
    assert found == {"embed/w": 1, "body/blocks": [1, 2, 3], "pool/Dense_0/w": 3, "pool/Dense_1/w": 3}


def test_convolutions_and_norms_that_alternate_are_one_run() -> None:
    def apply(params: Any, x: Any) -> Any:
        for i in range(3):
            x = layer(x, params["stem"][f"Conv_{i}"]["w"]) * params["stem"][f"Norm_{i}"]["scale"]
        return scanned(x, params["body"]["blocks"])

    stem = {f"Conv_{i}": {"w": W} for i in range(3)}
    stem.update({f"Norm_{i}": {"scale": jax.ShapeDtypeStruct((N,), jnp.float32)} for i in range(3)})
    found = places(apply, {"stem": stem, "body": {"blocks": rows(2)}})
    assert [found[f"stem/Conv_{i}/w"] for i in range(3)] == [1, 2, 3]
    assert [found[f"stem/Norm_{i}/scale"] for i in range(3)] == [1, 2, 3]
    assert found["body/blocks"] == [4, 5]


def test_what_stands_beside_blocks_goes_first_or_last() -> None:
    """Embeddings and class tokens are parameters alone until the data reaches them; a tied head is where it embeds."""

    def apply(params: Any, tokens: Any) -> Any:
        p = params["llm"]
        x = p["embed"][tokens] + 2.0 * p["position"]
        x = jnp.concatenate([jnp.broadcast_to(p["cls"], (1, N)), x])
        x = scanned(x, p["layers"]) * p["norm"]
        return x @ p["embed"].T, x @ params["value"]["w"]

    vector = jax.ShapeDtypeStruct((N,), jnp.float32)
    llm = {"embed": W, "position": vector, "cls": vector, "layers": rows(3), "norm": vector}
    found = places(apply, {"llm": llm, "value": {"w": W}}, jnp.zeros(2, jnp.int32), free=["value/"])
    assert found == {
        "llm/embed": 1,
        "llm/position": 1,
        "llm/cls": 1,
        "llm/layers": [1, 2, 3],
        "llm/norm": 3,
        "value/w": None,
    }


def test_what_nothing_reads_is_named_and_free_or_stays_with_its_blocks() -> None:
    def apply(params: Any, x: Any) -> Any:
        for i in range(2):  # the third block is there, and not used: penultimate features
            x = layer(x, params["a"][f"block_{i}"])
        return scanned(x, params["b"]["blocks"])

    params = {"a": {f"block_{i}": W for i in range(3)}, "b": {"blocks": rows(2)}, "mask_token": W}
    with pytest.warns(UserWarning, match="nothing reads leaf 'mask_token'"):
        found = places(apply, params)
    assert [found[f"a/block_{i}"] for i in range(3)] == [1, 2, 3]
    assert found["b/blocks"] == [4, 5] and found["mask_token"] is None


def test_a_carry_that_only_becomes_data_in_the_loop() -> None:
    def apply(params: Any, x: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            memory, x = carry
            return (x, jnp.tanh(memory @ params["late"]["w"] + x @ params["early"]["w"])), None

        return jax.lax.scan(step, (jnp.zeros_like(x), x), jnp.arange(3))[0][1]

    assert set(places(apply, {"early": {"w": W}, "late": {"w": W}}).values()) == {1, 2}


def test_a_scan_with_constants_a_carry_rows_and_outputs_of_every_rank() -> None:
    """Constants and rows are told apart by their shapes: a vector as a constant, a matrix whose rows are vectors."""

    def apply(params: Any, x: Any) -> Any:
        def step(carry: Any, row: Any) -> Any:
            x, count = carry
            x = jnp.tanh(x @ params["shared"]) * row["scale"] + row["gain"]
            return (x, count + 1), (x, count)

        (x, _), (seen, _) = jax.lax.scan(step, (x, 0), params["rows"])
        return x + seen.sum(0) @ params["out"]

    table = {"scale": jax.ShapeDtypeStruct((N, N), jnp.float32), "gain": jax.ShapeDtypeStruct((N,), jnp.float32)}
    found = places(apply, {"shared": W, "rows": table, "out": W})
    assert found == {"rows/gain": [1, 2, 3], "rows/scale": [1, 2, 3], "shared": 1, "out": 3}


def test_lists_and_dotted_keys() -> None:
    def apply(params: Any, x: Any) -> Any:
        for w in params["layers"]:
            x = layer(x, w)
        return x @ params["proj.weight"]

    assert places(apply, {"layers": [W, W], "proj.weight": W}) == {"layers/0": 1, "layers/1": 2, "proj.weight": 2}


def test_a_model_without_blocks_has_a_layer_for_every_part() -> None:
    def apply(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params["z"]["w"] + params["z"]["b"]) @ params["a"]["w"]

    z = {"w": W, "b": jax.ShapeDtypeStruct((N,), jnp.float32)}
    assert places(apply, {"a": {"w": W}, "z": z}) == {"z/b": 1, "z/w": 1, "a/w": 2}


def test_a_u_net_says_that_its_upward_half_is_a_guess() -> None:
    """Its blocks are numbered by resolution, so upwards the numbers fall, and are no blocks of a stack."""

    def apply(params: Any, x: Any) -> Any:
        seen = []
        for i in range(3):
            x = layer(x, params["down"][f"level_{i}"]["w"])
            seen.append(x)
        x = layer(x, params["middle"]["w"])
        for i in reversed(range(3)):
            x = layer(x + seen[i], params["up"][f"level_{i}"]["w"])
        return x

    levels = {f"level_{i}": {"w": W} for i in range(3)}
    params = {"down": levels, "middle": {"w": W}, "up": levels}
    stack = mx.infer_layers(apply, params, X)
    assert positions(stack, params)["up/level_2/w"] == 3  # the last of three: λ = 0
    why = "in the last layer of 'down': beside its blocks, not read by them"
    assert stack.guesses == dict.fromkeys(["middle/w", *(f"up/level_{i}/w" for i in range(3))], why)
    table = mx.describe(stack, params, 1.0)
    assert f"guessed: 'middle/w', 'up/level_0/w', 'up/level_1/w' and 1 more (57% of the parameters): {why}" in table
    assert "guessed" not in mx.describe(dataclasses.replace(stack, guesses={}), params, 1.0)


def test_a_part_without_blocks_says_that_it_is_one_layer() -> None:
    def apply(params: Any, x: Any) -> Any:
        x = jnp.tanh(x @ params["encoder"]["inner"]) @ params["encoder"]["outer"]
        return jnp.tanh(x @ params["bridge"]["w"]) @ params["decoder"]["inner"] @ params["decoder"]["outer"]

    half = {"inner": W, "outer": W}
    stack = mx.infer_layers(apply, {"encoder": half, "bridge": {"w": W}, "decoder": half}, X)
    assert stack.guesses == {
        f"{name}/{leaf}": f"one layer with the rest of {name!r}, which has no blocks"
        for name in ("decoder", "encoder")
        for leaf in ("inner", "outer")
    }


def test_what_the_data_flow_settles_is_no_guess() -> None:
    stack = mx.infer_layers(lambda p, x: scanned(x, p["tower"]), {"tower": rows(2)}, X)
    assert stack.guesses == {}


def test_a_scan_in_reverse_is_refused() -> None:
    with pytest.raises(ValueError, match="leaf 'tower/blocks' from its last row to its first"):
        mx.infer_layers(lambda p, x: scanned(x, p["tower"]["blocks"], reverse=True), {"tower": {"blocks": rows(2)}}, X)


def test_one_string_is_refused_where_patterns_are_wanted() -> None:
    with pytest.raises(ValueError, match="free is 'head/'; give a list of patterns"):
        mx.infer_layers(lambda p, x: x @ p, W, X, free="head/")


def test_the_proposal_trains() -> None:
    def apply(params: Any, x: Any) -> Any:
        return layer(layer(x, params["block_0"]), params["block_1"])

    params = {f"block_{i}": np.eye(N, dtype=np.float32) for i in range(2)}
    stack = mx.infer_layers(apply, params, X)
    lambdas = mx.strengths(stack, params, lambda_max=2.0)
    assert lambdas == {"block_0": 2.0, "block_1": 0.0}
    assert "block" in mx.describe(stack, params, 2.0)
