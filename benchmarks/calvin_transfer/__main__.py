"""From scenes A, B and C to D: Adam and MAPS, three seeds each.

CALVIN_ROOT=... SIMULATOR_PYTHON=... python -m benchmarks.calvin_transfer run     # or resume
python -m benchmarks.calvin_transfer tables                                       # into README.md
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Run:
    """Collects, fine-tunes and evaluates what is missing in the results; the same command goes on."""

    out: Path = Path("runs/calvin_transfer")
    """Folder of the demonstrations and runs."""
    results: Path = HERE / "results.jsonl"
    """JSON lines, one a step of a run."""


@dataclasses.dataclass(frozen=True)
class Tables:
    """Puts the tables into the page."""

    results: Path = HERE / "results.jsonl"
    """Of run."""
    page: Path = HERE / "README.md"
    """Where they go."""


Command = Annotated[Run, tyro.conf.subcommand("run")] | Annotated[Tables, tyro.conf.subcommand("tables")]


def main(command: Run | Tables) -> int:
    """Runs one part; returns the exit code."""
    if isinstance(command, Tables):
        from benchmarks.calvin_transfer import tables

        tables.write(command.results, command.page)
        return 0
    from benchmarks.calvin_transfer import experiment

    return experiment.run(command.out, command.results)


if __name__ == "__main__":
    from octo_integration.cli import environment
    from octo_integration.cli.commands import USER_ERRORS
    from octo_integration.processes.heap import keep_heap

    environment.prepare()
    keep_heap()
    try:
        sys.exit(main(tyro.cli(Command, description=__doc__)))
    except USER_ERRORS as error:
        sys.exit(f"benchmarks.calvin_transfer: {error}")
