"""The demonstration: `tiny` fine-tuned on the shipped data by plain Adam and with MAPS, then compared.

maps-vla demo --out runs/demo
"""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from octo_integration.cli import demo_libero
from octo_integration.config import FinetuneConfig, MapsConfig, OptimizerConfig
from octo_integration.data import DataConfig
from octo_integration.evaluate.action_error import ActionError, difference
from octo_integration.evaluate.plot import plot_drift
from octo_integration.train.loop import finetune

# Meta-World moves the hand by a hundredth of a metre per step and unit of action, gripper apart.
MILLIMETRES_PER_ACTION = 10.0
HAND = slice(0, 3)

BATCH_SIZE = 8  # both runs shall be done in five minutes on two cores
LR = 1e-3  # as benchmarks/generalization chose for this model

METHODS = {"adam": "Adam", "maps": "MAPS"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Fine-tunes the tiny model on the shipped demonstrations twice, with plain Adam and with MAPS, and compares them.

    maps-vla demo --out runs/demo

    Same seed, same data order. Prints the strengths, the action error on held-out episodes as recorded and under
    unseen texture, light, camera and colour, and draws how far each tensor moved. The same command again resumes.

    With --simulator libero: makes demonstrations there, fine-tunes on them with MAPS, and lets the policy act.
    """

    out: str = "runs/demo"
    """Folder of the two runs (adam/, maps/) and the figure drift.png; of LIBERO: libero_data/, libero/, videos/."""
    simulator: Literal["metaworld", "libero"] = "metaworld"
    """Whose demonstrations."""
    steps: int = 600
    """Optimizer steps of each run."""
    lambda_max: float = MapsConfig.lambda_max
    """Strength of MAPS at the first layer."""
    seed: int = 0
    """Of both runs."""

    def __post_init__(self) -> None:
        """Refuses what one of the runs would refuse."""
        for method in METHODS:
            run_config(self, method)


def run(config: Options) -> int:
    """Runs the demonstration; returns the exit code (128 + signal if a signal ended it early)."""
    out = Path(config.out)
    if config.simulator == "libero":
        return demo_libero.run(out, config.steps, config.lambda_max, config.seed)
    errors: dict[str, dict[str, ActionError]] = {}
    for method, name in METHODS.items():
        print(f"\n== {name}: fine-tuning into {out / method}", flush=True)
        outcome = finetune(run_config(config, method))
        if outcome.signal is not None:
            return 128 + outcome.signal
        errors[method] = outcome.errors
    print("\n" + report(errors["adam"], errors["maps"]))
    figure = out / "drift.png"
    plot_drift([out / method for method in METHODS], figure)
    print(f"\nDrift of every tensor along the stack: {figure}")
    return 0


def run_config(config: Options, method: str) -> FinetuneConfig:
    """The fine-tuning run of one method, `adam` or `maps`."""
    return FinetuneConfig(
        out=str(Path(config.out) / method),
        seed=config.seed,
        optimizer=OptimizerConfig(lr=LR, steps=config.steps, warmup=min(30, config.steps // 2)),
        maps=MapsConfig(method="adam" if method == "adam" else "maps", lambda_max=config.lambda_max),
        data=DataConfig(batch_size=BATCH_SIZE),
        eval_every=config.steps,
    )


def report(adam: dict[str, ActionError], maps: dict[str, ActionError]) -> str:
    """The comparison as text: a table with uncertainties, and one sentence on what it does and does not show.

    The first split is in-distribution, the others are shifted.
    """
    first, *shifted = adam
    rows = [
        "Action error on held-out episodes: mean |predicted - demonstrated| over normalised action chunks",
        f"{'split':<22}{'Adam':>16}{'MAPS':>16}{'MAPS - Adam':>20}{'hand, mm/step':>22}",
    ]
    for split in (first, *shifted):
        a, b = adam[split], maps[split]
        gap, se = difference(a, b)
        name = f"{split} (ID)" if split == first else split
        rows.append(
            f"{name:<22}{a.l1:>8.3f} ± {a.se:.3f}{b.l1:>8.3f} ± {b.se:.3f}"
            f"{gap:>+12.3f} ± {se:.3f}{_hand(a):>14.2f} → {_hand(b):.2f}"
        )
    rows += [
        f"± is one standard error over {adam[first].episodes} episodes (bootstrap; the difference is paired).",
        *(_verdict(name, adam, maps, splits) for name, splits in _groups(first, shifted).items()),
        "One seed, a tiny model and offline error: a demonstration of the tool, not evidence about success rates.",
    ]
    return "\n".join(rows)


def _groups(first: str, shifted: list[str]) -> dict[str, list[str]]:
    return {"in distribution": [first], **({"under shift (mean)": shifted} if shifted else {})}


def _hand(error: ActionError) -> float:
    return float(np.mean(error.physical[HAND])) * MILLIMETRES_PER_ACTION


def _verdict(name: str, adam: dict[str, ActionError], maps: dict[str, ActionError], splits: list[str]) -> str:
    """One line: lower, higher, or no clear difference (less than two standard errors)."""
    gaps, errors = zip(*(difference(adam[s], maps[s]) for s in splits), strict=True)
    # The shifted splits show the same episodes, so their errors move together: their mean is no more certain than one.
    gap, se = float(np.mean(gaps)), float(np.mean(errors))
    if abs(gap) < 2 * se:
        return f"{name}: no clear difference between MAPS and Adam ({gap:+.3f} ± {se:.3f})."
    return f"{name}: MAPS is {'lower' if gap < 0 else 'higher'} than Adam by {abs(gap):.3f} ± {se:.3f}."
