"""What a command computes on: one of its first lines."""

import collections
import os

import jax


def describe() -> str:
    """The devices of this run in words; of a CPU also how to get a GPU."""
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    if jax.default_backend() != "cpu":
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return f"devices: {found}" + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{cores} CPU core{'' if cores == 1 else 's'}"
    if kinds.total() > 1:
        found = f"{kinds.total()} devices on {found}"
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return f"devices: {found}; others are not looked for, because JAX_PLATFORMS is {platforms}"
    return f"devices: {found}; for a GPU: pip install 'maps_optax[cuda13]'"


def say_devices() -> None:
    """Prints the line; of several processes the first does. Comes after they have joined."""
    text = describe()
    if jax.process_index() == 0:
        print(text, flush=True)
