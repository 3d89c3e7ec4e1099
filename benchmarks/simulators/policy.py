"""How often does `tiny` succeed in LIBERO, fine-tuned on demonstrations of our expert?

    python -m benchmarks.simulators.policy --out runs/libero_policy

Collects, fine-tunes with MAPS and lets the policy act from recorded initial states, none of which a demonstration has
begun from; where it was stopped, the same command goes on. Every episode is a line of JSON in the
run's folder `evaluations`; `policy.jsonl` is such a file.
"""

import dataclasses
from pathlib import Path

import tyro

from octo_integration.cli import demo_libero, evaluate
from octo_integration.collect import collect
from octo_integration.config import MapsConfig
from octo_integration.train.loop import finetune


@dataclasses.dataclass(frozen=True)
class Config:
    """The demo's setting, fewer tasks and more steps."""

    out: Path = Path("runs/libero_policy")
    """Folder of the demonstrations and the run."""
    tasks: tuple[str, ...] = demo_libero.TASKS[:2]
    """What is demonstrated, learnt and tried."""
    demonstrations: int = 15
    """Of each task."""
    steps: int = 1500
    """Of the optimizer, eight windows each."""
    episodes: int = 20
    """Of each task, from the first recorded initial states."""


def main(config: Config) -> int:
    """Does what is missing and prints the rates."""
    demonstrations = dataclasses.replace(
        demo_libero.collect_config(config.out), tasks=config.tasks, episodes_per_task=config.demonstrations
    )
    training = demo_libero.finetune_config(config.out, config.steps, MapsConfig.lambda_max)
    if not Path(demonstrations.out).exists():
        collect(demonstrations)
    outcome = finetune(training)
    if outcome.signal is not None:
        return 128 + outcome.signal
    acting = evaluate.Options(
        run=training.out,
        simulator="libero",
        tasks=config.tasks,
        episodes=config.episodes,
        execute=demo_libero.CHUNK,
        workers=demo_libero.WORKERS,
    )
    return evaluate.run(acting)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Config)))
