"""What the study compares: every way to fine-tune, as a row of numbers.

A method is a curve: its points differ in one number, x (λ_max, a learning rate, a share of interpolation, ...). A point
is run once per pair of a pretrained model and a seed. Derived points cost no training: they are merges of the end of a
run with θ0, or its moving average.
"""

import dataclasses
from typing import Literal

Order = Literal["paper", "reversed", "shuffled", "swapped", "parallel", "modules"]
Start = Literal["pretrained", "random"]
Adaptive = Literal["hypergradient", "drift_budget"]

VISION = ("dinov2", "siglip")
ONE = "one tower"
LAMBDAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
ALPHAS = (0.25, 0.5, 0.75, 0.9)


@dataclasses.dataclass(frozen=True)
class Derived:
    """A point made from the end of a run.

    Attributes:
      method, label, x: as of `Point`.
      alpha: share of the fine-tuned weights in the merge with θ0 (WiSE-FT).
      modules: those that are merged; the others stay fine-tuned. Empty: all with pretrained values.
      average: take the moving average of the weights in place of the last.
    """

    method: str
    label: str
    x: float | None = None
    alpha: float = 1.0
    modules: tuple[str, ...] = ()
    average: bool = False


@dataclasses.dataclass(frozen=True)
class Point:
    """One way to fine-tune.

    Attributes:
      method: name of the curve; label: of the curve, for people; axis: what `x` is.
      group: the question that it belongs to; points of one group are compared with each other.
      lambda_max, schedule, order, max_pull: of MAPS. Order says where layers stand: as in the paper, in reverse, in a
        fixed random order, SigLIP before DINOv2, both towers side by side, or one strength per module.
      held: modules that λ acts on; empty: all.
      criterion: "gradient" or "auto", the estimate of a plain `optax.chain`.
      adaptive: rule that moves λ from lambda_max on; rate: its rate; budget: of drift_budget.
      price_share: of the loss: parts whose price (see `prices`) is above it are held less, others more, from lambda_max
        on; 0: λ stays. price_every: steps between two looks; price_of: "modules", or "paper" for layers.
      l2: strength of L2-SP.
      weight_decay, lr: of AdamW; None: the study's learning rate.
      frozen: modules that do not move.
      backbone, layer_decay: the rate of what has a pretrained value is multiplied by backbone, and by layer_decay once
        more for every layer that follows in the stack.
      lora: rank of adapters, 0 for none; lora_spd: how λ acts on them, "" for not at all.
      model: of `octo_integration.model.sizes`; start: its weights before fine-tuning.
      blind: images are black, in training and evaluation.
      steps, demos: None: the study's steps and all demonstrations.
      derived: further points from the same run.
    """

    method: str
    label: str
    axis: str | None = None
    x: float | None = None
    group: str = "main"
    lambda_max: float = 0.0
    schedule: str = "linear"
    order: Order = "paper"
    held: tuple[str, ...] = ()
    max_pull: float | None = None
    criterion: Literal["gradient", "auto"] = "gradient"
    adaptive: Adaptive | None = None
    rate: float = 0.0
    budget: float = 0.0
    price_share: float = 0.0
    price_every: int = 40
    price_of: Order = "modules"
    l2: float = 0.0
    weight_decay: float = 0.0
    lr: float | None = None
    frozen: tuple[str, ...] = ()
    backbone: float = 1.0
    layer_decay: float = 1.0
    lora: int = 0
    lora_spd: Literal["", "product", "init", "zero"] = ""
    model: str = "tiny"
    start: Start = "pretrained"
    blind: bool = False
    steps: int | None = None
    demos: int | None = None
    derived: tuple[Derived, ...] = ()

    @property
    def name(self) -> str:
        """Unique among the points of a plan."""
        return self.method if self.x is None else f"{self.method}/{self.axis}={self.x:g}"


def held(method: str, label: str, lambdas: tuple[float, ...] = LAMBDAS, **options: object) -> list[Point]:
    """A curve of MAPS along λ_max."""
    return [Point(method, label, "lambda", x, lambda_max=x, **options) for x in lambdas]  # type: ignore[arg-type]


