"""What a simulator is to `collect` and `evaluate`: a folder here, or a module of yours, whose SIMULATOR says it all.

Four things: tasks, environments that show and carry out one of them, shifts (held-out looks, words, initial states)
under which it is shown, and an expert that does it. Actions and proprio are those of standardised episodes: where the
simulator's own differ, `advance` and the observations convert.
"""

import abc
import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from octo_integration.common import named
from octo_integration.simulators.renderer import SimulatorMissing
from octo_integration.simulators.seeds import seed_of

FOLDER = "octo_integration.simulators"
PYTHON = "SIMULATOR_PYTHON"  # environment variable: the interpreter of simulators that may need another than ours

CHECKED_SIZE = 16  # pixels, where nothing is looked at

Observation = dict[str, np.ndarray]
T = TypeVar("T")
E = TypeVar("E", bound="Environment")


class Environment(Protocol):
    """One task. It lives in a process where tensorflow is not; what goes in and comes out must pickle.

    An observation is {"image_<camera>": uint8[S, S, 3], upright, "proprio": f32[P]}.
    """

    @property
    def instruction(self) -> str:
        """What to do, in words, under the present shift."""

    def set_shift(self, shift: Any) -> None:
        """Takes what `Simulator.draw_shift` gave: looks and words from now on, the rest from the next `reset` on."""

    def reset(self, seed: int) -> Observation:
        """Starts an episode whose initial state depends on `seed` and the shift alone, when all has come to rest."""

    def reset_to(self, index: int) -> Observation:
        """Starts an episode from a recorded initial state, number 0 to `Task.initial_states` - 1, under the shift.

        Raises:
          ValueError: there is none of that number.
        """
        raise ValueError(f"this simulator records no initial states; got number {index}.")

    @abc.abstractmethod
    def advance(self, action: np.ndarray) -> bool:
        """Carries out f32[A], without a look: whether the task is done at this moment."""

    @abc.abstractmethod
    def look(self) -> Observation:
        """What is seen now; that it was looked at changes nothing. Takes longer than a step, as a rule."""

    def step(self, action: np.ndarray) -> tuple[Observation, bool]:
        """`advance`, and what is seen then; nothing here relies on it."""
        success = self.advance(action)
        return self.look(), success

    def expert_action(self) -> np.ndarray:
        """What the expert does now, f32[A]; asked once before every step. Only of tasks with `expert_steps`."""

    def snapshot(self) -> Any:
        """The present state, for `look_again` until the next `reset`."""

    def look_again(self, snapshot: Any) -> Observation:
        """A state of this episode under the present shift; only its images are used. No step follows it."""

    def close(self) -> None:
        """Frees what it holds."""

    def __enter__(self: E) -> E:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()


class Make(Protocol):
    """Builds an environment, for images of so many pixels; it is imported by name in other processes."""

    def __call__(self, task: str, *, image_size: int) -> Environment:
        """A ValueError, or SimulatorMissing, is shown to the user in one line."""


class Task(NamedTuple):
    """What is known of a task.

    Attributes:
      steps, expert_steps: how many an episode may take before it has failed: a policy's, and the expert's (None: none).
      initial_states: how many recorded ones there are, for `Environment.reset_to`.
      stages: how many goals come one after another. `steps` are then of each; when `advance` says that one is done,
        `instruction` is that of the next.
    """

    steps: int
    expert_steps: int | None
    initial_states: int = 0
    stages: int = 1


class Vector(NamedTuple):
    """Length and meaning of a float vector."""

    size: int
    doc: str


class ShiftKind(NamedTuple):
    """What a shift does, known before one is drawn.

    Attributes:
      changes: looks: the same episode looks different; words: only its instruction is another; episode: it starts
        elsewhere or wants something else, so that the same episode cannot be had.
      suits: whether a task can have it; needs: what such tasks have, in words ("coloured shapes").
      layouts: those that demonstrations must be collected with, for it to be held out; "": any.
    """

    changes: Literal["nothing", "looks", "words", "episode"]
    suits: Callable[[str], bool] = lambda task: True
    needs: str = ""
    layouts: str = ""


class Layout(NamedTuple):
    """How demonstrations are written, images and words apart, where not as standardised steps are.

    Attributes:
      vectors: float vectors of a written observation, by name.
      observe: what the environment showed -> these.
      action: its meaning as it is written.
      act: standardised action f32[A] -> the written one. standard: the way back, f32[..., A].
      last_discount: of the last step; that of the others is 1.
      metadata: (task, seed) -> episode_metadata: texts and whole numbers.
      images: camera -> name of its image, where not "image" (the camera primary) and "<camera>_image".
      standardize: the standardisation that reads them, where it is not called as the simulator.
    """

    vectors: Mapping[str, Vector]
    observe: Callable[[Observation], dict[str, np.ndarray]]
    action: Vector
    act: Callable[[np.ndarray], np.ndarray]
    standard: Callable[[np.ndarray], np.ndarray]
    last_discount: float
    metadata: Callable[[str, int], dict[str, str | int]]
    images: Mapping[str, str] = {}
    standardize: str = ""


