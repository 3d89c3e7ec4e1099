"""The few contrasts that the study's conclusions stand on, each with the number of every run."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from benchmarks.generalization import statistics as st
from benchmarks.generalization.methods import BASELINES, LAMBDAS, ONE
from benchmarks.generalization.statistics import Estimate, Point, Record
from benchmarks.generalization.tables import markdown, number

TOLERANCE = tuple(x for x in LAMBDAS if x >= 1)  # from what is too little to what is too much
TOWERS = ("dinov2", "siglip")
MOVED = 0.7  # of Adam's drift of the language model
MAIN_GROUPS = ("main", "adaptive")
ZERO_SHOT, PARAPHRASES = ("zero_shot",), ("language",)


class Contrast(NamedTuple):
    """One difference: its words, the measure, and pairs of points (method, x) whose differences are averaged."""

    words: str
    measure: tuple[str, ...]
    pairs: tuple[tuple[tuple[str, float | None], tuple[str, float | None]], ...]


def _one(words: str, measure: tuple[str, ...], method: str, x: float | None, other: str, y: float | None) -> Contrast:
    return Contrast(words, measure, (((method, x), (other, y)),))


def _tolerance(name: str, measure: tuple[str, ...]) -> Contrast:
    pairs = tuple((("linear", x), ("uniform", x)) for x in TOLERANCE)
    return Contrast(f"linear − uniform, mean over λ {TOLERANCE[0]:g} to {TOLERANCE[-1]:g}: {name}", measure, pairs)


TWICE = "twice the steps"
CONTRASTS = (
    _one("MAPS (linear 3) − Adam: gap", st.GAP, "linear", 3.0, "adam", None),
    _one("uniform 2 − Adam: gap", st.GAP, "uniform", 2.0, "adam", None),
    _one("both towers frozen − Adam: gap", st.GAP, "frozen-vision", None, "adam", None),
    _one("the same after 800 steps: linear 2 − Adam: gap", st.GAP, f"linear-{TWICE}", 2.0, f"adam-{TWICE}", None),
    _one("the same after 800 steps: uniform 2 − Adam: gap", st.GAP, f"uniform-{TWICE}", 2.0, f"adam-{TWICE}", None),
    _one("linear 3 − uniform 2: gap", st.GAP, "linear", 3.0, "uniform", 2.0),
    _one("linear 3 − uniform 2: ID", st.ID, "linear", 3.0, "uniform", 2.0),
    _one("linear 3 − uniform 2: paraphrases", PARAPHRASES, "linear", 3.0, "uniform", 2.0),
    _one("linear 3 − uniform 2: zero-shot", ZERO_SHOT, "linear", 3.0, "uniform", 2.0),
    _tolerance("ID", st.ID),
    _tolerance("covered", st.COVERED),
    _tolerance("gap", st.GAP),
    _one("one tower, linear 2 − frozen: ID", st.ID, f"linear-{ONE}", 2.0, f"frozen-{ONE}", None),
    _one("one tower, uniform 2 − frozen: ID", st.ID, f"uniform-{ONE}", 2.0, f"frozen-{ONE}", None),
    _one("one tower, linear 2 − frozen: gap", st.GAP, f"linear-{ONE}", 2.0, f"frozen-{ONE}", None),
    _one("linear 3 after 400 steps − Adam after 800: ID", st.ID, "linear", 3.0, f"adam-{TWICE}", None),
    _one("linear 3 after 400 steps − Adam after 800: gap", st.GAP, "linear", 3.0, f"adam-{TWICE}", None),
)  # fmt: skip


def contrast(records: Sequence[Record], wanted: Contrast) -> Estimate | None:
    """The mean over its pairs in every run that all of them have; None without one."""
    points = [[st.measured(st.point(records, *m), wanted.measure, "test") for m in pair] for pair in wanted.pairs]
    runs = st.common(*(p for pair in points for p in pair))
    if not runs:
        return None
    found = [[st.errors(p, runs, wanted.measure, "test") for p in pair] for pair in points]
    return st.estimate(np.mean([a - b for a, b in found], axis=0))


def table(records: Sequence[Record]) -> str:
    """Every contrast that there are runs for."""
    rows = []
    for wanted in CONTRASTS:
        if (e := contrast(records, wanted)) is not None:
            shown = f"{number(e.value)} [{number(e.low)}, {number(e.high)}]"
            rows.append([wanted.words, str(e.runs), shown, number(e.p, 4), " ".join(map(number, e.each))])
    note = (
        "Differences of test errors, [95 % interval over runs], and each run's. Not marked, for they were picked among "
        "several hundred after these data had been seen, which no correction over this table undoes: they are what a "
        "new experiment has to show. What survives among all there are is marked in the tables below."
    )
    return markdown(["contrast", "runs", "difference", "p", "each run"], rows, note)


def optimisation(records: Sequence[Record]) -> str:
    """How much of each error the training loss explains."""
    groups = (*MAIN_GROUPS, "lora")
    runs = [r for r in records if r["group"] in groups and r["method"] not in st.CONTROLS and r.get("train_loss")]
    rows = []
    for name, conditions in {"ID": st.ID, **st.KINDS}.items():
        there = [r for r in runs if st.measured({(0, 0): r}, conditions, "test")]
        pairs = [[r["train_loss"] for r in there], [st.mean_error(r, conditions, "test") for r in there]]
        if len(there) > 2 and np.ptp(pairs, axis=1).all():
            rows.append([name, str(len(there)), number(float(np.corrcoef(pairs)[0, 1]) ** 2, 2)])
    note = "R² of the training loss at a run's end, over all runs of 400 steps on all demonstrations."
    return markdown(["error", "runs", "R²"], rows, note)


def drifted(records: Sequence[Record]) -> dict[tuple[str, float | None], Point]:
    """(method, x) -> the points fine-tuned in their weights, from pretrained ones: no merges, no adapters."""
    merges = {derived.method for point in BASELINES for derived in point.derived}
    skipped = (*st.CONTROLS, st.UNTRAINED, "lora", *merges)
    names = {(r["method"], r["x"]) for r in records if r["group"] == "main" and r["method"] not in skipped}
    points = {name: st.measured(st.point(records, *name), st.GAP, "test") for name in sorted(names, key=str)}
    return {name: p for name, p in points.items() if p and all(r["drift"] for r in p.values())}


def language_moved(records: Sequence[Record], p: Point) -> bool:
    """Its language model moved at least 0.7 times as far as Adam's."""
    adam = st.module_drift(st.point(records, st.REFERENCE))
    return st.module_drift(p).get("language", 0.0) >= MOVED * adam.get("language", 0.0)


