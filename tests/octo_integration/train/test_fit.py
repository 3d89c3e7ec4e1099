"""`fit`: a linen model, an nnx model and a plain pytree, resumed bit for bit, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import maps_optax as mx
from octo_integration.cli import commands
from octo_integration.train import Fitted, MeshConfig, fit

ROOT = Path(__file__).parents[3]


class ViT(nn.Module):
    """Patches of 4 x 4, two blocks stacked by nn.scan, a head."""

    width: int = 16

    @nn.compact
    def __call__(self, image):
        x = nn.Conv(self.width, (4, 4), strides=4, name="embed")(image).reshape(len(image), -1, self.width)
        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return nn.Dense(3, name="head")(stack(name="blocks")(x, None)[0].mean(axis=1))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        # Without biases: the keys' has no gradient but rounding, of which Adam makes whole steps.
        x = x + nn.MultiHeadDotProductAttention(2, use_bias=False, name="attn")(nn.LayerNorm(name="norm")(x))
        return x + nn.Dense(x.shape[-1], name="mlp")(nn.gelu(x)), None


LAYERS = mx.LayerStack({"vision": {r"embed/": "first", r"blocks/": "stacked"}}, free=[r"^head/"])
STEPS, BATCH = 6, 8


def images(n: int, size: int = BATCH):
    """Batches from number n on."""
    while True:
        rng = np.random.default_rng(n)
        image = rng.normal(size=(size, 8, 8, 1)).astype(np.float32)
        yield {"image": image, "label": image.mean(axis=(1, 2)) * np.ones(3, np.float32)}
        n += 1


def of_linen():
    model = ViT()
    params = jax.device_get(model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"])

    def loss(params, batch, key):
        error = model.apply({"params": params}, batch["image"]) - batch["label"]
        noise = jax.random.uniform(key)
        return jnp.mean(error**2) + 0.01 * noise * jnp.mean(error), {"drawn": noise}

    return loss, params, LAYERS


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(64, 64, rngs=rngs) for _ in range(2)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = x + jnp.tanh(block(x))
        return self.head(x)


def of_nnx():
    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)

    def loss(params, batch, key):
        model = nnx.merge(graph, params, rest)
        return jnp.mean((model(batch["image"].reshape(BATCH, -1)) - batch["label"]) ** 2)

    return loss, params, mx.LayerStack({"net": {r"blocks/(\d+)/": "block"}}, free=[r"^head/"])


def of_pytree():
    key = jax.random.split(jax.random.key(0))
    params = [jax.random.normal(key[0], (64, 16)) / 8, (jax.random.normal(key[1], (16, 3)) / 4, jnp.zeros(3))]

    def loss(params, batch, key):
        kernel, (head, bias) = params
        x = jnp.tanh(batch["image"].reshape(len(batch["image"]), -1) @ kernel)
        return jnp.mean((x @ head + bias - batch["label"]) ** 2)

    return loss, params, None


MODELS = {"linen": of_linen, "nnx": of_nnx, "pytree": of_pytree}


def tx_of(layers):
    hold = mx.spd(1.0) if layers is None else mx.maps(layers, 2.0)
    return mx.chain(optax.adamw(3e-3), hold)


def trained(out: Path, model: str = "linen", steps: int = STEPS, **options) -> Fitted:
    loss, params, layers = MODELS[model]()
    options = {"log_every": 1, "save_every": 2, "layers": layers, **options}
    return fit(loss, params, options.pop("tx", tx_of(layers)), images, out=out, steps=steps, **options)


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("model", MODELS)
def test_it_is_the_loop_that_one_writes_oneself(tmp_path, model):
    loss, params, layers = MODELS[model]()
    tx = tx_of(layers)

    @jax.jit
    def step(params, opt_state, batch, key):
        of = lambda params: loss(params, batch, key)  # noqa: E731
        grads = jax.grad(of, has_aux=model == "linen")(params)
        updates, opt_state = tx.update(grads[0] if model == "linen" else grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    own, opt_state, batches = params, tx.init(params), images(0)
    for i in range(3):
        own, opt_state = step(own, opt_state, next(batches), jax.random.fold_in(jax.random.key(0), i))
    found = trained(tmp_path, model, 3)
    assert found.step == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found.params, own)
    first, *_, last = lines(tmp_path)
    assert {"loss", "grad_norm", "drift", "pull", "triggered", "mismatch", "steps_per_second"} <= set(first)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, found.params, params))
    assert 0 < last["drift"] <= float(moved) * 1.001
    names = {"linen": "drift/vision/1", "nnx": "drift/net/0", "pytree": "drift/1/0"}
    assert names[model] in last and ("drawn" in last) == (model == "linen")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_resumes_bit_for_bit_from_a_checkpoint_without_theta0(tmp_path, model, accumulate):
    straight = trained(tmp_path / "a", model, accumulate=accumulate)
    trained(tmp_path / "b", model, 4, accumulate=accumulate)
    resumed = trained(tmp_path / "b", model, accumulate=accumulate)
    assert_same((straight.params, straight.opt_state), (resumed.params, resumed.opt_state))
    for a, b in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        assert {**a, "steps_per_second": 0} == {**b, "steps_per_second": 0}
    saved = tmp_path / "a/checkpoints/6/default/_METADATA"
    assert "fingerprints" in saved.read_text()


def test_accumulated_batches_are_one_large_one(tmp_path):
    def pairs(n):
        for small in range(2 * n, 10**6, 2):
            two = [next(images(i)) for i in (small, small + 1)]
            yield jax.tree.map(lambda *x: np.concatenate(x), *two)

    loss, params, _ = of_pytree()
    large = fit(loss, params, optax.sgd(0.1), pairs, out=tmp_path / "a", steps=3)
    small = fit(loss, params, optax.sgd(0.1), images, out=tmp_path / "b", steps=3, accumulate=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), large.params, small.params)


def test_theta0_may_be_another_than_the_start(tmp_path):
    loss, params, _ = of_pytree()
    anchor = jax.tree.map(lambda x: x + 1.0, params)
    runs = [
        fit(loss, params, tx_of(None), images, out=tmp_path, steps=steps, save_every=1, log_every=1, anchor=anchor)
        for steps in (2, 3)
    ]
    assert_same(runs[1].opt_state[1].anchor, jax.tree.map(jnp.asarray, anchor))
    assert lines(tmp_path)[-1]["drift/0"] == pytest.approx(32.0, rel=0.05)  # 64 x 16 entries, each off by 1
    with pytest.raises(ValueError, match="these are not the weights that training started from: 3 of 3 leaves"):
        fit(loss, params, tx_of(None), images, out=tmp_path, steps=4)


def test_drift_is_logged_for_every_optimizer(tmp_path):
    loss, params, layers = of_linen()
    found = fit(loss, params, optax.adam(1e-2), images, out=tmp_path, steps=2, log_every=1, layers=layers)
    gap = jax.tree.map(lambda a, b: np.asarray(a - b), found.params, params)
    first = [*jax.tree.leaves(gap["embed"]), *(leaf[0] for leaf in jax.tree.leaves(gap["blocks"]))]
    norm = np.linalg.norm(np.concatenate([leaf.reshape(-1) for leaf in first]))
    assert lines(tmp_path)[-1]["drift/vision/0"] == pytest.approx(norm, rel=1e-4)


def test_what_is_measured_is_logged_on_the_way_and_at_the_end(tmp_path):
    seen = []

    def measure(params):
        seen.append(float(params[1][1].sum()))
        return {"bias": jnp.sum(params[1][1])}

    trained(tmp_path, "pytree", 4, measure=measure, eval_every=3)
    assert [(line["step"], line["bias"]) for line in lines(tmp_path) if "bias" in line] == list(zip((3, 4), seen))


def test_another_optimizer_is_refused_and_names_the_leaf(tmp_path):
    trained(tmp_path, "pytree", 2)
    with pytest.raises(ValueError, match="the first leaf that differs is 'opt_state/1/.*in the checkpoint, absent in"):
        trained(tmp_path, "pytree", 4, tx=mx.chain(optax.adamw(3e-3), optax.identity()))
    with pytest.raises(ValueError, match="holds a run with seed=0, this one has 1"):
        trained(tmp_path, "pytree", 4, seed=1)


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds thesis.tex, but no run"):
        trained(tmp_path, "pytree")
    (tmp_path / "config.json").write_text(json.dumps({"out": "x"}))
    with pytest.raises(ValueError, match="holds another run .*config.json is not of fit"):
        trained(tmp_path, "pytree")


def test_a_command_says_that_it_does_not_know_the_model_of_such_a_run(tmp_path, capsys):
    trained(tmp_path / "run", "pytree", 1)
    for command in (["finetune", "--out", "x", "--weights"], ["evaluate", "--run"]):
        assert commands.main([*command, str(tmp_path / "run")]) == commands.BAD_INPUT
        assert "is of `fit`, whose model only your own script knows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": {}}, "params has no leaves"),
        ({"params": {"a": np.zeros(2, np.int32)}}, "leaf 'a' of params is int32, which has no gradient"),
        ({"params": {"a": np.zeros((0, 2))}}, "leaf 'a' of params has no entries, which no checkpoint holds"),
        ({"params": {"a": 1.0}}, "leaf 'a' of params is float, which has no gradient"),
        ({"params": {"a/b": np.ones(1), "a": {"b": np.ones(1)}}}, "two leaves of params are called 'a/b'"),
        ({"batches": []}, "batches has to be a function, n -> batches from number n on"),
        ({"steps": 0}, "steps is 0; give at least 1"),
        ({"mesh": MeshConfig(data=3)}, "mesh: data=3"),
        ({"out": "gs://bucket/run"}, "out is 'gs://bucket/run', but only folders and files of this machine"),
        ({"specs": {"a": jax.sharding.PartitionSpec()}}, "specs is no tree like params"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, changes, message):
    loss, params, _ = of_pytree()
    arguments = {"params": params, "batches": images, "steps": 1, "out": tmp_path / "run", **changes}
    with pytest.raises(ValueError, match=message) as error:
        fit(loss, tx=optax.adam(1e-3), **arguments)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_batches_that_end_and_a_loss_that_is_nan_are_told_and_the_last_checkpoint_is_kept(tmp_path):
    loss, params, _ = of_pytree()
    three = [next(images(i)) for i in range(3)]
    options = {"out": tmp_path, "steps": 5, "save_every": 1, "log_every": 9}
    with pytest.raises(ValueError, match="batches ended after 3 of 5"):
        fit(loss, params, optax.adam(1e-3), lambda n: three[n:], **options)
    bad = {**three[0], "label": three[0]["label"] * np.nan}
    message = "loss is nan at step 4; the first gradient that is not finite is that of 0; .*last good checkpoint is 3"
    with pytest.raises(FloatingPointError, match=message):
        fit(loss, params, optax.adam(1e-3), lambda n: [*three, bad, bad][n:], **options)


SCRIPT = """
import sys, time
from pathlib import Path
from octo_integration.logs import run_log
from octo_integration.train import MeshConfig
from tests.octo_integration.train import test_fit
advance = run_log.RunLog.advance
def pause(log):
    advance(log)
    time.sleep(float(sys.argv[2]))
