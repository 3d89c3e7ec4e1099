"""What the study's lines say: means, paired differences with intervals, curves at matched error, choices made on dev.

**Intervals** are of a paired bootstrap over two kinds of luck at once: the runs (a pretrained model and a seed, which
draws the fresh weights and the order of the data) and the held-out episodes of each task. Every method is run with the
same pairs and evaluated on the same episodes, so both are drawn once for all methods, and what they share cancels in a
difference. Episodes are the same in every run, so they are crossed with runs, not nested in them; a draw is the sum of
what the drawn runs and what the drawn episodes change (their interaction is in both sums already).

* Runs are drawn as equals, not seeds within pretrainings: of two pretrainings a resample is the same one twice every
  other time, which estimates nothing. So the intervals are about fine-tuning from these pretrainings; how far another
  one would differ two cannot say, but the difference between these two widens the intervals.
* A plain bootstrap of five runs is too narrow, for it misses n/(n − 1) of the variance and the width of Student's t.
  Deviations are stretched by both, √(n/(n − 1)) · t(n − 1)/z, runs and episodes each with their own n. With many
  episodes and few runs this matters where runs differ, and only there. One run says nothing about runs: its interval is
  over episodes, and `Estimate.clear` refuses to call it.

**Matched ID.** A method is a path: its points (ID error, OOD error) in the order of its x, straight lines in between,
Adam where x turns the method off. Paths need not be monotone (a little anchoring can improve both errors, too much
worsens both), so at an ID error e the method stands for the best that it can be made to do: the place on the path with
the smallest OOD error among all whose ID error is at most e. That is monotone in e, and takes no fit. But it is a
minimum of noisy numbers: where place and value come from the same runs, a path of seven points that do nothing beats
Adam's single point in every third simulated study. So the place is found for every run without it, by the dev errors of
the other runs, and that run's test error there is what counts, as if one tuned x in some runs and then ran it anew.
Two intervals are made of it, and the hull of both is what is reported: that of those test errors, for the places as
found, and one as wide as the spread of the plain curves over draws, in each of which places are found again. (The first
alone calls two equal paths different in every fourth simulated study; with both it is about one in twelve.) The ID
errors of the two methods are equal only up to noise; what is left is reported too, and a verdict minds it.
"""

import dataclasses
import functools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from octo_integration.evaluate.rollout import Z_95, wilson_interval

Record = Mapping[str, Any]
Run = tuple[int, int]
Runs = tuple[Run, ...]
Point = Mapping[Run, Record]
Verdict = Literal["dominates", "is dominated", "crosses/undecided", "no overlap"]

REFERENCE = "adam"
UNTRAINED = "pretrained"
# Needs no run of its own, so it is compared with any.
DETERMINISTIC = ("constant",)
CONTROLS = ("constant", "blind", "random-init")

ID = ("none",)
COVERED = ("texture", "light", "color")
HELD_OUT = ("camera", "distractors")
LOOKS = COVERED + HELD_OUT
CONDITIONS = (*ID, *LOOKS, "all", "positions", "synonym", "language", "new_pairs", "new_shapes", "zero_shot")
KINDS: Mapping[str, tuple[str, ...]] = {"covered": COVERED, "held-out": HELD_OUT, "all": ("all",)}

# Where a method of this axis is Adam.
OFF = {"lambda": 0.0, "strength": 0.0, "decay": 0.0, "alpha": 1.0}

DRAWS = 4000
SEED = 0
LEVELS = 11
SHARE = 0.9  # of the levels must lean the same way for a path to dominate
SLACK = 1.02  # of Adam's ID error, in `within`

