"""Scripted demonstrations as an RLDS data set, with held-out episodes, also under held-out looks, words and layouts."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import maps_optax
from octo_integration.collect import resume
from octo_integration.collect.experts import Demonstration, demonstrate
from octo_integration.collect.parallel import encode_jpeg, environment, parallel_map
from octo_integration.common import limits
from octo_integration.common.limits import check_limits
from octo_integration.simulators.protocol import (
    Layout,
    Observation,
    Simulator,
    Vector,
    check_installed,
    chosen_tasks,
    find,
    use_python,
)

ZERO_SHOT = "zero_shot"
ATTEMPTS = 20  # of one episode; some of LIBERO's tasks fail every other time
STEPS_PER_EPISODE = 50  # about

MAY_CHANGE = {"out", "workers", "suite", "simulator_python"}  # of what was begun; tasks tell what the suites come to

Example = dict[str, Any]

LIMITS = {
    **dict.fromkeys(("episodes_per_task", "workers", "image_size", "max_steps"), limits.AT_LEAST_1),
    **dict.fromkeys(("heldout_per_task", "seed", "noise"), limits.AT_LEAST_0),
}


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Demonstrations of a simulator's scripted experts, written as an RLDS data set.

    maps-vla collect --out runs/demos --tasks reach door-open --episodes-per-task 40
    maps-vla collect --out runs/spatial --simulator libero --suite libero_spatial --image-size 256

    The same command goes on where it was stopped.
    """

    out: str
    """Directory to make; it will hold dataset_info.json and is what data.path takes."""
    simulator: str = "metaworld"
    """A folder of octo_integration/simulators, or module:NAME of a package of yours."""
    simulator_python: str | None = None
    """The interpreter that CALVIN is installed for, where that is not this one."""
    suite: tuple[str, ...] = ()
    """All tasks of these suites of the simulator's are demonstrated (libero_spatial, ...)."""
    tasks: tuple[str, ...] | None = None
    """What is demonstrated, by the simulator's names (libero_spatial/3); default: the simulator's choice, or none
    beside suite."""
    episodes_per_task: int = 10
    """Successful training episodes of each task."""
    heldout_per_task: int = 2
    """Successful episodes of each task with other initial states, kept from training, in every split of evaluation."""
    evaluation: tuple[str, ...] = ("heldout",)
    """Splits of held-out episodes, unrelated to one another: for example dev, to choose by, and test, to report."""
    shifts: tuple[str, ...] | None = None
    """The simulator's held-out conditions (simulators/metaworld/shifts.py), each of which makes one more split for
    every one of evaluation (heldout_texture, ...); default: the simulator's choice. Shifts of looks and words show its
    episodes again; others (positions, new_pairs, new_shapes) have their own, of the tasks that can have them."""
    zero_shot: tuple[str, ...] = ()
    """Tasks that are not demonstrated but have held-out episodes, in splits of their own (heldout_zero_shot)."""
    layouts: str = "all"
    """Initial states: all, or restricted to the part that shifts such as positions leave."""
    seed: int = 0
    """Of initial states, action noise and looks: the same seed gives the same data set."""
    workers: int = 2
    """Simulator processes."""
    image_size: int = 64
    """Height and width of the images in pixels."""
    noise: float | None = None
    """Standard deviation of the noise on carried-out movements (recorded actions are the expert's own); default: the
    simulator's choice."""
    max_steps: int | None = None
    """Longest attempt; one that has not succeeded by then is thrown away and another initial state drawn. Default: the
    simulator's choice for the task."""

    def __post_init__(self) -> None:
        """Refuses what could not be collected."""
        simulator, tasks, shifts = plan(self)
        if not tasks:
            raise ValueError("collect: tasks is empty; name at least one.")
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"collect: a task is named twice in {', '.join(tasks)}.")
        for task in (*tasks, *self.zero_shot):
            if simulator.task(task).expert_steps is None:
                raise ValueError(f"collect: task {task!r} has no expert to demonstrate it; take it out.")
        for task in self.zero_shot:
            if task in tasks:
                raise ValueError(f"collect: zero_shot task {task!r} is demonstrated; take it out of tasks.")
        for shift in shifts:
            self._check_shift(simulator, tasks, shift)
        self._check_splits(simulator)
        check_limits(self, LIMITS)

    def _check_shift(self, simulator: Simulator, tasks: Sequence[str], name: str) -> None:
        shift = simulator.shift(name)
        if shift.changes == "nothing":
            raise ValueError(f"collect: the shift {name} changes nothing; take it out of shifts.")
        if shift.layouts not in ("", self.layouts):
            raise ValueError(f"collect: the shift {name} needs layouts {shift.layouts}, not {self.layouts}.")
        if not any(map(shift.suits, tasks)):
            other = next(filter(shift.suits, simulator.tasks))
            raise ValueError(f"collect: the shift {name} needs a task with {shift.needs}; add {other} to tasks.")

    def _check_splits(self, simulator: Simulator) -> None:
        if self.layouts not in simulator.layouts:
            raise ValueError(f"collect: layouts is {self.layouts!r}; give {' or '.join(simulator.layouts)}.")
        names = splits(self)
        if len(set(names)) < len(names):
            raise ValueError(f"collect: evaluation or shifts give the same split twice: {', '.join(names)}.")


