"""Your own data set: recordings in .npz files to RLDS, a mapping in JSON, and `maps-vla finetune` on it.

python examples/07_own_data.py [DIRECTORY]

Needs the [vla] extra. DIRECTORY (default: a temporary one) gets the data set `arm` and the run `run`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from octo_integration.cli.commands import main

STEPS = 4  # of fine-tuning: enough to see that it works


def recording(seed: int, length: int = 12) -> dict:
    """Random numbers in place of a recording. Names and sizes are yours: here a camera, six joints and a gripper."""
    rng = np.random.default_rng(seed)
    joints = np.cumsum(rng.normal(size=(length + 1, 6)), axis=0)
    closed = np.where(np.arange(length) < length // 2, 0.0, 1.0)
    return {
        "camera": rng.integers(0, 256, (length, 64, 64, 3), np.uint8),
        "joints": joints[:-1],
        "gripper": 1 - closed,
        "action": np.column_stack([np.diff(joints, axis=0), closed]),
        "instruction": np.array("move to the red cube"),
    }


if __name__ == "__main__":  # convert starts processes, which import this file
    out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    (out / "recorded").mkdir()
    for i in range(6):
        np.savez(out / "recorded" / f"episode_{i}.npz", **recording(i))

    # 1. As an RLDS data set. HDF5 files and LeRobot data sets are converted by the same command.
    arm = str(out / "arm")
    main(["convert", "--source", str(out / "recorded"), "--out", arm])

    # 2. What is in it, what looks wrong, and a mapping: which field is a camera, the robot's state, the action and the
    # instruction, and which of the gripper's values is open. Look at it, and change what was guessed wrong.
    main(["inspect-data", arm, "--out", str(out / "inspected")])

    # 3. Fine-tuning. Units are yours: state and action are normalised by the data's own statistics.
    code = main(
        [
            "finetune",
            *("--out", str(out / "run")),
            *("--data.path", arm, "--data.standardize", str(out / "inspected" / "mapping.json")),
            *("--data.split", "train[:4]", "--eval-splits", "train[4:]"),
            *("--data.batch-size", "4", "--optimizer.steps", str(STEPS)),
        ]
    )