POINT_FIELDS = ("key", "method", "label", "axis", "x", "group", "pretrain", "seed", "l1", "drift", "probes")
SUCCESS_FIELDS = ("key", "method", "label", "x", "pretrain", "seed", "shift", "task", "outcomes")
# 97.5th percentile of Student's t by its degrees of freedom.
T_95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
      runs: how many runs it is from.
      lower: in how many of them it is below 0; of differences.
    """

    value: float
    low: float
    high: float
    runs: int
    lower: int = 0

    @property
    def clear(self) -> bool:
        """The interval excludes 0, and is from two runs or more."""
        return self.runs > 1 and (self.low > 0 or self.high < 0)


# Reading


def read(path: Path, fields: Sequence[str] = POINT_FIELDS) -> list[Record]:
    """The lines of results.jsonl; where a key is there twice, the last one.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is not a record, by file and number.
    """
    found: dict[Any, Record] = {}
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; run the study first.")
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number} is not JSON ({error}); delete the line and run the study again."
            ) from None
        missing = [name for name in fields if name not in record] if isinstance(record, dict) else list(fields)
        if missing:
            raise ValueError(f"{path}:{number} has no {', '.join(missing)}; delete the line and run the study again.")
        found[record["key"], record.get("shift"), record.get("task")] = record
    return list(found.values())


def read_success(path: Path) -> list[Record]:
    """success.jsonl as points: a line per run, outcomes where `l1` has errors, of the part "success".

    Raises:
      FileNotFoundError, ValueError: as `read`.
    """
    return success_points(read(path, SUCCESS_FIELDS))


def success_points(lines: Iterable[Record]) -> list[Record]:
    """Joins the lines of one run; see `read_success`."""
    points: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in lines:
        identity = line["method"], line["x"], line["pretrain"], line["seed"]
        axis = re.search(r"/(\w+)=", line["key"])  # linear/lambda=2/p0/s0
        kept = {name: line[name] for name in ("method", "label", "x", "pretrain", "seed")}
        kept["axis"] = axis[1] if axis else None
        point = points.setdefault(identity, {**kept, "group": "success", "l1": {"success": {}}})
        point["l1"]["success"].setdefault(line["shift"], {})[line["task"]] = [float(o) for o in line["outcomes"]]
    return list(points.values())


# Which points and runs there are


def point(records: Iterable[Record], method: str, x: float | None = None) -> Point:
    """The runs of a method at x; empty if there are none."""
    found = {run_of(r): r for r in records if r["method"] == method and r["x"] == x}
    return dict(sorted(found.items()))


def run_of(record: Record) -> Run:
    """(pretrained model, seed)"""
    return record["pretrain"], record["seed"]


def values(records: Iterable[Record], method: str) -> list[float | None]:
    """The x of a method that there are, in order."""
    found = {r["x"] for r in records if r["method"] == method}
    return sorted(found, key=lambda x: -np.inf if x is None else x)


def common(*points: Point) -> Runs:
    """The runs that all have; a deterministic point has those of the others."""
    sets = [set(p) for p in points if not _deterministic(p)]
    if not sets:
        return tuple(next(iter(points), {}))[:1]
    return tuple(sorted(set.intersection(*sets))) if all(points) else ()


def _deterministic(p: Point) -> bool:
    return any(r["method"] in DETERMINISTIC for r in p.values())


def _lines(p: Point, runs: Runs) -> list[Record]:
    return [next(iter(p.values()))] * len(runs) if _deterministic(p) else [p[run] for run in runs]


def measured(p: Point, conditions: Sequence[str], part: str) -> Point:
    """The runs that were measured under all of these conditions."""
    return {run: r for run, r in p.items() if all(r["l1"].get(part, {}).get(c) for c in conditions)}


# Means and their draws


def mean_error(record: Record, conditions: Sequence[str], part: str) -> float:
    """Of one run: the mean over conditions, each the mean over tasks of the mean over episodes."""
    return float(np.mean([np.mean([np.mean(e) for e in record["l1"][part][c].values()]) for c in conditions]))


def draws(p: Point, runs: Runs, conditions: Sequence[str], part: str) -> np.ndarray:
    """f[1 + DRAWS]: the mean error of `runs`, then that of every draw of runs and episodes.

    Draws of the same runs and of tasks with as many episodes go together, whatever the point and the condition: take
    the difference, or any function, of two results and its spread is that of paired draws.

    Raises:
      ValueError: runs were measured on different tasks or numbers of episodes.
    """
    lines, over_runs = _lines(p, runs), _deviations(len(runs), "runs") * _widening(len(runs) - 1)
    total = np.zeros(1 + DRAWS)
    for condition in conditions:
        rows = [line["l1"][part][condition] for line in lines]
        wide = _widening(sum(len(episodes) - 1 for episodes in rows[0].values()))
        for task in rows[0]:
            try:
                errors = np.array([row[task] for row in rows], float)  # [runs, episodes]
            except (KeyError, ValueError):
                raise ValueError(
                    f"runs of {lines[0]['method']} differ in the {part} episodes of {condition}, {task}; "
                    "they are of different profiles: keep one of them."
                ) from None
            changed = _deviations(errors.shape[1], task) @ errors.mean(0) * wide
            total += (errors.mean() + over_runs @ errors.mean(1) + changed) / (len(rows[0]) * len(conditions))
    return total


def mean(p: Point, conditions: Sequence[str], part: str) -> Estimate | None:
    """Of all runs that were measured so; None without one."""
    p = measured(p, conditions, part)
    runs = common(p)
    return estimate(draws(p, runs, conditions, part), len(runs)) if runs else None


def difference(a: Point, b: Point, conditions: Sequence[str], part: str) -> Estimate | None:
    """a − b, over the runs that both have; None without one."""
    a, b = measured(a, conditions, part), measured(b, conditions, part)
    runs = common(a, b)
    if not runs:
        return None
    found = draws(a, runs, conditions, part) - draws(b, runs, conditions, part)
    pairs = zip(_lines(a, runs), _lines(b, runs))
    lower = sum(mean_error(x, conditions, part) < mean_error(y, conditions, part) for x, y in pairs)
    return estimate(found, len(runs), lower)


def estimate(found: np.ndarray, runs: int, lower: int = 0) -> Estimate:
    """The interval of what `draws` gives, or of a function of it."""
    if not np.isfinite(found).all():  # a run diverged
        return Estimate(float(found[0]), np.nan, np.nan, runs, lower)
    low, high = np.percentile(found[1:], (2.5, 97.5))
    return Estimate(float(found[0]), float(low), float(high), runs, lower)


@functools.cache
def _deviations(count: int, stream: str) -> np.ndarray:
    """f[1 + DRAWS, count]: 0, then by how much a draw with replacement changes the weights, times √(n/(n − 1))."""
    rng = np.random.default_rng((SEED, zlib.crc32(stream.encode()), count))
    drawn = rng.multinomial(count, np.full(count, 1 / count), DRAWS) / count - 1 / count
    return np.concatenate([np.zeros((1, count)), drawn * np.sqrt(count / max(count - 1, 1))])


def _widening(freedom: int) -> float:
    return student(max(freedom, 1)) / Z_95


def student(freedom: int) -> float:
    """97.5th percentile of Student's t; beyond the table the expansion of Cornish and Fisher."""
    if freedom <= len(T_95):
        return T_95[freedom - 1]
    z = Z_95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


