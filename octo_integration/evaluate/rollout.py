"""Success rates of a policy in Meta-World, with confidence intervals."""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from octo_integration.evaluate.intervals import wilson_interval
from octo_integration.simulators.isolated import isolated_env
from octo_integration.simulators.metaworld.env import ACTION_SIZE, MetaWorldEnv, seed_of
from octo_integration.simulators.metaworld.shifts import GOAL_SHIFTS, draw_shift
from octo_integration.simulators.metaworld.tasks import get_task
from octo_integration.simulators.renderer import SimulatorMissing

VIDEO_SCALE = 4
VIDEO_RATE = 20  # frames per second; half as fast as the robot


class Policy(Protocol):
    """What acts; `policy.policy.Policy` is one. Observations are those of `MetaWorldEnv`, one moment each."""

    def reset(self) -> None:
        """An episode begins."""

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """A moment at which an action of the last chunk is carried out."""

    def __call__(self, observation: Mapping[str, np.ndarray], instruction: str) -> np.ndarray:
        """The next actions, f32[chunk, 4] in the simulator's units ([-1, 1], not normalised)."""


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Episodes of one task; the same seed gives the same initial states, so that two policies can be compared in pairs.

    Attributes:
      outcomes: success of every episode, in order.
      interval: 95 % confidence interval of the success rate (Wilson).
    """

    task: str
    shift: str
    outcomes: tuple[bool, ...]
    interval: tuple[float, float]

    @property
    def successes(self) -> int:
        """How many episodes succeeded."""
        return sum(self.outcomes)


def rollout(
    policy: Policy,
    tasks: Sequence[str],
    *,
    episodes: int = 20,
    seed: int = 0,
    shift: str = "none",
    layouts: str = "all",
    max_steps: int = 120,
    execute: int = 4,
    image_size: int = 64,
    video_dir: Path | None = None,
) -> list[TaskResult]:
    """Lets a policy act until success or `max_steps`, `episodes` times per task.

    Args:
      policy: reset at the start of every episode, then shown every moment once.
      tasks: names from `tasks.TASKS`.
      seed: of the initial states and looks; they differ from all collected ones.
      shift: held-out looks, words, layouts or goals, one of `shifts.SHIFTS`, drawn anew for every episode.
      layouts: initial states, where the shift is not one of them: "all", or "restricted" as demonstrations may be.
      max_steps: steps of `MetaWorldEnv`; its experts need 15 to 60.
      execute: steps of a chunk carried out before the policy is asked again.
      image_size: height and width of the images in pixels.
      video_dir: where to write a video of every episode (mp4 if imageio-ffmpeg is installed, otherwise gif).

    Raises:
      ValueError: unknown task, shift or layouts, a shift that a task cannot have, a number below 1, or actions too few,
        of the wrong shape or not finite.
      SimulatorMissing, RenderingUnavailable: a library is missing; the message says which.
    """
    numbers = {"episodes": episodes, "max_steps": max_steps, "execute": execute}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"evaluate: {name} is {value}; give a number of at least 1.")
    check_rollout(tasks, shift, layouts, video=video_dir is not None)

    results = []
    with tqdm(total=len(tasks) * episodes, desc="evaluate", unit="episode") as bar:
        for task in tasks:
            outcomes: list[bool] = []
            with isolated_env(task, image_size=image_size) as env:
                for index in range(episodes):
                    bar.set_postfix_str(f"{task} {sum(outcomes)}/{index}")
                    start = seed_of(seed, task, "rollout", index)
                    env.set_shift(draw_shift(shift, start, layouts))
                    success, images = run_episode(env, policy, start, max_steps, execute)
                    outcomes.append(success)
                    if video_dir is not None:
                        end = "success" if success else "failure"
                        _write_video(video_dir, f"{task}-{shift}-{index:03d}-{end}", images)
                    bar.update()
            interval = wilson_interval(sum(outcomes), episodes)
            results.append(TaskResult(task, shift, tuple(outcomes), interval))
    return results


def check_rollout(tasks: Sequence[str], shift: str, layouts: str = "all", *, video: bool = False) -> None:
    """What `rollout` refuses, without a policy; arguments and errors are its own."""
    for task in tasks:
        get_task(task)
        if shift in GOAL_SHIFTS and not get_task(task).has_goals:
            raise ValueError(f"evaluate: the shift {shift} needs tasks with coloured shapes; take {task} out of tasks.")
    draw_shift(shift, 0, layouts)
    for module in ("metaworld", *(["imageio"] if video else [])):
        if importlib.util.find_spec(module) is None:
            raise SimulatorMissing(module)


def run_episode(
    env: MetaWorldEnv, policy: Policy, seed: int, max_steps: int, execute: int
) -> tuple[bool, list[np.ndarray]]:
    """Lets a policy act once, from the initial state of `seed`: whether it succeeded, and what it saw."""
    policy.reset()
    observation = env.reset(seed)
    images = [observation["image_primary"]]
    chunk = np.empty((0, ACTION_SIZE), np.float32)
    for _ in range(max_steps):
        if len(chunk):
            policy.observe(observation)
        else:
            chunk = _checked(policy(observation, env.instruction), execute)
        observation, success = env.step(chunk[0])
        chunk = chunk[1:]
        images.append(observation["image_primary"])
        if success:
            return True, images
    return False, images


def _checked(actions: np.ndarray, execute: int) -> np.ndarray:
    """The first `execute` actions of a chunk."""
    actions = np.asarray(actions, np.float32)
    if actions.ndim != 2 or actions.shape[1] != ACTION_SIZE or len(actions) < execute:
        raise ValueError(
            f"evaluate: the policy gave actions of shape {actions.shape}; "
            f"Meta-World takes [chunk, {ACTION_SIZE}] with chunk >= execute = {execute}."
        )
    if not np.isfinite(actions).all():
        raise ValueError("evaluate: the policy gave actions that are NaN or infinite.")
    return actions[:execute]


def _write_video(directory: Path, name: str, images: Sequence[np.ndarray]) -> None:
    import imageio.v3 as imageio

    ending = ".mp4" if importlib.util.find_spec("imageio_ffmpeg") else ".gif"
    frames = np.stack(images).repeat(VIDEO_SCALE, 1).repeat(VIDEO_SCALE, 2)
    options = {"duration": 1000 / VIDEO_RATE, "loop": 0} if ending == ".gif" else {"fps": VIDEO_RATE}
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{name}{ending}"
    try:
        imageio.imwrite(partial, frames, **options)
        partial.rename(directory / f"{name}{ending}")
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
