"""A study that never ran: records as its files have them, with effects that are known."""

import zlib

import numpy as np
import pytest

RUNS = ((0, 0), (0, 1), (0, 2), (1, 3), (1, 4))
TASKS = ("point", "faucet-open", "door-open")
SHIFTS = (
    "none", "texture", "light", "color", "camera", "distractors", "all", "positions", "synonym", "language",
    "new_pairs", "new_shapes", "zero_shot",
)  # fmt: skip
HARDER = dict(zip(SHIFTS, (0, 0.03, 0.1, 0.04, 0.06, 0.03, 0.18, 0.02, 0.01, 0.05, 0.03, 0.06, 0.3)))
STACK = [*(f"{m}/{k}" for m in ("dinov2", "siglip") for k in range(4)), "bridge", *(f"language/{k}" for k in range(4))]
LAMBDAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)


def rng_of(*words) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(words).encode()))


def make_record(method, run, *, inside=0.0, outside=0.0, x=None, noise=0.004, episodes=6, shared=0.03, **fields):
    """A line of results.jsonl.

    Args:
      inside, outside: what the method adds to the ID error, and per unit of difficulty to the others.
      noise: of a run and of an episode, the method's own; shared: of runs and episodes, all methods' alike.
    """
    pretrain, seed = run
    l1 = {}
    own = rng_of(method, x, run).normal(0, noise)
    for part in ("dev", "test"):
        l1[part] = {}
        for shift in SHIFTS:
            level = 0.1 + inside + HARDER[shift] * (1 + outside)
            tasks = {"new_shapes": ("point",), "zero_shot": ("handle-press",)}.get(shift, TASKS)
            l1[part][shift] = {
                task: np.abs(
                    level
                    + own
                    + rng_of("run", run).normal(0, shared)
                    + rng_of("episode", part, task).normal(0, shared, episodes)
                    + rng_of(method, x, run, part, shift, task).normal(0, noise, episodes)
                ).tolist()
                for task in tasks
            }
    strength = fields.pop("strength", 0.0)
    scale = rng_of(method, x, run).uniform(0.9, 1.1)
    drift = {layer: scale / (1 + 20 * strength * (1 - k / len(STACK))) for k, layer in enumerate(STACK)}
    axis = fields.get("axis")
    return {
        "key": f"{method}{'' if x is None else f'/{axis}={x:g}'}/p{pretrain}/s{seed}",
        "method": method,
        "label": method,
        "axis": None,
        "x": x,
        "profile": "default",
        "group": "main",
        "pretrain": pretrain,
        "seed": seed,
        "steps": 400,
        "demos": 20,
        "lr": 1e-3,
        "commit": "abc",
        "machine": "none",
        "seconds": 1.0,
        "mean_lambda": None,
        "l1": l1,
        "drift": drift,
        "relative_drift": drift,
        "probes": {"dinov2_hand_cm": 4.0 / (1 + strength), "siglip_hand_cm": 5.0, "perplexity_find": 2.4},
        "train_loss": 0.08,
        **fields,
    }


def make_points(method, runs=RUNS, **options):
    return [make_record(method, run, **options) for run in runs]


def make_path(method, label, inside, outside, lambdas=LAMBDAS, share=1.0, runs=RUNS, **options):
    """A curve of λ: `inside` and `outside` are functions of λ; its mean over parameters is `share` of it."""
    return [
        record
        for x in lambdas
        for record in make_points(
            method, runs, label=label, axis="lambda", x=x, inside=inside(x), outside=outside(x),
            mean_lambda=share * x, strength=x, **options,
        )
    ]  # fmt: skip


