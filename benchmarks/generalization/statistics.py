"""What the study's lines say: means, paired differences with intervals, choices made on dev.

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
"""

import dataclasses
import functools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special

from octo_integration.evaluate.intervals import Z_95, wilson_interval

Record = Mapping[str, Any]
Run = tuple[int, int]
Runs = tuple[Run, ...]
Point = Mapping[Run, Record]

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

DRAWS = 4000
SEED = 0
SLACK = 1.02  # of Adam's ID error, in `within`

POINT_FIELDS = ("key", "method", "label", "axis", "x", "group", "pretrain", "seed", "l1", "drift", "probes")
SUCCESS_FIELDS = ("key", "method", "label", "x", "pretrain", "seed", "shift", "task", "outcomes")


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
    """How much wider Student's t is than the normal distribution, at its 97.5th percentile."""
    return float(scipy.special.stdtrit(max(freedom, 1), 0.975)) / Z_95


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