run_log.RunLog.advance = pause
mesh = MeshConfig(fsdp=int(sys.argv[3]), min_size=1)
ended = test_fit.trained(Path(sys.argv[1]), steps=8, mesh=mesh)
kernel = ended.params["blocks"]["mlp"]["kernel"]
print(len(kernel.sharding.device_set), kernel.addressable_shards[0].data.size, kernel.size)
"""


def start(out: Path, pause: float, fsdp: int, devices: int) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), str(pause), str(fsdp)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_on_8_devices_replicated_or_sharded_it_gives_what_it_gives_on_one(tmp_path):
    one = trained(tmp_path / "one", steps=8).params
    for fsdp, held in ((1, 1), (4, 4)):
        process = start(tmp_path / str(fsdp), 0.0, fsdp, 8)
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        devices, here, size = map(int, said.split())
        assert (devices, size // here) == (8, held)
        again = trained(tmp_path / str(fsdp), steps=8)  # a checkpoint does not depend on the mesh
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), again.params, one)


def test_sigterm_saves_and_the_same_script_resumes_bit_for_bit(tmp_path):
    process = start(tmp_path / "a", 0.3, 1, 1)
    while not (tmp_path / "a/metrics.jsonl").exists() or len(lines(tmp_path / "a")) < 3:
        assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM and "finishing this step, then saving" in errors
    assert 3 <= max(int(p.name) for p in (tmp_path / "a/checkpoints").iterdir() if p.name.isdecimal()) < 8
    resumed, straight = trained(tmp_path / "a", steps=8), trained(tmp_path / "b", steps=8)
    assert_same((resumed.params, resumed.opt_state), (straight.params, straight.opt_state))
