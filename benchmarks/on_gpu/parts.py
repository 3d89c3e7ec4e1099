"""One part of the measurement, in a process of its own: `python -m benchmarks.on_gpu.parts NAME` prints a line of JSON.

`--rehearse` takes the same way with sizes for a CPU.
"""

import dataclasses
import functools
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.optimizer_step import worker
from octo_integration.model.attention import attend, blockwise_mask, even
from octo_integration.model.sizes import CONFIGS

NO_GPU = "on_gpu: JAX finds no GPU here"
# TFLOP/s of bfloat16 products without sparsity, by a part of the device's name, as NVIDIA publishes them.
PEAK = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
SMALL = "rehearsal"  # a model's name


def optimizer(rehearse: bool, names: tuple[str, ...], dtype: str = "float32") -> dict[str, Any]:
    """Steps of the optimizer alone, each over that of the first name, and the bandwidth of a copy beside them."""
    leaves, parameters, repeats = (4, 4 * 64**2, 2) if rehearse else (200, 94e6, 30)
    rows = worker.measure([*names], leaves, parameters, dtype, devices=1, rows=0, jitted=True, repeats=repeats)
    copied = worker.bandwidth(1e5 if rehearse else 1e9, repeats)
    for row in rows:
        row["gb_per_s"] = row["accessed"] * row["parameters"] / row["ms"] / 1e6  # by the compiler's count
    return {"rows": rows, "copy_gb_per_s": copied}


def train_step(rehearse: bool) -> dict[str, Any]:
    """The loss, its gradient, and the whole step of `mini` with AdamW and with MAPS."""
    from benchmarks.train_step.__main__ import Config, measure

    if rehearse:
        tiny = CONFIGS["tiny"]
        tower = dataclasses.replace(tiny.siglip, width=16, depth=1, heads=2, mlp=16)
        language = dataclasses.replace(tiny.language, width=16, depth=1, heads=2, kv_heads=1, mlp=16)
        CONFIGS[SMALL] = dataclasses.replace(tiny, dinov2=None, siglip=tower, language=language)
    kind = jax.devices()[0].device_kind
    peak = 1.0 if rehearse else next((value for name, value in PEAK.items() if name in kind), None)
    size = {"model": SMALL, "batch": 2, "repeats": 2} if rehearse else {"model": "mini", "batch": 64, "repeats": 10}
    config = Config(**size, dtype="bfloat16", peak_tflops=peak, holds=("AdamW", "MAPS"))
    return {**size, "dtype": config.dtype, "peak_tflops": peak, "rows": measure(config)}


def attention(rehearse: bool) -> dict[str, Any]:
    """How far bfloat16 attention is from float32's, by cuDNN and by XLA, in values and the gradients of queries, keys
    and values: the largest error over the largest value. A rehearsal has XLA in both places.
    """
    cudnn: Any = None if rehearse else "cudnn"
    batch, heads, width = (1, 2, 16) if rehearse else (8, 16, 64)
    cases = (
        ("whole", 0, False, False),
        ("masked", 0, True, False),
        ("odd", -1, True, False),
        ("biased", 0, False, True),
    )
    rows = []
    for name, more, masked, biased in cases[2:] if rehearse else cases:
        length = (16 if rehearse else 512) + more
        rng = np.random.default_rng(length)
        q, k, v, out = (jnp.asarray(rng.normal(size=(batch, length, heads, width)), jnp.float32) for _ in range(4))
        bias = jnp.asarray(rng.normal(size=(1, heads, length, length)), jnp.float32) if biased else None
        valid = jnp.asarray(np.arange(length) < length - 3)[None].repeat(batch, 0)
        mask = blockwise_mask(jnp.arange(length) // 8, valid)[:, None] if masked else None

        def loss(
            qkv: Any, dtype: Any, implementation: Any, *, mask: Any = mask, bias: Any = bias, out: Any = out
        ) -> Any:
            given = [x.astype(dtype) for x in qkv]
            shift = None if bias is None else bias.astype(dtype)
            call = functools.partial(attend, scale=None, implementation=implementation)
            found = even(*given, mask, shift, call).astype(jnp.float32)
            return jnp.sum(found * out), found

        errors = {}
        exact = _value_and_gradients(loss, (q, k, v), jnp.float32, None)
        for how, implementation in (("cudnn", cudnn), ("xla", None)):
            found = _value_and_gradients(loss, (q, k, v), jnp.bfloat16, implementation)
            errors[how] = [float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in zip(found, exact)]
        rows.append({"case": name, "length": length, **errors})
    return {"rows": rows}


def _value_and_gradients(loss: Any, qkv: Any, dtype: Any, implementation: Any) -> list[jax.Array]:
    both = jax.jit(
        jax.value_and_grad(functools.partial(loss, dtype=dtype, implementation=implementation), has_aux=True)
    )
    (_, found), gradients = both(qkv)
    return [found, *gradients]


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "attention": attention,
    "optimizer, float32": functools.partial(
        optimizer, names=("adam", "maps", "maps, estimated", "maps, bf16 anchor", "l2_sp")
    ),
    "train step": train_step,
    "optimizer, bfloat16": functools.partial(optimizer, names=("adam", "maps"), dtype="bfloat16"),
    "optimizer, anchor on host": functools.partial(optimizer, names=("adam", "maps, host anchor")),
}


def main(name: str, rehearse: bool) -> None:
    """Prints what the part found, with the device.

    Raises:
      SystemExit: there is no GPU.
    """
    device = jax.devices()[0]
    if device.platform != "gpu" and not rehearse:
        raise SystemExit(f"{NO_GPU}, but {device.device_kind}; --rehearse takes the same way in small.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="maps_optax estimates")
        found = PARTS[name](rehearse)
    print(json.dumps({"device": device.device_kind, "jax": jax.__version__, **found}))


if __name__ == "__main__":
    main(sys.argv[1], "--rehearse" in sys.argv[2:])
