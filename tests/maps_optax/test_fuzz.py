"""Any tree goes through every transformation.

By default a few examples, always the same; `make torture` (TORTURE=1) takes hundreds of each, new ones each time.
"""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import maps_optax as mx
from tests.maps_optax import trees
from tests.maps_optax.transforms import ADAPTERS, NO_INTEGERS, TRANSFORMS, held, jitted, positions, strengths
from tests.maps_optax.trees import TORTURE, bits, examples, fill, is_finite, layout, plus


def member(state: Any) -> mx.SPDState:
    """The SPDState of a chain of two."""
    return state[1]


def goes_through(tx: Any, theta0: Any, seed: int, scale: float) -> list[Any]:
    """Two steps, out along the displacement and back; the states, the first one included."""
    rng = np.random.default_rng(seed)
    states, step = [tx.init(theta0)], jitted(tx.update)
    theta = plus(theta0, fill(theta0, rng, scale))
    for sign in (1.0, -1.0):
        grads = plus(plus(fill(theta0, rng, 0.0), theta, sign), theta0, -sign)
        updates, state = step(grads, states[-1], theta)
        assert layout(updates) == layout(grads)
        assert layout(state) == layout(states[0])
        assert is_finite(updates) and is_finite(state)
        theta = plus(theta, updates)
        states.append(state)
    return states


def has_empty_rows(leaf: Any) -> bool:
    return any(leaf.ndim - stacked >= 2 and leaf.shape[stacked] == 0 for stacked in (0, 1))


@pytest.mark.filterwarnings("ignore:maps_optax estimates")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_finite_in_finite_out_with_structure_and_dtypes_kept(name: str) -> None:
    drawn = trees.trees(dtypes=trees.FLOATS if name in NO_INTEGERS else trees.WITH_INTEGERS)
    if name == "spd mars":  # see test_a_leaf_without_rows_makes_no_nan_of_mars
        drawn = drawn.filter(lambda tree: not any(map(has_empty_rows, jax.tree_util.tree_leaves(tree))))

    @examples(3, 150)
    @given(drawn, trees.SEEDS, trees.SCALES)
    def check(tree: Any, seed: int, scale: float) -> None:
        goes_through(TRANSFORMS[name](), fill(tree, np.random.default_rng(seed + 1)), seed, scale)

    check()


@pytest.mark.parametrize("treatment", ADAPTERS)
def test_adapters_anywhere_in_a_tree_go_through_too(treatment: str) -> None:
    @examples(3, 150)
    @given(trees.adapters(), trees.SEEDS, trees.SCALES)
    def check(tree: Any, seed: int, scale: float) -> None:
        goes_through(ADAPTERS[treatment](), fill(tree, np.random.default_rng(seed + 1)), seed, scale)

    check()


@examples(4, 300)
@given(trees.trees(least=1), trees.SEEDS)
def test_what_moved_is_pulled_and_no_anchor_loses_a_bit(tree: Any, seed: int) -> None:
    theta0 = fill(tree, np.random.default_rng(seed + 1))
    states = [member(s) for s in goes_through(held(mx.spd(1.5)), theta0, seed, 1.0)]
    sizes = [x.size for x in jax.tree_util.tree_leaves(theta0)]
    np.testing.assert_array_equal(states[1].triggered, np.sign(sizes))
    np.testing.assert_array_equal(states[1].pull > 0, np.array(sizes) > 0)
    np.testing.assert_array_equal(states[2].triggered, 0)
    for state in states:
        assert bits(state.anchor) == bits(theta0)


@examples(8, 1000)
@given(trees.trees(dtypes=trees.WITH_INTEGERS), trees.SEEDS)
def test_an_anchor_goes_out_and_comes_back_to_the_bit(tree: Any, seed: int) -> None:
    theta0 = fill(tree, np.random.default_rng(seed))
    for tx in (mx.spd(strengths), mx.maps(positions, 1.0, anchor_dtype=jnp.bfloat16), mx.l2_sp(strengths)):
        state = tx.init(theta0)
        back = mx.attach_anchor(mx.detach_anchor(state), theta0)
        assert layout(back) == layout(state) and bits(back) == bits(state)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
def test_a_leaf_without_rows_makes_no_nan_of_mars(shape: tuple[int, ...]) -> None:
    goes_through(held(mx.spd(np.ones(2) if len(shape) == 3 else 1.0, norm="mars")), jnp.zeros(shape), 0, 1.0)


def stored(saved: Any, folder: Path) -> Any:
    """`saved` as Orbax gives it back into an abstract state."""
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, saved)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder, jax.eval_shape(lambda: saved))


def dotted(tree: Any) -> list[str]:
    """Orbax's names of the leaves; two that are equal overwrite one another."""
    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path) for path in keys]


def test_a_checkpoint_gives_back_every_bit_of_the_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("orbax.checkpoint")
    version = metadata.version("orbax-checkpoint")
    if tuple(map(int, version.split(".")[:2])) < (0, 12):
        pytest.skip(f"Orbax {version} mixes up leaves under odd keys")
    whole = [shape for shape in trees.SHAPES if 0 not in shape]  # Orbax saves no empty array
    drawn = trees.trees(whole, least=1).filter(lambda tree: len(set(dotted(tree))) == len(dotted(tree)))

    @examples(3, 100)
    @given(drawn, trees.SEEDS)
    def check(tree: Any, seed: int) -> None:
        theta0 = fill(tree, np.random.default_rng(seed + 1))
        state = goes_through(held(mx.spd(1.5)), theta0, seed, 1.0)[-1]
        folder = tmp_path_factory.mktemp("state")
        back = stored(state, folder / "whole")
        assert layout(back) == layout(state) and bits(back) == bits(state)
        back = mx.attach_anchor(stored(mx.detach_anchor(state), folder / "detached"), theta0)
        assert layout(back) == layout(state) and bits(back) == bits(state)

    check()


def test_the_state_of_a_run_that_holds_nothing_is_saved_too(tmp_path: Path) -> None:
    """The baseline, λ_max = 0; Orbax saves no empty array."""
    params = {"w": jnp.ones(2), "lora_a": jnp.ones((2, 1)), "lora_b": jnp.ones((1, 2))}
    for tx in (mx.maps({"w": 1, "lora_a": None, "lora_b": None}, 0.0), mx.lora_spd(0.0)):
        state = held(tx).init(params)
        for _ in range(2):
            state = held(tx).update(params, state, params)[1]
        back = stored(state, tmp_path / str(len(list(tmp_path.iterdir()))))
        assert layout(back) == layout(state) and bits(back) == bits(state)
        told = dict.fromkeys(("drift", "triggered", "pull", "pulled", "mismatch"), 0)
        assert {name: float(x) for name, x in mx.metrics(state).items()} == told


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason=f"jax {jax.__version__} is not the one that shards")
def test_on_eight_devices_split_leaves_stay_split() -> None:
    worker, count = Path(__file__).with_name("fuzz_worker.py"), 300 if TORTURE else 4
    env = {**os.environ, "PYTHONPATH": str(worker.parents[2])}
    env.pop("XLA_FLAGS", None)
    done = subprocess.run([sys.executable, str(worker), str(count)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["trees"] >= count
