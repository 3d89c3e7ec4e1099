"""Adapters: what is computed from factors is what the merged kernel would give."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx

TREES = Path(__file__).parents[3] / "shared/reference/param_trees"
SCALE = 0.5
# name -> shapes of A and B, how Δ is made of them, λ
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], str, Any]] = {
    "matrix": ((7, 2), (2, 5), "ir,ro->io", 1.3),
    "square": ((6, 2), (2, 6), "ir,ro->io", 0.7),
    "peft": ((2, 7), (5, 2), "ri,or->oi", 1.3),
    "peft square": ((2, 6), (6, 2), "ri,or->oi", 1.3),
    "stacked": ((3, 7, 2), (3, 2, 5), "nir,nro->nio", np.array([2.0, 0.0, 0.6])),
    "heads": ((4, 7, 2), (4, 2, 5), "nir,nro->nio", 1.1),
    "stacked heads": ((3, 4, 7, 2), (3, 4, 2, 5), "nhir,nhro->nhio", np.array([2.0, 1.0, 0.6])),
    "full rank": ((3, 4), (4, 5), "ir,ro->io", 1.0),
}


def dense(formula: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return SCALE * np.einsum(formula, a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_factors_give_what_the_merged_kernel_gives(layout: str, x64: None) -> None:
    """Thirty steps in float64, with gradients of a loss of the kernel itself."""
    shape_a, shape_b, formula, lam = LAYOUTS[layout]
    rng = np.random.default_rng(3)
    params = {"lora_a": jnp.asarray(rng.normal(size=shape_a)), "lora_b": jnp.zeros(shape_b), "x": jnp.ones(2)}
    wanted = jnp.asarray(rng.normal(size=dense(formula, *(params[k] for k in ("lora_a", "lora_b"))).shape))
    strength = {"lora_a": None, "lora_b": lam, "x": 5.0}  # λ of other leaves is passed over
    sgd = optax.sgd(0.05, momentum=0.8)
    tx = mx.chain(sgd, mx.lora_spd(strength, scale=SCALE))
    state, step, pulled = tx.init(params), jax.jit(tx.update), 0

    def loss(params: Any, wanted: Any) -> Any:
        delta = SCALE * jnp.einsum(formula, params["lora_a"], params["lora_b"])
        return 0.5 * jnp.sum((delta - wanted) ** 2) + jnp.sum(params["x"] ** 2), delta

    for t in range(30):
        target = wanted * np.cos(t / 3) + 0.1 * jnp.asarray(rng.normal(size=wanted.shape))
        grads, delta = jax.grad(loss, has_aux=True)(params, target)
        bare, _ = sgd.update(grads, state[0])
        updates, state = step(grads, state, params)

        axes = tuple(range(np.ndim(lam), delta.ndim))
        before = np.asarray(delta)
        moved = optax.apply_updates(params, bare)
        after = dense(formula, moved["lora_a"], moved["lora_b"])
        home = ((before - np.asarray(target)) * before).sum(axes)  # ⟨∂L/∂W, Δ⟩
        g_b = (np.asarray(grads["lora_b"]) * np.asarray(params["lora_b"])).sum(axes)
        np.testing.assert_allclose(g_b, home, rtol=0, atol=1e-12)
        size, was = np.sqrt((after**2).sum(axes)), np.sqrt((before**2).sum(axes))
        pull = np.where(home > 0, lam * np.maximum(size - was, 0) / size, 0)
        expected = after * (1 - pull.reshape(pull.shape + (1,) * len(axes)))

        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(dense(formula, params["lora_a"], params["lora_b"]), expected, rtol=0, atol=1e-12)
        for untouched in ("lora_a", "x"):
            np.testing.assert_allclose(params[untouched], moved[untouched], rtol=0, atol=1e-15)
        np.testing.assert_allclose(state[1].pull, np.atleast_1d(pull), rtol=0, atol=1e-10)
        np.testing.assert_array_equal(state[1].triggered, np.atleast_1d(home > 0))
        np.testing.assert_allclose(state[1].drift, np.atleast_1d(np.sqrt((expected**2).sum(axes))), rtol=0, atol=1e-10)
        pulled += np.atleast_1d(pull) > 0
    assert (np.asarray(pulled)[np.atleast_1d(lam) > 0] > 1).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("growth", [1e-1, 1e-3, 1e-5])
def test_a_small_step_has_the_ratio_of_float64(dtype: str, growth: float) -> None:
    """Where ‖Δ̃‖² − ‖Δ‖² of float32 would be noise."""
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.normal(size=s), dtype) for s in ((300, 8), (8, 200)))
    u, v = (jnp.asarray(growth * np.asarray(x, np.float64), dtype) for x in (a, b))
    tx = mx.lora_spd(1.0)
    params, grads = {"lora_a": a, "lora_b": b}, {"lora_a": a, "lora_b": b}
    updates, state = jax.jit(lambda *args: tx.update(*args[:3], grad=args[3]))(
        {"lora_a": u, "lora_b": v}, tx.init(params), params, grads
    )
    a, b, u, v = (np.asarray(x, np.float64) for x in (a, b, u, v))
    before, after = np.linalg.norm(a @ b), np.linalg.norm((a + u) @ (b + v))
    assert float(state.pull[0]) == pytest.approx((after - before) / after, rel=1e-3)
    assert float(state.drift[0]) == pytest.approx(before, rel=1e-5)  # λ = 1 keeps the radius
    assert updates["lora_b"].dtype == jnp.dtype(dtype) and state.pull.dtype == jnp.float32


def test_the_published_treatments_are_spd_on_each_factor() -> None:
    rng = np.random.default_rng(2)
    theta0, theta, step, grad = (
        {
            k: jnp.asarray(rng.normal(size=s), jnp.float32)
            for k, s in (("lora_a", (5, 2)), ("lora_b", (2, 3)), ("c", (4,)))
        }
        for _ in range(4)
    )
    each = {"lora_a": 0.8, "lora_b": 0.8, "c": None}
    for treatment, anchor in (("init", None), ("zero", jax.tree_util.tree_map(jnp.zeros_like, theta0))):
        ours, spd = mx.lora_spd(0.8, treatment=treatment), mx.spd(each, anchor=anchor)
        (u, s), (v, t) = (tx.update(step, tx.init(theta0), theta, grad=grad) for tx in (ours, spd))
        for x, y in zip(jax.tree_util.tree_leaves((u, s)), jax.tree_util.tree_leaves((v, t)), strict=True):
            np.testing.assert_array_equal(x, y)


def test_lambda_zero_is_the_optimizer_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in (("lora_a", (5, 2)), ("lora_b", (2, 3)))}
    for strength in (0.0, {"lora_a": None, "lora_b": None}):
        tx = mx.lora_spd(strength)
        updates, state = tx.update(params, tx.init(params), params, grad=params)
        assert updates is params and state.drift.tolist() == [0]


def test_degenerate_factors_and_gradients_make_no_nan() -> None:
    zeros, ones = {"lora_a": jnp.ones((3, 2)), "lora_b": jnp.zeros((2, 3))}, {"lora_a": jnp.ones((3, 2))}
    ones["lora_b"] = jnp.ones((2, 3))
    tx = mx.lora_spd(2.0)

    def step(params: Any, updates: Any, grads: Any) -> Any:
        return tx.update(updates, tx.init(params), params, grad=grads)

    def scaled(tree: Any, by: float) -> Any:
        return jax.tree_util.tree_map(lambda x: by * x, tree)

    for params, updates, grads in (
        (zeros, scaled(ones, 0.0), ones),
        (zeros, ones, ones),
        (ones, scaled(ones, -1.0), ones),  # lands on W0
        (ones, scaled(ones, 0.0), ones),
        (ones, ones, scaled(ones, np.nan)),
        (ones, ones, scaled(ones, np.inf)),
    ):
        new, state = step(params, updates, grads)
        assert all(np.isfinite(x).all() for x in jax.tree_util.tree_leaves((new, state)))
    for broken in (np.nan, np.inf):  # passed on as it came
        new, state = step(ones, scaled(ones, broken), ones)
        np.testing.assert_array_equal(new["lora_b"], np.full((2, 3), broken))
        assert state.pull[0] == 0
    empty = {"lora_a": jnp.ones((3, 0)), "lora_b": jnp.ones((0, 3))}
    assert step(empty, empty, empty)[1].drift.tolist() == [0]


def test_max_pull_never_carries_past_the_pretrained_kernel() -> None:
    params = {"lora_a": jnp.ones((1, 1)), "lora_b": jnp.ones((1, 1))}
    for cap, check in ((None, lambda b: b < 0), (1.0, lambda b: b == 0)):
        tx = mx.lora_spd(3.0, max_pull=cap)
        updates, _ = tx.update(jax.tree_util.tree_map(lambda x: 9 * x, params), tx.init(params), params, grad=params)
        assert check(float((params["lora_b"] + updates["lora_b"])[0, 0]))


def test_metrics_and_anchors_of_every_kind_of_state() -> None:
    rng = np.random.default_rng(4)
    params = {
        "blocks": {"lora_a": rng.normal(size=(2, 5, 2)), "lora_b": rng.normal(size=(2, 2, 3))},
        "head": {"lora_a": rng.normal(size=(5, 2)), "lora_b": rng.normal(size=(2, 3))},
        "tower": rng.normal(size=(4,)),
    }
    params = jax.tree_util.tree_map(lambda x: jnp.asarray(x, jnp.float32), params)
    stack = mx.LayerStack({"tower": {r"tower$": "first"}}, free=[r"lora_[ab]$"])
    strength = {"blocks": {"lora_a": np.array([1.0, 0.5]), "lora_b": None}, "head": {"lora_a": 1.0, "lora_b": 1.0}}
    strength["tower"] = None
    for treatment in ("product", "init", "zero"):
        tx = mx.chain(optax.adam(0.1), mx.maps(stack, 1.0), mx.lora_spd(strength, treatment=treatment, scale=2.0))
        updates, state = tx.update(params, tx.init(params), params)
        moved = optax.apply_updates(params, updates)
        shown = mx.metrics(state, stack)
        factors = ("lora_b",) if treatment == "product" else ("lora_a", "lora_b")
        names = {f"blocks/{f}[{i}]" for f in factors for i in (0, 1)} | {f"head/{f}" for f in factors} | {"tower"}
        assert {k.split("/", 1)[1] for k in shown if k.startswith("drift/")} == names
        if treatment == "product":
            for i in (0, 1):
                delta = 2 * moved["blocks"]["lora_a"][i] @ moved["blocks"]["lora_b"][i]
                assert float(shown[f"drift/blocks/lora_b[{i}]"]) == pytest.approx(
                    float(jnp.linalg.norm(delta)), rel=1e-5
                )
            assert not jax.tree_util.tree_leaves(state[2].anchor)
            assert jax.jit(mx.metrics)(state).keys() == shown.keys()
            placed = mx.LayerStack({"tower": {r"tower$": "first", r"blocks/": "stacked"}, "head": {r"head/": "first"}})
            by_layer = jax.jit(functools.partial(mx.metrics, layers=placed))(state)
            names = {k.split("/", 1)[1] for k in by_layer if k.startswith("drift/")}
            assert names == {"tower", "tower/0", "tower/1", "head"}
            assert float(by_layer["drift/tower/1"]) == float(shown["drift/blocks/lora_b[1]"])
            theta0: Any = params
        else:
            theta0 = params if treatment == "init" else jax.tree_util.tree_map(jnp.zeros_like, params)
        if treatment != "zero":  # whose anchors are of two kinds
            back = mx.attach_anchor(mx.detach_anchor(state), theta0)
            for x, y in zip(jax.tree_util.tree_leaves(back), jax.tree_util.tree_leaves(state), strict=True):
                np.testing.assert_array_equal(x, y)
            assert float(mx.metrics(mx.set_anchor(state, moved), stack)["drift"]) == 0
    one = mx.lora_spd(1.0).init({"lora_a": jnp.ones((2, 1)), "lora_b": jnp.ones((1, 2))})
    assert "drift/lora_b" in jax.jit(mx.metrics)(one)


def names_of(state: mx.SPDState) -> set[str]:
    return {k.split("/", 1)[1] for k in mx.metrics(state) if k.startswith("drift/")}


def test_the_default_rule_finds_the_usual_names() -> None:
    a, b = jnp.ones((4, 2)), jnp.ones((2, 3))
    ours = {"q": {"kernel": jnp.ones((4, 3)), "lora_a": a, "lora_b": b}, "mlp": {"up_lora_a": a, "up_lora_b": b}}
    assert names_of(mx.lora_spd(1.0).init(ours)) == {"q/lora_b", "mlp/up_lora_b"}
    peft = {f"model.q_proj.lora_{k}.default.weight": x for k, x in (("A", a.T), ("B", b.T))}
    assert names_of(mx.lora_spd(1.0).init(peft)) == {"model.q_proj.lora_B.default.weight"}
    nested = {"q_proj": {"lora_A": {"weight": a.T}, "lora_B": {"weight": b.T}}}
    assert names_of(mx.lora_spd(1.0).init(nested)) == {"q_proj/lora_B/weight"}
    mine = {"down": a, "up": b, "lora_a": jnp.ones(3)}
    for pairs in ({r"^down$": "up"}, lambda name: "up" if name == "down" else None):
        assert names_of(mx.lora_spd(1.0, pairs=pairs).init(mine)) == {"up"}


@pytest.mark.skipif(not TREES.is_dir(), reason="no reference trees on this machine")
@pytest.mark.parametrize("model", ["openpi_pi0_lora", "openpi_pi0_fast_lora"])
@pytest.mark.parametrize("treatment", ["product", "init", "zero"])
def test_openpi(model: str, treatment: str) -> None:
    params: dict[str, Any] = {}
    adapters = 0
    for row in json.loads((TREES / f"{model}.json").read_text()):
        node = params
        for key in row["path"][:-1]:
            node = node.setdefault(key, {})
        node[row["path"][-1]] = jax.ShapeDtypeStruct(tuple(row["shape"]), row["dtype"])
        adapters += row["path"][-1].endswith("lora_a")

    def strength(params: Any) -> Any:
        def one(keys: Any, leaf: Any) -> Any:
            return np.full(leaf.shape[0], 0.5) if "lora" in keys[-1].key else None

        return jax.tree_util.tree_map_with_path(one, params)

    tx = mx.chain(optax.sgd(0.1), mx.lora_spd(strength, treatment=treatment))
    state = jax.eval_shape(tx.init, params)
    assert state[1].strength.shape == (18 * adapters * (1 if treatment == "product" else 2),)
    updates, _ = jax.eval_shape(tx.update, params, state, params)
    assert jax.tree_util.tree_structure(updates) == jax.tree_util.tree_structure(params)


def test_containers() -> None:
    a, b = jnp.ones((4, 2)), jnp.ones((2, 3))

    def check(params: Any, **options: Any) -> None:
        tx = mx.chain(optax.sgd(0.1), mx.lora_spd(1.0, **options))
        updates, state = jax.jit(tx.update)(params, tx.init(params), params)
        assert jax.tree_util.tree_structure(updates) == jax.tree_util.tree_structure(params)
        assert float(state[1].drift[0]) > 0
        assert float(mx.metrics(state)["drift"]) > 0

    check([a, b], pairs={"^0$": "1"})
    check((a, b), pairs={"^0$": "1"})
    nnx = pytest.importorskip("flax.nnx")
    check(nnx.State({"q": {"lora_a": nnx.Param(a), "lora_b": nnx.Param(b)}}))
    check(pytest.importorskip("flax.core").FrozenDict({"q": {"lora_a": a, "lora_b": b}}))


A, B = np.ones((4, 2), np.float32), np.ones((2, 3), np.float32)
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no adapter": (lambda: mx.lora_spd(1.0).init({"kernel": A}), "no leaf is the A of an adapter; give pairs="),
    "idle pattern": (
        lambda: mx.lora_spd(1.0, pairs={"lora_a$": "lora_b", "down$": "up"}).init({"lora_a": A, "lora_b": B}),
        "pattern 'down\\$' of pairs matches no leaf",
    ),
    "no B": (lambda: mx.lora_spd(1.0).init({"q": {"lora_a": A}}), "leaf 'q/lora_a' has no partner 'q/lora_b'"),
    "no B, each": (lambda: mx.lora_spd(1.0, treatment="init").init({"lora_a": A}), "has no partner 'lora_b'"),
    "no B by callable": (lambda: mx.lora_spd(1.0, pairs=lambda n: n + "x").init({"a": A}), "'a' has no partner 'ax'"),
    "rank": (
        lambda: mx.lora_spd(1.0).init({"lora_a": A, "lora_b": np.ones((3, 5))}),
        r"shape \(4, 2\) and 'lora_b' \(3, 5\)",
    ),
    "leading axes": (
        lambda: mx.lora_spd(1.0).init({"lora_a": np.ones((3, 4, 2)), "lora_b": np.ones((2, 2, 3))}),
        "after equal leading axes",
    ),
    "λ of a matrix's rows": (
        lambda: mx.lora_spd({"lora_a": None, "lora_b": np.ones(2)}).init({"lora_a": A, "lora_b": B}),
        r"with λ of shape \(2,\)",
    ),
    "λ of the wrong length": (
        lambda: mx.lora_spd({"lora_a": None, "lora_b": np.ones(5)}).init({"lora_a": A, "lora_b": B}),
        r"λ of leaf 'lora_b' has shape \(5,\)",
    ),
    "two λ": (
        lambda: mx.lora_spd({"lora_a": 1.0, "lora_b": 0.5}).init({"lora_a": A, "lora_b": B}),
        "λ is 1.0 at the A and 0.5 at the B of 'lora_b'",
    ),
    "negative": (lambda: mx.lora_spd(-1.0).init({"lora_a": A, "lora_b": B}), "λ of leaf 'lora_b' is -1.0"),
    "integers": (lambda: mx.lora_spd(1.0).init({"lora_a": A.astype(int), "lora_b": B}), "leaf 'lora_a' has dtype int"),
    "treatment": (lambda: mx.lora_spd(1.0, treatment="both"), "treatment is 'both'; use one of product, init, zero"),
    "scale": (lambda: mx.lora_spd(1.0, scale=0.0), "scale is 0.0"),
    "max_pull": (lambda: mx.lora_spd(1.0, max_pull=-1.0), "max_pull is -1.0"),
    "no gradient": (lambda: update(mx.lora_spd(1.0)), "no gradient, and makes no estimate; use mx.chain"),
    "no gradient, each": (lambda: update(mx.lora_spd(1.0, treatment="zero")), "use mx.chain, or pass grad="),
    "no params": (lambda: update(mx.lora_spd(1.0), params=None), "needs the current parameters"),
    "another state": (
        lambda: update(mx.lora_spd(1.0), of={"x": {"lora_a": A, "lora_b": B}, "y": {"lora_a": A, "lora_b": B}}),
        "the parameters have 1 adapters, but the state 2",
    ),
}  # fmt: skip
PARAMS = {"lora_a": A, "lora_b": B}


def update(tx: Any, params: Any = PARAMS, of: Any = None) -> Any:
    if of is not None:
        return tx.update(PARAMS, tx.init(of), params, grad=PARAMS)
    return tx.update(PARAMS, tx.init(PARAMS), params)


@pytest.mark.parametrize("what", BAD)
def test_errors_name_the_leaf_and_the_remedy(what: str) -> None:
    make, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        make()
