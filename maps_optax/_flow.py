"""Where parameters meet the data: a forward pass, traced by shapes alone and read in the order of its data flow."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Optional

import jax

# What leaves every row of its operand where it was, so that a stacked parameter stays one.
_KEEPS_ROWS = frozenset({"convert_element_type", "copy", "copy_p", "sharding_constraint", "optimization_barrier"})


class Meeting(NamedTuple):
    """Where a leaf's computation first meets the data flow.

    Attributes:
      order: count of equations traced before.
      before: bit i is set if leaf i had flowed into the data by then.
      scan: number of the scan that takes the leaf row by row, or None.
      reverse: that scan runs from the last row to the first.
    """

    order: int
    before: int
    scan: Optional[int]
    reverse: bool


class _Flow(NamedTuple):
    """Of one value: does it hang on the inputs, which leaves are in it, and is it one leaf with its rows in place."""

    data: bool
    leaves: int
    row: Optional[int]


_NOTHING = _Flow(False, 0, None)


def meetings(apply_fn: Callable[..., Any], params: Any, inputs: Sequence[Any]) -> list[Optional[Meeting]]:
    """Of every leaf of `params`, in flattening order; None where nothing of the output or the data reads it.

    A parameter-only value (a cast, a resized position embedding, W = s·v) takes its leaves along until it meets data.
    """
    closed = jax.make_jaxpr(apply_fn)(params, *inputs)
    count = len(jax.tree_util.tree_leaves(params))
    jaxpr = closed.jaxpr
    flows = [_Flow(False, 1 << i, i) for i in range(count)] + [_Flow(True, 0, None)] * (len(jaxpr.invars) - count)
    trace = _Trace()
    outs = trace.run(jaxpr, flows)
    # What reaches the output without any data (a learned constant) stands behind everything it is joined with.
    reached = 0
    for out in outs:
        reached |= out.leaves
    for leaf in _bits(reached):
        trace.met.setdefault(leaf, Meeting(trace.count, 0, None, False))
    return [trace.met.get(i) for i in range(count)]


class _Trace:
    """Walks a jaxpr and everything that it calls, and notes who meets whom."""

    def __init__(self) -> None:
        self.count = 0
        self.met: dict[int, Meeting] = {}
        self.stacked: dict[int, tuple[int, bool]] = {}

    def run(self, jaxpr: Any, arguments: Sequence[_Flow]) -> list[_Flow]:
        """The flows of the outputs of `jaxpr`, given those of its arguments."""
        known: dict[Any, _Flow] = dict(zip(jaxpr.invars, arguments))

        def read(atom: Any) -> _Flow:
            return _NOTHING if hasattr(atom, "val") else known.get(atom, _NOTHING)

        for equation in jaxpr.eqns:
            self.count += 1
            outs = self._equation(equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, outs))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, operands: list[_Flow]) -> list[_Flow]:
        name, settings = equation.primitive.name, equation.params
        if name == "scan":
            return self._scan(equation, operands)
        if name == "while":
            # Operands are the condition's constants, the body's and the carry.
            body, split = _open(settings["body_jaxpr"]), len(operands) - len(equation.outvars)
            return self._loop(body, operands[len(operands) - len(body.invars) : split], operands[split:], [])
        if name == "cond":
            branches = [self.run(_open(branch), operands[1:]) for branch in settings["branches"]]
            return [_join(outs) for outs in zip(*branches)]
        # Calls, remat and custom derivatives: one inner program with the same operands, whatever its setting is called.
        for inner in _programs(settings):
            if len(inner.invars) == len(operands) and len(inner.outvars) == len(equation.outvars):
                return self.run(inner, operands)
        return [self._meet(operands, name)] * len(equation.outvars)

    def _scan(self, equation: Any, operands: list[_Flow]) -> list[_Flow]:
        """Operands are constants, the carry and what is taken row by row; which is which, the shapes tell.

        The names of an equation's settings change from one JAX to the next; inside, rows lack their first axis, and so
        do the outputs that are no carry.
        """
        (body,) = _programs(equation.params)
        carries = sum(_same_rank(*pair) for pair in zip(equation.outvars, body.outvars))
        whole = sum(_same_rank(*pair) for pair in zip(equation.invars, body.invars))
        rows = operands[whole:]
        for flow in rows:
            if flow.row is not None:
                self.stacked.setdefault(flow.row, (self.count, bool(equation.params["reverse"])))
        rows = [flow._replace(row=None) for flow in rows]
        return self._loop(body, operands[: whole - carries], operands[whole - carries : whole], rows)

    def _loop(self, body: Any, consts: list[_Flow], carry: list[_Flow], rows: list[_Flow]) -> list[_Flow]:
        """A loop's body, once; a carry that becomes data in some iteration counts as data from the first on."""
        noted = self.count, dict(self.met), dict(self.stacked)
        while True:
            outs = self.run(body, [*consts, *carry, *rows])
            grown = [c._replace(data=c.data or out.data, row=None) for c, out in zip(carry, outs)]
            if [c.data for c in grown] == [c.data for c in carry]:
                return outs
            carry = grown
            self.count, self.met, self.stacked = noted[0], dict(noted[1]), dict(noted[2])

    def _meet(self, operands: list[_Flow], name: str) -> _Flow:
        joined = _join(operands)
        if not joined.data:
            keeps = name in _KEEPS_ROWS and len(operands) == 1
            return joined if keeps else joined._replace(row=None)
        before = 0
        for flow in operands:
            before |= flow.leaves if flow.data else 0
        for leaf in _bits(joined.leaves & ~before):
            if leaf not in self.met:
                scan, reverse = self.stacked.get(leaf, (None, False))
                self.met[leaf] = Meeting(self.count, before, scan, reverse)
        return joined


def _join(flows: Sequence[_Flow]) -> _Flow:
    leaves = 0
    for flow in flows:
        leaves |= flow.leaves
    return _Flow(any(flow.data for flow in flows), leaves, flows[0].row if len(flows) == 1 else None)


def _programs(settings: Any) -> Iterator[Any]:
    """The inner programs among the settings of an equation."""
    for value in settings.values():
        inner = _open(value)
        if hasattr(inner, "eqns"):
            yield inner


def _open(program: Any) -> Any:
    """The program itself of one that is closed, which has its constants bound already."""
    return getattr(program, "jaxpr", program)


def _same_rank(outside: Any, inside: Any) -> bool:
    return len(outside.aval.shape) == len(inside.aval.shape)


def _bits(mask: int) -> Iterator[int]:
    """Numbers of the bits that are set."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
