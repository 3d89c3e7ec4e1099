"""The ends of the number formats: what is as in float64, and what happens where float32 does not hold the squares.

No transformation makes a NaN of numbers that are none, in an update, a trigger or a pull. Where ‖d‖² or the growth of
the radius leaves float32's range (d or u beyond some 1e19, or all of both below 1e-19) nothing is pulled, and the
update passes with every bit. By default some thousand cases; `make torture` (TORTURE=1) takes 300,000 more.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maps_optax as mx
from tests.maps_optax.trees import TORTURE, is_finite

LAMBDA = 1.5
FAR = [0.0, 1e-40, 1e-30, 1e-20, 1.0, 1e20, 1e30]  # 1e-40 is denormal
SIZES = {"float32": FAR, "bfloat16": FAR, "float16": [0.0, 6e-8, 1e-4, 1.0, 2e4]}
ROUNDING = {"float32": 1e-6, "bfloat16": 2.0**-8, "float16": 2.0**-10}
SMALLEST = {"float32": 1e-37, "bfloat16": 1e-37, "float16": 6e-8}  # what is below is rounded to a multiple, or to 0
LARGEST = float(np.finfo(np.float32).max)


class Cases(NamedTuple):
    """Float64 of what went in and came out, a row each; `untouched` says whether the update kept every bit."""

    d: np.ndarray
    u: np.ndarray
    g: np.ndarray
    new: np.ndarray
    untouched: np.ndarray
    pull: np.ndarray
    drift: np.ndarray
    triggered: np.ndarray


def inputs(dtype: str, count: int, width: int = 4) -> np.ndarray:
    """(count, cases, width): every choice of one size for each of `count` rows, then all sizes mixed."""
    rng = np.random.default_rng(0)
    alike = np.array(list(itertools.product(SIZES[dtype], repeat=count)))[:, :, None].repeat(width, axis=2)
    mixed = rng.choice(SIZES[dtype], (300_000 if TORTURE else 1000, count, width))
    sizes = np.concatenate([alike, alike, alike, mixed])
    signs = rng.choice([-1.0, 1.0], sizes.shape)
    signs[: len(alike)] = 1
    return np.asarray(signs * sizes * rng.uniform(1, 2, sizes.shape), jnp.dtype(dtype)).swapaxes(0, 1)


@functools.cache
def cases(dtype: str, norm: str) -> Cases:
    tx = mx.spd(LAMBDA, norm=norm)

    @jax.jit
    @jax.vmap
    def one(d: Any, u: Any, g: Any) -> Any:
        new, state = tx.update(u, tx.init(jnp.zeros_like(d)), d, grad=g)
        return new, state.pull[0], state.drift[0], state.triggered[0]

    d, u, g = inputs(dtype, 3)
    new, *scalars = map(np.asarray, one(d, u, g))
    words = {2: np.uint16, 4: np.uint32}[new.dtype.itemsize]
    untouched = (new.view(words) == u.view(words)).all(axis=1)
    d, u, g, new, *scalars = (np.asarray(x, np.float64) for x in (d, u, g, new, *scalars))
    return Cases(d, u, g, new, untouched, *scalars)


class Exact(NamedTuple):
    """The step in float64, and which cases float32 has the range for."""

    pull: np.ndarray  # where triggered
    pull_error: np.ndarray  # what rounding may make of it
    sign: np.ndarray
    clear: np.ndarray  # rounding cannot have turned the sign
    inside: np.ndarray
    before: np.ndarray  # ‖d‖
    after: np.ndarray  # ‖d + u‖


def within(*sums: np.ndarray) -> np.ndarray:
    """Sums of squares that float32 holds with all their digits."""
    return np.all([(s == 0) | ((s > 1e-30) & (s < 1e37)) for s in sums], axis=0)


def exact(c: Cases, norm: str) -> Exact:
    q = c.d + c.u
    growth = (c.u * (c.d + q)).sum(axis=1) if norm == "l2" else (abs(q) - abs(c.d)).sum(axis=1)
    before, after = np.linalg.norm(c.d, axis=1), np.linalg.norm(q, axis=1)
    sums, normal = scales(c.d, c.u, c.g), scales(*(np.where(abs(x) < 1.2e-38, 0, x) for x in (c.d, c.u, c.g)))
    kept = np.all(
        [abs(x - y) <= 1e-7 * x for x, y in zip(sums, normal)], axis=0
    )  # denormals, which are flushed, do not decide
    terms, sign_scale = sums
    if norm == "l2":
        inside, divisor = kept & within(before**2, after**2, *sums), after * (after + before)
    else:
        inside, divisor = kept & within(sign_scale), abs(q).sum(axis=1) + 1e-8
        terms = (abs(q) + abs(c.d)).sum(axis=1)

    def ratio(x: np.ndarray) -> np.ndarray:
        return np.divide(x, divisor, out=np.zeros_like(x), where=divisor > 0)

    sign = (c.g * c.d).sum(axis=1)
    pull, error = LAMBDA * ratio(np.maximum(growth, 0)), 1e-6 * LAMBDA * ratio(terms)
    return Exact(pull, error, sign, abs(sign) > 1e-5 * sign_scale, inside, before, after)


def scales(d: np.ndarray, u: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the growth of the squared radius and of ⟨g, d⟩: the sums without their signs, whose share rounding is."""
    return (abs(u) * (2 * abs(d) + abs(u))).sum(axis=1), abs(g * d).sum(axis=1)


