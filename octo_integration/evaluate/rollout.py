"""Success rates of a policy in a simulator, with confidence intervals: one policy here, environments in processes."""

import collections
import concurrent.futures
import dataclasses
import importlib.util
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from octo_integration.evaluate.intervals import wilson_interval
from octo_integration.evaluate.video import write_video
from octo_integration.simulators.isolated import isolated_env
from octo_integration.simulators.protocol import Environment, Observation, Simulator, check_installed, find
from octo_integration.simulators.renderer import INSTALL, SimulatorMissing


class Policy(Protocol):
    """What acts; `policy.policy.Policy` is one. Observations are those of `Environment`, one moment each.

    Attributes:
      looks_back: how many moments before the present one it needs to see; others are not rendered for it.
    """

    @property
    def looks_back(self) -> int:
        """How many moments."""

    def reset(self) -> None:
        """An episode begins."""

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """A moment, not too long ago to be needed, at which an action of the last chunk is carried out."""

    def __call__(self, observation: Mapping[str, np.ndarray], instruction: str) -> np.ndarray:
        """The next actions, f32[chunk, A] in the units of standardised episodes, not normalised."""


class Episode(NamedTuple):
    """Which episode: its number is that of a recorded initial state, where the simulator has them."""

    task: str
    shift: str
    number: int


