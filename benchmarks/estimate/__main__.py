"""How well does the literal `optax.chain(optax.adam(lr), mx.maps(...))` do what the exact criterion does?

    python -m benchmarks.estimate --job.steps 300

Fine-tunes as `maps-vla demo` does, but with Adam alone, three times from the same weights with the same batches:
without MAPS, with the exact criterion (`mx.chain`), and in a plain `optax.chain` called with three arguments. At every
step of the third the exact criterion is evaluated beside the estimate, on the same state, and the signs are compared,
tensor by tensor.
"""

import dataclasses
import functools
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro
from tqdm import tqdm

import maps_optax as mx
from octo_integration import data
from octo_integration.cli import demo
from octo_integration.common.files import write_json
from octo_integration.config import FinetuneConfig
from octo_integration.data.statistics import cache_directory
from octo_integration.state.optimizer import learning_rate, peak_rate
from octo_integration.state.setup import Built, abstract_params, build, initial_params
from octo_integration.train.step import make_loss

RESULTS = Path(__file__).parent / "results.json"


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares the estimated criterion with the exact one on the main job.

    python -m benchmarks.estimate --job.steps 300
    """

    job: demo.Options = dataclasses.field(default_factory=demo.Options)
    """The main job: its steps and strength; its out and seeds are not used."""
    seed: int = 0
    """Of the three runs."""
    constant_lr: bool = False
    """A constant learning rate in place of warmup and cosine."""
    out: Path = RESULTS
    """Where the numbers go."""


def main(config: Config) -> dict[str, Any]:
    """Runs the comparison, prints it and writes it to `config.out`."""
    run = demo.run_config(config.job, "maps", config.seed)
    built = build(run, data.compute_statistics(run.data, cache_directory()))
    theta0 = initial_params(run, built, abstract_params(run, built))
    lr = peak_rate(run) if config.constant_lr else learning_rate(run)
    adam = optax.adam(lr)
    maps = mx.maps(built.layers, config.job.lambda_max)
    literal = optax.chain(adam, maps)
    drifts, triggers = {}, {}
    for name, tx in {"adam": mx.chain(adam), "exact": mx.chain(adam, maps), "estimate": literal}.items():
        watch = maps if name == "estimate" else None
        params, triggers[name] = train(run, built, theta0, tx, watch, name)
        drifts[name] = drift(built.layers, params, theta0)

    estimated, exact = (np.stack(x)[1:] for x in zip(*triggers["estimate"]))  # at step 1 nothing is displaced
    # The last layer's λ is 0: what happens to it is no work of MAPS.
    layers = list(drifts["exact"])[:-1]
    closer = [
        abs(drifts["estimate"][k] - drifts["exact"][k]) < abs(drifts["estimate"][k] - drifts["adam"][k]) for k in layers
    ]
    result = {
        "steps": config.job.steps,
        "lambda_max": config.job.lambda_max,
        "seed": config.seed,
        "constant_lr": config.constant_lr,
        "versions": {"jax": jax.__version__, "optax": optax.__version__, "python": platform.python_version()},
        "machine": {"backend": jax.default_backend(), "processor": platform.machine(), "cores": os.cpu_count()},
        "layer_steps": int(estimated.size),
        "agreement": float((estimated == exact).mean()),
        "agreement_per_tensor": {"min": float((estimated == exact).mean(0).min())},
        "held_layers_nearer_to_exact_than_to_adam": f"{sum(closer)} of {len(layers)}",
        "drift": drifts,
    }
    write_json(config.out, result)
    print(report(result))
    return result


def train(
    run: FinetuneConfig,
    built: Built,
    theta0: Any,
    tx: optax.GradientTransformation,
    watch: optax.GradientTransformationExtraArgs | None,
    name: str,
) -> tuple[Any, list[tuple[np.ndarray, np.ndarray]]]:
    """The final parameters and, for `watch`, per step the (estimated, exact) trigger of every anchored tensor."""
    loss = make_loss(built.model)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, Any]:
        grads, _ = jax.grad(loss, has_aux=True)(params, batch, jax.random.key(run.seed))
        updates, new_state = tx.update(grads, state, params)
        seen = None
        if watch is not None:
            _, exact = watch.update(updates, state[1], params, grad=grads)
            seen = (new_state[1].triggered, exact.triggered)
        return optax.apply_updates(params, updates), new_state, seen

    params = jax.tree_util.tree_map(jax.numpy.copy, theta0)
    state = tx.init(params)
    batches = data.train_batches(run.data, built.statistics, seed=run.seed)
    seen = []
    for _ in tqdm(range(run.optimizer.steps), desc=name, unit="step", mininterval=10):
        params, state, flags = step(params, state, built.device_form(next(batches)))
        seen.append(flags)
    return params, [] if watch is None else jax.device_get(seen)


def drift(layers: mx.LayerStack, params: Any, theta0: Any) -> dict[str, float]:
    """‖θ − θ0‖ of each layer, by its name, in the order of the stack."""
    squares: dict[tuple[int, str], float] = {}
    flat = jax.tree_util.tree_leaves(jax.tree_util.tree_map(lambda a, b: np.asarray(a) - np.asarray(b), params, theta0))
    paths = {}
    for s in mx.slices(layers, params):
        leaf = flat[paths.setdefault(s.path, len(paths))]
        if s.position is not None:
            name = "/".join(filter(None, (s.module, s.block)))
            part = leaf if s.row is None else leaf[s.row]
            key = (s.position, name)
            squares[key] = squares.get(key, 0.0) + float((part.astype(np.float64) ** 2).sum())
    return {name: value**0.5 for (_, name), value in sorted(squares.items())}


def report(result: dict[str, Any]) -> str:
    """The table of this folder's README."""
    drifts = result["drift"]
    rows = ["| layer | Adam | MAPS, exact | MAPS, estimated |", "|---|---|---|---|"]
    rows += [
        f"| {k} | {drifts['adam'][k]:.3f} | {v:.3f} | {drifts['estimate'][k]:.3f} |" for k, v in drifts["exact"].items()
    ]
    return "\n".join(
        [
            f"trigger signs agree in {result['agreement']:.1%} of {result['layer_steps']} layer-steps; drift is nearer "
            f"to the exact run's than to Adam's in {result['held_layers_nearer_to_exact_than_to_adam']} held layers",
            "",
            *rows,
        ]
    )


def quietly(run: Callable[[Config], Any], config: Config) -> Any:
    """Without the warning that this benchmark is about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="maps_optax estimates")
        return run(config)


if __name__ == "__main__":
    quietly(main, tyro.cli(Config))
