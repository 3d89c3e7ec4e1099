"""Your own data set: arrays to RLDS by TFDS, one standardisation, and `maps-vla finetune` on it.

python examples/07_own_data.py [DIRECTORY]

Needs the [vla] extra. DIRECTORY (default: a temporary one) gets the data set `arm/1.0.0` and the run `run`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from octo_integration.cli.commands import main
from octo_integration.data.standardize import ALL, Standardisation

STEPS = 4  # of fine-tuning: enough to see that it works
out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())

# 1. What you recorded, as an RLDS data set. Names and sizes are yours: here a camera, six joints and a gripper.
features = tfds.features.FeaturesDict(
    {
        "steps": tfds.features.Dataset(
            {
                "camera": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
                "joints": tfds.features.Tensor(shape=(7,), dtype=np.float32),
                "command": tfds.features.Tensor(shape=(7,), dtype=np.float32),
                "instruction": tfds.features.Text(),
            }
        )
    }
)


def episode(seed: int, length: int = 12) -> dict:
    """Random numbers in place of a recording."""
    rng = np.random.default_rng(seed)
    joints = np.cumsum(rng.normal(size=(length + 1, 7)), axis=0).astype(np.float32)
    steps = [
        {
            "camera": rng.integers(0, 256, (64, 64, 3), np.uint8),
            "joints": joints[t],
            "command": joints[t + 1] - joints[t],
            "instruction": "move to the red cube",
        }
        for t in range(length)
    ]
    return {"steps": steps}


directory = out / "arm" / "1.0.0"
directory.mkdir(parents=True)
identity = tfds.core.dataset_info.DatasetIdentity("arm", tfds.core.Version("1.0.0"), str(directory), __name__)
info = tfds.core.DatasetInfo(builder=identity, description="Six joints and a gripper.", features=features)
writer = tfds.core.SequentialWriter(info, max_examples_per_shard=1000)
writer.initialize_splits(["train", "val"])
writer.add_examples({"train": [episode(i) for i in range(4)], "val": [episode(i) for i in (4, 5)]})  # or one by one
writer.close_all()

# 2. What of a step is which camera, the instruction, the robot's state and the action. Units are yours: both are
# normalised by the data's own statistics. `build` may change them, and `ALL` keeps every step.
ARM = Standardisation(
    images={"primary": "camera"},
    vectors={"joints": 7, "command": 7},
    instruction="instruction",
    build=lambda steps: (steps["joints"], steps["command"], ALL),
)

# 3. The command `maps-vla finetune`. In a file of your own, arm.py, the standardisation would be arm:ARM.
code = main(
    [
        "finetune",
        *("--out", str(out / "run")),
        *("--data.path", str(directory), "--data.standardize", "__main__:ARM"),
        *("--data.batch-size", "4", "--optimizer.steps", str(STEPS)),  # measured on its other split, val
    ]
)