# Choices on dev


Criterion = Callable[[Sequence[Record], str, float | None], float]


def balanced(dev: Sequence[Record], method: str, x: float | None) -> float:
    """The mean of the ID error and of the mean over single looks."""
    p = point(dev, method, x)
    return _run_mean(p, ID, "dev") + _run_mean(p, LOOKS, "dev")


def within(dev: Sequence[Record], method: str, x: float | None) -> float:
    """The mean over single looks if the ID error is within 2 % of Adam's; if not, worse than any that is."""
    p, adam = point(dev, method, x), point(dev, REFERENCE)
    excess = _run_mean(p, ID, "dev") / _run_mean(adam, ID, "dev") - SLACK
    return _run_mean(p, LOOKS, "dev") if excess <= 0 else 1e6 + excess


def _run_mean(p: Point, conditions: Sequence[str], part: str) -> float:
    found = [mean_error(r, conditions, part) for r in measured(p, conditions, part).values()]
    return float(np.mean(found)) if found else np.inf


def select(records: Sequence[Record], method: str, criterion: Criterion = balanced) -> float | None:
    """The x of `method` that `criterion` likes best on dev.

    The criterion is given nothing but dev. In an unfinished study only those x count that have as many runs as any
    other; of equals the first.

    Raises:
      ValueError: there is no such method.
    """
    dev = [{**r, "l1": {"dev": r["l1"].get("dev", {})}} for r in records if r["method"] in (method, REFERENCE)]
    found = values(dev, method)
    if not found:
        raise ValueError(f"there are no runs of {method!r}.")
    most = max(len(point(dev, method, x)) for x in found)
    complete = [x for x in found if len(point(dev, method, x)) == most]
    scores = [criterion(dev, method, x) for x in complete] if len(complete) > 1 else [0.0]
    return complete[int(np.argmin([s if np.isfinite(s) else np.inf for s in scores]))]


