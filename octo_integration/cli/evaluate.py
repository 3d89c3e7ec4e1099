"""`maps-vla evaluate`."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from octo_integration.cli.devices import say_devices
from octo_integration.common import limits
from octo_integration.common.limits import check_limits
from octo_integration.config import read_config
from octo_integration.evaluate.record import default_path, recording
from octo_integration.evaluate.rollout import Episode, Rollout, check_rollout, results, run_episodes
from octo_integration.evaluate.table import success_table
from octo_integration.policy.policy import Policy, check_dataset
from octo_integration.policy.trained import checkpoint_of, fingerprint, load_run
from octo_integration.simulators.protocol import chosen_tasks, find


@dataclasses.dataclass(frozen=True)
class Options:
    """Lets the policy of a fine-tuned run act in a simulator and counts successes, with 95 % confidence intervals.

    maps-vla evaluate --run runs/tiny-maps --tasks reach push --episodes 20 --shifts none texture
    maps-vla evaluate --run runs/libero --simulator libero --suite libero_spatial --episodes 50 --execute 8

    Every episode is a line of JSON in a file as soon as it has ended; the same command goes on where it was stopped,
    and more episodes, tasks or shifts are added to it.
    """

    run: str
    """Run directory of finetune."""
    step: int | None = None
    """Step of the checkpoint; default: the latest."""
    dataset: str | None = None
    """Of a run on a mixture, the data set in whose units the robot is."""
    simulator: str = "metaworld"
    """A folder of octo_integration/simulators, or module:NAME of a package of yours."""
    suite: tuple[str, ...] = ()
    """All tasks of these suites of the simulator's (libero_spatial, ...)."""
    tasks: tuple[str, ...] | None = None
    """By the simulator's names (libero_spatial/3); default: the simulator's choice, or none beside suite."""
    shifts: tuple[str, ...] = ("none",)
    """The simulator's held-out conditions, each measured on its own: none, texture, ..."""
    episodes: int = 20
    """Per task and shift. Where the simulator has recorded initial states (LIBERO's 50), episode n starts from the nth;
    elsewhere the seed decides. So all policies start from the same states."""
    max_steps: int | None = None
    """Steps after which an episode has failed; default: the simulator's choice for the task."""
    execute: int = 4
    """Steps of a predicted chunk that are carried out before the next prediction."""
    seed: int = 0
    """Of the initial states, where none are recorded, and of looks."""
    workers: int = 1
    """Episodes at a time, each in a simulator process; the outcomes do not depend on it."""
    render_size: int | None = None
    """Pixels of the images that are rendered, then resized as in training; give those of the data set if it had larger
    ones than the run. Default: the size that the run sees."""
    out: str | None = None
    """File of the episodes; default: one in the run directory, named after the options that decide the outcomes."""
    video: str | None = None
    """Folder for a video of every episode."""

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        at_least_1 = dict.fromkeys(("episodes", "max_steps", "execute", "workers", "render_size"), limits.AT_LEAST_1)
        check_limits(self, {**at_least_1, "step": limits.AT_LEAST_0, "seed": limits.AT_LEAST_0})


def run(config: Options) -> int:
    """Rolls a checkpoint out and prints the success rates."""
    run_dir, data = Path(config.run), read_config(Path(config.run)).data
    names = ("simulator", "seed", "max_steps", "execute", "render_size")
    settings = Rollout(image_size=data.pixels, **{name: getattr(config, name) for name in names})
    world = find(config.simulator)
    tasks = chosen_tasks(world, config.suite, config.tasks)
    for shift in config.shifts:
        check_rollout(tasks, shift, settings, episodes=config.episodes, video=config.video is not None)
    if config.execute > data.chunk:
        raise ValueError(f"execute is {config.execute}, but the run predicts {data.chunk} steps; give at most as many.")
    check_dataset(run_dir, config.dataset)
    say_devices()
    trained = load_run(run_dir, config.step)
    experiment: dict[str, Any] = {
        **dataclasses.asdict(settings),
        "dataset": config.dataset,
        "step": checkpoint_of(run_dir, config.step),
        "weights": fingerprint(trained.params),
    }
    out = default_path(run_dir, experiment) if config.out is None else Path(config.out)
    every = itertools.product(config.shifts, tasks, range(config.episodes))
    wanted = list(dict.fromkeys(Episode(task, shift, number) for shift, task, number in every))
    with recording(out, experiment, {"run": config.run}) as record:
        missing = [episode for episode in wanted if episode not in record.outcomes]
        if len(missing) < len(wanted):
            print(f"{len(wanted) - len(missing)} of {len(wanted)} episodes are in {out} already", flush=True)
        policies = [Policy(trained, config.dataset) for _ in range(min(config.workers, len(missing)))]
        if missing:
            run_episodes(policies, missing, settings, record.add, None if config.video is None else Path(config.video))
        outcomes = dict(record.outcomes)
    print(success_table(results(wanted, outcomes), world.suites))
    print(f"episodes: {out}")
    return 0
