"""A model of every part at a size that compiles fast, and inputs for it."""

import dataclasses
import functools

import jax
import numpy as np

from octo_integration.model.heads.regression import L1Config
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.tokenizer import tokenize
from octo_integration.model.vla import VLA

TINY = CONFIGS["tiny"]
SMALL = dataclasses.replace(
    TINY,
    dinov2=dataclasses.replace(TINY.dinov2, width=16, depth=2, heads=2, mlp=32),
    siglip=dataclasses.replace(TINY.siglip, width=24, depth=3, heads=2, mlp=32),
    language=dataclasses.replace(TINY.language, width=32, depth=2, heads=4, kv_heads=2, mlp=48),
    image_size=16,
    instruction_length=12,
    chunk=3,
    head=L1Config(hidden=16),
)


def inputs(config=SMALL, window=2, seed=0, length=None, text="lift it"):
    batch = 2
    rng = np.random.default_rng(seed)
    size = config.image_size

    def images(*outer):
        return rng.integers(0, 256, (batch, *outer, size, size, 3), dtype=np.uint8)

    observation = {
        **{f"image_{camera}": images(window) for camera in config.cameras},
        "proprio": rng.normal(size=(batch, window, config.proprio_dim)).astype(np.float32),
        "timestep_pad_mask": np.ones((batch, window), bool),
    }
    tokens, mask = tokenize([text] * batch, length or config.instruction_length)
    return observation, {"tokens": tokens, "mask": mask, **({"image_primary": images()} if config.goal else {})}


@functools.cache
def initial():
    """As a run starts, on the host."""
    return jax.device_get(jax.jit(VLA(SMALL).init)(jax.random.key(0), *inputs())["params"])


@functools.cache
def params():
    """Initial parameters with noise, so that no bias is zero and no scale one."""
    rng = np.random.default_rng(1)

    def noisy(p):
        return p + 0.05 * rng.normal(size=p.shape).astype(np.float32)

    return jax.tree.map(noisy, initial())


@functools.cache
def drawn(config):
    """Random parameters without compiling how a run starts: norms about 1, all else about 0."""
    rng = np.random.default_rng(1)
    like = jax.eval_shape(VLA(config).init, jax.random.key(0), *inputs(config))["params"]

    def draw(path, leaf):
        return np.float32(path[-1].key == "scale") + 0.2 * rng.normal(size=leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, like)


@functools.cache
def compiled(config=SMALL):
    model = VLA(config)

    @jax.jit
    def run(values, observation, task):
        return model.apply({"params": values}, observation, task)

    return run


def run(observation, task, config=SMALL, values=None):
    return np.asarray(compiled(config)(params() if values is None else values, observation, task))
