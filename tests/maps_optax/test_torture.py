"""A million steps, a thousand million elements: how far the numbers can be trusted.

By default a short version; `make torture` (TORTURE=1) runs the long one. Figures are printed: pytest -s.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maps_optax as mx
from tests.maps_optax.trees import TORTURE, bits, is_finite

# Many steps ----------------------------------------------------------------------------------------------------------

STEPS, CHUNK = (1_000_000, 10_000) if TORTURE else (20_000, 5_000)
STRENGTH: dict[str, Any] = {"blocks": np.array([2.0, 1.0, 0.5]), "w": 1.2, "b": 0.7}
SHAPES = {"blocks": (3, 4, 5), "w": (6, 7), "b": (5,)}
LAYERS = [("b", None), ("blocks", 0), ("blocks", 1), ("blocks", 2), ("w", None)]  # in the order of the state's vectors


class Seen(NamedTuple):
    """What a step was given, and what it made of it; with a leading axis of steps."""

    theta: Any
    update: Any
    grad: Any
    new: Any
    carried: Any  # before the step
    carry: Any
    drift: Any
    triggered: Any


def optimizers(exact: bool) -> tuple[Any, Any]:
    return optax.adam(0.02), mx.spd(STRENGTH, criterion="gradient" if exact else "auto")


@functools.partial(jax.jit, static_argnums=2)
def chunk(start: Any, turn: Any, exact: bool) -> Any:
    """CHUNK steps of noisy regression on a target that circles round θ0, so that gradients turn back now and then."""
    adam, spd = optimizers(exact)

    def step(carry: Any, _: Any) -> Any:
        theta, first, second, key = carry
        theta0 = second.anchor
        phase = second.count / 300
        leaves, treedef = jax.tree_util.tree_flatten(theta)
        key, *keys = jax.random.split(key, 1 + len(leaves))

        def slope(x: Any, x0: Any, to: Any, k: Any) -> Any:
            goal = x0 + to * jnp.sin(phase).astype(x.dtype)
            return x - goal + 0.3 * jax.random.normal(k, x.shape).astype(x.dtype)

        grads = jax.tree_util.tree_map(slope, theta, theta0, turn, jax.tree_util.tree_unflatten(treedef, keys))
        update, first = adam.update(grads, first, theta)
        # XLA may leave out the rounding to bfloat16 between two fused steps; what is noted shall be what is used.
        update, grads = jax.lax.optimization_barrier((update, grads))
        new, after = spd.update(update, second, theta, **({"grad": grads} if exact else {}))
        new = jax.lax.optimization_barrier(new)
        seen = Seen(theta, update, grads, new, second.carry, after.carry, after.drift, after.triggered)
        # In bfloat16 every step would rewrite the whole stack of them.
        seen = jax.tree_util.tree_map(lambda x: x.astype(jnp.float32), seen)
        return (optax.apply_updates(theta, new), first, after, key), seen

    return jax.lax.scan(step, start, None, length=CHUNK)


class Reference(NamedTuple):
    """One layer's step in float64, for every step of a chunk at once."""

    new: np.ndarray  # if triggered
    drift: np.ndarray  # if triggered, and if not
    untouched_drift: np.ndarray
    sign: np.ndarray  # > 0 triggers
    sign_scale: np.ndarray  # what rounding makes of it is a small multiple of
    carry: np.ndarray  # if triggered, and if not
    untouched_carry: np.ndarray


