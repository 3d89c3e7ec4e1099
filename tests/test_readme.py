"""The front page: short, its snippets run where they say they go, its numbers are the study's."""

import dataclasses
import re
import sys
import types
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import maps_optax as mx
from octo_integration.clients import big_vision
from tests.octo_integration.clients import big_vision_stand_in, octo_stand_in

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = dict(
    zip(("optax", "linen", "nnx", "octo", "openpi", "big_vision"), re.findall(r"```python\n(.*?)```", README, re.S))
)


def run(name: str, **names: Any) -> dict[str, Any]:
    """The variables after a snippet that was given these."""
    exec(compile(SNIPPETS[name], f"README.md, {name}", "exec"), names)
    return names


class Tower(nn.Module):
    """Leaves at the places that the README's stack names."""

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x = x + nn.Dense(4, name=f"vit/block_{i}")(x)
        stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return nn.Dense(4, name="head")(stack(name="llm/layers")(x, None)[0])


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(4)(x), None


MODEL = Tower()


@pytest.fixture(scope="module")
def plain():
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    return run("optax", params=params, grads=jax.tree.map(jnp.ones_like, params))


def test_it_is_short():
    assert len(README.splitlines()) <= 150 and len(README) <= 12000
    assert len(re.findall(r"```python\n", README)) == len(SNIPPETS) == 6


def test_plain_optax(plain):
    strengths = mx.strengths(plain["layers"], plain["params"], lambda_max=1.0)
    assert [strengths[f"vit/block_{i}"]["kernel"] for i in range(3)] == [1.0, 0.75, 0.5]
    assert strengths["llm/layers"]["Dense_0"]["kernel"].tolist() == [0.25, 0.0]
    assert strengths["head"]["kernel"] == 0
    assert float(mx.metrics(plain["opt_state"])["drift"]) > 0


def test_linen(plain):
    state = run("linen", model=MODEL, params=plain["params"], tx=plain["tx"])["state"]
    assert float(mx.metrics(state.apply_gradients(grads=plain["grads"]).opt_state)["drift"]) > 0


def test_nnx(plain):
    model = nnx.Dict(
        vit=nnx.Dict(block_0=nnx.Linear(4, 4, rngs=nnx.Rngs(0)), block_1=nnx.Linear(4, 4, rngs=nnx.Rngs(1))),
        llm=nnx.Dict(layers=nnx.Dict(kernel=nnx.Param(jnp.ones((2, 4, 4))))),
        head=nnx.Linear(4, 4, rngs=nnx.Rngs(2)),
    )
    optimizer = run("nnx", model=model, tx=plain["tx"])["optimizer"]
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    assert float(mx.metrics(optimizer.opt_state)["drift"]) > 0


def test_octo(monkeypatch):
    """Leaves that are as before loading are free, the others are held."""
    octo, utils = types.ModuleType("octo"), types.ModuleType("octo.utils")
    utils.train_utils = octo_stand_in.train_utils
    monkeypatch.setitem(sys.modules, "octo", octo)
    monkeypatch.setitem(sys.modules, "octo.utils", utils)
    initial, params = octo_stand_in.octo_params(0), octo_stand_in.octo_params(1)
    params["octo_transformer"]["obs_primary_projection"] = initial["octo_transformer"]["obs_primary_projection"]
    rate = {"init_value": 0.0, "peak_value": 1e-3, "warmup_steps": 2}
    options = {"learning_rate": rate, "weight_decay": 0.01, "clip_gradient": 1.0, "frozen_keys": ("*hf_model*",)}
    config = types.SimpleNamespace(optimizer=types.SimpleNamespace(to_dict=lambda: options))
    found = run("octo", params=params, initial=initial, FLAGS=types.SimpleNamespace(config=config))
    (state,) = octo_stand_in.anchors(found["tx"].init(params))
    held = {"/".join(key.key for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(state.anchor)[0]}
    assert any("encoderblock_2" in name for name in held)
    assert not any("obs_primary_projection" in name or "hf_model" in name or "heads" in name for name in held)
    assert float(found["lr_callable"](2)) == pytest.approx(1e-3)


def test_openpi():
    @dataclasses.dataclass(frozen=True)
    class Config:
        name: str
        optimizer: Any = None

    optimizer = run("openpi", config=Config("pi05_libero"))["config"].optimizer
    assert optimizer.lambda_max == 1.5
    assert callable(optimizer.create(1e-3).update)


def test_big_vision():
    """The line of the config, then those of the trainer, which loads weights after `tx.init`."""
    setting = re.search(r"`config\.maps = (dict\(.*?)\)`, with `(free=\[.*?\])`", README)
    config = big_vision_stand_in.Config(
        optax_name="scale_by_adam", lr=0.1, schedule={}, maps=eval(f"{setting[1]}, {setting[2]})")
    )
    bv_optax = big_vision_stand_in.bv_optax
    initial, loaded = (
        {
            "img": big_vision_stand_in.weights("numbered", int(seed))["img"],
            "llm": {"final_norm": {"scale": jnp.full(4, seed)}},
            "head": {"kernel": jnp.full((4, 4), seed)},
        }
        for seed in (0.0, 1.0)
    )
    before, _ = big_vision.make(bv_optax, config, initial, sched_kw={"total_steps": 10})
    names = run(
        "big_vision",
        bv_optax=bv_optax,
        config=config,
        params_shape=initial,
        sched_kw={"total_steps": 10},
        train_state={"opt": before.init(initial), "params": loaded},
    )
    (state,) = octo_stand_in.anchors(names["train_state"]["opt"])
    bridge, new = state.anchor["img"]["head"]["kernel"], state.anchor["head"]
    assert (bridge == loaded["img"]["head"]["kernel"]).all()
    assert not jax.tree.leaves(new)


def test_the_results_are_the_studys():
    """The four rows, and the numbers after 800 steps, stand in the study's table of gaps."""
    section = (
        (ROOT / "benchmarks/generalization/tables.md").read_text().split("## The gap between")[1].split("\n## ")[0]
    )
    cells = [
        [c.strip(" *") for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")
    ]
    study = {row[0]: row[3:6] for row in cells}
    shown = re.findall(r"^\| (.*?) \| (\.\d+) \| (\.\d+) \| (\.\d+) \|$", README, re.M)
    names = {"Adam": "Adam", "both towers frozen": "both towers frozen", "uniform λ 2 (`mx.spd`)": "uniform SPD, λ 2",
             "MAPS, linear λ, λ_max 3": "MAPS, linear, λ 3"}  # fmt: skip
    assert {names[row[0]]: list(row[1:]) for row in shown} == {name: study[name] for name in names.values()}
    text = " ".join(README.split())
    assert "after 800 steps has {}, {} and a gap of {}".format(*study["Adam, twice the steps"]) in text
    assert "(MAPS, λ_max 2: {}, {}, {})".format(*study["linear, twice the steps, λ 2"]) in text
