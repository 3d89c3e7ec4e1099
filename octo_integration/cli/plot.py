"""`maps-vla plot`."""

import dataclasses
from pathlib import Path

import tyro

from octo_integration.evaluate.plot import plot_drift


@dataclasses.dataclass(frozen=True)
class Options:
    """Draws how far every pretrained tensor moved along the stack, runs beside each other.

    maps-vla plot runs/adam runs/maps --out drift.png
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories of finetune, in the order of the panels."""
    out: str = "drift.png"
    """The figure; its ending chooses the format."""
    mixed: bool = False
    """Also draws runs beside each other that differ in their data or their step."""


def run(config: Options) -> int:
    """Draws the drift figure."""
    plot_drift([Path(run) for run in config.runs], Path(config.out), mixed=config.mixed)
    print(config.out)
    return 0
