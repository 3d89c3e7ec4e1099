"""Lets JAX compile for devices that are not here; to be imported before jax, which otherwise looks for a TPU."""

import os

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

from jax.experimental import topologies  # noqa: E402

__all__ = ["topologies"]
