"""How many samples a second does the reader make, and what does each stage cost?

    python -m benchmarks.input_pipeline --bridge path/to/bridge_dataset/1.0.0

Reads the shipped Meta-World set, and BridgeData if its directory is given, at 64 and 224 pixels. Rates are of this
machine while nothing else runs, per core; what carries over is the ratio of the stages.
"""

import dataclasses
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import tensorflow as tf
import tyro

from octo_integration.common.files import write_json
from octo_integration.data import DataConfig, compute_statistics
from octo_integration.data.profile import profile_input

RESULTS = Path(__file__).parent / "results.json"
SIZES = (64, 224)


@dataclasses.dataclass(frozen=True)
class Config:
    """Times the reader, stage by stage.

    python -m benchmarks.input_pipeline
    """

    bridge: str | None = None
    """RLDS directory of BridgeData; its first 20 episodes are read."""
    out: Path = RESULTS
    """Where the numbers go."""


def main(config: Config) -> None:
    """Times every set at every size, prints the table and writes it to `config.out`."""
    sets = {"metaworld": DataConfig(batch_size=16)}
    if config.bridge is not None:
        sets["bridge"] = DataConfig(path=config.bridge, standardize="bridge", split="train[:20]", batch_size=16)
    cores = len(os.sched_getaffinity(0))
    rows: list[dict[str, Any]] = []
    for name, base in sets.items():
        for size in SIZES:
            data = dataclasses.replace(base, image_size=size)
            stages = profile_input(data, compute_statistics(data))
            rates = {stage.name: round(data.batch_size / stage.seconds / cores) for stage in stages}
            rows.append({"data": name, "image_size": size, "samples_per_second_and_core": rates})
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = {
        "cores": cores,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
    }
    write_json(config.out, {"commit": commit, **machine, "rows": rows})
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: samples per second and core of the pipeline up to each stage."""
    stages = list(rows[0]["samples_per_second_and_core"])
    lines = [f"| data | pixels | {' | '.join(stages)} |", "|---|---|" + "---|" * len(stages)]
    for row in rows:
        rates = [f"{row['samples_per_second_and_core'][stage]:,}" for stage in stages]
        lines.append(f"| {row['data']} | {row['image_size']} | {' | '.join(rates)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Config))