def reference(d: Any, u: Any, g: Any, lam: float) -> Reference:
    """The equations at the top of _spd.py."""
    q = d + u
    before, after = np.linalg.norm(d, axis=1), np.linalg.norm(q, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        pull = lam * np.nan_to_num(np.maximum((u * (d + q)).sum(axis=1), 0) / (after * (after + before)))
    inner = (u * q).sum(axis=1)
    return Reference(
        new=u - pull[:, None] * q,
        drift=abs(1 - pull) * after,
        untouched_drift=after,
        sign=(g * d).sum(axis=1),
        sign_scale=abs(g * d).sum(axis=1),
        carry=(1 - pull) * inner,
        untouched_carry=inner,
    )


def wide(tree: Any, key: str, row: Any) -> np.ndarray:
    x = np.asarray(tree[key], np.float64)
    x = x if row is None else x[:, row]
    return x.reshape(x.shape[0], -1)


@pytest.mark.skipif(not hasattr(jax.lax, "optimization_barrier"), reason=f"jax {jax.__version__} has no barrier")
@pytest.mark.filterwarnings("ignore:maps_optax estimates")
@pytest.mark.parametrize("dtype, exact", [("float32", True), ("bfloat16", True), ("float32", False)])
def test_every_one_of_many_steps_is_that_of_float64(dtype: str, exact: bool) -> None:
    """Each from the state it found, since one trigger that rounding flips would part two trajectories for good."""
    rng = np.random.default_rng(0)
    theta0, turn = ({k: jnp.asarray(rng.normal(size=s), dtype) for k, s in SHAPES.items()} for _ in range(2))
    adam, spd = optimizers(exact)
    carry: Any = (theta0, adam.init(theta0), spd.init(theta0), jax.random.PRNGKey(0))
    kept, worst, flips, triggers = bits(theta0), [], 0, 0.0
    # A step of bfloat16 is rounded to 8 bits on its way out; all before is float32.
    allowed = 1e-5 if dtype == "float32" else 2.0**-8 + 1e-5
    for first in range(0, STEPS, CHUNK):
        carry, seen = chunk(carry, turn, exact)
        assert bits(carry[2].anchor) == kept
        assert is_finite(carry)
        seen = jax.tree_util.tree_map(np.asarray, seen)
        errors = []
        for layer, (key, row) in enumerate(LAYERS):
            d = wide(seen.theta, key, row) - wide({key: theta0[key][None]}, key, row)
            u, new = wide(seen.update, key, row), wide(seen.new, key, row)
            lam = STRENGTH[key] if row is None else STRENGTH[key][row]
            true = reference(d, u, wide(seen.grad, key, row), float(lam))
            sign, scale = true.sign, true.sign_scale
            if not exact:
                t = np.arange(first + 1, first + CHUNK + 1, dtype=np.float64)
                past, now = (0.9 - 0.9**t) * seen.carried[:, layer], (1 - 0.9**t) * (u * d).sum(axis=1)
                sign, scale = past - now, abs(past) + (1 - 0.9**t) * abs(u * d).sum(axis=1)
            triggered = seen.triggered[:, layer] > 0
            flipped = triggered != (sign > 0)
            assert (abs(sign)[flipped] <= 1e-5 * scale[flipped]).all()
            size = abs(u).max(axis=1) + abs(true.new - u).max(axis=1) + 1e-30
            expected = np.where(triggered[:, None], true.new, u)
            errors.append((abs(new - expected).max(axis=1) / size).max())
            assert (new[~triggered] == u[~triggered]).all()
            drift = np.where(triggered, true.drift, true.untouched_drift)
            assert (abs(seen.drift[:, layer] - drift) <= 1e-5 * true.untouched_drift).all()
            if not exact:
                inner = np.where(triggered, true.carry, true.untouched_carry)
                size = np.linalg.norm(u, axis=1) * (np.linalg.norm(d, axis=1) + np.linalg.norm(u, axis=1))
                assert (abs(seen.carry[:, layer] - inner) <= 1e-5 * size).all()
            flips, triggers = flips + int(flipped.sum()), triggers + triggered.mean() * CHUNK / STEPS / len(LAYERS)
        worst.append(max(errors))
    print(
        f"\n{STEPS} steps, {dtype}, {'gradient' if exact else 'estimate'}: error of a step {worst[0]:.1e} in the first "
        f"{CHUNK}, {worst[-1]:.1e} in the last, {max(worst):.1e} at most; {flips} of {STEPS * len(LAYERS)} triggers "
        f"flipped by rounding; {triggers:.0%} triggered"
    )
    assert max(worst) <= allowed
    assert worst[-1] <= 3 * worst[0]  # it does not grow
    assert flips <= 1e-4 * STEPS * len(LAYERS)
    assert 0.1 < triggers < 0.9


# Many elements -------------------------------------------------------------------------------------------------------


def available_bytes() -> int:
    try:
        with open("/proc/meminfo") as f:
            return next(1024 * int(line.split()[1]) for line in f if line.startswith("MemAvailable"))
    except OSError:
        return 0


@pytest.mark.parametrize("kind", ["normal", "constant"])
@pytest.mark.parametrize("stacked", [False, True])
def test_the_norm_of_a_huge_leaf(kind: str, stacked: bool) -> None:
    """u = d/8 is exact in every dtype, and then r = 1 − 8/9. A constant summed one by one would stand still at 2²⁴."""
    n, dtype = (1_000_000_000, "bfloat16") if TORTURE else (20_000_000, "float32")
    if available_bytes() < 7 * n * jnp.dtype(dtype).itemsize:
        pytest.skip(f"{n} elements need more memory than is free")
    block = np.full(n // 100, 0.1) if kind == "constant" else np.random.default_rng(0).normal(scale=0.02, size=n // 100)
    block = np.asarray(block, jnp.dtype(dtype))
    norm = np.sqrt(100 * (np.asarray(block, np.float64) ** 2).sum())  # of all
    shape = (4, n // 4) if stacked else (n,)
    theta = jnp.asarray(np.tile(block, 100).reshape(shape))
    tx = mx.spd(np.ones(4) if stacked else 1.0)
    state = tx.init(jnp.zeros(shape, dtype))
    update = jax.jit(lambda theta, state: tx.update(theta / 8, state, theta, grad=theta))
    new, state = update(theta, state)
    pull_error = abs(np.asarray(state.pull, np.float64) * 9 - 1).max()
    drift_error = abs(np.asarray(state.drift, np.float64) / (norm / (2 if stacked else 1)) - 1).max()
    print(f"\n{n} {kind} {dtype}, {shape}: relative error of λr {pull_error:.1e}, of the drift {drift_error:.1e}")
    assert pull_error <= 1e-5 and drift_error <= 1e-5
    assert abs(np.asarray(new.ravel()[: n // 100], np.float64)).max() <= 1e-6  # λ = 1 gives the whole step back