@pytest.mark.parametrize("norm", ["l2", "mars"])
@pytest.mark.parametrize("dtype", SIZES)
def test_finite_in_finite_out_wherever_the_result_has_a_number(dtype: str, norm: str) -> None:
    c = cases(dtype, norm)
    has_number = (abs(c.u) + LAMBDA * abs(c.d + c.u)).max(axis=1) < float(jnp.finfo(dtype).max)
    assert has_number.mean() > 0.5
    assert np.isfinite(c.new[has_number]).all()
    assert not np.isnan(c.new).any()
    assert ((c.pull >= 0) & (c.pull <= LAMBDA)).all()  # False for NaN
    assert np.isin(c.triggered, (0, 1)).all()


@pytest.mark.parametrize("norm", ["l2", "mars"])
@pytest.mark.parametrize("dtype", SIZES)
def test_an_update_that_is_not_pulled_keeps_every_bit(dtype: str, norm: str) -> None:
    """Denormals and negative zeros too, which arithmetic on this machine may flush."""
    c = cases(dtype, norm)
    assert 0.1 < (c.pull == 0).mean() < 1
    assert c.untouched[c.pull == 0].all()


@pytest.mark.parametrize("norm", ["l2", "mars"])
@pytest.mark.parametrize("dtype", SIZES)
def test_where_float32_holds_the_squares_the_step_is_that_of_float64(dtype: str, norm: str) -> None:
    c, true = cases(dtype, norm), exact(cases(dtype, norm), norm)
    sure = true.inside & (true.clear | (true.sign == 0))
    assert sure.sum() > 100
    np.testing.assert_array_equal(c.triggered[sure], (true.sign > 0)[sure])
    pull = np.where(true.sign > 0, true.pull, 0)
    error = true.pull_error + 1e-6 * pull
    assert (abs(c.pull - pull) <= error)[sure].all()
    q = c.d + c.u
    new = c.u - pull[:, None] * q
    allowed = error[:, None] * abs(q) + ROUNDING[dtype] * (abs(c.u) + pull[:, None] * abs(q)) + SMALLEST[dtype]
    has_number = (abs(c.u) + LAMBDA * abs(q)).max(axis=1) < float(jnp.finfo(dtype).max)
    assert (abs(c.new - new) <= allowed)[sure & has_number].all()
    # Where the step goes home the drift is a root of what is left of ‖d‖².
    squares = true.before**2 + scales(c.d, c.u, c.g)[0]
    held = sure & within(true.before**2, true.after**2, squares)
    drift_error = 1e-6 * (1 + pull) ** 2 * squares + (2 * (1 + pull) * error + error**2) * true.after**2
    assert (abs(c.drift**2 - ((1 - pull) * true.after) ** 2) <= drift_error)[held].all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_where_float32_does_not_nothing_is_pulled(dtype: str) -> None:
    c = cases(dtype, "l2")
    squares, terms = c.d**2, c.u * (2 * c.d + c.u)
    over = (squares.sum(axis=1) > 1.01 * LARGEST) | (abs(terms).max(axis=1) > 1.01 * LARGEST)
    under = (squares.sum(axis=1) < 1e-46) & (abs(terms).sum(axis=1) < 1e-46)
    products = c.g * c.d
    both = (products.max(axis=1) > 1.01 * LARGEST) & (products.min(axis=1) < -1.01 * LARGEST)
    for beyond in (over, under):
        assert beyond.sum() > 100
        assert c.untouched[beyond].all() and (c.pull[beyond] == 0).all()
    assert (
        both.sum() > 10 and (c.triggered[both] == 0).all()
    )  # inf − inf tells no sign, nor does inf where an addition holds what a product does not


