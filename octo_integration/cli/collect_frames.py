"""`maps-vla collect-frames`."""

import dataclasses
from pathlib import Path

from octo_integration.cli.following import say_next
from octo_integration.collect import render_frames
from octo_integration.common import limits
from octo_integration.common.limits import check_limits
from octo_integration.simulators.metaworld.tasks import TASKS, get_task


@dataclasses.dataclass(frozen=True)
class Options:
    """Renders randomised scenes of Meta-World with labels and captions: what `maps-vla pretrain` learns from.

    maps-vla collect-frames --out frames
    """

    out: str
    """Directory to make."""
    count: int = 24_000
    """Frames in all."""
    image_size: int = 64
    """Height and width in pixels, those of the model that learns from them."""
    leave_out: tuple[str, ...] = ()
    """Tasks of Meta-World that are not shown, such as those that will be fine-tuned on."""
    seed: int = 0
    """The same seed gives the same frames."""
    workers: int = 2
    """Simulator processes."""

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        at_least_1 = dict.fromkeys(("count", "image_size", "workers"), limits.AT_LEAST_1)
        check_limits(self, {**at_least_1, "seed": limits.AT_LEAST_0})
        for task in self.leave_out:
            get_task(task)
        if not set(TASKS) - set(self.leave_out):
            raise ValueError("collect-frames: leave_out names all tasks; leave some to show.")


def run(config: Options) -> int:
    """Renders frames for pretraining."""
    options = {name: getattr(config, name) for name in ("count", "image_size", "seed", "workers")}
    tasks = [task for task in TASKS if task not in config.leave_out]
    print(render_frames(Path(config.out), tasks=tasks, **options))
    say_next(("pretrain", "--frames", config.out, "--out", "runs/pretrain"))
    return 0
