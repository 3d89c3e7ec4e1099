"""Tables for the paper's open questions. A table whose runs are not there yet is an empty string."""

from collections.abc import Iterable, Sequence

from benchmarks.generalization import matching
from benchmarks.generalization import statistics as st
from benchmarks.generalization.methods import LONGER, ONE_TOWER, REGIMES, VARIANTS
from benchmarks.generalization.statistics import Criterion, Point, Record
from benchmarks.generalization.tables import (
    BETTER,
    cell,
    chosen,
    compared,
    interval,
    label,
    markdown,
    number,
    ordered,
    seen,
    sets_of,
)

REGIME_GROUPS = tuple(dict.fromkeys(point.group for point in [*REGIMES, *LONGER]))


def schedule_of(method: str) -> str:
    """The schedule that a method of a regime ("linear-5 demos") or of the main comparison ("linear") has."""
    return method.split("-")[0]


def regimes(records: Sequence[Record]) -> dict[tuple[int, int], dict[str, str]]:
    """(steps, demonstrations) -> schedule -> method; Adam and the schedules that are there in more than one regime."""
    found: dict[tuple[int, int], dict[str, str]] = {}
    schedules = {schedule_of(r["method"]) for r in records if r["group"] in REGIME_GROUPS}
    for r in records:
        plain = r["group"] == "main" and r["method"] in schedules
        if r["group"] in REGIME_GROUPS or plain:
            found.setdefault((r["steps"], r["demos"]), {})[schedule_of(r["method"])] = r["method"]
    return dict(sorted(found.items())) if len(found) > 1 else {}


def shared_points(records: Sequence[Record]) -> set[tuple[str, float | None]]:
    """(schedule, x) of what is run in more than one regime."""
    return {(schedule_of(r["method"]), r["x"]) for r in records if r["group"] in REGIME_GROUPS}


def schedules(records: Sequence[Record]) -> str:
    """Schedules x training length x demonstrations: differences to Adam trained as long, on as many."""
    sets = sets_of(seen(records))
    rows = []
    found = regimes(records)
    shared = shared_points(records)
    for (steps, demos), methods in found.items():
        if st.REFERENCE not in methods:
            continue
        adam = st.point(records, methods[st.REFERENCE])
        for schedule in ordered(methods):
            for x in st.values(records, methods[schedule]):
                if (schedule, x) in shared:
                    p = st.point(records, methods[schedule], x)
                    name = "Adam" if schedule == st.REFERENCE else f"{schedule}, λ {x:g}"
                    cells = [cell(p, adam, c) for c in sets.values()]
                    paired = [interval(st.difference(p, adam, c, "test")) if p != adam else "" for c in _ood(sets)]
                    rows.append([str(steps), str(demos), name, str(len(p)), *cells, *paired])
    note = f"Test error, and its difference to Adam after as many steps on as much data. {BETTER.format('Adam')}."
    header = ["steps", "demos", "method", "runs", *sets, *(f"{n} − Adam" for n in sets if n != "ID")]
    return markdown(header, rows, note)


def gaps(records: Sequence[Record], criterion: Criterion = st.balanced) -> str:
    """What covered shifts cost beyond the error in distribution, which longer training lowers whatever the method."""
    if "covered" not in sets_of(seen(records)):
        return ""
    points = [*chosen(records, compared(records), criterion).values(), *_group(records, "schedule-length")]
    adams = {_first(p)["steps"]: p for p in points if schedule_of(_first(p)["method"]) == st.REFERENCE}
    rows = []
    for p in points:
        steps = _first(p)["steps"]
        adam = adams.get(steps, {})
        errors = [number(e.value) if (e := st.mean(p, c, "test")) else "" for c in (st.ID, st.COVERED, st.GAP)]
        if st.common(p, adam):
            paired = "" if p is adam else interval(st.difference(p, adam, st.GAP, "test"))
            rows.append([label(p), str(steps), str(len(st.common(p, adam))), *errors, paired, _each(p)])
    note = (
        "Mean test error under texture, light and color, which pretraining varied (covered), minus that in "
        "distribution, its difference to Adam's after as many steps, and the gap of every run, those of the first "
        f"pretraining, then of the second. {BETTER.format('Adam')}."
    )
    return markdown(["method", "steps", "runs", "ID", "covered", "gap", "gap − Adam's", "each run"], rows, note)


def _each(p: Point) -> str:
    found = st.mean(p, st.GAP, "test")
    return " ".join(map(number, found.each)) if found else ""


def _first(p: Point) -> Record:
    return next(iter(p.values()))