# Curves


@dataclasses.dataclass(frozen=True)
class Matched:
    """Two paths compared at equal ID error.

    Attributes:
      levels: ID errors of the method on test; differences: OOD error of the one minus the other's at each.
      average: over the levels; None without any run.
      inside: the difference that is left in ID error, average over the levels.
      share: of the levels at which the method is better.
    """

    verdict: Verdict
    runs: int
    levels: tuple[float, ...] = ()
    differences: tuple[Estimate, ...] = ()
    average: Estimate | None = None
    inside: Estimate | None = None
    share: float = 0.0


def path_points(records: Sequence[Record], method: str, off: bool = True) -> dict[float | None, Point]:
    """x -> the point, in order; with Adam where x turns the method off, if `off`."""
    found = {x: point(records, method, x) for x in values(records, method)}
    axis = next((r.get("axis") for r in records if r["method"] == method), None)
    adam = point(records, REFERENCE)
    origin = OFF.get(axis or "")
    if axis == "lr" and adam:
        origin = next(iter(adam.values())).get("lr")
    if off and adam and method != REFERENCE and origin is not None:
        found.setdefault(origin, adam)
    return dict(sorted(found.items(), key=lambda item: -np.inf if item[0] is None else item[0]))


def compare(records: Sequence[Record], method: str, reference: str, conditions: Sequence[str]) -> Matched:
    """Two methods' paths on test at matched ID error, over the ID errors that both paths have on dev.

    * "dominates": the difference in OOD error, averaged over the levels, is below 0 by its interval; it is below 0 at
      90 % of the levels and at none above 0 by its interval; the method's ID error is not larger by its interval; and
      the reference reaches no ID error that is smaller by its interval.
    * "is dominated": the same the other way round.
    * "no overlap": no ID error is common, and neither is better in both errors (if one is, it dominates).
    * "crosses/undecided": anything else, few runs included.

    Runs are those that both methods have at any x; an x without some of them is left out. Against Adam a path is taken
    without Adam's own point.
    """
    versus_adam = REFERENCE in (method, reference)
    wanted = (*ID, *conditions)
    paths = []
    for name in (method, reference):
        points = path_points(records, name, off=not versus_adam).values()
        paths.append([measured(measured(p, wanted, "dev"), wanted, "test") for p in points])
    runs = tuple(sorted(set.intersection(*({run for p in path for run in p} for path in paths))))
    a, b = ([p for p in path if set(runs) <= set(p) and _finite(p, wanted)] for path in paths)
    if not runs or not a or not b:
        return Matched("no overlap", len(runs))
    return _match(a, b, runs, conditions)


def _finite(p: Point, conditions: Sequence[str]) -> bool:
    return all(np.isfinite(mean_error(r, conditions, part)) for r in p.values() for part in ("dev", "test"))


