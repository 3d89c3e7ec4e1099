"""The demonstration: `tiny` fine-tuned on the shipped data by Adam and with MAPS, three seeds each, then compared.

maps-vla demo --out runs/demo
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from octo_integration.cli import demo_libero
from octo_integration.cli.devices import say_devices
from octo_integration.cli.following import say_next
from octo_integration.common import limits
from octo_integration.common.limits import check_limits
from octo_integration.config import FinetuneConfig, MapsConfig, Method, OptimizerConfig
from octo_integration.evaluate.action_error import ActionError
from octo_integration.evaluate.plot import plot_drift
from octo_integration.evaluate.runs import student_interval
from octo_integration.train.loop import finetune

# Meta-World moves the hand by a hundredth of a metre per step and unit of action, gripper apart.
MILLIMETRES_PER_ACTION = 10.0
HAND = slice(0, 3)

METHODS: Mapping[Method, str] = {"adam": "Adam", "maps": "MAPS"}
# Split -> error; of the runs of a method one for each seed, in the same order.
Errors = Mapping[str, ActionError]


@dataclasses.dataclass(frozen=True)
class Options:
    """Fine-tunes the tiny model on the shipped demonstrations with plain Adam and with MAPS, and compares them.

    maps-vla demo --out runs/demo

    Three runs each, every one as `maps-vla finetune` does it by default; runs of one seed see the same data in the same
    order. Prints the strengths, the action error on held-out episodes as recorded and under unseen texture, light,
    camera and colour, and draws how far each tensor moved. The same command again resumes.

    With --simulator libero: makes demonstrations there, fine-tunes on them with MAPS, and lets the policy act.
    """

    out: str = "runs/demo"
    """Folder of the runs (adam-0/, maps-0/, adam-1/ and so on) and the figure drift.png.

    Of LIBERO: libero_data/, libero/ and videos/."""
    simulator: Literal["metaworld", "libero"] = "metaworld"
    """Whose demonstrations."""
    steps: int = OptimizerConfig.steps
    """Optimizer steps of each run."""
    lambda_max: float = MapsConfig.lambda_max
    """Strength of MAPS at the first layer."""
    seeds: int = 3
    """Runs of each method; their seeds are 0, 1, 2 and so on. Of LIBERO there is one run."""

    def __post_init__(self) -> None:
        """Refuses what one of the runs would refuse."""
        check_limits(self, {"seeds": limits.AT_LEAST_2})
        for method in METHODS:
            run_config(self, method, 0)


def run(config: Options) -> int:
    """Runs the demonstration; returns the exit code (128 + signal if a signal ended it early)."""
    if config.simulator == "libero":
        return demo_libero.run(Path(config.out), config.steps, config.lambda_max)
    say_devices()
    errors: dict[Method, list[Errors]] = {method: [] for method in METHODS}
    for seed in range(config.seeds):
        for method, name in METHODS.items():
            job = run_config(config, method, seed)
            print(f"\n== {name}, seed {seed}: fine-tuning into {job.out}", flush=True)
            outcome = finetune(job)
            if outcome.signal is not None:
                print(f"stopped by signal {outcome.signal}, saved; the same command resumes it.")
                return 128 + outcome.signal
            errors[method].append(outcome.errors)
    print("\n" + report(errors["adam"], errors["maps"]))
    first = [Path(run_config(config, method, 0).out) for method in METHODS]
    figure = Path(config.out) / "drift.png"
    plot_drift(first, figure)
    print(f"\nHow far each tensor moved, of seed 0: {figure}")
    say_next(("evaluate", "--run", str(first[-1])), ("finetune", "--help"))
    return 0


def run_config(config: Options, method: Method, seed: int) -> FinetuneConfig:
    """One of its runs."""
    return FinetuneConfig(
        out=str(Path(config.out) / f"{method}-{seed}"),
        seed=seed,
        optimizer=OptimizerConfig(steps=config.steps),
        maps=MapsConfig(method=method, lambda_max=config.lambda_max),
        eval_every=config.steps,
    )


def report(adam: Sequence[Errors], maps: Sequence[Errors]) -> str:
    """The comparison as text: a table with uncertainties, and what it does and does not show.

    The first split is in distribution, the others are shifted.
    """
    first, *shifted = adam[0]
    episodes = adam[0][first].episodes
    rows = [
        "Action error on held-out episodes: mean |predicted - demonstrated| over normalised action chunks",
        f"{'split':<22}{'Adam':>16}{'MAPS':>16}{'MAPS - Adam':>26}{'hand, mm/step':>18}",
    ]
    for split in (first, *shifted):
        a, b = _l1(adam, [split]), _l1(maps, [split])
        name = f"{split} (ID)" if split == first else split
        rows.append(
            f"{name:<22}{_spread(a):>16}{_spread(b):>16}{_interval(b - a):>26}"
            f"{_hand(adam, split):>10.2f} → {_hand(maps, split):.2f}"
        )
    rows += [
        f"± is the standard deviation over {len(adam)} seeds, [ ] the 95 % interval (t) of their mean difference.",
        f"It is about other seeds: all runs have the same {episodes} episodes, demonstrations and pretrained weights.",
    ]
    for name, splits in {"in distribution": [first], **({"under shift (mean)": shifted} if shifted else {})}.items():
        rows.append(_verdict(name, _l1(maps, splits) - _l1(adam, splits)))
    if shifted:
        prices = [_l1(method, shifted) - _l1(method, [first]) for method in (adam, maps)]
        rows.append(_verdict("what the shift adds", prices[1] - prices[0]))
    rows.append("A tiny model and offline error: a demonstration of the tool, not evidence about success rates.")
    return "\n".join(rows)


def _l1(runs: Sequence[Errors], splits: Sequence[str]) -> np.ndarray:
    """f64[seeds], the mean over splits."""
    return np.asarray([np.mean([errors[split].l1 for split in splits]) for errors in runs])


def _hand(runs: Sequence[Errors], split: str) -> float:
    return float(np.mean([errors[split].physical[HAND] for errors in runs])) * MILLIMETRES_PER_ACTION


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _interval(gaps: np.ndarray) -> str:
    mean = student_interval(gaps)
    return f"{mean.value:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]"


def _verdict(name: str, gaps: np.ndarray) -> str:
    """One line: lower, higher, or no clear difference (the interval includes 0)."""
    mean = student_interval(gaps)
    found = "no clear difference"
    if mean.high < 0 or mean.low > 0:
        found = f"MAPS is {'lower' if mean.high < 0 else 'higher'} than Adam"
    each = " ".join(f"{gap:+.3f}" for gap in gaps)
    return f"{name}: {found}, MAPS - Adam {_interval(gaps)}; seed by seed {each}."
