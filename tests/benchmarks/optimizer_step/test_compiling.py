"""Leaves of one shape share their code: what a compiler makes of a leaf more, in counts that do not vary."""

import re

import jax
import pytest

from benchmarks import hlo
from benchmarks.optimizer_step import cases
from benchmarks.optimizer_step.compiling import Config, measure, table

NAMES = ("maps", "maps, estimated", "per row")
# Whatever tells two computations of one content apart.
NAME = re.compile(r"%?[\w.-]+\.\d+|%[\w.-]+|, metadata=\{.*?\}|\b\w+\.clone\b")


def compiled(name: str, leaves: int, side: int) -> str:
    tx, tree = cases.OPTIMIZERS[name](), cases.square(leaves, leaves * side**2)
    step = jax.jit(cases.step_of(tx), donate_argnums=(0, 1))
    return step.lower(tree, jax.eval_shape(tx.init, tree), tree).compile().as_text()


@pytest.mark.filterwarnings("ignore:maps_optax estimates")
@pytest.mark.parametrize("name", NAMES)
def test_a_leaf_more_adds_kernels_but_no_code(name: str) -> None:
    """But for its place in the vectors of all leaves: computations with those are left out."""

    def bodies(leaves: int) -> set[str]:
        text = compiled(name, leaves, 16)
        computations = text[: text.index("ENTRY")].split("\n\n")
        return {NAME.sub("", body) for body in computations if "f32[16,16]" in body}

    assert len(bodies(9)) == len(bodies(5))


@pytest.mark.filterwarnings("ignore:maps_optax estimates")
@pytest.mark.parametrize(("side", "more"), [(16, 5), (64, 6)])
@pytest.mark.parametrize("name", NAMES[:2])
def test_a_leaf_has_two_kernels_more_than_adams_three_and_a_large_one_three(name: str, side: int, more: int) -> None:
    few, many = (hlo.kernels(compiled(name, leaves, side)) for leaves in (5, 9))
    assert many - few == 4 * more


def test_the_table_divides_by_adam() -> None:
    rows = measure(Config(side=4, optimizers=("adam", "maps"), repeats=1), 2)
    assert [rows[0][phase] for phase in ("traced", "lowered", "compiled", "in all")] == [1, 1, 1, 1]
    assert rows[1]["compiled"] > 1
    assert table(rows).splitlines()[2].startswith("| 2 | adam | 1.00 |")