def _match(a: Sequence[Point], b: Sequence[Point], runs: Runs, conditions: Sequence[str]) -> Matched:
    # dev: per path (ID, OOD) as f[runs, points], the means of the other runs; plain: the same as f[1 + DRAWS, points].
    dev = [tuple(_others(path, runs, c) for c in (ID, conditions)) for path in (a, b)]
    plain = [
        tuple(np.stack([draws({r: p[r] for r in runs}, runs, c, "test") for p in path], 1) for c in (ID, conditions))
        for path in (a, b)
    ]

    def between(places: Sequence[np.ndarray], of: Sequence[str], spread: np.ndarray | None = None) -> Estimate:
        found = difference(mixed(a, runs, places[0], of), mixed(b, runs, places[1], of), of, "test")
        assert found is not None
        return found if spread is None else _hull(found, spread)

    least = between([_one(i) for i, _ in dev], ID, plain[0][0].min(1) - plain[1][0].min(1))
    low, high = _overlap(*(i.mean(0, keepdims=True) for i, _ in dev))
    if high < low:
        places = [_one(o) for _, o in dev]
        best, inside = between(places, conditions, plain[0][1].min(1) - plain[1][1].min(1)), between(places, ID)
        better = best.value < 0
        if best.clear and better == (inside.value < 0):
            return Matched("dominates" if better else "is dominated", len(runs), (), (), best, inside, float(better))
        return Matched("no overlap", len(runs), (), (), best, inside)

    count = 1 if len(a) == 1 or len(b) == 1 else LEVELS
    levels, drawn = (
        np.linspace(*_overlap(*(i for i, _ in paths)), count, axis=1) for paths in (dev, plain)
    )  # fmt: skip
    shares = [attainable(i, o, levels) for i, o in dev]
    curves = [np.einsum("dlk,dk->dl", attainable(i, o, drawn), o) for i, o in plain]
    spread = curves[0] - curves[1]
    each = tuple(between([x[:, k] for x in shares], conditions, spread[:, k]) for k in range(count))
    average = between([x.mean(1) for x in shares], conditions, spread.mean(1))
    left = between([x.mean(1) for x in shares], ID)
    errors = [mean_error(r, ID, "test") for k in range(count) for r in mixed(a, runs, shares[0][:, k], ID).values()]
    verdict: Verdict = "crosses/undecided"
    if average.clear:
        sign = np.sign(average.value)
        leans = np.mean([np.sign(e.value) == sign for e in each]) >= SHARE
        against = any(e.clear and np.sign(e.value) == -sign for e in (*each, least, left))
        if leans and not against:
            verdict = "dominates" if sign < 0 else "is dominated"
    better_at = float(np.mean([e.value < 0 for e in each]))
    achieved = tuple(np.reshape(errors, (count, -1)).mean(1).tolist())
    return Matched(verdict, len(runs), achieved, each, average, left, better_at)


def _hull(e: Estimate, spread: np.ndarray) -> Estimate:
    low, high = np.percentile(spread[1:] - spread[1:].mean(), (2.5, 97.5))
    return dataclasses.replace(e, low=min(e.low, e.value + float(low)), high=max(e.high, e.value + float(high)))