def linear_against_uniform(records: Sequence[Record]) -> str:
    """MAPS minus uniform λ in every regime, at equal λ_max and at about equal mean λ."""
    sets = sets_of(seen(records))
    shared = shared_points(records)
    rows = []
    for (steps, demos), methods in regimes(records).items():
        for _, a in sorted(point for point in shared if point[0] == "linear"):
            for _, b in sorted(point for point in shared if point[0] == "uniform"):
                p, q = (st.point(records, methods.get(s, ""), x) for s, x in (("linear", a), ("uniform", b)))
                if p and q:
                    paired = [interval(st.difference(p, q, c, "test")) for c in sets.values()]
                    rows.append([str(steps), str(demos), f"linear {a:g} − uniform {b:g}", _strengths(p, q), *paired])
    note = f"Test error of linear λ minus that of uniform λ in the same runs. {BETTER.format('uniform λ')}."
    return markdown(["steps", "demos", "difference", "mean λ", *sets], rows, note)


def _strengths(p: Point, q: Point) -> str:
    found = [matching.mean_strength(x) for x in (p, q)]
    return " and ".join(f"{x:.2f}" for x in found if x is not None)


def _ood(sets: dict[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [c for name, c in sets.items() if name != "ID"]


def _against(records: Sequence[Record], points: Iterable[Point], reference: Point, note: str) -> str:
    """Rows of errors and differences to one point."""
    sets = sets_of(seen(records))
    rows = []
    for p in points:
        strength = matching.mean_strength(p)
        paired = [interval(st.difference(p, reference, c, "test")) if p != reference else "" for c in sets.values()]
        errors = [number(e.value) if (e := st.mean(p, c, "test")) else "" for c in sets.values()]
        rows.append([label(p), str(len(p)), "" if strength is None else f"{strength:.2f}", *errors, *paired])
    header = ["point", "runs", "mean λ", *sets, *(f"{name}, difference" for name in sets)]
    return markdown(header, rows, f"{note} {BETTER.format(label(reference))}.") if rows else ""


def _group(records: Sequence[Record], *groups: str) -> list[Point]:
    methods = ordered(r["method"] for r in records if r["group"] in groups)
    return [st.point(records, m, x) for m in methods for x in st.values(records, m)]


def variants(records: Sequence[Record]) -> str:
    """Other schedules, the capped pull and the estimate against linear MAPS of the same λ_max."""
    tables = []
    for x in sorted({point.x for point in VARIANTS if point.x is not None}):
        found = [st.point(records, point.method, x) for point in VARIANTS if point.x == x]
        linear = st.point(records, "linear", x)
        if linear and any(found):
            tables.append(_against(records, [linear, *(p for p in found if p)], linear, "Test error."))
    return "\n\n".join(tables)


def boundaries(records: Sequence[Record]) -> str:
    """Other boundaries and orders of modules against MAPS as published, at the same λ_max."""
    shifted = _group(records, "boundaries", "towers")
    maximum = next((x for p in shifted for r in p.values() if (x := r["x"]) is not None), None)
    linear = st.point(records, "linear", maximum)
    if not shifted or not linear:
        return ""
    orders = [st.point(records, m, maximum) for m in ("reversed", "shuffled")]
    note = "Test error with the layers in other places of the stack, and its difference to MAPS as published."
    return _against(records, [linear, *shifted, *(p for p in orders if p)], linear, note)


def adaptive(records: Sequence[Record], criterion: Criterion = st.balanced) -> str:
    """λ moved by a rule against the best fixed ones, which are chosen on dev."""
    rules = _group(records, "adaptive")
    fixed = [st.point(records, m, st.select(records, m, criterion)) for m in ("uniform", "linear") if _has(records, m)]
    if not rules or not fixed:
        return ""
    note = (
        "Test error of λ moved by a rule, untuned, whose mean λ is that at the start, and its difference to the fixed "
        "λ that dev chooses."
    )
    return _against(records, [*fixed, *rules], fixed[0], note)


def one_tower(records: Sequence[Record]) -> str:
    """One CLIP-kind tower in place of two."""
    points = _group(records, ONE_TOWER[0].group)
    adam = st.point(records, ONE_TOWER[0].method)
    note = "Test error of a model with one tower, and its difference to Adam on the same model."
    return _against(records, [adam, *(p for p in points if p != adam)], adam, note) if adam else ""


def lora(records: Sequence[Record]) -> str:
    """Ways for λ to act on adapters, against plain LoRA of the same rank (the largest there is)."""
    treatments = _group(records, "lora")
    ranks = [x for x in st.values(records, "lora") if x is not None]
    if not treatments or not ranks:
        return ""
    plain = st.point(records, "lora", max(ranks))
    adam = st.point(records, st.REFERENCE)
    note = "Test error of LoRA with SPD, and its difference to LoRA without."
    return _against(records, [p for p in (adam, plain) if p] + treatments, plain, note)


def _has(records: Sequence[Record], method: str) -> bool:
    return any(r["method"] == method for r in records)
