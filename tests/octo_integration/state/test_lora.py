"""LoRA: adapters and fresh modules train, the rest is frozen in bfloat16, and all of it merges into one model."""

import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from octo_integration.config import FinetuneConfig, MapsConfig, OptimizerConfig
from octo_integration.data import DataConfig
from octo_integration.model.config import FRESH, LoraConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.policy.trained import load_run
from octo_integration.processes import interrupts
from octo_integration.state import checkpoint, lora
from octo_integration.state.methods import holding
from octo_integration.state.setup import initial_params
from octo_integration.train import loop
from tests.octo_integration import micro_vla

LORA = LoraConfig(rank=2, alpha=4.0, targets=("language/blocks/attn", "bridge/"))


@pytest.fixture(scope="module", autouse=True)
def _micro_model(tmp_path_factory):
    """The micro model by name, and compiled programs kept from run to run: compiling is what takes the time."""
    cache, before = str(tmp_path_factory.mktemp("cache")), jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "micro", dataclasses.replace(micro_vla.CONFIG, dinov2=None))
        patch.setenv("XDG_CACHE_HOME", cache)
        jax.config.update("jax_compilation_cache_dir", cache)
        yield
    jax.config.update("jax_compilation_cache_dir", before)


def config(out, steps: int, **changes) -> FinetuneConfig:
    optimizer = OptimizerConfig(lr=1e-2, warmup=0, steps=steps, weight_decay=0.0)
    base = FinetuneConfig(
        out=str(out), model="micro", weights=None, data=DataConfig(batch_size=4), optimizer=optimizer,
        lora=LORA, eval_splits=(), log_every=1,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("lora")
    assert loop.finetune(config(out, 4)).step == 4
    return out


@pytest.fixture(scope="module")
def trained(run):
    return load_run(run)


def is_trained(path: str) -> bool:
    return path.endswith(("lora_a", "lora_b")) or path.split("/")[0] in FRESH


def test_adapters_stand_beside_the_kernels_that_the_targets_name(trained):
    kernels = {
        path.removesuffix("/lora_a") for path in flatten_dict(trained.params, sep="/") if path.endswith("lora_a")
    }
    attention = {f"language/blocks/attn/{name}" for name in ("query", "key", "value", "out")}
    assert attention < kernels and kernels - attention == {f"bridge/{name}" for name in trained.params["bridge"]}


def test_only_adapters_and_fresh_modules_move_and_the_rest_is_bfloat16(run, trained):
    start = flatten_dict(initial_params(config(run, 4), trained.built, like_of(trained)), sep="/")
    for path, leaf in flatten_dict(trained.params, sep="/").items():
        if is_trained(path):
            assert leaf.dtype == jnp.float32
            assert path.endswith("key/lora_b") or not np.array_equal(leaf, start[path]), path
        else:
            assert leaf.dtype == jnp.bfloat16
            np.testing.assert_array_equal(leaf, start[path].astype(jnp.bfloat16))


def like_of(trained):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), trained.params)


def test_the_optimizer_knows_only_what_is_trained(run):
    manager = checkpoint.open_checkpoints(run / "checkpoints", keep=2)
    names = {"/".join(map(str, path)) for path in flatten_dict(manager.item_metadata(4).tree)}
    moments = {path.split("/mu/")[1] for path in names if "/mu/" in path}
    params = {path.removeprefix("params/") for path in names if path.startswith("params/")}
    assert moments == {path for path in params if is_trained(path)} and moments < params


def added(out) -> dict[str, dict]:
    """drift.json by tensor: what the adapters add to each kernel."""
    return {row["name"]: row for row in json.loads((out / "drift.json").read_text())["tensors"]}


def metrics(out) -> dict[str, float]:
    """The last training step's."""
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[3])


def test_drift_is_what_the_adapters_add_with_the_strength_of_the_kernel(run, trained):
    rows, logged, fc1 = added(run), metrics(run), trained.params["bridge"]["fc1"]
    product = LORA.alpha / LORA.rank * fc1["lora_a"] @ fc1["lora_b"]
    assert rows["bridge/fc1/kernel"]["drift"] == pytest.approx(float(jnp.linalg.norm(product)), rel=1e-4)
    assert rows["bridge/fc1/kernel"]["strength"] == MapsConfig.lambda_max / 2  # the third of five layers
    for frozen in ("bridge/fc1/bias", "language/blocks/mlp/up/kernel[0]"):
        assert rows[frozen]["drift"] == rows[frozen]["strength"] == 0.0
    for layer, name in (("bridge", "bridge/"), ("language/0", "kernel[0]"), ("language/1", "kernel[1]")):
        squares = [row["drift"] ** 2 for path, row in rows.items() if name in path and row["drift"]]
        assert logged[f"drift/{layer}"] == pytest.approx(sum(squares) ** 0.5, rel=1e-4)
        assert {f"triggered/{layer}", f"pull/{layer}"} < logged.keys()