def _merges() -> tuple[Derived, ...]:
    wise = [Derived("wise-ft", "WiSE-FT", a, a) for a in ALPHAS]
    vision = [Derived("wise-ft-vision", "WiSE-FT, towers only", a, a, VISION) for a in (0.0, *ALPHAS)]
    return (*wise, *vision, Derived("ema", "Adam, moving average", average=True))


CONTROLS = [
    Point("random-init", "Adam from random weights", start="random"),
    Point("blind", "Adam without images", blind=True),
]
BASELINES = [
    Point("adam", "Adam", derived=_merges()),
    Point("frozen-vision", "both towers frozen", frozen=VISION),
    Point("frozen-dinov2", "DINOv2 tower frozen", frozen=("dinov2",)),
    Point("frozen-siglip", "SigLIP tower frozen", frozen=("siglip",)),
    Point("frozen-language", "language frozen", frozen=("language",)),
    Point("adamw", "AdamW", "decay", 0.1, weight_decay=0.1),
    *[Point("l2-sp", "L2-SP", "strength", x, l2=x) for x in (1e-3, 3e-3, 1e-2)],
    Point("lora", "LoRA", "rank", 16.0, lora=16),
    *[Point("low-lr", "Adam, lower rate", "lr", x, lr=x) for x in (3e-4, 6e-4)],
]
MAPS = [
    *held("linear", "MAPS, linear"),
    *held("uniform", "uniform SPD", schedule="constant"),
    *held("reversed", "MAPS, reversed order", (2.0, 4.0), order="reversed"),
]
VARIANTS = [
    *held("cosine", "MAPS, cosine", (2.0,), schedule="cosine"),
    *held("shuffled", "MAPS, shuffled order", (2.0,), order="shuffled"),
    *held("exponential", "MAPS, exponential", (2.0,), schedule="exponential"),
    *held("step", "MAPS, step", (2.0,), schedule="step"),
    *held("capped", "MAPS, linear, λr ≤ 1", (2.0, 8.0), max_pull=1.0),
    *held("estimate", "MAPS, plain optax.chain", (2.0,), criterion="auto"),
]
ADAPTIVE = [
    *[
        Point("hypergradient", "λ by hypergradient", "rate", x, "adaptive", 1.0, "constant",
              adaptive="hypergradient", rate=x)
        for x in (0.01, 0.03)
    ],
    *[
        Point("drift-budget", "λ by drift budget", "budget", x, "adaptive", 1.0, "constant",
              adaptive="drift_budget", rate=0.1, budget=x)
        for x in (0.01, 0.03, 0.1)
    ],
]  # fmt: skip
LORA = [
    *[
        point
        for treatment, words in (("product", "on BA"), ("init", "each to its start"), ("zero", "each to zero"))
        for point in held(f"lora-{treatment}", f"LoRA, MAPS {words}", (1.0, 2.0), group="lora", lora=16,
                          lora_spd=treatment)
    ],
]  # fmt: skip
BOUNDARIES = [
    *held("swapped", "SigLIP before DINOv2", (2.0,), group="boundaries", order="swapped"),
    *held("parallel", "towers side by side", (2.0,), group="boundaries", order="parallel"),
    *held("modules", "one λ per module", (2.0,), group="boundaries", order="modules"),
]


def _regime(group: str, suffix: str, **options: object) -> list[Point]:
    """Adam, MAPS, uniform λ of MAPS' λ_max and near its mean: in other lengths of training, or fewer demonstrations."""
    return [
        Point(f"adam-{suffix}", f"Adam, {suffix}", group=group, **options),  # type: ignore[arg-type]
        *held(f"linear-{suffix}", f"linear, {suffix}", (2.0,), group=group, **options),
        *held(f"uniform-{suffix}", f"uniform, {suffix}", (1.0, 2.0), group=group, schedule="constant", **options),
    ]


