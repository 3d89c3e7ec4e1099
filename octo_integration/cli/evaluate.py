"""`maps-vla evaluate`."""

import dataclasses
from pathlib import Path

from octo_integration.cli.devices import say_devices
from octo_integration.common import limits
from octo_integration.common.limits import check_limits
from octo_integration.config import read_config
from octo_integration.evaluate.rollout import check_rollout, rollout
from octo_integration.policy.policy import load_policy


@dataclasses.dataclass(frozen=True)
class Options:
    """Lets the policy of a fine-tuning run act in a simulator and counts successes, with 95 % confidence intervals.

    maps-vla evaluate --run runs/tiny-maps --tasks reach push --episodes 20 --shifts none texture
    """

    run: str
    """Run directory of finetune."""
    step: int | None = None
    """Step of the checkpoint; default: the latest."""
    dataset: str | None = None
    """Of a run on a mixture, the data set in whose units the robot is."""
    simulator: str = "metaworld"
    """A folder of octo_integration/simulators, or module:NAME of a package of yours."""
    tasks: tuple[str, ...] | None = None
    """By the simulator's names; default: the simulator's choice."""
    shifts: tuple[str, ...] = ("none",)
    """The simulator's held-out conditions (metaworld/shifts.py), each measured on its own: none, texture, ..."""
    episodes: int = 20
    """Per task and shift; the same seed starts all policies from the same states."""
    max_steps: int | None = None
    """Steps after which an episode has failed; default: the simulator's choice for the task."""
    execute: int = 4
    """Steps of a predicted chunk that are carried out before the next prediction."""
    seed: int = 0
    """Of the initial states and looks."""
    video: str | None = None
    """Folder for a video of every episode."""

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        at_least_1 = dict.fromkeys(("episodes", "max_steps", "execute"), limits.AT_LEAST_1)
        check_limits(self, {**at_least_1, "step": limits.AT_LEAST_0, "seed": limits.AT_LEAST_0})


def run(config: Options) -> int:
    """Rolls a checkpoint out and prints the success rates."""
    data = read_config(Path(config.run)).data
    for shift in config.shifts:
        check_rollout(config.tasks, shift, simulator=config.simulator, video=config.video is not None)
    if config.execute > data.chunk:
        raise ValueError(f"execute is {config.execute}, but the run predicts {data.chunk} steps; give at most as many.")
    say_devices()
    policy = load_policy(Path(config.run), config.step, config.dataset)
    results = [
        result
        for shift in config.shifts
        for result in rollout(
            policy,
            config.tasks,
            simulator=config.simulator,
            episodes=config.episodes,
            seed=config.seed,
            shift=shift,
            max_steps=config.max_steps,
            execute=config.execute,
            image_size=data.image_size,
            video_dir=None if config.video is None else Path(config.video),
        )
    ]
    print(f"{'task':<16}{'shift':<12}{'success':>12}{'rate':>8}   95 % interval")
    for r in results:
        n, (low, high) = len(r.outcomes), r.interval
        count = f"{r.successes} of {n}"
        print(f"{r.task:<16}{r.shift:<12}{count:>12}{r.successes / n:>8.0%}   {low:.0%} to {high:.0%}")
    return 0
