"""openpi's optimizer config: what it trains under openpi's interface, and under its FSDP, LoRA, EMA and resume."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tyro
from flax import nnx
from jax.sharding import AbstractMesh

import maps_optax as mx
from octo_integration.clients.openpi import MapsAdamW, anchor_shardings
from tests.octo_integration.clients import openpi_stand_in as stand_in
from tests.octo_integration.clients.openpi_stand_in import OptimizerConfig, Plain, TrainConfig

ROOT = Path(__file__).parents[3]
TREES = ROOT.parent / "shared/reference/param_trees"
EIGHT = AbstractMesh((2, 4), ("batch", "fsdp"))
STEPS = 6
# A clip by the norm of all gradients lets a held leaf change a free one, so what is free is compared without.
UNCLIPPED = 1e9

SIGLIP = "PaliGemma/img/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel"
KERNEL = "PaliGemma/llm/layers/attn/q_einsum/w"
B = "PaliGemma/llm/layers/attn/q_einsum/lora_b"

EVERY_FIELD = MapsAdamW(3.0, "cosine", 0.1, "bfloat16", False, 0.8, 0.9, 1e-3, 0.1, 0.5)
LORA = MapsAdamW(2.0, clip_gradient_norm=UNCLIPPED)
LORA_HELD = MapsAdamW(2.0, "constant", hold_adapters=True, clip_gradient_norm=UNCLIPPED)

# The names of openpi's configs, by what `for_config` is to make of them.
CONFIG_NAMES = {
    MapsAdamW(lambda_max=1.5): """
        pi0_aloha pi05_aloha pi0_aloha_towel pi0_aloha_tupperware pi0_droid pi05_droid pi0_libero pi05_libero
        pi0_aloha_pen_uncap pi05_aloha_pen_uncap pi05_full_droid_finetune pi05_droid_finetune pi0_aloha_sim debug
        debug_restore debug_pi05 paligemma_diffusion_droid pi05_droid_jointpos_polaris pi0_droid_jointpos_polaris
        pi0_droid_jointpos_100k_polaris my_pi05_run""",
    MapsAdamW(lambda_max=0.5): """
        pi0_fast_droid pi0_fast_libero pi0_fast_full_droid_finetune pi0_fast_droid_jointpos_polaris
        paligemma_binning_droid_jointpos paligemma_binning_droid paligemma_fast_droid paligemma_fast_specialist_droid
        paligemma_vq_droid my_pi0_fast""",
    MapsAdamW(lambda_max=0.8, hold_adapters=True): """
        pi0_libero_low_mem_finetune pi0_fast_libero_low_mem_finetune pi05_lora""",
}


def adamw(lr: Any, clip: float = 1.0) -> optax.GradientTransformation:
    """openpi's AdamW config with its defaults, written in Optax."""
    step = optax.adamw(lr, b1=0.9, b2=0.95, eps=1e-8, weight_decay=1e-10)
    return optax.chain(optax.clip_by_global_norm(clip), step)


@functools.cache
def run(optimizer: OptimizerConfig, **options: Any) -> stand_in.Run:
    return stand_in.Run(TrainConfig(optimizer, **options), stand_in.one_device())


@functools.cache
def trained(optimizer: OptimizerConfig, **options: Any) -> Any:
    """The train state after all steps; nobody may donate it."""
    chosen = run(optimizer, **options)
    return chosen.train(chosen.init(), STEPS)


@functools.cache
def adamw_alone() -> Any:
    """The LoRA config under openpi's AdamW."""
    return trained(Plain(functools.partial(adamw, clip=UNCLIPPED)), lora=True, ema_decay=0.9)


def values(params: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in stand_in.named(params).items()}


def start(**options: Any) -> dict[str, np.ndarray]:
    return values(nnx.state(stand_in.Model(TrainConfig(MapsAdamW(), **options))))


def equal(a: Any, b: Any) -> None:
    assert jax.tree_util.tree_structure(a) == jax.tree_util.tree_structure(b)
    jax.tree_util.tree_map(np.testing.assert_array_equal, a, b)


