"""Tables and figures of the study, from its lines of JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from benchmarks.generalization import claims, experiments, figures, questions, statistics, tables
from benchmarks.generalization.statistics import Criterion, Record, balanced


def write(results: Path, success: Path, out: Path) -> None:
    """Prints the tables, writes them to out/tables.md, and draws the figures beside it.

    Those of PREREGISTRATION.md's experiments are made of {cell}_results.jsonl beside `results`, where they are there.
    """
    records = statistics.read(results)
    points = statistics.read_success(success) if success.exists() else []
    paths = {cell: results.parent / f"{cell}_results.jsonl" for cell in (experiments.GRID, *experiments.CELLS)}
    text = report(records, points, cells={c: statistics.read(p) for c, p in paths.items() if p.exists()})
    (out / "tables.md").write_text(f"# Tables of the study\n\n{text}")
    print(text)
    for path in figures.draw_all(records, out, points):
        print(path)


def report(
    records: Sequence[Record],
    success: Sequence[Record] = (),
    criterion: Criterion = balanced,
    cells: Mapping[str, Sequence[Record]] = MappingProxyType({}),
) -> str:
    """Every table that there are runs for, under its heading."""
    parts = {
        "Experiment A: honest Adam": experiments.honest(cells.get("still", ()), cells.get(experiments.GRID, ())),
        "Experiment B: who must move": experiments.who(cells),
        "What the conclusions stand on": claims.table(records),
        "The gap between covered shifts and ID": questions.gaps(records, criterion),
        "Error and training loss": claims.optimisation(records),
        "Drift of the towers": claims.towers(records),
        "Test error": tables.main(records, criterion),
        "Differences to Adam": tables.factors(records, criterion),
        "Along the paths": tables.paths(records),
        "At matched strength": tables.matched_strength(records),
        "Drift and what is forgotten": tables.drift(records, criterion),
        "Success": tables.success_rates(success),
        "Schedules, training length, demonstrations": questions.schedules(records),
        "Linear against uniform λ": questions.linear_against_uniform(records),
        "Variants of MAPS": questions.variants(records),
        "Boundaries of modules": questions.boundaries(records),
        "One tower": questions.one_tower(records),
        "Adaptive λ": questions.adaptive(records, criterion),
        "LoRA": questions.lora(records),
    }
    return "\n\n".join(f"## {heading}\n\n{table}" for heading, table in parts.items() if table) + "\n"