def _overlap(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest ID error that two paths, f[..., points], have in common."""
    return np.maximum(a.min(1), b.min(1)), np.minimum(a.max(1), b.max(1))


def _others(path: Sequence[Point], runs: Runs, conditions: Sequence[str]) -> np.ndarray:
    """f[runs, points]: the mean dev error of the other runs; of a single run its own."""
    own = np.array([[mean_error(p[run], conditions, "dev") for p in path] for run in runs])
    return (own.sum(0) - own) / (len(runs) - 1) if len(runs) > 1 else own


def _one(errors: np.ndarray) -> np.ndarray:
    """The place of the smallest error, as shares; f[..., points]"""
    return np.eye(errors.shape[-1])[errors.argmin(-1)]


def attainable(inside: np.ndarray, outside: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """f[paths, levels, points]: the places with the smallest OOD error whose ID error is at most the level.

    A place is given as shares of the path's points; below the path's smallest ID error it is the point that has it.

    Args:
      inside, outside: f[paths, points], errors in the order of the path.
      levels: f[paths, levels].
    """
    level, count = levels[:, :, None], inside.shape[1]
    a, b = inside[:, None, :-1], inside[:, None, 1:]
    crosses = (np.minimum(a, b) <= level) & (level < np.maximum(a, b))
    share = np.divide(level - a, b - a, out=np.zeros(crosses.shape), where=crosses)
    between = np.where(crosses, outside[:, None, :-1] + share * np.diff(outside)[:, None], np.inf)
    errors = np.concatenate([np.where(inside[:, None] <= level, outside[:, None], np.inf), between], -1)
    best = np.where(np.isfinite(errors).any(-1), errors.argmin(-1), inside.argmin(1)[:, None])
    shares = np.concatenate([np.zeros((*levels.shape, count)), share], -1)
    part = np.take_along_axis(shares, best[..., None], -1)
    unit, first = np.eye(count), best % count
    return (1 - part) * unit[first] + part * unit[np.minimum(first + 1, count - 1)]


def mixed(points: Sequence[Point], runs: Runs, shares: np.ndarray, conditions: Sequence[str]) -> Point:
    """The test errors in between the points of a path, for every run at its own place: `shares` f[runs, points]."""
    found = {}
    for run, share in zip(runs, shares):
        lines = [(s, p[run]["l1"]["test"]) for s, p in zip(share, points) if s]
        errors = {
            c: {task: sum(s * np.asarray(line[c][task], float) for s, line in lines) for task in lines[0][1][c]}
            for c in conditions
        }
        found[run] = {"method": next(iter(points[0].values()))["method"], "l1": {"test": errors}}
    return found


def at_strength(records: Sequence[Record], method: str, x: float, reference: str, conditions: Sequence[str],
                part: str = "test") -> tuple[float, Estimate] | None:  # fmt: skip
    """(mean λ, the method at x minus the reference at the same mean λ), the reference interpolated between its points.

    None where a mean λ is not known or beyond the reference's.
    """
    theirs = {
        strength: p
        for p in path_points(records, reference).values()
        if (strength := mean_strength(p)) is not None
    }  # fmt: skip
    ours = measured(point(records, method, x), conditions, part)
    target = mean_strength(ours)
    if target is None or not theirs or not min(theirs) <= target <= max(theirs):
        return None
    below, above = max(s for s in theirs if s <= target), min(s for s in theirs if s >= target)
    ends = [measured(theirs[s], conditions, part) for s in (below, above)]
    runs = common(ours, *ends)
    if not runs:
        return None
    share = (target - below) / (above - below) if above > below else 0.0
    low, high = (draws(p, runs, conditions, part) for p in ends)
    return target, estimate(draws(ours, runs, conditions, part) - (1 - share) * low - share * high, len(runs))


def mean_strength(p: Point) -> float | None:
    """The mean λ over parameters, 0 of Adam; None where it is not known."""
    found = [0.0 if r["method"] == REFERENCE else r.get("mean_lambda") for r in p.values()]
    return None if not found or None in found else float(np.mean([x for x in found if x is not None]))


# Drift and what is forgotten


def module_drift(p: Point) -> dict[str, float]:
    """module -> ‖θ − θ0‖ over all of its layers, mean over runs."""
    runs = []
    for record in p.values():
        squares: dict[str, float] = {}
        for layer, moved in record["drift"].items():
            module = layer.split("/")[0]
            squares[module] = squares.get(module, 0.0) + moved**2
        runs.append({module: total**0.5 for module, total in squares.items()})
    runs = [r for r in runs if r]
    return {module: float(np.mean([r[module] for r in runs if module in r])) for module in (runs[0] if runs else {})}


def layer_drift(p: Point) -> dict[str, np.ndarray]:
    """layer -> ‖θ − θ0‖ of every run, in the order of the stack."""
    runs = [r["drift"] for r in p.values() if r["drift"]]
    return {layer: np.array([r[layer] for r in runs if layer in r]) for layer in (runs[0] if runs else {})}


def probe_kinds(names: Iterable[str]) -> dict[str, list[str]]:
    """What is asked -> its probes: "dinov2, cm" (the mean over what is located), and every perplexity together."""
    found: dict[str, list[str]] = {}
    for name in names:
        kind = "perplexity" if name.startswith("perplexity") else f"{name.split('_')[0]}, cm"
        found.setdefault(kind, []).append(name)
    return found


def forgotten(records: Sequence[Record], p: Point) -> dict[str, float]:
    """What is asked -> how much worse than before fine-tuning: 0.1 is an error (a perplexity) larger by a tenth.

    Every run is compared with its own pretrained model; the mean over probes and runs.
    """
    before = {r["pretrain"]: r["probes"] for r in records if r["method"] == UNTRAINED and r["probes"]}
    pairs = [(r["probes"], before[r["pretrain"]]) for r in p.values() if r["probes"] and r["pretrain"] in before]
    found: dict[str, list[float]] = {}
    for after, start in pairs:
        for kind, names in probe_kinds(n for n in start if n in after).items():
            found.setdefault(kind, []).append(float(np.mean([after[n] / start[n] - 1 for n in names])))
    return {kind: float(np.mean(x)) for kind, x in found.items()}


# Success


def success_rate(p: Point, shift: str) -> tuple[int, int, float, float] | None:
    """(successes, episodes, Wilson interval) over tasks and runs; None without an episode."""
    rows = [outcomes for r in p.values() for outcomes in r["l1"]["success"].get(shift, {}).values()]
    outcomes = [o for row in rows for o in row]
    if not outcomes:
        return None
    return int(sum(outcomes)), len(outcomes), *wilson_interval(int(sum(outcomes)), len(outcomes))
