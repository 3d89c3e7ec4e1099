"""The house: which part knows which, and no circle of imports. `benchmarks` and the core are parts as a whole."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up. A part knows parts of lower layers alone: not those above, and not its neighbours.
LAYERS = (
    ("maps_optax", "common", "octo_integration"),  # the last: its own __init__, which imports nothing
    ("model", "data", "simulators"),
    ("weights", "config", "clients"),
    ("state",),
    ("policy", "processes", "logs"),
    ("evaluate", "serve"),
    ("train", "pretrain", "collect"),
    ("convert",),
    ("cli",),
    ("benchmarks",),
)
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}


def modules() -> dict[str, Path]:
    folders = ("maps_optax", "octo_integration", "benchmarks")
    files = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): ROOT / path for path in files}


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Those of `known` that a module imports, wherever in it, but for the package that it is in."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: imports are absolute here"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {to if to in known else node.module for to in inner}
    return {to for to in found & known.keys() if to != name and not name.startswith(f"{to}.")}


@functools.cache
def graph() -> dict[str, set[str]]:
    """{module: those it imports}."""
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items()}


def part(module: str) -> str:
    top, *below = module.split(".")
    return below[0] if top == "octo_integration" and below else top


def test_imports_inside_functions_are_seen() -> None:
    assert "octo_integration.train.loop" in graph()["octo_integration.cli.finetune"]


def test_every_part_has_a_layer() -> None:
    assert {part(module) for module in modules()} == HEIGHT.keys()


def test_no_arrow_goes_up() -> None:
    up = [
        f"{name} -> {to}"
        for name, found in graph().items()
        for to in found
        if part(name) != part(to) and HEIGHT[part(to)] >= HEIGHT[part(name)]
    ]
    assert not up, up


def test_a_policy_knows_no_method() -> None:
    """A method imports the rule for λ that its config names; a policy's config may be somebody else's."""
    seen, ahead = set(), {name for name in graph() if part(name) in ("policy", "evaluate")}
    while ahead:
        seen |= ahead
        ahead = set().union(*(graph()[name] for name in ahead)) - seen
    assert "octo_integration.state.setup" in seen
    methods = {name for name in graph() if name.startswith("octo_integration.state.methods")}
    assert methods & seen == {"octo_integration.state.methods.common"}  # what one is, and none of them


def test_there_is_no_circle() -> None:
    try:
        graphlib.TopologicalSorter(graph()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
