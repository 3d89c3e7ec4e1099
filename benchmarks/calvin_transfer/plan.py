"""The sizes of the experiment, and what one run of it is; PREREGISTRATION.md says why."""

from collections.abc import Mapping
from pathlib import Path

from octo_integration.collect import CollectConfig
from octo_integration.config import FinetuneConfig, MapsConfig, OptimizerConfig
from octo_integration.data import DataConfig

TASKS = (
    *("move_slider_left", "move_slider_right", "open_drawer", "close_drawer"),
    *("turn_on_led", "turn_off_led", "turn_on_lightbulb", "turn_off_lightbulb"),
)
TRAINED, UNSEEN = ("A", "B", "C"), "D"
METHODS: Mapping[str, MapsConfig] = {"adam": MapsConfig(method="adam"), "maps": MapsConfig()}
SEEDS = (0, 1, 2)

DEMONSTRATIONS, HELD_OUT = 4, 1  # of each task in each scene
STEPS, BATCH = 400, 16
IMAGE_SIZE = 64  # of the shipped weights
INSTRUCTION_LENGTH = 28  # what the longest of CALVIN's instructions comes to in tokens of `tiny`, prompt and all
EPISODES, EPISODE_STEPS = 2, 120  # of each task in each scene; a demonstration takes 41
EXECUTE = 8  # the whole chunk
START = 7000  # seeds of single tasks begin here; those of demonstrations are drawn elsewhere
# The first eight of the 1000 that begin with two of TASKS.
CHAINS = (0, 7, 11, 25, 26, 29, 30, 33)

SPLITS = {"A-C": "heldout", "D": "heldout_zero_shot"}


def collect_config(out: Path) -> CollectConfig:
    """Demonstrations in A, B and C to train on, others there and in D to measure the action error on."""
    return CollectConfig(
        out=str(out / "demonstrations"),
        simulator="calvin",
        tasks=tuple(f"{scene}/{task}" for scene in TRAINED for task in TASKS),
        zero_shot=tuple(f"{UNSEEN}/{task}" for task in TASKS),
        episodes_per_task=DEMONSTRATIONS,
        heldout_per_task=HELD_OUT,
        image_size=IMAGE_SIZE,
        workers=1,
    )


def finetune_config(out: Path, method: str, seed: int) -> FinetuneConfig:
    """A run: `tiny` with the shipped weights, the static camera and the robot's own state."""
    return FinetuneConfig(
        out=str(out / f"{method}-{seed}"),
        seed=seed,
        instruction_length=INSTRUCTION_LENGTH,
        optimizer=OptimizerConfig(steps=STEPS),
        maps=METHODS[method],
        data=DataConfig(path=collect_config(out).out, standardize="calvin", batch_size=BATCH, image_size=IMAGE_SIZE),
        eval_splits=tuple(SPLITS.values()),
        eval_every=STEPS,
        save_every=100,
    )
