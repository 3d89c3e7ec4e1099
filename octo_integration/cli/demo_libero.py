"""The demonstration in LIBERO: `tiny` fine-tuned on the shipped demonstrations, then seen acting.

maps-vla demo --simulator libero --out runs/demo
"""

from pathlib import Path

from octo_integration.cli import evaluate
from octo_integration.config import FinetuneConfig, MapsConfig, OptimizerConfig
from octo_integration.data import DataConfig
from octo_integration.simulators.isolated import isolated_env
from octo_integration.simulators.protocol import find
from octo_integration.train.loop import finetune

TASKS = ("libero_spatial/0", "libero_spatial/2", "libero_spatial/5")  # those of the shipped demonstrations
EPISODES = 1  # of each task
CHUNK = 8


def run_config(out: Path, steps: int, lambda_max: float, seed: int) -> FinetuneConfig:
    """The fine-tuning run."""
    return FinetuneConfig(
        out=str(out / "libero"),
        seed=seed,
        instruction_length=36,
        optimizer=OptimizerConfig(lr=1e-3, steps=steps, warmup=min(30, steps // 2)),
        maps=MapsConfig(lambda_max=lambda_max),
        data=DataConfig(
            path="libero_demo", standardize="libero", cameras=("primary", "wrist"), chunk=CHUNK, batch_size=8
        ),
        eval_every=steps,
    )


def run(out: Path, steps: int, lambda_max: float, seed: int) -> int:
    """Fine-tunes, and evaluates where there is a simulator; returns the exit code."""
    config = run_config(out, steps, lambda_max, seed)
    print(f"\n== MAPS: fine-tuning into {config.out}", flush=True)
    outcome = finetune(config)
    if outcome.signal is not None:
        return 128 + outcome.signal
    videos = out / "videos"
    acting = evaluate.Options(
        run=config.out,
        simulator="libero",
        tasks=TASKS,
        episodes=EPISODES,
        execute=CHUNK,
        workers=2,
        video=str(videos),
    )
    print(f"\n== acting in LIBERO, {len(TASKS) * EPISODES} episodes", flush=True)
    if (missing := why_not()) is not None:
        print(f"NOT EVALUATED: {missing}\nGive the same command again then: the run is complete, and will only act.")
        return 0
    code = evaluate.run(acting)
    print(f"videos: {videos}")
    print("A tiny model, few demonstrations, a short run: this shows the tool, and not what MAPS can do.")
    return code


def why_not() -> str | None:
    """Why nothing can act in LIBERO here; None: it can."""
    try:
        with isolated_env(find("libero").make, TASKS[0], image_size=8):
            return None
    except ImportError as error:  # SimulatorMissing, RenderingUnavailable
        return str(error)
