"""Success rates of a policy in a simulator, with confidence intervals."""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from octo_integration.common.files import replacing
from octo_integration.evaluate.intervals import wilson_interval
from octo_integration.simulators.isolated import isolated_env
from octo_integration.simulators.protocol import Environment, find
from octo_integration.simulators.renderer import INSTALL, SimulatorMissing

VIDEO_SCALE = 4
VIDEO_RATE = 20  # frames per second; half as fast as the robot


class Policy(Protocol):
    """What acts; `policy.policy.Policy` is one. Observations are those of `Environment`, one moment each."""

    def reset(self) -> None:
        """An episode begins."""

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """A moment at which an action of the last chunk is carried out."""

    def __call__(self, observation: Mapping[str, np.ndarray], instruction: str) -> np.ndarray:
        """The next actions, f32[chunk, A] in the units of standardised episodes, not normalised."""


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
    tasks: Sequence[str] | None = None,
    *,
    simulator: str = "metaworld",
    episodes: int = 20,
    seed: int = 0,
    shift: str = "none",
    layouts: str = "all",
    max_steps: int | None = None,
    execute: int = 4,
    image_size: int = 64,
    video_dir: Path | None = None,
) -> list[TaskResult]:
    """Lets a policy act until success or `max_steps`, `episodes` times per task.

    Args:
      policy: reset at the start of every episode, then shown every moment once.
      tasks: names of the simulator's tasks; default: those it chooses.
      simulator: name of a folder in `simulators`, or "module:NAME", which is imported.
      seed: of the initial states and looks; they differ from all collected ones.
      shift: held-out looks, words, layouts or goals, one of the simulator's, drawn anew for every episode.
      layouts: initial states, where the shift is not one of them: "all", or "restricted" as demonstrations may be.
      max_steps: of an episode; default: the simulator's choice for the task.
      execute: steps of a chunk carried out before the policy is asked again.
      image_size: height and width of the images in pixels.
      video_dir: where to write a video of every episode (mp4 if imageio-ffmpeg is installed, otherwise gif).

    Raises:
      ValueError: unknown simulator, task, shift or layouts, a shift that a task cannot have, a number below 1, or
        actions too few, of the wrong shape or not finite.
      SimulatorMissing, RenderingUnavailable: a library is missing; the message says which.
    """
    numbers = {"episodes": episodes, "max_steps": max_steps, "execute": execute}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"evaluate: {name} is {value}; give a number of at least 1.")
    check_rollout(tasks, shift, layouts, simulator=simulator, video=video_dir is not None)
    world = find(simulator)
    tasks = world.default_tasks if tasks is None else tasks

    results = []
    with tqdm(total=len(tasks) * episodes, desc="evaluate", unit="episode") as bar:
        for task in tasks:
            outcomes: list[bool] = []
            limit = max_steps or world.task(task).steps
            with isolated_env(world.make, task, image_size=image_size) as env:
                for index in range(episodes):
                    bar.set_postfix_str(f"{task} {sum(outcomes)}/{index}")
                    start = world.seed(seed, task, "rollout", index)
                    env.set_shift(world.draw_shift(shift, start, layouts))
                    success, images = run_episode(env, policy, start, limit, execute, world.action.size)
                    outcomes.append(success)
                    if video_dir is not None:
                        end = "success" if success else "failure"
                        _write_video(video_dir, f"{task}-{shift}-{index:03d}-{end}", images)
                    bar.update()
            interval = wilson_interval(sum(outcomes), episodes)
            results.append(TaskResult(task, shift, tuple(outcomes), interval))
    return results


def check_rollout(
    tasks: Sequence[str] | None, shift: str, layouts: str = "all", *, simulator: str = "metaworld", video: bool = False
) -> None:
    """What `rollout` refuses, without a policy; arguments and errors are its own."""
    world = find(simulator)
    kind = world.shift(shift)
    for task in world.default_tasks if tasks is None else tasks:
        world.task(task)
        if not kind.suits(task):
            raise ValueError(f"evaluate: the shift {shift} needs tasks with {kind.needs}; take {task} out of tasks.")
    world.draw_shift(shift, 0, layouts)
    for module, install in {**world.requires, **({"imageio": INSTALL} if video else {})}.items():
        if importlib.util.find_spec(module) is None:
            raise SimulatorMissing(module, install)


def run_episode(
    env: Environment, policy: Policy, seed: int, max_steps: int, execute: int, action_size: int
) -> tuple[bool, list[np.ndarray]]:
    """Lets a policy act once, from the initial state of `seed`: whether it succeeded, and what it saw."""
    policy.reset()
    observation = env.reset(seed)
    images = [observation["image_primary"]]
    chunk = np.empty((0, action_size), np.float32)
    for _ in range(max_steps):
        if len(chunk):
            policy.observe(observation)
        else:
            chunk = _checked(policy(observation, env.instruction), execute, action_size)
        observation, success = env.step(chunk[0])
        chunk = chunk[1:]
        images.append(observation["image_primary"])
        if success:
            return True, images
    return False, images


def _checked(actions: np.ndarray, execute: int, size: int) -> np.ndarray:
    """The first `execute` actions of a chunk."""
    actions = np.asarray(actions, np.float32)
    if actions.ndim != 2 or actions.shape[1] != size or len(actions) < execute:
        raise ValueError(
            f"evaluate: the policy gave actions of shape {actions.shape}; "
            f"the simulator takes [chunk, {size}] with chunk >= execute = {execute}."
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
    with replacing(directory / f"{name}{ending}") as partial:
        imageio.imwrite(partial, frames, **options)