@dataclasses.dataclass(frozen=True)
class Simulator:
    """All that is known of a simulator without importing it.

    Attributes:
      make: builds the environment of a task.
      tasks: by name. default_tasks: those taken where none are named.
      action, state: vectors of a step; state is the observation's proprio.
      cameras: name -> doc.
      data_set, description: name and description of what is collected.
      shifts: by name; "none" is one. default_shifts: those collected where none are named.
      draw_shift: (name, seed, layout) -> what `Environment.set_shift` takes, the same for the same arguments; a
        ValueError for a layout that there is not.
      layouts: names of parts of the initial states that demonstrations can be of.
      movement: how many entries of an action, from the first, are disturbed while collecting: not the gripper, it would
        drop what it holds.
      noise: standard deviation of what disturbs them, unless the user says another.
      seed: (the user's seed, task, split or "rollout", number of the episode, attempt if it is collected) -> what
        `reset` takes; other splits have other initial states.
      requires: module that must be importable -> the command that installs it.
      suites: sets of tasks that are known together: name -> its tasks, which are called name/0, name/1, ...
      unusable: suites, and tasks of others, that the simulator's package names but that cannot be had -> why.
      layout: of the demonstrations that are collected; default: standardised steps as they are.
      waiting_steps: how many steps without movement come before a policy acts, in evaluation.
      still: the action of such a step.
      own_python: it runs in a process of another interpreter, as PYTHON tells.
      part: of such a simulator, task -> the part of its installation that the task needs, by any name: of tasks that
        need the same, one tells whether it is there. Default: each its own.
    """

    make: Make
    tasks: Mapping[str, Task]
    default_tasks: tuple[str, ...]
    action: Vector
    state: Vector
    cameras: Mapping[str, str]
    data_set: str
    description: str
    shifts: Mapping[str, ShiftKind] = dataclasses.field(default_factory=lambda: {"none": ShiftKind("nothing")})
    default_shifts: tuple[str, ...] = ()
    draw_shift: Callable[[str, int, str], Any] = lambda name, seed, layout: None
    layouts: tuple[str, ...] = ("all",)
    movement: int = 3
    noise: float = 0.2
    seed: Callable[..., int] = seed_of
    requires: Mapping[str, str] = dataclasses.field(default_factory=dict)
    suites: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    unusable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layout: Layout | None = None
    waiting_steps: int = 0
    still: tuple[float, ...] = ()
    own_python: bool = False
    part: Callable[[str], str] = lambda task: task

    def task(self, name: str) -> Task:
        """The task of that name.

        Raises:
          ValueError: there is none.
        """
        self._usable(name)
        tasks = self.tasks
        if self.suites:
            suite, slash, _ = name.rpartition("/")
            if not slash:
                raise ValueError(f"unknown task {name!r}; one is called like {next(iter(tasks))}.")
            tasks = {task: tasks[task] for task in self.suite(suite)}
        return _entry("task", name, tasks)

    def suite(self, name: str) -> tuple[str, ...]:
        """The tasks of the suite of that name.

        Raises:
          ValueError: there is none.
        """
        self._usable(name)
        if not self.suites:
            raise ValueError(f"unknown suite {name!r}; this simulator has none, give tasks.")
        return _entry("suite", name, self.suites)

    def _usable(self, name: str) -> None:
        for part in (name, name.rpartition("/")[0]):
            if part in self.unusable:
                raise ValueError(f"{part} cannot be had: {self.unusable[part]}.")

    def shift(self, name: str) -> ShiftKind:
        """What the shift of that name does.

        Raises:
          ValueError: there is none.
        """
        return _entry("shift", name, self.shifts)


def chosen_tasks(simulator: Simulator, suites: Sequence[str], tasks: Sequence[str] | None) -> tuple[str, ...]:
    """Those of the suites, then those named; the simulator's choice where neither is given.

    Raises:
      ValueError: there is no such suite.
    """
    if not suites and tasks is None:
        return simulator.default_tasks
    members = [task for suite in suites for task in simulator.suite(suite)]
    return (*dict.fromkeys(members), *(task for task in tasks or () if task not in members))


def _entry(what: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join(table)}.")
    return table[name]


def use_python(simulator: Simulator, interpreter: str | None) -> None:
    """Has a simulator that runs in a process of another interpreter use this one; None: leaves it as it is.

    Raises:
      ValueError: there is none, or the simulator runs in ours.
    """
    if interpreter is None:
        return
    if not simulator.own_python:
        raise ValueError(
            "simulator_python is given, but this simulator runs in maps-vla's own interpreter; leave it out."
        )
    if shutil.which(interpreter) is None:
        raise ValueError(f"simulator_python is {interpreter!r}, which is no program; give the path of a python.")
    os.environ[PYTHON] = interpreter


def check_installed(simulator: Simulator, tasks: Sequence[str]) -> None:
    """Has what the tasks need be missed before a policy is loaded or a file begun.

    Of a simulator in a process of its own, every part that they need is built once and closed.

    Raises:
      ValueError: there is no such task.
      SimulatorMissing: something is not installed; the message says what.
      ChildProcessError: it fails.
    """
    parts = {simulator.part(task): task for task in tasks if simulator.task(task)}
    for module, install in simulator.requires.items():
        if importlib.util.find_spec(module) is None:
            raise SimulatorMissing(module, install)
    for task in parts.values() if simulator.own_python else ():
        with simulator.make(task, image_size=CHECKED_SIZE):
            pass


def find(name: str) -> Simulator:
    """The SIMULATOR of a folder here, or "module:NAME" of a package of yours; imports it, but no simulator.

    Raises:
      ValueError: there is none.
    """
    return named.find(name, Simulator, FOLDER, "simulator", folders=True)
