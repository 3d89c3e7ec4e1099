"""Scripted demonstrations as an RLDS data set, with held-out episodes seen again under held-out looks."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from octo_integration.data.collect.env import ACTION_SIZE, seed_of
from octo_integration.data.collect.experts import Demonstration, demonstrate
from octo_integration.data.collect.parallel import encode_jpeg, environment, parallel_map
from octo_integration.data.collect.shifts import VISUAL_SHIFTS, Shift, draw_shift
from octo_integration.data.collect.tasks import get_task

NAME = "metaworld_tiny"
SPLITS = ("train", "heldout", *(f"heldout_{shift}" for shift in VISUAL_SHIFTS))
ATTEMPTS = 5
STEPS_PER_EPISODE = 50  # about
DESCRIPTION = (
    "Demonstrations of Meta-World's scripted experts with this project's instructions. Every heldout_* split shows the "
    "episodes of heldout, same states and actions, under looks that occur nowhere else."
)

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Demonstrations of Meta-World's scripted experts, written as an RLDS data set.

    maps-vla collect --out runs/demos --tasks reach door-open --episodes-per-task 40
    """

    out: str
    """Directory to make; it will hold dataset_info.json and is what data.path takes."""
    tasks: tuple[str, ...] = (
        "reach",
        "push",
        "button-press",
        "drawer-close",
        "handle-press",
        "door-open",
    )
    """Names from octo_integration/data/collect/tasks.py."""
    episodes_per_task: int = 10
    """Successful training episodes of each task."""
    heldout_per_task: int = 2
    """Successful episodes of each task with other initial states, kept from training; every one is also rendered
    under an unseen texture, light, camera and object colour (splits heldout, heldout_texture, ...)."""
    seed: int = 0
    """Of initial states, action noise and looks: the same seed gives the same data set."""
    workers: int = 2
    """Simulator processes."""
    image_size: int = 64
    """Height and width of the images in pixels."""
    noise: float = 0.2
    """Standard deviation of the noise on carried-out movements (recorded actions are the expert's own)."""
    max_steps: int = 100
    """Longest attempt; one that has not succeeded by then is thrown away and another initial state drawn."""

    def __post_init__(self) -> None:
        """Refuses what could not be collected."""
        if not self.tasks:
            raise ValueError("collect: tasks is empty; name at least one.")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"collect: a task is named twice in {', '.join(self.tasks)}.")
        for task in self.tasks:
            get_task(task)
        for name in ("episodes_per_task", "workers", "image_size", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"collect: {name} is {getattr(self, name)}; give a number of at least 1.")
        for name in ("heldout_per_task", "seed", "noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"collect: {name} is {getattr(self, name)}; give 0 or more.")


@dataclasses.dataclass(frozen=True)
class _Job:
    config: CollectConfig
    task: str
    split: str
    index: int


def collect(config: CollectConfig) -> Path:
    """Runs the experts and writes the data set.

    Returns:
      The directory, for `tfds.builder_from_directory` or DataConfig.path.

    Raises:
      FileExistsError: it is there already.
      OSError: the disk is full; nothing is left behind.
      SimulatorMissing, RenderingUnavailable: a library is missing; the message says which.
      ValueError: an expert fails time and again.
      ChildProcessError: a worker died.
    """
    from octo_integration.data.collect.writer import new_dataset  # tensorflow, which the workers do without

    out = Path(config.out)
    episodes = {"train": config.episodes_per_task, "heldout": config.heldout_per_task}
    jobs = [
        _Job(config, task, split, index)
        for split, count in episodes.items()
        for index in range(count)
        for task in config.tasks
    ]
    views = sum(len(_views(job.split, 0)) for job in jobs)
    splits = SPLITS if config.heldout_per_task else SPLITS[:1]
    # A JPEG of 64 x 64 pixels takes 1.7 kB here.
    size = views * STEPS_PER_EPISODE * config.image_size**2 // 2
    with new_dataset(
        out,
        name=NAME,
        description=DESCRIPTION,
        features=rlds_features(config.image_size),
        splits=splits,
        expected_bytes=size,
    ) as add:
        for examples in parallel_map(_record, jobs, workers=config.workers, label="collect", unit="episode"):
            add({split: [example] for split, example in examples.items()})
    return out


def rlds_features(image_size: int) -> Any:
    """The TFDS features of an episode."""
    from octo_integration.data._tf import tf, tfds

    scalar = tfds.features.Scalar
    step = {
        "observation": {
            "image": tfds.features.Image(
                shape=(image_size, image_size, 3), encoding_format="jpeg", doc="Camera, upright."
            ),
            "state": tfds.features.Tensor(
                shape=(4,), dtype=np.float32, doc="Hand x, y, z in metres, gripper opening 0..1."
            ),
        },
        "action": tfds.features.Tensor(
            shape=(ACTION_SIZE,), dtype=np.float32, doc="Hand movement x, y, z, gripper closing; in [-1, 1]."
        ),
        "language_instruction": tfds.features.Text(),
        "reward": scalar(tf.float32, doc="1 at the last step."),
        "discount": scalar(tf.float32, doc="0 at the last step."),
        "is_first": scalar(tf.bool),
        "is_last": scalar(tf.bool),
        "is_terminal": scalar(tf.bool),
    }
    return tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(step),
            "episode_metadata": {"task": tfds.features.Text(), "seed": scalar(tf.int64)},
        }
    )


def _record(job: _Job) -> dict[str, Example]:
    """One successful episode, as the example of every split that shows it. Runs in a worker."""
    config = job.config
    env = environment(job.task, config.image_size)
    env.set_shift(Shift())
    for attempt in range(ATTEMPTS):
        seed = seed_of(config.seed, job.task, job.split, job.index, attempt)
        episode = demonstrate(env, seed, noise=config.noise, max_steps=config.max_steps)
        if episode is None:
            continue
        examples = {}
        for split, shift in _views(job.split, seed).items():
            images = [observation["image_primary"] for observation in episode.observations]
            if shift != Shift():
                env.set_shift(shift)
                images = []
                for snapshot in episode.snapshots:
                    env.restore(snapshot)
                    images.append(env.render())
            examples[split] = _example(job.task, seed, episode, images)
        return examples
    raise ValueError(
        f"collect: the expert of task {job.task!r} failed {ATTEMPTS} times in {config.max_steps} steps; "
        "lower noise or raise max_steps."
    )


def _views(split: str, seed: int) -> dict[str, Shift]:
    """The splits that show an episode of `split`, and how it looks there."""
    shifts = VISUAL_SHIFTS if split == "heldout" else ()
    return {split: Shift(), **{f"{split}_{name}": draw_shift(name, seed) for name in shifts}}


def _example(task: str, seed: int, episode: Demonstration, images: list[np.ndarray]) -> Example:
    last = len(images) - 1
    steps = [
        {
            "observation": {"image": encode_jpeg(image), "state": observation["proprio"]},
            "action": action,
            "language_instruction": get_task(task).instruction,
            "reward": float(t == last),
            "discount": float(t != last),
            "is_first": t == 0,
            "is_last": t == last,
            "is_terminal": t == last,
        }
        for t, (image, observation, action) in enumerate(
            zip(images, episode.observations, episode.actions, strict=True)
        )
    ]
    return {"steps": steps, "episode_metadata": {"task": task, "seed": seed}}