class Outcome(NamedTuple):
    """How an episode went: steps are those of the policy; reached: of a task of several stages, how many were done."""

    success: bool
    steps: int
    reached: int | None = None


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Episodes of one task; the same seed gives the same initial states, so that two policies can be compared in pairs.

    Attributes:
      outcomes: success of every episode, in order.
      interval: 95 % confidence interval of the success rate (Wilson).
      reached: of a task of several stages, how many were done in every episode.
    """

    task: str
    shift: str
    outcomes: tuple[bool, ...]
    interval: tuple[float, float]
    reached: tuple[int, ...] = ()

    @property
    def successes(self) -> int:
        """How many episodes succeeded."""
        return sum(self.outcomes)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How episodes are run.

    Attributes:
      simulator: name of a folder in `simulators`, or "module:NAME", which is imported.
      seed: of the initial states and looks, which differ from all collected ones; of recorded initial states, of looks
        alone.
      layouts: initial states, where the shift is not one of them: "all", or "restricted" as demonstrations may be.
      max_steps: of an episode; default: the simulator's choice for the task.
      execute: steps of a chunk carried out before the policy is asked again.
      image_size: height and width of the images that the policy sees, in pixels.
      render_size: of those that are rendered, if another; the policy resizes them.
    """

    simulator: str = "metaworld"
    seed: int = 0
    layouts: str = "all"
    max_steps: int | None = None
    execute: int = 4
    image_size: int = 64
    render_size: int | None = None

    def __post_init__(self) -> None:
        """Refuses numbers below 1."""
        for name in ("max_steps", "execute", "image_size", "render_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"evaluate: {name} is {value}; give a number of at least 1.")


def rollout(
    policy: Policy | Sequence[Policy],
    tasks: Sequence[str] | None = None,
    *,
    episodes: int = 20,
    shift: str = "none",
    video_dir: Path | None = None,
    **options: str | int | None,
) -> list[TaskResult]:
    """Lets a policy act until success or `max_steps`, `episodes` times per task.

    Args:
      policy: reset at the start of every episode, then shown every moment that it needs once; or several that act
        alike, for as many episodes at a time.
      tasks: names of the simulator's tasks; default: those it chooses.
      shift: held-out looks, words, layouts or goals, one of the simulator's, drawn anew for every episode.
      video_dir: where to write a video of every episode (mp4 if imageio-ffmpeg is installed, otherwise gif).
      options: of `Rollout`.

    Raises:
      ValueError: unknown simulator, task, shift or layouts, a shift that a task cannot have, a number below 1, more
        episodes than there are recorded initial states, or actions too few, of the wrong shape or not finite.
      SimulatorMissing, RenderingUnavailable: a library is missing; the message says which.
    """
    settings = Rollout(**options)  # type: ignore[arg-type]
    world = find(settings.simulator)
    tasks = world.default_tasks if tasks is None else tasks
    check_rollout(tasks, shift, settings, episodes=episodes, video=video_dir is not None)
    check_installed(world, tasks)
    outcomes: dict[Episode, Outcome] = {}
    policies = policy if isinstance(policy, Sequence) else (policy,)
    wanted = [Episode(task, shift, number) for task in tasks for number in range(episodes)]
    run_episodes(policies, wanted, settings, outcomes.__setitem__, video_dir)
    return results(wanted, outcomes)


def results(wanted: Iterable[Episode], outcomes: Mapping[Episode, Outcome]) -> list[TaskResult]:
    """The outcomes of the wanted episodes, by task and shift in the order of their first episodes."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for episode in wanted:
        found.setdefault((episode.task, episode.shift), []).append(outcomes[episode])
    return [_result(*key, episodes) for key, episodes in found.items()]


def _result(task: str, shift: str, episodes: Sequence[Outcome]) -> TaskResult:
    successes = tuple(outcome.success for outcome in episodes)
    reached = tuple(outcome.reached for outcome in episodes if outcome.reached is not None)
    return TaskResult(task, shift, successes, wilson_interval(sum(successes), len(successes)), reached)


def check_rollout(
    tasks: Sequence[str] | None, shift: str, settings: Rollout, *, episodes: int = 1, video: bool = False
) -> None:
    """What `rollout` refuses, without a policy; arguments and errors are its own."""
    world = find(settings.simulator)
    kind = world.shift(shift)
    if episodes < 1:
        raise ValueError(f"evaluate: episodes is {episodes}; give a number of at least 1.")
    for task in world.default_tasks if tasks is None else tasks:
        recorded = world.task(task).initial_states
        if not kind.suits(task):
            raise ValueError(f"evaluate: the shift {shift} needs tasks with {kind.needs}; take {task} out of tasks.")
        if 0 < recorded < episodes:
            raise ValueError(
                f"evaluate: episodes is {episodes}, but {task} has {recorded} recorded initial states; give at most as "
                "many."
            )
    world.draw_shift(shift, 0, settings.layouts)
    if video and importlib.util.find_spec("imageio") is None:
        raise SimulatorMissing("imageio", INSTALL)


def run_episodes(
    policies: Sequence[Policy],
    wanted: Iterable[Episode],
    settings: Rollout,
    done: Callable[[Episode, Outcome], None],
    video_dir: Path | None = None,
) -> None:
    """Runs as many episodes at a time as there are policies, each in a process of its own, and tells every outcome.

    A policy is asked for one episode alone, so that an outcome depends neither on how many there are nor on which run
    beside it.

    Args:
      done: called in a thread, one at a time, as soon as an episode has ended.

    Raises:
      As `rollout`, and what `done` raises; the other episodes are then given up.
    """
    agenda = _Agenda(wanted)
    with tqdm(total=agenda.left, desc="evaluate", unit="episode") as bar:
        successes: collections.Counter[str] = collections.Counter()

        def tell(episode: Episode, outcome: Outcome) -> None:
            with agenda.lock:
                done(episode, outcome)
                successes[episode.task] += outcome.success
                bar.set_postfix_str(f"{episode.task} {successes[episode.task]} successes")
                bar.update()

        with concurrent.futures.ThreadPoolExecutor(len(policies)) as pool:
            threads = [pool.submit(_work, policy, agenda, settings, tell, video_dir) for policy in policies]
            try:
                for thread in concurrent.futures.as_completed(threads):
                    thread.result()
            finally:
                agenda.stopped.set()


class _Agenda:
    """Episodes still to run, handed out so that few environments are built: building one takes seconds."""

    def __init__(self, wanted: Iterable[Episode]) -> None:
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self._queues: dict[str, collections.deque[Episode]] = {}
        for episode in wanted:
            self._queues.setdefault(episode.task, collections.deque()).append(episode)
        self._visits = dict.fromkeys(self._queues, 0)
        self.left = sum(map(len, self._queues.values()))

    def task(self) -> str | None:
        """The task with most episodes left for each who is at it; None: there are no more."""
        with self.lock:
            waiting = [task for task, queue in self._queues.items() if queue]
            if not waiting or self.stopped.is_set():
                return None
            chosen = max(waiting, key=lambda task: len(self._queues[task]) / (1 + self._visits[task]))
            self._visits[chosen] += 1
            return chosen

    def episode(self, task: str) -> Episode | None:
        """The next of a task; None: there are no more."""
        with self.lock:
            queue = self._queues[task]
            return queue.popleft() if queue and not self.stopped.is_set() else None


def _work(
    policy: Policy,
    agenda: _Agenda,
    settings: Rollout,
    tell: Callable[[Episode, Outcome], None],
    video_dir: Path | None,
) -> None:
    """Runs episodes until there are no more."""
    world = find(settings.simulator)
    size = settings.render_size or settings.image_size
    try:
        while (task := agenda.task()) is not None:
            known = world.task(task)
            limit = settings.max_steps or known.steps
            with isolated_env(world.make, task, image_size=size) as env:
                while (episode := agenda.episode(task)) is not None:
                    seen = start(env, world, episode, settings)
                    film = None if video_dir is None else [seen["image_primary"]]
                    options = (limit, settings.execute, world.action.size, agenda.stopped, film)
                    outcome = act_in_stages(env, policy, seen, known.stages, *options)
                    if agenda.stopped.is_set():
                        return
                    if video_dir is not None and film is not None:
                        write_video(video_dir, episode, outcome.success, film)
                    tell(episode, outcome)
    except BaseException:
        agenda.stopped.set()
        raise


def start(env: Environment, world: Simulator, episode: Episode, settings: Rollout) -> Observation:
    """The first moment of an episode, the simulator's waiting steps behind it."""
    seed = world.seed(settings.seed, episode.task, "rollout", episode.number)
    env.set_shift(world.draw_shift(episode.shift, seed, settings.layouts))
    observation = env.reset_to(episode.number) if world.task(episode.task).initial_states else env.reset(seed)
    for _ in range(world.waiting_steps):
        env.advance(np.asarray(world.still, np.float32))
    return env.look() if world.waiting_steps else observation


def act_in_stages(
    env: Environment, policy: Policy, observation: Observation, stages: int, max_steps: int, *options: Any
) -> Outcome:
    """`act` for every stage of a task, until one fails; the policy knows nothing of those before.

    Args:
      max_steps: of each. options: others of `act`.
    """
    if stages == 1:
        return act(env, policy, observation, max_steps, *options)
    steps = 0
    for reached in range(stages):
        outcome = act(env, policy, observation, max_steps, *options)
        steps += outcome.steps
        if not outcome.success:
            return Outcome(False, steps, reached)
        observation = env.look()
    return Outcome(True, steps, stages)


def act(
    env: Environment,
    policy: Policy,
    observation: Observation,
    max_steps: int,
    execute: int,
    action_size: int,
    stopped: threading.Event | None = None,
    film: list[np.ndarray] | None = None,
) -> Outcome:
    """Lets a policy act from a first observation on: how it went.

    A frame takes several times as long as a step: only those are rendered that the policy or the film needs.

    Args:
      stopped: ends it early.
      film: every later image is added to it.
    """
    policy.reset()
    seen: Observation | None = observation
    chunk: np.ndarray = np.empty((0, action_size), np.float32)
    for step in range(1, max_steps + 1):
        if stopped is not None and stopped.is_set():
            break
        if not len(chunk):
            assert seen is not None  # it is due
            chunk = _checked(policy(seen, env.instruction), execute, action_size)
        elif seen is not None:
            policy.observe(seen)
        success, chunk = env.advance(chunk[0]), chunk[1:]
        due = len(chunk) <= policy.looks_back and not success and step < max_steps
        seen = env.look() if due or film is not None else None
        if seen is not None and film is not None:
            film.append(seen["image_primary"])
        if success:
            return Outcome(True, step)
    return Outcome(False, max_steps)


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
