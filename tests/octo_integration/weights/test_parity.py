"""Imported weights compute what torch and transformers compute: on fixtures that they made, and live where they are."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from octo_integration.model.config import Build, LanguageConfig, T5Config, TowerConfig
from octo_integration.model.language import Decoder
from octo_integration.model.t5 import T5
from octo_integration.model.vit import Tower
from octo_integration.weights.convert import load, plan
from octo_integration.weights.hf import open_checkpoint
from octo_integration.weights.positions import resample

HERE = Path(__file__).parent
# Pixels 0..255 come out as they went in.
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
SIZES = {"patch": 4, "width": 32, "depth": 3, "heads": 2, "layer_scale": None, **PLAIN}
TOWERS = {
    "dinov2": TowerConfig(**{**SIZES, "layer_scale": 1.0}, mlp=64, cls_token=True, registers=2, gelu="exact"),
    "siglip": TowerConfig(**SIZES, mlp=48, cls_token=False, registers=0, gelu="tanh"),
    "clip": TowerConfig(**SIZES, mlp=48, cls_token=True, registers=0, gelu="quick", norm_eps=1e-5, pre_norm=True),
}
TIMM_SIGLIP = dataclasses.replace(TOWERS["siglip"], gelu="exact")  # of 400M parameters
TOWERS["dinov2_plain"] = dataclasses.replace(TOWERS["dinov2"], width=16, depth=2, mlp=32, registers=0)
NAMED = ["dinov2", "siglip", "clip", "dinov2_plain", "timm_dinov2", "timm_siglip", "timm_dinov2_plain"]
LANGUAGE = {"vocabulary": 40, "width": 32, "depth": 2, "mlp": 48}
DECODERS = {
    "qwen2": LanguageConfig(**LANGUAGE, heads=4, kv_heads=2, qkv_bias=True, rope_theta=1e6, norm_eps=1e-6),
    "llama": LanguageConfig(**LANGUAGE, heads=2, kv_heads=2, qkv_bias=False, rope_theta=1e4, norm_eps=1e-5, tied=False),
}


@pytest.fixture(scope="session", params=["fixtures", "live"])
def made(request, tmp_path_factory):
    """The folder of the models: in the repository, or made now."""
    if request.param == "fixtures":
        return HERE / "fixtures"
    python = os.environ.get("PARITY_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torch, transformers"], capture_output=True).returncode:
        pytest.skip(f"{python} has no torch and transformers; make test sets PARITY_PYTHON to one that has")
    folder = tmp_path_factory.mktemp("live")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [python, "-W", "ignore", str(HERE / "make_fixtures.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def imported(module, folder, module_shapes):
    checkpoint = open_checkpoint(folder)
    shapes = {"/".join(path): leaf.shape for path, leaf in flatten_dict(module_shapes["params"]).items()}
    leaves = load(plan(module, shapes, checkpoint), checkpoint)
    return {"params": unflatten_dict({tuple(name.split("/")): leaf for name, leaf in leaves.items()})}


def agree(got, wanted):
    error = np.abs(np.asarray(got) - wanted).max() / np.abs(wanted).max()
    assert error < 1e-5, error


def see(made, name, features, pixels):
    """What our tower makes of pixels [B, 3, H, W], with the weights of that name."""
    config = TIMM_SIGLIP if name == "timm_siglip" else TOWERS[name.removeprefix("timm_")]
    tower = Tower(dataclasses.replace(config, features=features), Build())
    pixels = pixels.transpose(0, 2, 3, 1)
    module = name.removeprefix("timm_").removesuffix("_plain")
    values = imported(module, made / name, jax.eval_shape(tower.init, jax.random.key(0), pixels))
    return jax.jit(tower.apply)(values, pixels)


@pytest.mark.parametrize("features", ["penultimate", "last"])
@pytest.mark.parametrize("name", NAMED)
def test_towers(made, name, features):
    io = load_file(made / f"{name.removeprefix('timm_')}_io.safetensors")
    agree(see(made, name, features, io["pixels"]), io[f"timm_{features}" if name == "timm_siglip" else features])


@pytest.mark.parametrize("name", NAMED)
def test_towers_at_another_size_than_they_were_trained_at(made, name):
    io = load_file(made / f"{name.removeprefix('timm_')}_resized.safetensors")
    agree(see(made, name, "last", io["pixels"]), io["timm" if name.startswith("timm_") else "last"])


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(made, name):
    config = DECODERS[name]
    decoder = Decoder(config, Build())
    io = load_file(made / f"{name}_io.safetensors")
    tokens = io["tokens"].astype(np.int32)
    batch, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))

    def run(module, tokens):
        out = module(module.words(tokens), positions, causal)
        return out, module.logits(out)

    shapes = jax.eval_shape(functools.partial(decoder.init, method=run), jax.random.key(0), tokens)
    values = imported("language", made / name, shapes)
    out, logits = jax.jit(functools.partial(decoder.apply, method=run))(values, tokens)
    agree(out, io["last"])
    agree(logits, io["logits"])


def test_t5(made):
    model = T5(T5Config(vocabulary=40, width=32, depth=2, heads=2, mlp=48), Build())
    io = load_file(made / "t5_io.safetensors")
    tokens, mask = io["tokens"].astype(np.int32), io["mask"].astype(bool)
    values = imported("t5", made / "t5", jax.eval_shape(model.init, jax.random.key(0), tokens, mask))
    agree(np.asarray(jax.jit(model.apply)(values, tokens, mask))[mask], io["last"][mask])


@pytest.mark.parametrize("side", [4, 9])
@pytest.mark.parametrize("kind", ["antialiased", "plain"])
def test_positions_are_resampled_as_torch_does(made, kind, side):
    io = load_file(made / "positions.safetensors")
    got = resample(io["before"], side**2, antialias=kind == "antialiased")
    np.testing.assert_allclose(got, io[f"{kind}_{side}"], atol=2e-6 if side == 4 else 4e-6)


@pytest.mark.parametrize("size", [224, 230])  # a part of a patch at the edge is cut off
def test_positions_of_dinov2_without_registers(made, size):
    io = load_file(made / "positions.safetensors")
    np.testing.assert_allclose(resample(io["dinov2_518"], 256, antialias=False), io[f"dinov2_{size}"], atol=2e-6)
