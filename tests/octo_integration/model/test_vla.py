import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import maps_optax as mx
from octo_integration.model.config import PRETRAINED
from octo_integration.model.sizes import CONFIGS as SIZES
from octo_integration.model.vla import VLA
from tests.octo_integration.model.small import SMALL, TINY, initial, inputs, params, run

STACK = ("dinov2", "siglip", "bridge", "language")


@functools.cache
def tiny_shapes():
    init = functools.partial(VLA(TINY).init, jax.random.key(0))
    return flatten_dict(jax.eval_shape(init, *inputs(TINY))["params"], sep="/")


def test_tiny_has_less_than_a_million_parameters_and_small_10_to_20():
    assert 5e5 < sum(x.size for x in tiny_shapes().values()) < 1e6
    shapes = jax.eval_shape(VLA(SIZES["small"]).init, jax.random.key(0), *inputs(SIZES["small"]))["params"]
    assert 1e7 < sum(x.size for x in jax.tree.leaves(shapes)) < 2e7


def test_tiny_fits_in_8_megabytes_as_bfloat16():
    kept = [x for name, x in tiny_shapes().items() if name.split("/")[0] in PRETRAINED]
    assert 2 * sum(x.size for x in kept) < 7.9e6


def test_names_of_the_tree():
    shapes = tiny_shapes()
    assert {name.split("/")[0] for name in shapes} == {*STACK, "readout", "action_head", "proprio_projector"}
    depth, width = TINY.dinov2.depth, TINY.dinov2.width
    wanted = {
        "dinov2/patch_embed/kernel": (8, 8, 3, width),
        "dinov2/patch_embed/bias": (width,),
        "dinov2/pos_embed": (64, width),
        "dinov2/cls_token": (1, width),
        "dinov2/register_tokens": (4, width),
        "dinov2/blocks/norm1/scale": (depth, width),
        "dinov2/blocks/ls1": (depth, width),
        "dinov2/blocks/mlp/fc2/kernel": (depth, TINY.dinov2.mlp, width),
        "dinov2/norm/bias": (width,),
        "siglip/blocks/attn/query/kernel": (4, 64, 2, 32),
        "siglip/blocks/attn/out/kernel": (4, 2, 32, 64),
        "bridge/fc1/kernel": (128, 512),
        "bridge/fc3/bias": (64,),
        "language/embed/embedding": (768, 64),
        "language/blocks/attn/key/kernel": (4, 64, 2, 32),
        "language/blocks/attn/value/bias": (4, 2, 32),
        "language/blocks/mlp/gate/kernel": (4, 64, 176),
        "language/norm/scale": (64,),
        "readout/embedding": (8, 64),
        "action_head/out/kernel": (64, 4),
        "proprio_projector/fc1/kernel": (4, 64),
    }
    assert {name: shapes[name].shape for name in wanted} == wanted
    absent = ["siglip/cls_token", "siglip/blocks/ls1", "language/blocks/attn/out/bias"]
    assert not [name for name in absent if name in shapes]
    assert {x.dtype.name for x in shapes.values()} == {"float32"}


def test_the_preset_places_every_leaf():
    strengths = flatten_dict(mx.strengths(mx.presets.vla(), params(), 1.0, "constant"), sep="/")
    held = {name.split("/")[0] for name, strength in strengths.items() if np.any(strength)}
    assert held == set(STACK)


@pytest.mark.parametrize("scan", [True, False])
def test_the_stack_can_be_read_off_the_forward_pass(scan):
    model = VLA(dataclasses.replace(SMALL, scan=scan, remat="full"))
    tree = jax.eval_shape(model.init, jax.random.key(0), *inputs())["params"]

    def apply(params, observation, task):
        return model.apply({"params": params}, observation, task)

    free = ["readout/", "action_head/", "proprio_projector/"]
    found, wanted = (
        mx.slices(stack, tree) for stack in (mx.infer_layers(apply, tree, *inputs(), free=free), mx.presets.vla())
    )
    bridge = {s.path: int(s.path[len("bridge/fc")]) - 1 for s in wanted if s.module == "bridge"}
    assert set(bridge.values()) == {0, 1, 2}  # three layers in the data flow, one in the preset
    for a, b in zip(found, wanted):
        later = 2 * (b.module == "language") + bridge.get(b.path, 0)
        assert a.position == (None if b.position is None else b.position + later), b.path


def test_output_form():
    actions = run(*inputs())
    assert actions.shape == (2, SMALL.chunk, SMALL.action_dim) and actions.dtype == np.float32
    assert np.abs(actions).max() > 0


def test_more_padding_changes_nothing():
    observation, task = inputs()
    longer = inputs(length=30)[1]
    longer["tokens"][~longer["mask"]] = 7  # whatever stands there
    np.testing.assert_allclose(run(observation, longer), run(observation, task), atol=1e-5)


def test_missing_timesteps_change_nothing():
    wide, task = inputs(window=2)
    observation = {name: x[:, -1:] for name, x in wide.items()}
    wide["timestep_pad_mask"][:, :-1] = False
    np.testing.assert_allclose(run(wide, task), run(observation, task), atol=1e-5)


def test_every_timestep_is_read_as_if_it_were_the_last():
    observation, task = inputs(window=2)

    def read(observation):
        return np.asarray(VLA(SMALL).apply({"params": params()}, observation, task, method="read"))

    both, first = read(observation), read({name: x[:, :1] for name, x in observation.items()})
    assert both.shape == (2, 2, SMALL.chunk, SMALL.language.width)
    ended = {**observation, "timestep_pad_mask": np.array([[True, False]] * 2)}
    np.testing.assert_allclose(read(ended)[:, 0], first[:, 0], atol=1e-5)
    later = inputs(window=2, seed=9)[0]
    changed = {name: np.concatenate([x[:, :1], later[name][:, 1:]], axis=1) for name, x in observation.items()}
    np.testing.assert_allclose(read(changed)[:, 0], both[:, 0], atol=1e-5)
    assert np.abs(read(changed)[:, 1] - both[:, 1]).max() > 1e-3


