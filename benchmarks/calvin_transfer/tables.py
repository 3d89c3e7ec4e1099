"""What the lines say: means over runs, and differences of pairs with intervals over them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.calvin_transfer import plan
from benchmarks.calvin_transfer.experiment import Record, Step, read
from benchmarks.generalization import statistics

Lines = Mapping[Step, Record]
Run = tuple[str, int]  # method and seed
BEGIN, END = "<!-- tables: python -m benchmarks.calvin_transfer tables -->\n", "<!-- end of tables -->\n"


def _error(lines: Lines, run: Run, where: str) -> float:
    return float(np.mean(lines[Step(*run, "error")]["l1"][where]))


def _outcomes(lines: Lines, run: Run, scenes: tuple[str, ...], task: str) -> list[bool]:
    return [outcome for scene in scenes for outcome in lines[Step(*run, "success", scene)]["outcomes"][task]]


def _success(lines: Lines, run: Run, scenes: tuple[str, ...]) -> float:
    return float(np.mean([_outcomes(lines, run, scenes, task) for task in plan.TASKS]))


def _length(lines: Lines, run: Run) -> float:
    return float(np.mean(lines[Step(*run, "chains", plan.UNSEEN)]["reached"]))


# The first is the primary one.
MEASURES: Mapping[str, Callable[[Lines, Run], float]] = {
    "action error, D": lambda lines, run: _error(lines, run, "D"),
    "action error, A–C": lambda lines, run: _error(lines, run, "A-C"),
    "gap (D − A–C)": lambda lines, run: _error(lines, run, "D") - _error(lines, run, "A-C"),
    "success, A–C": lambda lines, run: _success(lines, run, plan.TRAINED),
    "success, D": lambda lines, run: _success(lines, run, (plan.UNSEEN,)),
    "length of chains, D": _length,
}


def differences(lines: Lines) -> str:
    """Markdown: a row a measure, over the seeds for which both methods have it."""
    rows = ["| measure | Adam | MAPS | MAPS − Adam | 95 % interval | p | seeds |", "|---|---|---|---|---|---|---|"]
    for label, measure in MEASURES.items():
        pairs = [values for seed in plan.SEEDS if (values := _pair(lines, seed, measure)) is not None]
        if not pairs:
            continue
        adam, maps = np.transpose(pairs)
        gap = statistics.estimate(maps - adam)
        numbers = [f"{adam.mean():.3f}", f"{maps.mean():.3f}", f"{gap.value:+.3f}"]
        interval = [f"{gap.low:+.3f} to {gap.high:+.3f}", f"{gap.p:.2f}"] if gap.runs > 1 else ["–", "–"]
        rows.append(f"| {' | '.join([label, *numbers, *interval, str(gap.runs)])} |")
    return "\n".join(rows) + "\n"


def _pair(lines: Lines, seed: int, measure: Callable[[Lines, Run], float]) -> tuple[float, float] | None:
    """Of Adam and of MAPS; None: a step of one is missing."""
    try:
        return measure(lines, ("adam", seed)), measure(lines, ("maps", seed))
    except KeyError:
        return None


def tasks(lines: Lines) -> str:
    """Markdown: successes of every task, of the runs that were tried in all of the scenes of a column."""
    places: dict[str, tuple[str, ...]] = {"A–C": plan.TRAINED, "D": (plan.UNSEEN,)}
    columns: list[tuple[str, tuple[str, ...], list[Run]]] = []
    for where, scenes in places.items():
        for method, name in {"adam": "Adam", "maps": "MAPS"}.items():
            runs = [(method, seed) for seed in plan.SEEDS]
            tried = [run for run in runs if all(Step(*run, "success", scene) in lines for scene in scenes)]
            columns.append((f"{where}, {name}", scenes, tried))
    rows = [f"| task | {' | '.join(name for name, _, _ in columns)} |", "|---|" + "---|" * len(columns)]
    for task in plan.TASKS:
        cells = []
        for _, scenes, runs in columns:
            outcomes = [outcome for run in runs for outcome in _outcomes(lines, run, scenes, task)]
            cells.append(f"{sum(outcomes)}/{len(outcomes)}")
        rows.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def write(results: Path, page: Path) -> None:
    """Puts the tables between the marks of a page.

    Raises:
      ValueError: as `read`; the page has no marks.
    """
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} has no {BEGIN.strip()} ... {END.strip()}; put the marks where the tables go.")
    before, rest = text.split(BEGIN)
    lines = read(results) if results.exists() else {}
    found = f"{differences(lines)}\n{tasks(lines)}" if lines else "No run has ended yet.\n"
    page.write_text(f"{before}{BEGIN}\n{found}\n{END}{rest.split(END)[1]}")