def test_a_drift_that_is_too_large_is_infinite_and_not_nan() -> None:
    assert not np.isnan(cases("float32", "l2").drift).any()


def test_what_overflows_in_one_step_is_forgotten_in_the_next_but_one() -> None:
    """The estimate carries ⟨u, d⟩ from step to step."""
    tx = mx.spd(1.0)
    state = tx.init(jnp.zeros(3))
    update = jax.jit(lambda u, state, theta: tx.update(u, state, theta))
    far = jnp.asarray([1e30, -1e30, 1.0]), jnp.asarray([-1e30, -1e30, 1.0])
    near = jnp.ones(3), jnp.full(3, 0.1)
    with pytest.warns(UserWarning, match="estimates"):
        new, state = update(far[1], state, far[0])
    np.testing.assert_array_equal(new, far[1])
    new, state = update(near[1], state, near[0])
    np.testing.assert_array_equal(new, near[1])
    assert is_finite(state)


@pytest.mark.parametrize("dtype", SIZES)
def test_l2_sp_is_that_of_float64(dtype: str) -> None:
    tx = mx.l2_sp(LAMBDA)
    d, g = inputs(dtype, 2)
    new = jax.jit(jax.vmap(lambda d, g: tx.update(g, tx.init(jnp.zeros_like(d)), d)[0]))(d, g)
    d, g, new = (np.asarray(x, np.float64) for x in (d, g, new))
    has_number = abs(g) + LAMBDA * abs(d) < float(jnp.finfo(dtype).max)
    allowed = ROUNDING[dtype] * (abs(g) + LAMBDA * abs(d)) + SMALLEST[dtype]
    assert (abs(new - (g + LAMBDA * d)) <= allowed)[has_number].all()
    assert not np.isnan(new).any()


def test_adapters_at_the_ends_make_no_nan_either() -> None:
    """‖AB‖² is of the fourth degree, so its range is 1e-9 to 1e9."""
    tx = mx.lora_spd(LAMBDA)

    @jax.jit
    @jax.vmap
    def one(*rows: Any) -> Any:
        a, u = (x.reshape(2, 1) for x in rows[:2])
        b, v, g = (x.reshape(1, 2) for x in rows[2:])
        params, steps, grads = ({"lora_a": x, "lora_b": y} for x, y in ((a, b), (u, v), (a, g)))
        new, state = tx.update(steps, tx.init(params), params, grad=grads)
        return new["lora_a"].ravel(), new["lora_b"].ravel(), state.pull[0], state.triggered[0]

    rng = np.random.default_rng(0)
    shape = (5, 300_000 if TORTURE else 20_000, 2)
    rows = np.float32(rng.choice([-1.0, 1.0], shape) * rng.choice(FAR, shape) * rng.uniform(1, 2, shape))
    new_a, new_b, pull, triggered = map(np.asarray, one(*rows))
    _, u, _, v, _ = rows
    np.testing.assert_array_equal(new_a.view(np.uint32), u.view(np.uint32))
    assert np.isfinite(new_b).all()
    assert ((pull >= 0) & (pull <= LAMBDA)).all() and np.isin(triggered, (0, 1)).all()
    still = pull == 0
    assert 0.1 < still.mean() < 1
    np.testing.assert_array_equal(new_b[still].view(np.uint32), v[still].view(np.uint32))


@pytest.mark.parametrize("tx", [mx.spd({"lora_a": None, "lora_b": 1.0}), mx.lora_spd(1.0)], ids=["spd", "lora_spd"])
def test_the_count_of_steps_stays_at_its_largest(tx: Any) -> None:
    """Beyond it a schedule would be asked for a step before the first."""
    last = np.iinfo(np.int32).max
    params = {"lora_a": jnp.ones((2, 1)), "lora_b": jnp.ones((1, 2))}
    state = tx.init(params)._replace(count=jnp.int32(last - 1))
    counts = []
    for _ in range(2):
        _, state = tx.update(params, state, params, grad=params)
        counts.append(int(state.count))
    assert counts == [last, last]
