"""The one place where tensorflow is imported: quiet, without GPUs, a clear error if missing."""

import contextlib
import os
from typing import Any

# No page of build information, and no oneDNN kernels, whose rounding differs between machines.
# What the caller has set stands.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

try:
    import tensorflow as tf
    import tensorflow_datasets as tfds
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"reading RLDS data needs {missing.name}, which is not installed: pip install 'maps_optax[vla]'",
        name=missing.name,
    ) from None

# JAX needs the accelerators whole. Too late where someone used tensorflow before: their choice.
with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")

# Grappler's cost model warns, at length and in every run, of a crop whose batch size it does not know; our pipelines
# have nothing for it to optimise.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

__all__ = ["settled", "tf", "tfds"]


def settled(data: Any) -> Any:
    """What is iterated: `data` in a fixed order, with parallelism that TensorFlow does not tune while it runs.

    The end of an iterator waits for the thread that tunes it, which on a busy machine can miss that and wait too, for
    ever (TensorFlow 2.21, `RootDataset::Iterator::~Iterator`; met by `make torture`).
    """
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    return data.with_options(options)
