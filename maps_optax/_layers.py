"""Where a leaf sits in the pretrained stack: ordered modules, each a table of path patterns."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from maps_optax import _tree

PLACES = ("first", "block", "stacked", "last")
# How a free pattern begins that may reach into what a rule names: at the root, or anywhere.
_DELIBERATE = ("^", ".*")
_REMEDY = (
    "so the depth of the stack is unknown; use mx.spd(mx.strengths(layers, params, lambda_max)) of the whole params."
)

Position = Union[None, int, np.ndarray]
Layers = Union["LayerStack", Callable[[Any], Any], Any]


class Layout(NamedTuple):
    """Every leaf's position in the stack, resolved for one tree.

    Attributes:
      positions: per leaf, in flattening order: k ≥ 1, an int array (n,) for a leaf that stacks n layers, or None.
      size: |L|, the number of layers that the schedule spans.
      names: k → (module, block) as a person reads them; the block is '' where the module is one layer.
      fault: why λ may not be computed from this, or None: a rule without a leaf, or a depth that a wrapper masks out.
    """

    positions: list[Position]
    size: int
    names: dict[int, tuple[str, str]]
    fault: Optional[str]


class _Rule(NamedTuple):
    module: str
    pattern: str
    place: str
    regex: "re.Pattern[str]"


class _Mask(NamedTuple):
    """A place that an Optax wrapper masked out, as the stack reads it.

    Attributes:
      path: the place's.
      whole: patterns match what lies below it rather than the path itself, so it is a subtree.
      free: it matches a free pattern.
      rank: how many rules were tried before the one that matches; what lies below may match those.
      module: of the rule that matches, or None.
    """

    path: _tree.Path
    whole: bool
    free: bool
    rank: int
    module: Optional[str]


@dataclasses.dataclass(frozen=True)
class LayerStack:
    r"""An ordered stack of pretrained modules, found in a parameter tree by path patterns.

    A leaf's path is its keys joined by ``/`` (a dot inside a key counts as ``/`` too, so PyTorch names work as they
    are). A pattern is a regular expression that must match from the start of some key: ``"blocks/"`` matches
    ``"encoder/blocks/3/bias"`` but not ``"subblocks/3"``. Patterns are tried in the order given, the first match wins,
    and each says the leaf's place in its module:

    * ``"block"``: the pattern's one group is the block number, read as an integer (block 2 comes before block 10);
    * ``"stacked"``: axis 0 of the leaf stacks the module's blocks, as ``nn.scan`` makes it;
    * ``"first"`` and ``"last"``: the leaf belongs to the module's first or last layer (patch embedding, final norm).

    A module without numbered blocks is one layer. A leaf that matches a `free` pattern has no pretrained value worth
    keeping; free patterns win over the modules', but a free leaf of a module still tells how deep that module is, so
    that freeing or freezing leaves does not move the others. A free pattern that matches what a module's pattern
    matches too has to begin with ``^`` (it names the path from the root) or ``.*`` (it is meant wherever it matches):
    ``"head/"`` may be meant for a new head, and would also free PaliGemma's bridge, ``img/head/``.

    Where Optax's wrappers mask leaves out, the others keep their positions. A subtree that is masked out whole may hide
    how deep its module is; then there is no λ, but an error that says what to do.

    Attributes:
      modules: name → {pattern: place}, in the order of the stack.
      free: patterns of leaves that stay free (heads, adapters, projectors trained from scratch).
      optional: the patterns, of either kind, that may match no leaf, because only some variants of a model have them.
      tail: phantom layers counted behind the last one, which keep λ from reaching 0.
      guesses: path of a leaf → why its place is a guess, where `infer_layers` made the stack; `describe` shows them.

    Raises:
      ValueError: at construction, a malformed pattern or unknown place; when resolved, by name, a leaf that no pattern
        matches, a pattern that matches no leaf, a free pattern that reaches into a module without saying so, or a group
        that takes a part of a number.

    Examples:
      >>> import maps_optax as mx, numpy as np
      >>> stack = mx.LayerStack(
      ...     {"vision": {r"patch_embed/": "first", r"vit/block_(\d+)/": "block"}, "language": {r"llm/": "first"}},
      ...     free=[r"^head/"],
      ... )
      >>> w = np.zeros((2, 2))
      >>> params = {"patch_embed": {"w": w}, "vit": {"block_2": {"w": w}, "block_10": {"w": w}},
      ...           "llm": {"w": w}, "head": {"w": w}}
      >>> strengths = mx.strengths(stack, params, lambda_max=1.0)
      >>> strengths["patch_embed"], strengths["vit"], strengths["llm"]
      ({'w': 1.0}, {'block_10': {'w': 0.5}, 'block_2': {'w': 1.0}}, {'w': 0.0})
    """

    modules: Mapping[str, Mapping[str, str]]
    free: Sequence[str] = ()
    optional: Sequence[str] = ()
    tail: int = 0
    guesses: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for module, rules in self.modules.items():
            for pattern, place in rules.items():
                if place not in PLACES:
                    raise ValueError(f"LayerStack: {module!r}: place {place!r} is not one of {', '.join(PLACES)}.")
                groups = _compile(pattern).groups
                if place == "block" and groups != 1:
                    raise ValueError(
                        f"LayerStack: {module!r}: pattern {pattern!r} has {groups} groups; a 'block' pattern needs "
                        r"exactly one, around the block number, such as (\d+); write the others as (?:...)."
                    )
        for field in ("free", "optional"):
            if isinstance(getattr(self, field), str):
                raise ValueError(f"LayerStack: {field} is {getattr(self, field)!r}; give a list of patterns.")
        if self.tail < 0:
            raise ValueError(f"LayerStack: tail is {self.tail}; it must not be negative.")
        known = {p for rules in self.modules.values() for p in rules} | set(self.free)
        for pattern in (*self.free, *self.optional):
            _compile(pattern)
        stray = [p for p in self.optional if p not in known]
        if stray:
            raise ValueError(f"LayerStack: optional names {stray[0]!r}, which is no pattern of this stack.")

    def resolve(self, flat: _tree.Flat) -> Layout:
        """The position of every leaf of a flattened tree."""
        rules = [_Rule(m, p, place, _compile(p)) for m, table in self.modules.items() for p, place in table.items()]
        free = [(p, _compile(p)) for p in self.free]

        def read(text: str) -> tuple[list[str], int, Optional["re.Match[str]"]]:
            hits = [p for p, regex in free if regex.search(text)]
            matches = (rule.regex.search(text) for rule in rules)
            rank, match = next(((i, m) for i, m in enumerate(matches) if m), (len(rules), None))
            return hits, rank, match

        used: set[str] = set()
        blocks: dict[str, set[int]] = {module: set() for module in self.modules}
        present: set[str] = set()
        masks: list[_Mask] = []
        found: list[Optional[tuple[str, str, int]]] = []  # module, place, block number or stacked length
        unmatched = []

        # Leaves masked out by an Optax wrapper still count for coverage and depth.
        shapes = [tuple(getattr(leaf, "shape", ())) for leaf in flat.leaves]
        for path, shape in [*zip(flat.paths, shapes), *((m, None) for m in flat.masked)]:
            hits, rank, match = read(_text(path))
            whole = False
            if shape is None:  # a leaf or a subtree: as which it is read first
                below = read(_text(path) + "/")
                whole = below[1] < rank or not hits and match is None
                hits, rank, match = below if whole else (hits, rank, match)
            used.update(hits)
            where = None
            if match is not None:
                module, pattern, place, _ = rules[rank]
                if hits and not any(p.startswith(_DELIBERATE) for p in hits):
                    raise ValueError(
                        f"free pattern {hits[0]!r} of the LayerStack matches leaf {_tree.name(path)!r}, which "
                        f"rule {pattern!r} of module {module!r} matches too; begin it with ^ to name the path from the "
                        "root, or with .* to free it wherever it matches."
                    )
                used.add(pattern)
                present.add(module)
                number = 0
                if place == "block":
                    number = _integer(match, pattern, path)
                    blocks[module].add(number)
                elif place == "stacked" and shape is not None:
                    if not shape:
                        raise ValueError(
                            f"leaf {_tree.name(path)!r} is a scalar, but pattern {pattern!r} says that its axis 0 "
                            "stacks layers."
                        )
                    number = shape[0]
                    blocks[module].update(range(number))
                where = (module, place, number)
            if shape is None:
                masks.append(_Mask(path, whole, bool(hits), rank, where[0] if where else None))
                continue
            if where is None and not hits:
                unmatched.append(path)
            found.append(None if hits else where)

        if unmatched:
            raise ValueError(
                f"no rule of the LayerStack matches leaf {_tree._some(unmatched)}; add a pattern to one of the "
                f"modules ({', '.join(self.modules)}) or name the leaf in free=."
            )
        # What no pattern matches is a subtree, unless leaves have such names here: then leaves were masked one by one.
        names = {path[-1:] for path in flat.paths}
        unread = {m for m in masks if m.module is None and not m.free}
        single = {m.path[:1] for m in unread if m.path[-1:] in names}
        masks = [m._replace(whole=False) if m in unread and m.path[:1] in single else m for m in masks]
        idle = [p for p in [*self.free, *(r.pattern for r in rules)] if p not in used and p not in self.optional]
        fault = self._hidden(rules, masks, blocks, present, idle)
        idle = [p for p in idle if not any(_may_match_below(p, mask.path) for mask in masks)]
        if fault is None and idle and (flat.paths or flat.masked):
            fault = f"rule {idle[0]!r} of the LayerStack matches no leaf; correct the pattern, or list it in optional=."
        return self._number(found, blocks, present, fault)

    def _hidden(
        self,
        rules: list[_Rule],
        masks: list[_Mask],
        blocks: dict[str, set[int]],
        present: set[str],
        idle: list[str],
    ) -> Optional[str]:
        """What is wrong if something that is masked out may hold layers that nothing else tells of."""
        deep = {rule.module for rule in rules if rule.place in ("block", "stacked")}
        unseen = {m for m in self.modules if not (blocks[m] if m in deep else m in present)}
        for mask in masks:
            name = _tree.name(mask.path)
            if unseen and mask.whole and mask.module is None and not mask.free:
                return (
                    f"{name!r} is masked out here, and no rule of the LayerStack says what it holds (name it in free= "
                    f"if it is no part of the stack), {_REMEDY}"
                )
            if mask.module in deep & unseen:
                return f"every leaf that stacks the blocks of {mask.module!r} is masked out here, {_REMEDY}"
            for rule in rules[: mask.rank]:
                new = rule.module in unseen
                deeper = mask.whole and rule.place in ("block", "stacked")
                below = (new or deeper) and _may_match_below(rule.pattern, mask.path)
                if below or (new and mask.whole and not mask.free and rule.pattern in idle):
                    return f"{name!r} is masked out here, and may hold layers of {rule.module!r}, {_REMEDY}"
        return None

    def _number(
        self,
        found: list[Optional[tuple[str, str, int]]],
        blocks: dict[str, set[int]],
        present: set[str],
        fault: Optional[str],
    ) -> Layout:
        index: dict[str, dict[int, int]] = {}
        spans: dict[str, tuple[int, int]] = {}
        names: dict[int, tuple[str, str]] = {}
        size = 0
        for module in self.modules:
            numbers = sorted(blocks[module])
            if not numbers and module not in present:
                continue
            labels = [str(n) for n in numbers] or [""]
            spans[module] = (size + 1, size + len(labels))
            index[module] = {n: size + 1 + i for i, n in enumerate(numbers)}
            names.update({size + 1 + i: (module, label) for i, label in enumerate(labels)})
            size += len(labels)

        def position(where: Optional[tuple[str, str, int]]) -> Position:
            if where is None:
                return None
            module, place, number = where
            if place == "stacked":
                return np.asarray([index[module][i] for i in range(number)], dtype=np.int64)
            if place == "block":
                return index[module][number]
            return spans[module][0 if place == "first" else 1]

        return Layout([position(w) for w in found], size + self.tail, names, fault)


def resolve(layers: Layers, params: Any) -> tuple[_tree.Flat, Layout]:
    """The layout of `params` under a LayerStack, a callable `params -> positions`, or a pytree of positions.

    Raises:
      ValueError: the tree does not align with params, a position is not an int ≥ 1, an int array with one entry per
        slice of axis 0, or None, or a wrapper masks out what tells a module's depth.
    """
    flat = _tree.flatten(params)
    if isinstance(layers, LayerStack):
        layout = layers.resolve(flat)
        if layout.fault is not None:
            raise ValueError(layout.fault)
        return flat, layout
    if not flat.paths:  # `optax.tree_utils.tree_map_params` calls init with an empty placeholder
        return flat, Layout([], 0, {}, None)
    tree = layers(params) if callable(layers) else layers
    what = "layers (the positions)"
    positions = [_position(v, p, x) for v, p, x in zip(_tree.align(tree, flat, what), flat.paths, flat.leaves)]
    # What is masked out counts for the depth here too.
    masked = [
        (path, k) for path, k in _tree.places(tree) if _tree.is_below(path, flat.masked) and not _tree.is_masked(k)
    ]
    for path in flat.masked:
        if not any(_tree.is_below(p, [path]) for p, _ in masked):
            raise ValueError(f"{_tree.name(path)!r} is masked out here, and {what} say nothing of it, {_REMEDY}")
    given = [*positions, *(_position(k, path, None) for path, k in masked)]
    numbers = sorted({int(k) for p in given if p is not None for k in np.atleast_1d(p)})
    names = {k: ("layer", str(k)) for k in numbers}
    return flat, Layout(positions, numbers[-1] if numbers else 0, names, None)


def _position(value: Any, path: _tree.Path, leaf: Any) -> Position:
    if value is None or _tree.is_masked(value):
        return None
    array = np.asarray(value)
    shape = tuple(getattr(leaf, "shape", array.shape))
    if not np.issubdtype(array.dtype, np.integer) or array.ndim > 1 or (array < 1).any():
        raise ValueError(
            f"position of leaf {_tree.name(path)!r} is {value!r}; give an int k >= 1, a 1-D int array with one "
            "position per slice of axis 0, or None."
        )
    if array.ndim == 1 and shape[:1] != array.shape:
        raise ValueError(
            f"position of leaf {_tree.name(path)!r} has {array.shape[0]} entries, but the leaf's shape is {shape}; "
            "give one per slice of axis 0."
        )
    return int(array) if array.ndim == 0 else array.astype(np.int64)


def _compile(pattern: str) -> "re.Pattern[str]":
    try:
        return re.compile(r"(?:^|(?<=/))(?:" + pattern + ")")
    except re.error as error:
        raise ValueError(f"LayerStack: pattern {pattern!r} is no regular expression: {error}.") from None


def _integer(match: "re.Match[str]", pattern: str, path: _tree.Path) -> int:
    number, (start, stop) = match.group(1) or "", match.span(1)
    if not number.isdecimal():
        raise ValueError(
            f"pattern {pattern!r} reads block number {number!r} from leaf {_tree.name(path)!r}; its group must match "
            "digits only."
        )
    if any(c.isdecimal() for c in match.string[max(start - 1, 0) : start] + match.string[stop : stop + 1]):
        raise ValueError(
            f"pattern {pattern!r} reads block number {number!r} from leaf {_tree.name(path)!r}, where it is a part "
            r"of a longer number; let its group take all digits, as in _(\d+)/."
        )
    return int(number)


def _text(path: _tree.Path) -> str:
    """What patterns are searched for in."""
    return "/".join(path).replace(".", "/")


def _may_match_below(pattern: str, path: _tree.Path) -> bool:
    """Whether a match of the pattern may begin with the last keys of the path and end below it."""
    keys = _text(path).split("/")
    parts = pattern.lstrip("^").replace("[^/]", ".").split("/")[:-1]
    try:
        regexes = [re.compile(part) for part in parts]
    except re.error:  # a group spans several keys
        return any(re.search(rf"\b{re.escape(keys[-1])}\b", part) for part in parts)
    if any(part.startswith(".*") for part in parts):  # which may stand for several keys
        return any(regex.fullmatch(keys[-1]) for regex in regexes)
    tails = range(1, min(len(keys), len(regexes)) + 1)
    return any(all(regex.fullmatch(key) for regex, key in zip(regexes, keys[-n:])) for n in tails)