class Plan(NamedTuple):
    """What a config comes to, with the simulator's choices where it makes none."""

    simulator: Simulator
    tasks: tuple[str, ...]
    shifts: tuple[str, ...]


def plan(config: CollectConfig) -> Plan:
    """The simulator, tasks and shifts of a config.

    Raises:
      ValueError: there is no such simulator, or suite.
    """
    simulator = find(config.simulator)
    tasks = chosen_tasks(simulator, config.suite, config.tasks)
    shifts = simulator.default_shifts if config.shifts is None else config.shifts
    return Plan(simulator, tasks, shifts)


@dataclasses.dataclass(frozen=True)
class _Job:
    config: CollectConfig
    task: str
    split: str
    index: int
    views: tuple[str, ...] = ()
    shift: str = "none"


def collect(config: CollectConfig) -> Path:
    """Runs the experts and writes the data set; where it was begun with the same options, goes on with it.

    Returns:
      The directory, for `tfds.builder_from_directory` or DataConfig.path.

    Raises:
      FileExistsError: it is there already.
      OSError: the disk is full; recorded episodes are kept beside it.
      SimulatorMissing, RenderingUnavailable: a library is missing; the message says which.
      ValueError: an expert fails time and again, or it was begun with other options.
      ChildProcessError: a worker died.
    """
    from octo_integration.collect.writer import new_dataset  # tensorflow, which the workers do without

    out, simulator = Path(config.out), find(config.simulator)
    use_python(simulator, config.simulator_python)
    check_installed(simulator, plan(config).tasks)
    jobs = list(_jobs(config))
    views = sum(1 + len(job.views) for job in jobs)
    # A JPEG of 64 x 64 pixels takes 1.7 kB here. All is there twice before the end.
    size = 2 * views * STEPS_PER_EPISODE * len(simulator.cameras) * config.image_size**2 // 2
    options = {**dataclasses.asdict(config), "tasks": plan(config).tasks, "version": maps_optax.__version__}
    with new_dataset(
        out,
        name=simulator.data_set,
        description=simulator.description,
        features=rlds_features(simulator, config.image_size),
        splits=splits(config),
        expected_bytes=size,
    ) as add:
        with resume.parts(out, {name: options[name] for name in options.keys() - MAY_CHANGE}) as folder:
            files = [folder / f"{number:06d}.json" for number in range(len(jobs))]
            missing = [(job, file) for job, file in zip(jobs, files, strict=True) if not file.exists()]
            if len(missing) < len(jobs):
                print(f"{len(jobs) - len(missing)} of {len(jobs)} episodes are recorded already", flush=True)
            # One task after the other, so that a worker builds the environment of each once and keeps one alone.
            missing.sort(key=lambda work: work[0].task)
            for _ in parallel_map(_record, missing, workers=config.workers, label="collect", unit="episode"):
                pass
            for file in files:
                add({split: [example] for split, example in resume.read(file).items()})
    return out


def splits(config: CollectConfig) -> tuple[str, ...]:
    """The splits of a data set, "train" first."""
    shifts, names = plan(config).shifts, ["train"]
    for part in config.evaluation if config.heldout_per_task else ():
        names += [part, *(f"{part}_{shift}" for shift in shifts)]
        names += [f"{part}_{ZERO_SHOT}"] if config.zero_shot else []
    return tuple(names)


def _jobs(config: CollectConfig) -> Iterator[_Job]:
    """Every episode to record; the tasks of a split take turns."""
    simulator, tasks, shifts = plan(config)
    kinds = {name: simulator.shift(name) for name in shifts}
    for index in range(config.episodes_per_task):
        for task in tasks:
            yield _Job(config, task, "train", index)
    own = [name for name, kind in kinds.items() if kind.changes == "episode"]
    again = [name for name in kinds if name not in own]
    for part in config.evaluation:
        for index in range(config.heldout_per_task):
            for task in tasks:
                yield _Job(config, task, part, index, tuple(name for name in again if kinds[name].suits(task)))
                for name in own:
                    if kinds[name].suits(task):
                        yield _Job(config, task, f"{part}_{name}", index, shift=name)
            for task in config.zero_shot:
                yield _Job(config, task, f"{part}_{ZERO_SHOT}", index)


