"""What a process holds does not grow while it fine-tunes and evaluates, over and over.

By default a few cycles of the micro model; with TORTURE=1, two hours of `tiny`.
"""

import json
import os
import subprocess
import sys

import numpy as np

from tests.octo_integration import child
from tests.octo_integration.simulator import simulated

TORTURE = os.environ.get("TORTURE") == "1"
ARGUMENTS = ("7200", "{}", "tiny", "100") if TORTURE else ("0", "{}", "micro", "4")
# MiB per cycle; a train state of `tiny` is 13. What Orbax saves and restores loses .5 to .9 in TensorStore (0.1.86);
# metadata of 324 arrays, read twice by Orbax's way, would lose 4 (benchmarks/memory).
GROWTH = 4.0


def slope(y: np.ndarray) -> tuple[float, float]:
    """Of the least-squares line through y at 0, 1, ..., and its standard error."""
    x = np.arange(len(y)) - (len(y) - 1) / 2
    b = (x @ y) / (x @ x)
    residual = y - y.mean() - b * x
    return float(b), float(np.sqrt(residual @ residual / (len(y) - 2) / (x @ x)))


def test_memory_files_threads_and_processes_do_not_pile_up(tmp_path, capsys):
    with simulated("reach"):
        pass
    arguments = [argument.format(tmp_path / "run") for argument in ARGUMENTS]
    command = [sys.executable, "-m", "tests.octo_integration.soak", *arguments]
    done = subprocess.run(command, env=child.environment(tmp_path), cwd=child.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    settled = records[len(records) // 4 :]
    for what in ("files", "threads", "children"):
        assert len({record[what] for record in settled}) == 1, (what, records)
    growth, error = slope(np.array([record["mib"] for record in settled]))
    with capsys.disabled():
        seconds, mib = records[-1]["seconds"], settled[-1]["mib"]
        print(f" [{len(records)} cycles, {seconds:.0f} s; {mib:.0f} MiB, {growth:+.2f} ± {error:.2f} a cycle]", end="")
    if TORTURE:  # a few cycles say nothing of it
        assert growth - 2 * error < GROWTH, records