def test_an_adapter_has_the_strength_of_its_kernel_whatever_else_has_adapters(trained):
    layers = trained.built.layers

    def holds(params, **maps):
        return holding(config("", 4, maps=MapsConfig(lambda_max=4.0, **maps)), layers, params)

    alone = lora.base(trained.params)
    language = {**alone, "language": trained.params["language"]}
    for params, bridge in ((trained.params, len(trained.params["bridge"])), (language, 0)):
        state = holds(params).after.init(lora.split(params)[0])
        assert state.strength.tolist() == [2.0] * bridge + [1.0, 0.0] * 4
        _, *rows, total = [line.split() for line in holds(params).table.splitlines()]
        first, last = ["language", "0", "4", "224", "1.0000"], ["language", "1", "4", "224", "0.0000"]
        assert rows[-2:] == [first, last] and [row[-1] for row in rows[:-2]] == ["2.0000"] * (bridge > 0)
        assert " ".join(total).startswith(f"held: {bridge + 4} adapters, what each adds to its kernel; free: ")
    assert holds(alone).label == "MAPS, linear, λmax 4" and holds(alone).anchored
    params = lora.split(trained.params)[0]
    for free in ({"adapters": "free"}, {"method": "adam"}, {"method": "l2_sp"}):
        held = holds(trained.params, **free)
        assert held.label == "LoRA" and not held.anchored and {s.ratio for s in held.slices} == {0.0}
        for member in (held.before, held.after):
            assert sum(leaf.size for leaf in jax.tree.leaves(member.init(params)) if leaf.ndim > 1) == 0


def test_held_adapters_add_less_than_free_ones_and_the_first_layers_least(run, tmp_path, capsys):
    loop.finetune(config(tmp_path, 4, maps=MapsConfig(adapters="free")))
    assert "anchored: 0 parameters" in capsys.readouterr().out
    assert metrics(tmp_path)["drift"] == 0.0
    held, free = added(run), added(tmp_path)
    assert {row["strength"] for row in free.values()} == {0.0}
    bridge, last = (
        [held[path]["drift"] / free[path]["drift"] for path in free if name in path and free[path]["drift"]]
        for name in ("bridge/", "kernel[1]")
    )
    assert np.mean(bridge) < 0.9 < np.mean(last)


@pytest.mark.parametrize(("adapters", "other"), [("init", "zero"), ("zero", "init")])
def test_published_treatments_go_on_bit_for_bit_too(tmp_path, adapters, other):
    def changed(to: str, out: str = "straight") -> FinetuneConfig:
        return config(tmp_path / out, 4, maps=MapsConfig(adapters=to))

    loop.finetune(changed(adapters))
    stop_at_two(changed(adapters, "stopped"))
    assert loop.finetune(changed(adapters, "stopped")).step == 4
    for a, b in zip(*(jax.tree.leaves(load_run(tmp_path / out).params) for out in ("straight", "stopped"))):
        np.testing.assert_array_equal(a, b)
    assert "drift/language/0" in metrics(tmp_path / "stopped")
    with pytest.raises(ValueError, match=f"a run with maps.adapters='{adapters}', this one has '{other}'"):
        loop.finetune(changed(other))
    assert loop.finetune(changed("product")).step == 4  # starts to hold otherwise, as another method would


def stop_at_two(config: FinetuneConfig) -> None:
    signals = iter([None, signal.SIGTERM])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interrupts.Request, "ask", lambda request, together: next(signals))
        assert loop.finetune(config).step == 2


def test_a_run_goes_on_bit_for_bit(run, tmp_path):
    stop_at_two(config(tmp_path, 4))
    assert loop.finetune(config(tmp_path, 4)).step == 4
    jax.tree.map(np.testing.assert_array_equal, load_run(tmp_path).params, load_run(run).params)


def test_merging_unrolls_stacks_and_heads():
    rng = np.random.default_rng(0)
    a, b, kernel = (rng.normal(size=s).astype(np.float32) for s in [(3, 8, 2), (3, 2, 12), (3, 8, 4, 3)])
    merged = lora.merge_lora({"x": {"kernel": kernel, "lora_a": a, "lora_b": b}}, LoraConfig(rank=2, alpha=6.0))
    expected = kernel + 3.0 * np.einsum("dir,dro->dio", a, b).reshape(kernel.shape)
    np.testing.assert_allclose(merged["x"]["kernel"], expected, rtol=1e-5, atol=1e-5)
    assert list(merged["x"]) == ["kernel"]


def test_a_target_that_matches_no_kernel_is_refused():
    adapted = {"language": {"blocks": {"attn": {"query": {"kernel": 0, "lora_a": 0, "lora_b": 0}}}}}
    lora.check_targets(adapted, LoraConfig(rank=2, targets=("language/blocks/attn",)))
    lora.check_targets({}, LoraConfig(rank=0, targets=("nothing",)))
    with pytest.raises(ValueError, match="target 'bridge/' matches no kernel"):
        lora.check_targets(adapted, LoraConfig(rank=2, targets=("language/blocks/attn", "bridge/")))
