"""The study, in parts.

python -m benchmarks.generalization run                  # or resume; --profile more, one_tower, small, rates, smoke
python -m benchmarks.generalization success              # closed loop, of methods that `run` kept
python -m benchmarks.generalization report               # tables and figures from the results
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.generalization import plan, report, study, success
from octo_integration.cli.commands import USER_ERRORS

HERE = Path(__file__).parent
Profiles = Literal[
    "default", "more", "one_tower", "small", "rates", "smoke",
    "length", "honest", "honest_all",
    "who_still", "who_still_turned", "who_motion", "who_motion_turned",
    "parts_still", "parts_still_turned", "parts_motion", "parts_motion_turned",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """Fine-tunes by every method that is missing in the results, over processes; the same command goes on."""

    profile: Profiles = "default"
    """default; more (other boundaries, twice the steps); one_tower (of CLIP's kind); small (that model, on a GPU);
    rates (to choose by, on dev); smoke; the others are those of PREREGISTRATION.md."""
    out: Path = Path("runs/generalization")
    """Demonstrations, probe frames and fine-tuned weights."""
    results: Path | None = None
    """JSON lines; default: those of the profile, beside this file (of smoke: in out)."""
    workers: int = os.cpu_count() or 1
    """Processes of one thread each; SIGTERM and Ctrl-C finish the runs under way and exit with 143 or 130."""
    only: tuple[str, ...] = ()
    """Points ("linear/lambda=2") or methods ("linear"); default: all."""


@dataclasses.dataclass(frozen=True)
class Success:
    """Lets the fine-tuned policies act in Meta-World."""

    profile: Profiles = "default"
    """As of run."""
    out: Path = Path("runs/generalization")
    """As of run."""
    results: Path | None = None
    """JSON lines; default: as of run, success.jsonl."""
    workers: int = os.cpu_count() or 1
    """Processes."""
    methods: tuple[str, ...] = (
        "adam",
        "frozen-vision",
        "linear/lambda=2",
        "linear/lambda=3",
        "uniform/lambda=1",
        "uniform/lambda=2",
        "reversed/lambda=2",
        "lora/rank=16",
    )
    """Points of the plan, of those whose weights `run` kept."""
    shifts: tuple[str, ...] = ("none", "light", "camera", "all")
    """Of octo_integration/simulators/metaworld/shifts.py."""
    episodes: int = 2
    """Per task, shift and weights; with 6 tasks and 5 pairs of pretraining and seed, 2 make 60 per method and shift."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Prints the tables and draws the figures."""

    results: Path = HERE / "results.jsonl"
    """Of run."""
    success: Path = HERE / "success.jsonl"
    """Of success."""
    out: Path = HERE
    """Where tables.md and the figures go."""


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Success, tyro.conf.subcommand("success")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)


def main(command: Run | Success | Report) -> None:
    """Runs one part."""
    if isinstance(command, Run):
        results = command.results or plan.lines(command.profile, "results", command.out)
        study.run(command.profile, command.out, results, command.workers, command.only)
    elif isinstance(command, Success):
        success.run(
            command.profile,
            command.out,
            command.results or plan.lines(command.profile, "success", command.out),
            command.methods,
            command.shifts,
            workers=command.workers,
            episodes=command.episodes,
        )
    else:
        report.write(command.results, command.success, command.out)


if __name__ == "__main__":
    try:
        main(tyro.cli(Command, description=__doc__))
    except USER_ERRORS as error:
        sys.exit(f"benchmarks.generalization: {error}")