REGIMES = [
    *_regime("schedule-demos", "5 demos", demos=5),
    *_regime("schedule-length", "a third of the steps", steps=130),
]
LONGER = _regime("schedule-length", "twice the steps", steps=800)
ONE_TOWER = [
    Point(f"adam-{ONE}", "Adam", model="tiny_clip", group=ONE),
    Point(f"frozen-{ONE}", "tower frozen", model="tiny_clip", group=ONE, frozen=("clip",)),
    *held(f"linear-{ONE}", "MAPS, linear", (1.0, 2.0), group=ONE, model="tiny_clip"),
    *held(f"uniform-{ONE}", "uniform SPD", (1.0, 2.0), group=ONE, model="tiny_clip", schedule="constant"),
]
# What answers most, in the order in which it is run.
FIRST = (
    "adam",
    "frozen-vision",
    "random-init",
    "blind",
    "linear/lambda=2",
    "uniform/lambda=2",
    "linear/lambda=1",
    "uniform/lambda=1",
    "reversed/lambda=2",
)
# Learning rates to choose from, on the development split and before anything else.
RATES = [
    *[Point("rate", "Adam", "lr", x, "lr", lr=x) for x in (3e-4, 1e-3, 2e-3)],
    *[Point("rate-lora", "LoRA", "lr", x, "lr", lr=x, lora=16) for x in (1e-3, 3e-3, 1e-2)],
]

PLAN = sorted(
    [*BASELINES, *CONTROLS, *MAPS, *REGIMES, *ADAPTIVE, *LORA, *VARIANTS],
    key=lambda point: FIRST.index(point.name) if point.name in FIRST else len(FIRST),
)
# The main comparison again, with the model for GPUs.
SMALL = [
    dataclasses.replace(point, model="small")
    for point in PLAN
    if point.name in FIRST or point.name in ("linear/lambda=3", "linear/lambda=4", "uniform/lambda=4", "lora/rank=16")
]
# Experiment A of PREREGISTRATION.md: three numbers to choose from for each method; and how long Adam has to be run.
HONEST = [
    *[Point("adam", "Adam", "lr", x, lr=x) for x in (3e-4, 6e-4, 1e-3)],
    *[Point("layer-decay", "Adam, layer-wise decay", "decay", x, layer_decay=x) for x in (0.7, 0.8, 0.9)],
    *[Point("backbone", "Adam, rate of the backbone", "factor", x, backbone=x) for x in (0.1, 0.3, 0.6)],
    *[Point("frozen-vision", "both towers frozen", "lr", x, lr=x, frozen=VISION) for x in (6e-4, 1e-3, 1.5e-3)],
    *[Point("lora", "LoRA", "lr", x, lr=x, lora=16) for x in (3e-3, 1e-2, 2e-2)],
    *[Point("l2-sp", "L2-SP", "strength", x, l2=x) for x in (3e-3, 1e-2, 3e-2)],
    *held("uniform", "uniform SPD", (1.0, 2.0, 4.0), schedule="constant"),
    *held("linear", "MAPS, linear", (1.5, 3.0, 6.0)),
]
HONEST_METHODS = tuple(dict.fromkeys(point.method for point in HONEST))
LENGTH = [Point("length", "Adam", "steps", float(n), lr=1e-3, steps=n) for n in (800, 1200)]
# Experiment B: who must move. Points that A has too have its names.
MODULES = (*VISION, "bridge", "language")
WHO = [p for p in HONEST if p.method in ("adam", "uniform", "linear") or (p.method, p.x) == ("frozen-vision", 1e-3)]
WHO_PARTS = [
    *[p for m in MODULES for p in held(f"only-{m}", f"λ on {m} alone", (2.0,), schedule="constant", held=(m,))],
    *[
        point
        for m in MODULES
        for point in held(f"without-{m}", f"λ on all but {m}", (2.0,), schedule="constant",
                          held=tuple(other for other in MODULES if other != m))
    ],
]  # fmt: skip
# Again, where sums are added in another order.
NOISE = [Point("adam", "Adam"), *held("linear", "MAPS, linear", (3.0,))]
SMOKE = [Point("adam", "Adam", derived=_merges()[:2]), *held("linear", "MAPS, linear", (2.0,)), CONTROLS[1]]