def test_meets_the_protocol_that_openpi_checks_at_run_time_and_replaces_the_optimizer_of_a_frozen_config() -> None:
    assert isinstance(MapsAdamW(), OptimizerConfig)
    assert not isinstance(mx.maps(mx.presets.openpi(), 1.0), OptimizerConfig)
    config = dataclasses.replace(TrainConfig(Plain(adamw)), optimizer=MapsAdamW(lambda_max=2.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optimizer.lambda_max = 3.0  # type: ignore[attr-defined]


def test_openpis_command_line_overrides_every_kind_of_field() -> None:
    flags = {"lambda-max": 2.5, "schedule": "step", "max-pull": 1.0, "anchor-dtype": "bfloat16", "b2": 0.99}
    arguments = [text for name, value in flags.items() for text in (f"--optimizer.{name}", str(value))]
    configs = {"pi0": ("a config", TrainConfig(MapsAdamW()))}
    config = tyro.extras.overridable_config_cli(configs, args=["pi0", *arguments, "--optimizer.hold-adapters"])
    assert config.optimizer == MapsAdamW(2.5, "step", 1.0, "bfloat16", hold_adapters=True, b2=0.99)


@pytest.mark.parametrize("expected", CONFIG_NAMES, ids=["flow", "tokens", "LoRA"])
def test_reads_the_names_of_openpis_configs(expected: MapsAdamW) -> None:
    for name in CONFIG_NAMES[expected].split():
        assert MapsAdamW.for_config(name) == expected, name


@pytest.mark.parametrize("name", ["droid_low_mem", "pi1_libero", "api0_run", "pi0fast", ""])
def test_a_name_that_tells_no_family_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(ValueError, match=rf"config name '{name}'; use MapsAdamW\(lambda_max=...\)\.$"):
        MapsAdamW.for_config(name)


def test_a_negative_lambda_is_refused_when_openpi_creates_the_optimizer() -> None:
    with pytest.raises(ValueError, match="lambda_max is -1"):
        MapsAdamW(lambda_max=-1.0).create(1e-3)


def test_with_lambda_zero_it_is_openpis_adamw_bit_for_bit_and_keeps_no_anchor() -> None:
    state = trained(MapsAdamW(lambda_max=0.0))
    equal(values(state.params), values(trained(Plain(adamw)).params))
    assert jax.tree_util.tree_leaves(state.opt_state[2].anchor) == []


def test_every_field_reaches_its_transformation_as_in_a_chain_written_by_hand() -> None:
    def by_hand(lr: Any) -> optax.GradientTransformation:
        step = optax.adamw(lr, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.1)
        hold = mx.maps(mx.presets.openpi(), 3.0, "cosine", max_pull=0.1, anchor_dtype="bfloat16")
        return mx.chain(optax.clip_by_global_norm(0.5), step, hold)

    defaults = dataclasses.asdict(MapsAdamW())
    assert [k for k, v in dataclasses.asdict(EVERY_FIELD).items() if v == defaults[k]] == ["hold_adapters"]
    state, reference = trained(EVERY_FIELD), trained(Plain(by_hand))
    equal(values(state.params), values(reference.params))
    equal(state.opt_state, reference.opt_state)
    assert float(state.opt_state[2].pull.max()) == pytest.approx(0.1)


def test_the_weight_decay_mask_reaches_adamw() -> None:
    params: dict[str, Any] = {}
    for name, shape in stand_in.SHAPES.items():
        if "/img/" in name:
            params[name] = jnp.ones(shape)
    mask = {name: "embedding" in name for name in params}
    tx = MapsAdamW(0.0, weight_decay=0.5).create(0.1, mask)
    updates, _ = tx.update(jax.tree_util.tree_map(jnp.zeros_like, params), tx.init(params), params)
    for name, update in updates.items():
        np.testing.assert_allclose(update, -0.05 if mask[name] else 0.0, rtol=1e-6)


def test_the_state_has_the_types_that_openpis_type_check_passes_and_one_structure_traced_or_not() -> None:
    chosen = run(LORA, lora=True, ema_decay=0.9)
    state = trained(LORA, lora=True, ema_decay=0.9)
    assert isinstance(chosen.shapes.tx, optax.GradientTransformation)
    assert type(state.opt_state) is tuple and isinstance(state.opt_state[2].anchor, nnx.State)
    assert jax.tree_util.tree_structure(state) == jax.tree_util.tree_structure(chosen.shapes)


def test_siglip_is_held_while_action_expert_projections_and_adapters_train_as_under_adamw() -> None:
    theta0, free = start(lora=True), values(adamw_alone().params)
    for name, value in values(trained(LORA, lora=True, ema_decay=0.9).params).items():
        if "/img/" in name:
            distance = np.linalg.norm(value - theta0[name])
            assert 0 < distance < 0.97 * np.linalg.norm(free[name] - theta0[name]), name
        else:
            np.testing.assert_array_equal(value, free[name], name)


def test_what_a_lora_config_freezes_in_bfloat16_stays_and_only_what_is_held_has_an_anchor() -> None:
    theta0, config = start(lora=True), TrainConfig(LORA, lora=True)
    state = trained(LORA, lora=True, ema_decay=0.9)
    frozen = [name for name in theta0 if config.frozen(name)]
    assert KERNEL in frozen
    for name in frozen:
        assert values(state.params)[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(values(state.params)[name], theta0[name])
    assert set(values(state.opt_state[2].anchor)) == {name for name in theta0 if "/img/" in name}


def test_the_anchor_is_still_what_was_loaded_after_donated_steps_beside_an_average_of_the_weights() -> None:
    theta0, state = start(lora=True), trained(LORA, lora=True, ema_decay=0.9)
    assert not np.array_equal(values(state.ema_params)[SIGLIP], values(state.params)[SIGLIP])
    for name, anchor in values(state.opt_state[2].anchor).items():
        np.testing.assert_array_equal(anchor, theta0[name])


def test_hold_adapters_scales_the_second_factor_of_gemmas_adapters_and_leaves_those_of_the_expert_free() -> None:
    """Only the last step triggers, so all that it does to B shows against AdamW."""
    state = trained(LORA_HELD, lora=True)
    held, free = values(state.params), values(adamw_alone().params)
    pulls = np.asarray(state.opt_state[3].pull).reshape(2, 2)
    assert (pulls > 0.01).all()
    for name, pull in zip((B, "PaliGemma/llm/layers/mlp/linear_lora_b"), pulls):
        kept = (1 - pull).reshape(-1, *(1,) * (free[name].ndim - 1))
        np.testing.assert_allclose(held[name], kept * free[name], rtol=1e-5)
    for name in held:
        if "lora_a" in name or ("/llm/" in name and "_1/" in name) or name.startswith("action"):
            np.testing.assert_array_equal(held[name], free[name], name)


def test_held_adapters_have_the_lambda_that_their_kernel_has_in_full_fine_tuning() -> None:
    def members(**options: Any) -> Any:
        config = TrainConfig(MapsAdamW(2.0, hold_adapters=bool(options)), **options)
        params = nnx.filter_state(nnx.state(stand_in.Model(config)), config.trainable_filter)
        return config.optimizer.create(1e-3).init(params)[2:]

    siglip, adapters = members(lora=True)
    (full,) = members()
    kernel = values(full.anchor)[KERNEL].shape[0]
    assert adapters.strength.tolist() == pytest.approx([0.4, 0.0] * (adapters.strength.size // kernel), abs=1e-7)
    np.testing.assert_array_equal(siglip.strength, full.strength[: siglip.strength.size])


def test_hold_adapters_without_adapters_is_an_error() -> None:
    with pytest.raises(ValueError, match="no leaf is the A of an adapter"):
        run(MapsAdamW(hold_adapters=True))


def placed(optimizer: OptimizerConfig, place: Any = lambda shardings: shardings) -> tuple[dict[str, Any], Any]:
    """Under a rule by bytes on eight devices: where the parameters lie, and where their anchors do."""
    shardings = stand_in.Run(TrainConfig(optimizer), EIGHT, place).shardings
    return stand_in.named(shardings.params), stand_in.named(shardings.opt_state[2].anchor)


def test_a_float32_anchor_is_split_as_its_parameter_under_a_rule_by_bytes() -> None:
    params, anchors = placed(MapsAdamW(2.0))
    assert anchors == {name: params[name] for name in anchors}
    assert "fsdp" in params[SIGLIP].spec


def test_a_bfloat16_anchor_is_split_as_its_parameter_with_the_helper_and_not_without() -> None:
    params, anchors = placed(EVERY_FIELD)
    assert [name for name in anchors if anchors[name] != params[name]] == [SIGLIP]
    params, anchors = placed(EVERY_FIELD, anchor_shardings)
    assert anchors == {name: params[name] for name in anchors}
    assert "fsdp" in anchors[SIGLIP].spec


def test_the_helper_changes_nothing_but_anchors_and_nothing_of_another_optimizer() -> None:
    for optimizer in (Plain(adamw), EVERY_FIELD):
        shardings = stand_in.Run(TrainConfig(optimizer, ema_decay=0.9), EIGHT).shardings
        changed = anchor_shardings(shardings)
        if isinstance(optimizer, MapsAdamW):
            back = changed.opt_state[2]._replace(anchor=shardings.opt_state[2].anchor)
            changed = dataclasses.replace(changed, opt_state=(*changed.opt_state[:2], back))
        assert jax.tree_util.tree_structure(changed) == jax.tree_util.tree_structure(shardings)
        assert jax.tree_util.tree_leaves(changed) == jax.tree_util.tree_leaves(shardings)


ON_EIGHT_DEVICES = """
import json, jax, numpy as np
from jax.sharding import Mesh
from octo_integration.clients.openpi import anchor_shardings
from tests.octo_integration.clients import openpi_stand_in as stand_in
from tests.octo_integration.clients.test_openpi import EVERY_FIELD, STEPS

mesh = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("batch", "fsdp"))
run = stand_in.Run(stand_in.TrainConfig(EVERY_FIELD), mesh, anchor_shardings)
state = run.train(run.init(), STEPS)
params, anchors = stand_in.named(state.params), stand_in.named(state.opt_state[2].anchor)
print(json.dumps({
    "elsewhere": [k for k, a in anchors.items() if not a.sharding.is_equivalent_to(params[k].sharding, a.ndim)],
    "split": [k for k, a in anchors.items() if "fsdp" in a.sharding.spec],
    "params": {k: np.asarray(x).tolist() for k, x in params.items()},
}))
"""


def test_eight_devices_train_like_one_with_a_bfloat16_anchor_that_lies_where_its_parameter_does() -> None:
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["elsewhere"] == [] and found["split"] == [SIGLIP]
    one = values(trained(EVERY_FIELD).params)
    for name, value in found["params"].items():
        np.testing.assert_allclose(value, one[name], atol=1e-5, err_msg=name)


@pytest.mark.skipif(not TREES.is_dir(), reason=f"no parameter trees: {TREES} is not here")
def test_in_no_model_of_openpi_does_the_4_MiB_rule_split_a_held_parameter_and_not_its_bfloat16_anchor() -> None:
    files = sorted(TREES.glob("openpi_pi0*.json")) + sorted(TREES.glob("openpi_debug*.json"))
    assert len(files) == 7
    for file in files:
        rows = json.loads(file.read_text())
        params = {".".join(r["path"]): jax.ShapeDtypeStruct(tuple(r["shape"]), jnp.float32) for r in rows}
        strengths = mx.strengths(mx.presets.openpi(), params, 1.0)
        held = {name: x for name, x in params.items() if np.any(strengths[name])}
        assert len(held) > 20
        for name, x in held.items():
            anchor = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
            specs = [stand_in.fsdp_sharding(leaf, EIGHT, 4 * 2**20) for leaf in (x, anchor)]
            assert specs[0] == specs[1], (file.stem, name)


@pytest.mark.parametrize("detached", [False, True])
def test_resuming_from_a_checkpoint_continues_bit_for_bit(tmp_path: Path, detached: bool) -> None:
    """Orbax restores into the shapes of the train state; θ0 rides along, or is put back from the weights loaded."""
    chosen = run(LORA_HELD, lora=True)
    state, target = chosen.train(chosen.init(), 4), chosen.shapes
    if detached:
        state = dataclasses.replace(state, opt_state=mx.detach_anchor(state.opt_state))
        target = dataclasses.replace(target, opt_state=jax.eval_shape(mx.detach_anchor, target.opt_state))
        assert len(jax.tree_util.tree_leaves(state.opt_state[2].anchor)) == 5
        assert {x.shape for x in jax.tree_util.tree_leaves(state.opt_state[2].anchor)} == {(3,)}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        restored = checkpointer.restore(tmp_path / "state", item=target, restore_args=arguments)
    if detached:
        config = TrainConfig(LORA_HELD, lora=True)
        loaded = nnx.filter_state(nnx.state(stand_in.Model(config)), config.trainable_filter)
        restored = dataclasses.replace(restored, opt_state=mx.attach_anchor(restored.opt_state, loaded))
    resumed, uninterrupted = chosen.train(restored, STEPS - 4), trained(LORA_HELD, lora=True)
    equal(values(resumed.params), values(uninterrupted.params))
    equal(resumed.opt_state, uninterrupted.opt_state)