def test_the_loss_is_that_of_every_real_timestep():
    observation, task = inputs(window=2)
    observation["timestep_pad_mask"][0, 0] = False
    rng = np.random.default_rng(3)
    action = rng.normal(size=(2, 1 + SMALL.chunk, SMALL.action_dim)).astype(np.float32)
    mask = rng.random(action.shape) < 0.8
    batch = {"observation": observation, "task": task, "action": action, "action_pad_mask": mask}
    got, _ = VLA(SMALL).apply({"params": params()}, batch, jax.random.key(0), method="loss")
    x = VLA(SMALL).apply({"params": params()}, observation, task, method="read")
    guess = [VLA(SMALL).bind({"params": params()}).action_head.predict(x[:, t], jax.random.key(0)) for t in (0, 1)]
    rows = [(0, 1), (1, 0), (1, 1)]
    errors = [np.abs(guess[t][i] - action[i, t : t + SMALL.chunk])[mask[i, t : t + SMALL.chunk]] for i, t in rows]
    np.testing.assert_allclose(got, np.concatenate(errors).mean(), rtol=1e-5)


@pytest.mark.parametrize("name", ["image_primary", "proprio"])
@pytest.mark.parametrize("step", [0, 1])
def test_every_real_timestep_counts(name, step):
    changed, task = inputs()
    changed[name][:, step] = inputs(seed=9)[0][name][:, step]
    assert np.abs(run(changed, task) - run(*inputs())).max() > 1e-4


def test_the_instruction_counts():
    observation, task = inputs()
    assert np.abs(run(observation, task) - run(observation, inputs(text="drop it")[1])).max() > 1e-4


def test_samples_do_not_see_each_other():
    observation, task = inputs()
    other = inputs(seed=9)[0]
    mixed = {name: np.stack([x[0], other[name][1]]) for name, x in observation.items()}
    got, before = run(mixed, task), run(observation, task)
    np.testing.assert_array_equal(got[0], before[0])
    assert np.abs(got[1] - before[1]).max() > 1e-4


def test_gradient_reaches_every_leaf():
    observation, task = inputs()

    @jax.jit
    def gradient(values):
        def loss(values):
            actions = VLA(SMALL).apply({"params": values}, observation, task)
            return jnp.abs(actions - 1.0).mean()

        return jax.grad(loss)(values)

    for values in (params(), initial()):
        largest = jax.tree.map(lambda g: float(jnp.abs(g).max()), gradient(values))
        flat = flatten_dict(largest, sep="/")
        # A bias common to all keys cancels in the softmax; with rotary positions it does not.
        silent = {f"{tower}/blocks/attn/key/bias" for tower in ("dinov2", "siglip")}
        assert {name for name, g in flat.items() if not g > 1e-7} <= silent
        assert silent <= set(flat)


def test_bfloat16_activations_are_close_and_parameters_stay_float32():
    observation, task = inputs()
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    exact, rounded = run(observation, task), run(observation, task, half)
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).mean() < 0.1 * np.abs(exact).mean()
    shapes = jax.eval_shape(VLA(half).init, jax.random.key(0), observation, task)
    assert {x.dtype.name for x in jax.tree.leaves(shapes)} == {"float32"}


def test_matrix_products_are_in_the_compute_dtype_but_for_scores_and_the_last():
    half = VLA(dataclasses.replace(SMALL, dtype="bfloat16"))
    text = str(jax.make_jaxpr(half.apply)({"params": params()}, *inputs()))
    products = [line for line in text.splitlines() if "dot_general" in line]
    wide = [line for line in products if ":f32" in line.split("=")[0]]
    # Attention scores in the one traced block of each of three stacks, and the head's output.
    assert len(wide) == 4 < len(products) / 2


def test_wrong_sizes_are_named():
    observation, task = inputs()
    for name, bad in {
        "image_primary": np.zeros((2, 1, 24, 24, 3), np.uint8),
        "proprio": np.zeros((2, 1, 7), np.float32),
    }.items():
        with pytest.raises(ValueError, match=f"observation/{name} has shape"):
            VLA(SMALL).apply({"params": params()}, {**observation, name: bad}, task)


def test_actions_and_masks_of_another_shape_are_named():
    observation, task = inputs()
    right = np.zeros((2, 2 - 1 + SMALL.chunk, SMALL.action_dim), np.float32)
    for name, bad in {"action": right[..., :3], "action_pad_mask": np.ones((2, SMALL.chunk), bool)}.items():
        batch = {"observation": observation, "task": task, "action": right, "action_pad_mask": right == 0, name: bad}
        with pytest.raises(ValueError, match=f"model: {name} has shape .* the configuration says"):
            VLA(SMALL).apply({"params": params()}, batch, jax.random.key(0), method="loss")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda: dataclasses.replace(SMALL, image_size=20), "image_size 20 is no multiple"),
        (lambda: dataclasses.replace(SMALL.dinov2, heads=3), "width 16 is not a multiple of heads"),
        (lambda: dataclasses.replace(SMALL.language, kv_heads=3), "not a multiple of kv_heads 3"),
        (lambda: dataclasses.replace(SMALL.language, heads=32), "not an even integer"),
        (
            lambda: dataclasses.replace(SMALL, siglip=dataclasses.replace(SMALL.siglip, patch=4)),
            "patch sizes",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change()
