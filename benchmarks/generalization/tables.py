"""The study's tables, as Markdown. A table whose runs are not there yet is an empty string."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.generalization import matching
from benchmarks.generalization import statistics as st
from benchmarks.generalization.statistics import Criterion, Estimate, Point, Record
from octo_integration.evaluate.runs import survivors

# The order of rows, and of colours in figures; whatever is not here comes after, by name.
ORDER = (
    "adam", "adamw", "low-lr", "ema", "wise-ft", "wise-ft-vision", "l2-sp", "lora", "frozen-vision", "frozen-dinov2",
    "frozen-siglip", "frozen-language", "uniform", "linear", "cosine", "exponential", "step", "capped", "estimate",
    "reversed", "shuffled",
)  # fmt: skip
AXES = {"lambda": "λ", "alpha": "α", "lr": "lr", "strength": "strength", "decay": "decay", "rank": "rank"}
NAMES = {"none": "ID", "new_pairs": "new pairs", "new_shapes": "new shapes", "zero_shot": "zero-shot"}
BETTER = "**bold**: better than {0}, *italic*: worse, of what survives Benjamini–Hochberg at 5 % over the table"


class Cell(NamedTuple):
    """Text that is marked if `tested` survives among all of its table; below 0 is better, unless `reverse`."""

    text: str
    tested: Estimate | None
    reverse: bool = False


Row = Sequence[str | Cell]


# Which rows there are


def ordered(methods: Iterable[str]) -> list[str]:
    """In the order of the tables."""
    return sorted(set(methods), key=lambda m: (ORDER.index(m) if m in ORDER else len(ORDER), m))


def compared(records: Sequence[Record]) -> list[str]:
    """The methods of the main comparison, Adam first, without controls."""
    skipped = (*st.CONTROLS, st.UNTRAINED)
    return ordered(r["method"] for r in records if r["group"] == "main" and r["method"] not in skipped)


def chosen(records: Sequence[Record], methods: Iterable[str], criterion: Criterion) -> dict[str, Point]:
    """label -> the point at the x chosen on dev, for the methods that there are."""
    found = {}
    present = {r["method"] for r in records}
    for method in methods:
        if method in present:
            x = st.select(records, method, criterion)
            p = st.point(records, method, x)
            found[label(p)] = p
    return found


def label(p: Point) -> str:
    """What people call a point."""
    record = next(iter(p.values()))
    if record["x"] is None:
        return record["label"]
    axis = record.get("axis") or "x"
    return f"{record['label']}, {AXES.get(axis, axis)} {record['x']:g}"


# What cells look like


def number(value: float, digits: int = 3) -> str:
    """.105, −.012, 1.040; a true minus sign, which stays where rounding leaves 0."""
    if not math.isfinite(value):
        return str(value)
    text = f"{abs(value):.{digits}f}"
    sign = "−" if value < 0 else ""
    return sign + (text[1:] if digits and text.startswith("0.") else text)


def interval(e: Estimate | None, digits: int = 3) -> str | Cell:
    """−.012 [−.020, −.004]"""
    return Cell(_interval(e, digits), e) if e is not None else ""


def _interval(e: Estimate, digits: int = 3) -> str:
    return f"{number(e.value, digits)} [{number(e.low, digits)}, {number(e.high, digits)}]"


def marked(rows: Sequence[Row]) -> list[list[str]]:
    """The text of the cells: bold where a difference that survives is better, italic where it is worse."""
    tested = [e.p for row in rows for c in row if isinstance(c, Cell) and (e := c.tested) is not None]
    kept = iter(survivors(tested))

    def text(c: str | Cell) -> str:
        if isinstance(c, str):
            return c
        if c.tested is None or not next(kept):
            return c.text
        return f"**{c.text}**" if (c.tested.value < 0) != c.reverse else f"*{c.text}*"

    return [[text(c) for c in row] for row in rows]


def count(rows: Sequence[Row]) -> str:
    """How many of a table's tests are below .05, and how many survive; nothing without a test."""
    p = [c.tested.p for row in rows for c in row if isinstance(c, Cell) and c.tested is not None]
    p = [x for x in p if not math.isnan(x)]
    return f" Of {len(p)} tests, {sum(x < 0.05 for x in p)} have p < .05 and {survivors(p).sum()} survive." if p else ""


