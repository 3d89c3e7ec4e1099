"""`maps-vla evaluate`."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from octo_integration.cli.devices import say_devices
from octo_integration.common import limits
from octo_integration.common.limits import check_limits
from octo_integration.common.paths import ADDRESS
from octo_integration.config import read_config
from octo_integration.evaluate.record import default_path, recording
from octo_integration.evaluate.rollout import Episode, Rollout, check_rollout, results, run_episodes
from octo_integration.evaluate.rollout import Policy as Acts
from octo_integration.evaluate.table import success_table
from octo_integration.policy.policy import Policy, check_dataset
from octo_integration.policy.trained import checkpoint_of, fingerprint, load_run
from octo_integration.simulators.protocol import Simulator, check_installed, chosen_tasks, find, use_python

OPENPI_SIZE = 224  # pixels that openpi's LIBERO example sends


@dataclasses.dataclass(frozen=True)
class Options:
    """Lets the policy of a fine-tuned run act in a simulator and counts successes, with 95 % confidence intervals.

    maps-vla evaluate --run runs/tiny-maps --tasks reach push --episodes 20 --shifts none texture
    maps-vla evaluate --run runs/libero --simulator libero --suite libero_spatial --episodes 50 --execute 8
    maps-vla evaluate --policy ws://localhost:8000 --simulator libero --suite libero_spatial --out pi0.jsonl

    Every episode is a line of JSON in a file as soon as it has ended; the same command goes on where it was stopped,
    and more episodes, tasks or shifts are added to it.
    """

    run: str | None = None
    """Run directory of finetune."""
    policy: str | None = dataclasses.field(default=None, metadata=ADDRESS)
    """In place of a run, ws://host:port of a server that speaks openpi's protocol, such as maps-vla serve."""
    step: int | None = None
    """Step of the checkpoint; default: the latest."""
    dataset: str | None = None
    """Of a run on a mixture, the data set in whose units the robot is."""
    simulator: str = "metaworld"
    """A folder of octo_integration/simulators, or module:NAME of a package of yours."""
    simulator_python: str | None = None
    """The interpreter that CALVIN is installed for, where that is not this one."""
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
    names: str | None = None
    """Of a policy server, JSON file {"its/name": "image_primary", ...}: what it calls the entries of an observation.
    Default: as openpi's LIBERO example does."""
    api_key_file: str | None = None
    """File with the key that the policy server asks for."""

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense, and options that do not go together."""
        if (self.run is None) == (self.policy is None):
            raise ValueError("give --run, or --policy in its place.")
        if self.policy is not None and not self.policy.startswith(("ws://", "wss://")):
            raise ValueError(f"policy is {self.policy!r}; give ws://host:port of a policy server.")
        if self.policy is not None and self.out is None:
            raise ValueError("a policy server has no run directory; give --out, the file of the episodes.")
        at_least_1 = dict.fromkeys(("episodes", "max_steps", "execute", "workers", "render_size"), limits.AT_LEAST_1)
        check_limits(self, {**at_least_1, "step": limits.AT_LEAST_0, "seed": limits.AT_LEAST_0})


class Actor(NamedTuple):
    """Who acts.

    Attributes:
      image_size: of the images that it sees, in pixels; chunk: steps that it predicts (None: it does not say).
      load: -> what tells it from others, and a function that makes so many policies of it.
    """

    image_size: int
    chunk: int | None
    load: Callable[[], tuple[dict[str, Any], Callable[[int], list[Acts]]]]


def run(config: Options) -> int:
    """Rolls a policy out and prints the success rates."""
    others = ("names", "api_key_file") if config.policy is None else ("step", "dataset")
    if strange := [name for name in others if getattr(config, name) is not None]:
        whose = "policy server, not of a run" if config.policy is None else "run, not of a policy server"
        raise ValueError(f"{strange[0]} is of a {whose}; leave it out.")
    world = find(config.simulator)
    use_python(world, config.simulator_python)
    tasks = chosen_tasks(world, config.suite, config.tasks)
    with contextlib.ExitStack() as stack:
        actor = _trained(config) if config.policy is None else _remote(config, config.policy, world, stack)
        names = ("simulator", "seed", "max_steps", "execute", "render_size")
        settings = Rollout(image_size=actor.image_size, **{name: getattr(config, name) for name in names})
        for shift in config.shifts:
            check_rollout(tasks, shift, settings, episodes=config.episodes, video=config.video is not None)
        if actor.chunk is not None and config.execute > actor.chunk:
            raise ValueError(
                f"execute is {config.execute}, but the run predicts {actor.chunk} steps; give at most as many."
            )
        check_installed(world, tasks)
        identity, make = actor.load()
        experiment: dict[str, Any] = {**dataclasses.asdict(settings), **identity}
        out = default_path(Path(config.run or ""), experiment) if config.out is None else Path(config.out)
        every = itertools.product(config.shifts, tasks, range(config.episodes))
        wanted = list(dict.fromkeys(Episode(task, shift, number) for shift, task, number in every))
        with recording(out, experiment, {"run": config.run or config.policy}) as record:
            missing = [episode for episode in wanted if episode not in record.outcomes]
            if len(missing) < len(wanted):
                print(f"{len(wanted) - len(missing)} of {len(wanted)} episodes are in {out} already", flush=True)
            policies = make(min(config.workers, len(missing)))
            if missing:
                video = None if config.video is None else Path(config.video)
                run_episodes(policies, missing, settings, record.add, video)
            outcomes = dict(record.outcomes)
    print(success_table(results(wanted, outcomes), world.suites))
    print(f"episodes: {out}")
    return 0


def _trained(config: Options) -> Actor:
    """A checkpoint of a run."""
    run_dir = Path(config.run or "")
    data = read_config(run_dir).data

    def load() -> tuple[dict[str, Any], Callable[[int], list[Acts]]]:
        check_dataset(run_dir, config.dataset)
        say_devices()
        trained = load_run(run_dir, config.step)
        identity = {"step": checkpoint_of(run_dir, config.step), "weights": fingerprint(trained.params)}
        identity["dataset"] = config.dataset
        return identity, lambda count: [Policy(trained, config.dataset) for _ in range(count)]

    return Actor(data.pixels, data.chunk, load)


def _remote(config: Options, url: str, world: Simulator, stack: contextlib.ExitStack) -> Actor:
    """A server; its connections end with `stack`."""
    from octo_integration.serve.client import RemotePolicy, connected
    from octo_integration.serve.key import read_key
    from octo_integration.serve.names import PROMPT, read_names

    key = None if config.api_key_file is None else read_key(Path(config.api_key_file))
    names = None
    if config.names is not None:
        ours = {PROMPT, "proprio", *(f"image_{camera}" for camera in world.cameras)}
        names = {name: theirs for theirs, name in read_names(Path(config.names), ours).items()}
    standard = None if world.layout is None else world.layout.standard

    def connect() -> RemotePolicy:
        return stack.enter_context(connected(url, standard, names, key))

    first = connect()
    about = first.about
    # The same weights act alike wherever they are served; what does not tell its weights is known by its address.
    known = "weights" in about
    identity = {name: about.get(name) for name in ("step", "weights", "dataset")} if known else {"policy": url}
    size = config.render_size or int(about.get("image_size", OPENPI_SIZE))

    def make(count: int) -> list[Acts]:
        return [first, *(connect() for _ in range(count - 1))]

    return Actor(size, about.get("chunk"), lambda: (identity, make))