def layout_of(simulator: Simulator) -> Layout:
    """How the simulator's episodes are written: its own layout, or standardised steps as they are."""
    return simulator.layout or Layout(
        vectors={"state": simulator.state},
        observe=lambda observation: {"state": observation["proprio"]},
        action=simulator.action,
        act=lambda action: action,
        standard=lambda action: action,
        last_discount=0.0,
        metadata=lambda task, seed: {"task": task, "seed": seed},
    )


def rlds_features(simulator: Simulator, image_size: int) -> Any:
    """The TFDS features of an episode."""
    from octo_integration.data.tf import tf, tfds

    scalar = tfds.features.Scalar

    def vector(meaning: Vector) -> Any:
        return tfds.features.Tensor(shape=(meaning.size,), dtype=np.float32, doc=meaning.doc)

    layout, shape = layout_of(simulator), (image_size, image_size, 3)
    images = {
        _image(layout, camera): tfds.features.Image(shape=shape, encoding_format="jpeg", doc=doc)
        for camera, doc in simulator.cameras.items()
    }
    step = {
        "observation": {**images, **{name: vector(meaning) for name, meaning in layout.vectors.items()}},
        "action": vector(layout.action),
        "language_instruction": tfds.features.Text(),
        "reward": scalar(tf.float32, doc="1 at the last step."),
        "discount": scalar(tf.float32, doc=f"{layout.last_discount:g} at the last step."),
        "is_first": scalar(tf.bool),
        "is_last": scalar(tf.bool),
        "is_terminal": scalar(tf.bool),
    }
    metadata = {
        name: tfds.features.Text() if isinstance(value, str) else scalar(tf.int64)
        for name, value in layout.metadata("", 0).items()
    }
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step), "episode_metadata": metadata})


def _image(layout: Layout, camera: str) -> str:
    """The feature of a camera's image, as data sets call it: image, wrist_image."""
    return layout.images.get(camera, "image" if camera == "primary" else f"{camera}_image")


def _record(work: tuple[_Job, Path]) -> None:
    """Writes one successful episode, as the example of every split that shows it. Runs in a worker."""
    job, file = work
    config = job.config
    simulator = find(config.simulator)
    env = environment(simulator.make, job.task, config.image_size, keep=1)
    max_steps = config.max_steps or simulator.task(job.task).expert_steps
    assert max_steps is not None  # CollectConfig has seen to it
    noise = simulator.noise if config.noise is None else config.noise
    layout = layout_of(simulator)
    for attempt in range(ATTEMPTS):
        seed = simulator.seed(config.seed, job.task, job.split, job.index, attempt)
        env.set_shift(simulator.draw_shift(job.shift, seed, config.layouts))
        episode = demonstrate(env, seed, noise=noise, max_steps=max_steps, movement=simulator.movement)
        if episode is None:
            continue
        metadata = layout.metadata(job.task, seed)
        examples = {job.split: _example(layout, metadata, env.instruction, episode, episode.observations)}
        for view in job.views:
            env.set_shift(simulator.draw_shift(view, seed, "all"))
            seen: Sequence[Observation] = episode.observations
            if simulator.shift(view).changes == "looks":
                seen = [env.look_again(snapshot) for snapshot in episode.snapshots]
            examples[f"{job.split}_{view}"] = _example(layout, metadata, env.instruction, episode, seen)
        resume.write(file, examples)
        return
    raise ValueError(
        f"collect: the expert of task {job.task!r} failed {ATTEMPTS} times in {max_steps} steps; "
        "lower noise or raise max_steps."
    )


def _example(
    layout: Layout, metadata: Example, instruction: str, episode: Demonstration, seen: Sequence[Observation]
) -> Example:
    """An episode as it was `seen`."""
    cameras = [name for name in seen[0] if name.startswith("image_")]
    last = len(seen) - 1
    steps = [
        {
            "observation": {
                **{_image(layout, name.removeprefix("image_")): encode_jpeg(view[name]) for name in cameras},
                **layout.observe(observation),
            },
            "action": layout.act(action),
            "language_instruction": instruction,
            "reward": float(t == last),
            "discount": layout.last_discount if t == last else 1.0,
            "is_first": t == 0,
            "is_last": t == last,
            "is_terminal": t == last,
        }
        for t, (view, observation, action) in enumerate(zip(seen, episode.observations, episode.actions, strict=True))
    ]
    return {"steps": steps, "episode_metadata": metadata}