def make_study(runs=RUNS):
    """All groups. Known: linear and uniform help OOD, reversed does nothing, frozen vision costs ID."""
    records = make_points("adam", runs, label="Adam")
    records += make_path(
        "linear", "MAPS, linear", lambda x: 0.002 * x - 0.002, lambda x: -0.6 * x / (x + 1), share=0.5, runs=runs
    )
    records += make_path("uniform", "uniform SPD", lambda x: 0.004 * x - 0.002, lambda x: -0.6 * x / (x + 1), runs=runs)
    records += make_path(
        "reversed", "MAPS, reversed order", lambda x: 0.001 * x, lambda x: 0.0, (1.0, 2.0, 4.0), runs=runs
    )
    records += make_path("cosine", "MAPS, cosine", lambda x: 0.002 * x, lambda x: -0.1 * x, (1.0, 2.0, 4.0), 0.5, runs)
    records += make_points("shuffled", runs, label="MAPS, shuffled order", axis="lambda", x=2.0, mean_lambda=1.0)
    for a in (0.25, 0.5, 0.75, 0.9):
        change = {"inside": 0.05 * (1 - a), "outside": -0.5 * (1 - a), "strength": 1 - a}
        records += make_points("wise-ft", runs, label="WiSE-FT", axis="alpha", x=a, **change)
    for s in (0.001, 0.01):
        change = {"inside": s, "outside": -20 * s, "strength": 20 * s}
        records += make_points("l2-sp", runs, label="L2-SP", axis="strength", x=s, **change)
    records += make_points("low-lr", runs, label="Adam, lower rate", axis="lr", x=3e-4, inside=0.01, outside=-0.1)
    records += make_points("frozen-vision", runs, label="both towers frozen", inside=0.012, outside=-0.4, strength=4)
    records += make_points("lora", runs, label="LoRA", axis="rank", x=16.0, inside=0.01, outside=-0.2)
    for name, words in (("product", "on BA"), ("init", "each to its start")):
        records += make_path(
            f"lora-{name}",
            f"LoRA, SPD {words}",
            lambda x: 0.01,
            lambda x: -0.2 - 0.1 * x,
            (1.0, 2.0),
            1.0,
            runs,
            group="lora",
        )
    records += make_points("blind", runs, label="Adam without images", inside=0.15, outside=-0.9)
    records += make_points("random-init", runs, label="Adam from random weights", inside=0.05, outside=0.8, probes={})
    records += [
        make_record("constant", (p, 0), label="best constant chunk", inside=0.3, outside=-1.0, drift={}, probes={})
        for p in (0, 1)
    ]
    before = {"dinov2_hand_cm": 2.0, "siglip_hand_cm": 2.5, "perplexity_find": 2.0}
    records += [
        {**make_record("pretrained", (p, 0), label="before fine-tuning", probes=before), "l1": {}, "drift": {}}
        for p in (0, 1)
    ]
    for suffix, group, options in (
        ("5 demos", "schedule-demos", {"demos": 5}),
        ("a third of the steps", "schedule-length", {"steps": 130}),
        ("thrice the steps", "schedule-length", {"steps": 1200}),
    ):
        records += make_points(f"adam-{suffix}", runs, label=f"Adam, {suffix}", inside=0.03, group=group, **options)
        for schedule in ("linear", "uniform"):
            records += make_path(
                f"{schedule}-{suffix}", f"{schedule}, {suffix}", lambda x: 0.03 + 0.002 * x, lambda x: -0.2 * x,
                (1.0, 2.0), 0.5 if schedule == "linear" else 1.0, runs, group=group, **options,
            )  # fmt: skip
    for name, words in (("swapped", "SigLIP before DINOv2"), ("modules", "one λ per module")):
        records += make_path(
            name, words, lambda x: 0.002 * x, lambda x: -0.15 * x, (2.0,), 0.5, runs, group="boundaries"
        )
    for x in (0.01, 0.03):
        records += make_points(
            "hypergradient", runs, label="λ by hypergradient", axis="rate", x=x, group="adaptive", outside=-0.3
        )
    return records


def make_success(runs=RUNS[:2], episodes=20):
    """Lines of success.jsonl."""
    rates = {"adam": (0.8, 0.3), "linear": (0.8, 0.6), "frozen-vision": (0.6, 0.6)}
    return [
        {
            "key": f"{method}{'/lambda=2' * (method == 'linear')}/p{run[0]}/s{run[1]}",
            "method": method,
            "label": {"adam": "Adam", "linear": "MAPS, linear", "frozen-vision": "both towers frozen"}[method],
            "x": 2.0 if method == "linear" else None,
            "pretrain": run[0],
            "seed": run[1],
            "shift": shift,
            "task": task,
            "outcomes": (rng_of("episode", run, task).random(episodes) < rate).tolist(),
        }
        for method, pair in rates.items()
        for shift, rate in zip(("none", "light"), pair)
        for task in TASKS
        for run in runs
    ]


@pytest.fixture(scope="session")
def study():
    return make_study()


@pytest.fixture
def synthetic():
    """What makes records, for tests that need their own."""
    import types

    return types.SimpleNamespace(
        record=make_record, points=make_points, path=make_path, study=make_study, success=make_success, runs=RUNS
    )
