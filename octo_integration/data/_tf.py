"""The one place where tensorflow is imported: quiet, without GPUs, a clear error if missing."""

import contextlib
import os

# No page of build information, and no oneDNN kernels, whose rounding differs between machines.
# What the caller has set stands.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

try:
    import tensorflow as tf
    import tensorflow_datasets as tfds
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"reading RLDS data needs {missing.name}, which is not installed: "
        "pip install 'maps_optax[vla]'",
        name=missing.name,
    ) from None

# JAX needs the accelerators whole. Too late where someone used tensorflow before: their choice.
with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")

__all__ = ["tf", "tfds"]