def tower_drift(record: Record) -> float:
    """‖θ − θ0‖ over all layers of the towers."""
    squares = [moved**2 for layer, moved in record["drift"].items() if layer.split("/")[0] in TOWERS]
    return float(np.sum(squares)) ** 0.5


def towers(records: Sequence[Record]) -> str:
    """Spearman's correlation of the towers' drift with the errors, over points and over runs."""
    found = drifted(records)
    moved = {name: p for name, p in found.items() if language_moved(records, p)}
    rows = []
    for words, points in (("all", found), (f"language moved ≥ {MOVED:g} of Adam's", moved)):
        runs = [r for p in points.values() for r in p.values()]
        for unit, samples in (("points", [list(p.values()) for p in points.values()]), ("runs", [[r] for r in runs])):
            if len(samples) > 2:
                cells = [number(rank(samples, c), 2) for c in (st.COVERED, st.GAP, st.ID)]
                rows.append([words, f"{len(samples)} {unit}", *cells])
    note = (
        "Spearman's correlation of the drift of both towers with the errors, over points fine-tuned in their weights. "
        f"They share pretrainings and seeds, and the bound {MOVED:g} was set after these data had been seen."
    )
    return markdown(["points", "over", "covered", "gap", "ID"], rows, note)


def rank(samples: Sequence[Sequence[Record]], conditions: tuple[str, ...]) -> float:
    """Spearman's correlation of drift and error, each the mean of a sample's runs; NaN where nothing varies."""
    moved = [np.mean([tower_drift(r) for r in runs]) for runs in samples]
    error = [np.mean([st.mean_error(r, conditions, "test") for r in runs]) for runs in samples]
    if not (np.ptp(moved) and np.ptp(error)):
        return np.nan
    return float(scipy.stats.spearmanr(moved, error).statistic)
