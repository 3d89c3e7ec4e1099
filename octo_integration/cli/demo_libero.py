"""The demonstration in LIBERO: demonstrations made by our expert, `tiny` fine-tuned on them, then seen acting.

maps-vla demo --simulator libero --out runs/demo
"""

from pathlib import Path

from octo_integration.cli import evaluate
from octo_integration.cli.following import say_next
from octo_integration.collect import CollectConfig, collect
from octo_integration.config import FinetuneConfig, MapsConfig, OptimizerConfig
from octo_integration.data import DataConfig
from octo_integration.train.loop import finetune

TASKS = ("libero_spatial/0", "libero_spatial/2", "libero_spatial/5")
CHUNK = 8
IMAGE_SIZE = 64  # of the shipped weights
WORKERS = 2
# What `tiny`'s words make of LIBERO's instructions.
INSTRUCTION_LENGTH = 36


def collect_config(out: Path) -> CollectConfig:
    """48 episodes, in some minutes on two cores."""
    return CollectConfig(
        out=str(out / "libero_data" / "1.0.0"),
        simulator="libero",
        tasks=TASKS,
        episodes_per_task=15,
        heldout_per_task=1,
        image_size=IMAGE_SIZE,
        workers=WORKERS,
    )


def finetune_config(out: Path, steps: int, lambda_max: float) -> FinetuneConfig:
    """The fine-tuning run."""
    return FinetuneConfig(
        out=str(out / "libero"),
        instruction_length=INSTRUCTION_LENGTH,
        optimizer=OptimizerConfig(steps=steps),
        maps=MapsConfig(lambda_max=lambda_max),
        data=DataConfig(
            path=collect_config(out).out,
            standardize="libero",
            cameras=("primary", "wrist"),
            image_size=IMAGE_SIZE,
            chunk=CHUNK,
        ),
        eval_every=steps,
    )


def run(out: Path, steps: int, lambda_max: float) -> int:
    """Collects, fine-tunes and evaluates, each where it has not been done yet; returns the exit code.

    Raises:
      SimulatorMissing, RenderingUnavailable: there is no simulator, or it cannot draw here.
    """
    demonstrations, training = collect_config(out), finetune_config(out, steps, lambda_max)
    if not Path(demonstrations.out).exists():
        print(f"== demonstrations into {demonstrations.out}", flush=True)
        collect(demonstrations)
    print(f"\n== MAPS: fine-tuning into {training.out}", flush=True)
    outcome = finetune(training)
    if outcome.signal is not None:
        return 128 + outcome.signal
    print("\n== acting in LIBERO, an episode of each task", flush=True)
    acting = evaluate.Options(
        run=training.out,
        simulator="libero",
        tasks=TASKS,
        episodes=1,
        execute=CHUNK,
        workers=WORKERS,
        video=str(out / "videos"),
    )
    code = evaluate.run(acting)
    print(f"videos: {acting.video}")
    print("A tiny model, few demonstrations, a short run: this shows the tool, and not what MAPS can do.")
    data = ("--data.path", demonstrations.out, "--data.standardize", "libero", "--data.cameras", "primary", "wrist")
    pixels, length = ("--data.image-size", str(IMAGE_SIZE)), ("--instruction-length", str(INSTRUCTION_LENGTH))
    sizes = (*pixels, "--data.chunk", str(CHUNK), *length)
    more = ("--tasks", *TASKS, "--episodes", "20", "--execute", str(CHUNK), "--workers", str(WORKERS))
    say_next(
        ("finetune", "--out", str(out / "longer"), *data, *sizes, "--optimizer.steps", "1500"),
        ("evaluate", "--run", str(out / "longer"), "--simulator", "libero", *more),
    )
    return code
