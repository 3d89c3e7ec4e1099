"""Scripted demonstrations as an RLDS data set, with held-out episodes, also under held-out looks, words and layouts."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from octo_integration.collect.experts import Demonstration, demonstrate
from octo_integration.collect.parallel import encode_jpeg, environment, parallel_map
from octo_integration.common import limits
from octo_integration.common.limits import check_limits
from octo_integration.simulators.metaworld.env import ACTION_SIZE, MetaWorldEnv, seed_of
from octo_integration.simulators.metaworld.shifts import EPISODE_SHIFTS, GOAL_SHIFTS, Shift, draw_shift
from octo_integration.simulators.metaworld.tasks import get_task

NAME = "metaworld_tiny"
ZERO_SHOT = "zero_shot"
ATTEMPTS = 5
STEPS_PER_EPISODE = 50  # about
DESCRIPTION = (
    "Demonstrations of Meta-World's scripted experts with this project's instructions. A split like heldout_texture "
    "shows the episodes of heldout in the same order, same states and actions, under looks or words that occur nowhere "
    "else; *_positions, *_new_pairs, *_new_shapes and *_zero_shot have episodes of their own."
)

Example = dict[str, Any]

LIMITS = {
    **dict.fromkeys(("episodes_per_task", "workers", "image_size", "max_steps"), limits.AT_LEAST_1),
    **dict.fromkeys(("heldout_per_task", "seed", "noise"), limits.AT_LEAST_0),
}


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
    """Names from octo_integration/simulators/metaworld/tasks.py."""
    episodes_per_task: int = 10
    """Successful training episodes of each task."""
    heldout_per_task: int = 2
    """Successful episodes of each task with other initial states, kept from training, in every split of evaluation."""
    evaluation: tuple[str, ...] = ("heldout",)
    """Splits of held-out episodes, unrelated to one another: for example dev, to choose by, and test, to report."""
    shifts: tuple[str, ...] = ("texture", "light", "camera", "color")
    """Held-out conditions of simulators/metaworld/shifts.py, each of which makes one more split for every one
    of evaluation (heldout_texture, ...). Shifts of looks and words show its episodes again; positions, new_pairs and
    new_shapes have their own, the last two of tasks with coloured shapes only."""
    zero_shot: tuple[str, ...] = ()
    """Tasks that are not demonstrated but have held-out episodes, in splits of their own (heldout_zero_shot)."""
    layouts: str = "all"
    """Initial states: all, or restricted to the part that the shift positions leaves."""
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
        for task in (*self.tasks, *self.zero_shot):
            get_task(task)
        self._check_splits()
        check_limits(self, LIMITS)

    def _check_splits(self) -> None:
        if self.layouts not in ("all", "restricted"):
            raise ValueError(f"collect: layouts is {self.layouts!r}; give all or restricted.")
        if "positions" in self.shifts and self.layouts != "restricted":
            raise ValueError(f"collect: the shift positions needs layouts restricted, not {self.layouts}.")
        for task in self.zero_shot:
            if task in self.tasks:
                raise ValueError(f"collect: zero_shot task {task!r} is demonstrated; take it out of tasks.")
        for shift in self.shifts:
            if draw_shift(shift, 0) == Shift():
                raise ValueError(f"collect: the shift {shift} changes nothing; take it out of shifts.")
            if shift in GOAL_SHIFTS and not any(get_task(task).has_goals for task in self.tasks):
                raise ValueError(f"collect: the shift {shift} needs a task with coloured shapes; add point to tasks.")
        names = splits(self)
        if len(set(names)) < len(names):
            raise ValueError(f"collect: evaluation or shifts give the same split twice: {', '.join(names)}.")


@dataclasses.dataclass(frozen=True)
class _Job:
    config: CollectConfig
    task: str
    split: str
    index: int
    views: tuple[str, ...] = ()
    shift: str = "none"

    def seed(self, attempt: int) -> int:
        return seed_of(self.config.seed, self.task, self.split, self.index, attempt)


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
    from octo_integration.collect.writer import new_dataset  # tensorflow, which the workers do without

    out = Path(config.out)
    jobs = list(_jobs(config))
    views = sum(1 + len(job.views) for job in jobs)
    # A JPEG of 64 x 64 pixels takes 1.7 kB here.
    size = views * STEPS_PER_EPISODE * config.image_size**2 // 2
    with new_dataset(
        out,
        name=NAME,
        description=DESCRIPTION,
        features=rlds_features(config.image_size),
        splits=splits(config),
        expected_bytes=size,
    ) as add:
        for examples in parallel_map(_record, jobs, workers=config.workers, label="collect", unit="episode"):
            add({split: [example] for split, example in examples.items()})
    return out


def splits(config: CollectConfig) -> tuple[str, ...]:
    """The splits of a data set, "train" first."""
    names = ["train"]
    for part in config.evaluation if config.heldout_per_task else ():
        names += [part, *(f"{part}_{shift}" for shift in config.shifts)]
        names += [f"{part}_{ZERO_SHOT}"] if config.zero_shot else []
    return tuple(names)


def _jobs(config: CollectConfig) -> Iterator[_Job]:
    """Every episode to record; the tasks of a split take turns."""
    for index in range(config.episodes_per_task):
        for task in config.tasks:
            yield _Job(config, task, "train", index)
    views = tuple(shift for shift in config.shifts if shift not in EPISODE_SHIFTS)
    own = [shift for shift in config.shifts if shift in EPISODE_SHIFTS]
    for part in config.evaluation:
        for index in range(config.heldout_per_task):
            for task in config.tasks:
                yield _Job(config, task, part, index, views)
                for shift in own:
                    if shift not in GOAL_SHIFTS or get_task(task).has_goals:
                        yield _Job(config, task, f"{part}_{shift}", index, shift=shift)
            for task in config.zero_shot:
                yield _Job(config, task, f"{part}_{ZERO_SHOT}", index)


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
    for attempt in range(ATTEMPTS):
        seed = job.seed(attempt)
        env.set_shift(draw_shift(job.shift, seed, config.layouts))
        episode = demonstrate(env, seed, noise=config.noise, max_steps=config.max_steps)
        if episode is None:
            continue
        images = [observation["image_primary"] for observation in episode.observations]
        examples = {job.split: _example(job.task, env.instruction, seed, episode, images)}
        for view in job.views:
            shift = draw_shift(view, seed)
            env.set_shift(shift)
            seen = [_look_again(env, snapshot) for snapshot in episode.snapshots] if shift.changes_image else images
            examples[f"{job.split}_{view}"] = _example(job.task, env.instruction, seed, episode, seen)
        return examples
    raise ValueError(
        f"collect: the expert of task {job.task!r} failed {ATTEMPTS} times in {config.max_steps} steps; "
        "lower noise or raise max_steps."
    )


def _look_again(env: MetaWorldEnv, snapshot: np.ndarray) -> np.ndarray:
    env.restore(snapshot)
    return env.render()


def _example(task: str, instruction: str, seed: int, episode: Demonstration, images: list[np.ndarray]) -> Example:
    last = len(images) - 1
    steps = [
        {
            "observation": {"image": encode_jpeg(image), "state": observation["proprio"]},
            "action": action,
            "language_instruction": instruction,
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
