"""The table of methods: each says of every kind of run what it did when one function for each question asked for it."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import optax
import pytest

from octo_integration.config import FinetuneConfig, MapsConfig, Method, OptimizerConfig
from octo_integration.model.config import LoraConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.state import lora
from octo_integration.state.methods import METHODS, Hold, holding
from octo_integration.state.optimizer import make_optimizer
from octo_integration.state.setup import abstract_params, build
from octo_integration.train.checks import _Sizes
from tests.octo_integration import micro, micro_vla

# drift.json's label and strengths (of each layer, how many tensors have which), and what was printed before the run.
RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
LORA = LoraConfig(rank=2, alpha=4.0, targets=("language/blocks/attn", "bridge/"))
COSINE = MapsConfig(
    schedule="cosine", lambda_max=2.0, max_pull=1.0, anchor_dtype="bfloat16", anchor_memory="pinned_host"
)


def case(name: str) -> FinetuneConfig:
    """'maps-full', 'adam-lora', 'maps-lora-zero' ..."""
    method, trained, *option = name.split("-")
    maps = MapsConfig(method=method)
    if option:
        maps = COSINE if option == ["cosine"] else MapsConfig(adapters=option[0])
    return FinetuneConfig("", model="micro", weights=None, maps=maps, lora=LORA if trained == "lora" else LoraConfig())


@pytest.fixture
def of(monkeypatch):
    """of(config): what its method is to a run of the micro model on Meta-World's data."""
    monkeypatch.setitem(CONFIGS, "micro", micro_vla.CONFIG)

    def call(config: FinetuneConfig) -> Hold:
        built = build(config, _Sizes(action_dim=4, proprio_dim=4))
        return holding(config, built.layers, abstract_params(config, built))

    return call


def test_the_table_has_the_names_that_a_config_can_have() -> None:
    assert set(METHODS) == set(get_args(Method))


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_told_of_a_run_is_what_was_told(of, name: str) -> None:
    hold, recorded = of(case(name)), RECORDED[name]
    assert hold.label == recorded["label"]
    assert hold.table.splitlines() == recorded["table"]
    layers: dict[str, Counter] = {}
    for s in hold.slices:
        if s.position is not None:
            layers.setdefault(f"{s.module}/{s.block}", Counter())[str(hold.lambda_max * s.ratio)] += 1
    assert layers == recorded["strengths"]


@pytest.mark.parametrize(
    ("name", "members", "anchored", "measured", "memory"),
    [
        ("adam-full", ("EmptyState", "EmptyState"), False, False, "device"),
        ("l2_sp-full", ("L2SPState", "EmptyState"), True, False, "device"),
        ("maps-full-cosine", ("EmptyState", "SPDState"), True, True, "pinned_host"),
        ("adam-lora", ("EmptyState", "EmptyState"), False, False, "device"),
        ("l2_sp-lora", ("L2SPState", "EmptyState"), False, False, "device"),
        ("maps-lora", ("EmptyState", "SPDState"), False, True, "device"),
        ("maps-lora-free", ("EmptyState", "SPDState"), False, True, "device"),
    ],
)
def test_what_stands_in_the_chain_and_where_theta0_is(of, name, members, anchored, measured, memory) -> None:
    hold = of(case(name))
    assert (hold.anchored, hold.measured, hold.anchor_memory) == (anchored, measured, memory)
    config = case(name)
    shapes = lora.split(abstract_params(config, build(config, _Sizes())))[0]
    state = jax.eval_shape(make_optimizer(config, hold).init, shapes)
    assert (type(state[0]).__name__, type(state[3]).__name__) == members
    theta0 = [member.anchor for member in (state[0], state[3]) if hasattr(member, "anchor")]
    assert (sum(leaf.size for leaf in jax.tree.leaves(theta0)) > 50000) == anchored


@pytest.mark.parametrize(
    ("name", "memory"), [("maps-full", "pinned_host"), ("maps-lora", "device"), ("l2_sp-full", "device")]
)
def test_only_maps_on_all_parameters_heeds_where_the_pretrained_copy_shall_be(of, name: str, memory: str) -> None:
    """Also when a checkpoint is read: the step takes its state from where it was compiled for."""
    config = case(name)
    pinned = dataclasses.replace(config, maps=dataclasses.replace(config.maps, anchor_memory="pinned_host"))
    assert of(pinned).anchor_memory == memory


def test_a_method_is_one_entry(monkeypatch) -> None:
    """What holds is whatever stands in the table, and its members stand around AdamW."""
    own = Hold("own", "nothing", (), before=optax.scale(2.0), after=optax.scale(0.5))
    monkeypatch.setitem(METHODS, "adam", METHODS["adam"]._replace(full=lambda config, layers, shapes: own))
    config = FinetuneConfig("", maps=MapsConfig(method="adam"), optimizer=OptimizerConfig(lr=0.1, warmup=0))
    hold = holding(config, micro.LAYERS, micro.params())
    assert hold is own
    params = {"x": {"bias": jax.numpy.ones(3)}}
    grads = {"x": {"bias": jax.numpy.full(3, 0.1)}}
    txs = [make_optimizer(config, h) for h in (hold, Hold("adam", "", ()))]
    halved, whole = (tx.update(grads, tx.init(params), params)[0]["x"]["bias"] for tx in txs)
    np.testing.assert_allclose(halved, whole / 2, rtol=1e-5)
    assert whole.all()