def markdown(header: Sequence[str], rows: Sequence[Row], note: str = "") -> str:
    """A table, its note above; nothing without rows."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(row) + " |" for row in (header, *marked(rows))]
    lines.insert(1, "|---" * len(header) + "|")
    note += count(rows) if note else ""
    return "\n".join([note, "", *lines] if note else lines)


def title(condition: str) -> str:
    """Of a column."""
    return NAMES.get(condition, condition)


def _words(criterion: Criterion) -> str:
    words = (criterion.__doc__ or criterion.__name__).split("\n")[0]
    return words[0].lower() + words[1:]


def cell(p: Point, reference: Point, conditions: Sequence[str], part: str = "test") -> str | Cell:
    """The mean error, to be marked by its difference to that of another point."""
    found = st.mean(p, conditions, part)
    if found is None:
        return ""
    return Cell(number(found.value), st.difference(p, reference, conditions, part) if p != reference else None)


def seen(records: Sequence[Record], part: str = "test") -> list[str]:
    """The conditions that something was measured under."""
    found = {c for r in records for c in r["l1"].get(part, {})}
    return [c for c in st.CONDITIONS if c in found]


def sets_of(measured: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """name -> conditions, for the sets of conditions that were measured whole."""
    sets = {"ID": st.ID, **st.KINDS}
    wanted = {name: (*st.ID, *st.COVERED) if c == st.GAP else c for name, c in sets.items()}
    return {name: c for name, c in sets.items() if set(wanted[name]) <= set(measured)}


# The tables


def main(records: Sequence[Record], criterion: Criterion = st.balanced) -> str:
    """Every method at its x chosen on dev, and the controls: test error under each condition."""
    adam, conditions = st.point(records, st.REFERENCE), seen(records)
    if not adam or not conditions:
        return ""
    rows = []
    for name, p in chosen(records, [*compared(records), *st.CONTROLS], criterion).items():
        runs = "–" if next(iter(p.values()))["method"] in st.DETERMINISTIC else str(len(p))
        rows.append([name, runs, *(cell(p, adam, (c,)) for c in conditions)])
    note = (
        "Mean action L1 error on test, lower is better. λ, α and the like are chosen on dev, by "
        f"{_words(criterion)} {BETTER.format('Adam')}."
    )
    return markdown(["method", "runs", *map(title, conditions)], rows, note)


def factors(records: Sequence[Record], criterion: Criterion = st.balanced) -> str:
    """The paired difference to Adam under each condition, with its interval: looks, then layouts and words."""
    adam, conditions = st.point(records, st.REFERENCE), seen(records)
    if not adam:
        return ""
    points = chosen(records, [m for m in compared(records) if m != st.REFERENCE], criterion)
    looks = [c for c in conditions if c in (*st.ID, *st.LOOKS, "all")]
    paired = [[interval(st.difference(p, adam, (c,), "test")) for c in conditions] for p in points.values()]
    tables = []
    for columns in (looks, [c for c in conditions if c not in looks]):
        counted = set(st.LOOKS) <= set(columns)
        rows = []
        for (name, p), cells in zip(points.items(), marked(paired)):
            over = st.difference(p, adam, st.LOOKS, "test") if counted else None
            better = [f"{over.lower}/{over.runs}" if over else ""] if counted else []
            shown = [c for c, condition in zip(cells, conditions) if condition in columns]
            rows.append([name, str(len(st.common(p, adam))), *better, *shown])
        header = ["method", "runs", *(["better in"] if counted else []), *map(title, columns)]
        tables.append(markdown(header, rows) if columns else "")
    note = (
        "Test error minus Adam's in the same runs, [95 % interval]. Better in: runs whose mean over the five single "
        f"looks is lower than Adam's. {BETTER.format('Adam')}: these two tables are one.{count(paired)}"
    )
    found = [t for t in tables if t]
    return "\n\n".join([note, *found]) if found else ""


def paths(records: Sequence[Record]) -> str:
    """Every point of every path: ID error, OOD errors, mean λ."""
    sets, adam = sets_of(seen(records)), st.point(records, st.REFERENCE)
    rows = []
    for method in compared(records):
        axis = next(r.get("axis") for r in records if r["method"] == method)
        if axis is None and method != st.REFERENCE:
            continue
        for x in st.values(records, method):
            p = st.point(records, method, x)
            strength = matching.mean_strength(p)
            rows.append(
                [
                    label(p),
                    str(len(p)),
                    "" if strength is None else f"{strength:.2f}",
                    *(cell(p, adam, conditions) for conditions in sets.values()),
                ]
            )
    note = (
        "Test error along the paths. Covered: mean of texture, light, color, which pretraining varied; held-out: of "
        "camera and distractors, which it did not; all: everything at once; gap: covered minus ID. "
        f"{BETTER.format('Adam')}."
    )
    return markdown(["point", "runs", "mean λ", *sets], rows, note)


def matched_strength(records: Sequence[Record], reference: str = "uniform") -> str:
    """Schedules against uniform λ, at equal λ_max and at equal mean λ."""
    sets = sets_of(seen(records))
    rows = []
    for method in compared(records):
        axis = next(r.get("axis") for r in records if r["method"] == method)
        for x in st.values(records, method) if axis == "lambda" and method != reference else []:
            p = st.point(records, method, x)
            same = st.point(records, reference, x)
            strength = matching.mean_strength(p)
            by_max = [interval(st.difference(p, same, c, "test")) if same else "" for c in sets.values()]
            by_mean = [
                interval(found[1])
                if x is not None and (found := matching.at_strength(records, method, x, reference, c))
                else ""
                for c in sets.values()
            ]
            for way, cells in (("λ_max", by_max), ("mean λ", by_mean)):
                if any(cells):
                    level = x if way == "λ_max" else strength
                    rows.append([label(p), str(len(p)), f"{way} {level:.2g}", *cells])
    note = (
        "Test error minus that of uniform λ: of the same λ_max, and of the same mean λ over anchored parameters "
        f"(interpolated between its points, Adam at 0), [95 % interval]. {BETTER.format('uniform λ')}."
    )
    return markdown(["point", "runs", "equal", *sets], rows, note)


def drift(records: Sequence[Record], criterion: Criterion = st.balanced) -> str:
    """How far each module moved, and what the pretraining probes say afterwards."""
    points = chosen(records, [*compared(records), "blind", "random-init"], criterion)
    moved = {name: st.module_drift(p) for name, p in points.items()}
    lost = {name: st.forgotten(records, p) for name, p in points.items()}
    modules = list(dict.fromkeys(m for found in moved.values() for m in found))
    kinds = list(dict.fromkeys(k for found in lost.values() for k in found))
    rows = [
        [
            name,
            str(len(p)),
            *(number(moved[name][m]) if m in moved[name] else "" for m in modules),
            *(_percent(lost[name][k]) if k in lost[name] else "" for k in kinds),
        ]
        for name, p in points.items()
        if moved[name]
    ]
    before = [r["probes"] for r in records if r["method"] == st.UNTRAINED and r["probes"]]
    if rows and before:
        grouped = st.probe_kinds(before[0])
        means = [[sum(b[n] for n in grouped[k]) / len(grouped[k]) for b in before] for k in kinds if k in grouped]
        start = [f"{sum(m) / len(m):.2f}" for m in means]
        rows.insert(0, ["before fine-tuning", str(len(before)), *("0" for _ in modules), *start])
    note = (
        "‖θ − θ0‖ of each module; then how much worse the pretraining probes are than before fine-tuning: error of "
        "positions read from a tower by a linear probe, perplexity of answers."
    )
    return markdown(["method", "runs", *(f"drift, {m}" for m in modules), *(f"probes: {k}" for k in kinds)], rows, note)


def _percent(share: float) -> str:
    return f"{share:+.1%}".replace("-", "−")


def success_rates(points: Sequence[Record]) -> str:
    """Closed-loop success per method and shift, and the paired difference to Adam.

    Args:
      points: of `statistics.read_success`.
    """
    adam = st.point(points, st.REFERENCE)
    shifts = success_shifts(points)
    rows = []
    for method in ordered(p["method"] for p in points):
        for x in st.values(points, method):
            p = st.point(points, method, x)
            cells: list[str | Cell] = []
            for shift in shifts:
                rate = st.mean(p, (shift,), "success")
                paired = st.difference(p, adam, (shift,), "success") if p != adam else None
                text = "" if rate is None else _interval(_share(rate), 2)
                cells.append(Cell(text + ("" if paired is None else f"; {_interval(paired, 2)}"), paired, reverse=True))
            rows.append([label(p), str(len(p)), str(max(_episodes(p, s) for s in shifts)), *cells])
    note = (
        "Success rate, mean of runs [95 % interval over runs, cut at 0 and 1]; its difference to Adam in the same runs "
        f"from the same initial states [95 % interval]. {BETTER.format('Adam')}."
    )
    return markdown(["method", "runs", "episodes a cell", *map(title, shifts)], rows, note)


def success_shifts(points: Sequence[Record]) -> list[str]:
    """The shifts that something acted under, in the order of the tables."""
    found = {s for p in points for s in p["l1"]["success"]}
    return [*(c for c in st.CONDITIONS if c in found), *sorted(found - set(st.CONDITIONS))]


def _share(e: Estimate) -> Estimate:
    return dataclasses.replace(e, low=max(e.low, 0.0), high=min(e.high, 1.0))


def _episodes(p: Point, shift: str) -> int:
    return sum(len(e) for r in p.values() for e in r["l1"]["success"].get(shift, {}).values())
