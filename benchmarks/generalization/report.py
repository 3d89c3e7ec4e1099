"""Tables and figures of the study, from its lines of JSON."""

from pathlib import Path

from benchmarks.generalization import figures, statistics, tables


def write(results: Path, success: Path, out: Path) -> None:
    """Prints the tables, writes them to out/tables.md, and draws the figures beside it."""
    records = statistics.read(results)
    points = statistics.read_success(success) if success.exists() else []
    text = tables.report(records, points)
    (out / "tables.md").write_text(text + "\n")
    print(text)
    for path in figures.draw_all(records, out, points):
        print(path)
