"""What the study's lines say: means, paired differences with intervals over runs, choices made on dev.

**The unit is the run**: a pretrained model and a seed, which draws the fresh weights and the order of the data. Every
method is run with the same pairs and evaluated on the same held-out episodes; a run's number is its mean over them, and
an interval is Student's over the differences of the five runs (`octo_integration.evaluate.runs`). Episodes add none
of their own: those of a run share its luck.

* What an interval is about: other seeds, from these two pretrainings, this one set of demonstrations and these held-out
  episodes, which every run shares. Of two pretrainings nothing can be said about a third.
* Of many cells some are below .05 by chance. A table or figure marks only what survives Benjamini and Hochberg's
  procedure over all of it.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octo_integration.evaluate.runs import student_interval

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
GAP = ("gap",)  # stands for covered minus ID
KINDS: Mapping[str, tuple[str, ...]] = {"gap": GAP, "covered": COVERED, "held-out": HELD_OUT, "all": ("all",)}

SLACK = 1.02  # of Adam's ID error, in `within`

POINT_FIELDS = ("key", "method", "label", "axis", "x", "group", "pretrain", "seed", "l1", "drift", "probes")
SUCCESS_FIELDS = ("key", "method", "label", "x", "pretrain", "seed", "shift", "task", "outcomes")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over runs with its 95 % interval.

    Attributes:
      p: two-sided, against 0; NaN, as the interval, of one run.
      each: the number of every run.
    """

    value: float
    low: float
    high: float
    p: float
    each: tuple[float, ...]

    @property
    def runs(self) -> int:
        """How many runs it is from."""
        return len(self.each)

    @property
    def lower(self) -> int:
        """In how many of them it is below 0; of differences."""
        return sum(x < 0 for x in self.each)


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
    wanted = (*ID, *COVERED) if tuple(conditions) == GAP else conditions
    return {run: r for run, r in p.items() if all(r["l1"].get(part, {}).get(c) for c in wanted)}


# Means over runs


def mean_error(record: Record, conditions: Sequence[str], part: str) -> float:
    """Of one run: the mean over conditions, each the mean over tasks of the mean over episodes."""
    if tuple(conditions) == GAP:
        return mean_error(record, COVERED, part) - mean_error(record, ID, part)
    return float(np.mean([np.mean([np.mean(e) for e in record["l1"][part][c].values()]) for c in conditions]))


def errors(p: Point, runs: Runs, conditions: Sequence[str], part: str) -> np.ndarray:
    """f[runs]: `mean_error` of each.

    Raises:
      ValueError: runs were measured on different tasks or numbers of episodes.
    """
    lines = _lines(p, runs)
    for condition in () if tuple(conditions) == GAP else conditions:
        counts = [{task: len(e) for task, e in line["l1"][part][condition].items()} for line in lines]
        for found in counts[1:]:
            if found != counts[0]:
                task = next(t for t in {**counts[0], **found} if found.get(t) != counts[0].get(t))
                raise ValueError(
                    f"runs of {lines[0]['method']} differ in the {part} episodes of {condition}, {task}; "
                    "they are of different profiles: keep one of them."
                )
    return np.array([mean_error(line, conditions, part) for line in lines])


def mean(p: Point, conditions: Sequence[str], part: str) -> Estimate | None:
    """Of all runs that were measured so; None without one."""
    p = measured(p, conditions, part)
    runs = common(p)
    return estimate(errors(p, runs, conditions, part)) if runs else None


def difference(a: Point, b: Point, conditions: Sequence[str], part: str) -> Estimate | None:
    """a − b, over the runs that both have; None without one."""
    a, b = measured(a, conditions, part), measured(b, conditions, part)
    runs = common(a, b)
    return estimate(errors(a, runs, conditions, part) - errors(b, runs, conditions, part)) if runs else None


def estimate(each: np.ndarray) -> Estimate:
    """Of one number per run."""
    return Estimate(*student_interval(each)[:4], tuple(each.tolist()))


# Choices on dev


Criterion = Callable[[Sequence[Record], str, float | None], float]


def balanced(dev: Sequence[Record], method: str, x: float | None) -> float:
    """The mean of the ID error and of the mean over single looks."""
    p = point(dev, method, x)
    return run_mean(p, ID, "dev") + run_mean(p, LOOKS, "dev")


def within(dev: Sequence[Record], method: str, x: float | None) -> float:
    """The mean over single looks if the ID error is within 2 % of Adam's; if not, worse than any that is."""
    p, adam = point(dev, method, x), point(dev, REFERENCE)
    excess = run_mean(p, ID, "dev") / run_mean(adam, ID, "dev") - SLACK
    return run_mean(p, LOOKS, "dev") if excess <= 0 else 1e6 + excess


def run_mean(p: Point, conditions: Sequence[str], part: str) -> float:
    """Over the runs that were measured so; inf without one."""
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
