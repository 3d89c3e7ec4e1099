"""Import, restore and export of whole checkpoints, and what is refused."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from octo_integration.model.config import TowerConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.vla import VLA
from octo_integration.weights import imported
from octo_integration.weights.imported import export_weights, import_weights, read_provenance, restore
from tests.octo_integration.model.small import inputs
from tests.octo_integration.weights.test_parity import DECODERS, HERE, TIMM_SIGLIP, TOWERS

FIXTURES = HERE / "fixtures"
CONFIG = dataclasses.replace(
    CONFIGS["tiny"],
    **{name: dataclasses.replace(TOWERS[name], features="penultimate") for name in ("dinov2", "siglip")},
    language=DECODERS["qwen2"],
    image_size=16,
    instruction_length=4,
)
# With the towers that Prismatic takes from timm.
TIMM = dataclasses.replace(CONFIG, siglip=dataclasses.replace(TIMM_SIGLIP, features="penultimate"))
SOURCES = {"dinov2": FIXTURES / "dinov2", "siglip": FIXTURES / "siglip", "language": FIXTURES / "qwen2"}


@functools.cache
def shapes(config=CONFIG):
    return jax.eval_shape(VLA(config).init, jax.random.key(0), *inputs(config))["params"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    out = tmp_path_factory.mktemp("weights") / "small"
    import_weights("small", CONFIG, shapes(), SOURCES, out)
    return out


def flat(tree):
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}


def test_provenance(weights):
    record = read_provenance(weights)
    assert record["fresh"] == [m for m in shapes() if m not in SOURCES]
    assert record["modules"]["dinov2"]["format"] == "transformers 4"
    assert list(record["modules"]["dinov2"]["ignored"]) == ["embeddings.mask_token"]
    (file,) = record["modules"]["language"]["files"]
    assert file["name"] == "model.safetensors" and len(file["sha256"]) == 64
    assert record["fingerprints"].keys() == flat({m: shapes()[m] for m in SOURCES}).keys()


def test_restored_onto_a_mesh(weights):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("fsdp",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes())
    params = restore(weights, like)
    assert params.keys() == SOURCES.keys()
    assert all(leaf.sharding == where for leaf in jax.tree.leaves(params))
    embedding = load_file(FIXTURES / "qwen2" / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(params["language"]["embed"]["embedding"], embedding)


def test_export_gives_back_what_was_imported(weights, tmp_path):
    params, record = restore(weights, shapes()), read_provenance(weights)
    files = export_weights(params, record, tmp_path / "out")
    assert [f.parent.name for f in files] == ["dinov2", "language", "siglip"]
    for module, source in SOURCES.items():
        before = load_file(source / "model.safetensors")
        after = load_file(tmp_path / "out" / module / "model.safetensors")
        left_out = set(before) - set(after)
        assert left_out == set(record["modules"][module]["ignored"])
        for name, value in after.items():
            assert value.shape == before[name].shape, name
            if "embeddings.cls_token" not in name and "position" not in name:  # the token keeps its position
                np.testing.assert_array_equal(value, before[name], err_msg=name)
    again = {m: tmp_path / "out" / m for m in SOURCES}
    import_weights("small", CONFIG, shapes(), again, tmp_path / "again")
    assert read_provenance(tmp_path / "again")["fingerprints"] == record["fingerprints"]


PRISMATIC = {"dinov2": "vision_backbone.featurizer.", "siglip": "vision_backbone.fused_featurizer."}


def prismatic(folder):
    """A whole Prismatic checkpoint: timm's towers, LayerScale renamed, a random bridge, two shards and an index."""
    rng, tensors = np.random.default_rng(0), {}
    for module, prefix in PRISMATIC.items():
        for name, value in load_file(FIXTURES / f"timm_{module}" / "model.safetensors").items():
            tensors[prefix + name.replace("gamma", "scale_factor")] = value
    tensors["vision_backbone.fused_featurizer.attn_pool.latent"] = np.zeros((1, 1, 32), np.float32)
    for name, shape in {"fc1": (256, 64), "fc2": (32, 256), "fc3": (32, 32)}.items():
        tensors[f"projector.{name}.weight"] = rng.normal(size=shape).astype(np.float32)
        tensors[f"projector.{name}.bias"] = rng.normal(size=shape[:1]).astype(np.float32)
    for name, value in load_file(FIXTURES / "qwen2" / "model.safetensors").items():
        tensors[f"language_model.{name}"] = value
    folder.mkdir()
    names = sorted(tensors)
    shards = {f"model-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for file, mine in shards.items():
        save_file({name: tensors[name] for name in mine}, folder / file)
    index = {"weight_map": {name: file for file, mine in shards.items() for name in mine}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "tokenizer.json").write_text("{}")
    return tensors


def test_a_prismatic_checkpoint_there_and_back(tmp_path, weights):
    tensors = prismatic(tmp_path / "minivla")
    record = import_weights("small", TIMM, shapes(), {}, tmp_path / "out", tmp_path / "minivla")
    assert set(record["fresh"]) == {"readout", "action_head", "proprio_projector"}
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    params = restore(tmp_path / "out", shapes())
    np.testing.assert_array_equal(params["bridge"]["fc1"]["kernel"], tensors["projector.fc1.weight"].T)
    separate = restore(weights, shapes())
    for name in ("blocks/attn/query/kernel", "blocks/ls1", "cls_token"):
        np.testing.assert_array_equal(flat(params["dinov2"])[name], flat(separate["dinov2"])[name], err_msg=name)
    (file,) = export_weights(params, record, tmp_path / "exported")
    back = load_file(file)
    assert set(tensors) - set(back) == {"vision_backbone.fused_featurizer.attn_pool.latent"} | (
        {"language_model.lm_head.weight"} & set(tensors)
    )
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)


TRAINED = {
    "vision_backbone.featurizer.": "vision_backbone.dino_featurizer.",
    "vision_backbone.fused_featurizer.": "vision_backbone.siglip_featurizer.",
    "projector.fc1": "projector.projector.0",
    "projector.fc2": "projector.projector.2",
    "projector.fc3": "projector.projector.4",
    "language_model.": "llm_backbone.llm.",
    "scale_factor": "gamma",
}


def test_what_prismatics_training_saves_is_the_same_model(tmp_path):
    tensors = prismatic(tmp_path / "released")
    wanted = import_weights("small", TIMM, shapes(), {}, tmp_path / "wanted", tmp_path / "released")
    renamed = {}
    for name, value in tensors.items():
        for old, new in TRAINED.items():
            name = name.replace(old, new)
        renamed[name] = value
    (tmp_path / "trained").mkdir()
    save_file(renamed, tmp_path / "trained" / "model.safetensors")
    record = import_weights("small", TIMM, shapes(), {}, tmp_path / "out", tmp_path / "trained")
    assert record["fingerprints"] == wanted["fingerprints"]
    (file,) = export_weights(restore(tmp_path / "out", shapes()), record, tmp_path / "exported")
    assert {name for name in renamed if ".attn_pool." not in name} - set(load_file(file)) <= {
        "llm_backbone.llm.lm_head.weight"
    }
    save_file({**renamed, "extra.weight": np.zeros(1, np.float32)}, tmp_path / "trained" / "model.safetensors")
    with pytest.raises(ValueError, match="unused: extra.weight"):
        import_weights("small", TIMM, shapes(), {}, tmp_path / "more", tmp_path / "trained")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_become_float32(tmp_path, dtype):
    import ml_dtypes  # of jax

    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    (tmp_path / "qwen2").mkdir()
    half = {n: v.astype(kind) for n, v in load_file(FIXTURES / "qwen2" / "model.safetensors").items()}
    save_file(half, tmp_path / "qwen2" / "model.safetensors")
    import_weights("small", CONFIG, shapes(), {"language": tmp_path / "qwen2"}, tmp_path / "out")
    embedding = restore(tmp_path / "out", shapes())["language"]["embed"]["embedding"]
    assert embedding.dtype == np.float32
    np.testing.assert_array_equal(embedding, half["model.embed_tokens.weight"].astype(np.float32))


def changed(tmp_path, change, module="siglip"):
    """A copy of a fixture whose tensors `change` altered."""
    folder = tmp_path / module
    folder.mkdir()
    tensors = load_file(FIXTURES / module / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def drop(tensors):
    for i in (0, 2):
        del tensors[f"encoder.layers.{i}.mlp.fc1.bias"]


def reshape(tensors):
    tensors["encoder.layers.1.mlp.fc2.weight"] = np.zeros((32, 50), np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop, r"missing: .*layers.0.mlp.fc1.bias, .*layers.2.mlp.fc1.bias\."),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), r"unused: extra\."),
        (reshape, r"of another shape: .*fc2.weight \[32, 50\] \(the model needs \[32, 48\]\)"),
        (lambda t: t.clear() or t.update(x=np.zeros(2, np.float32)), "has no siglip: its tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, words):
    folder = changed(tmp_path, change)
    with pytest.raises(ValueError, match=words) as refusal:
        import_weights("small", CONFIG, shapes(), {"siglip": folder}, tmp_path / "out")
    assert "\n" not in str(refusal.value) and list(tmp_path.iterdir()) == [folder]


def test_registers_that_are_missing_are_called_by_the_files_name(tmp_path):
    folder = changed(tmp_path, lambda tensors: tensors.pop("embeddings.register_tokens"), "dinov2")
    with pytest.raises(ValueError, match=r"missing: embeddings\.register_tokens\."):
        import_weights("small", CONFIG, shapes(), {"dinov2": folder}, tmp_path / "out")


def test_positions_that_an_older_import_resampled_are_not_resampled_again(tmp_path):
    import_weights("small", CONFIG, shapes(), {"siglip": FIXTURES / "siglip"}, tmp_path / "out")
    file = tmp_path / "out" / "provenance.json"
    record = json.loads(file.read_text())
    del record["modules"]["siglip"]["patches"]
    file.write_text(json.dumps(record))
    assert restore(tmp_path / "out", shapes())["siglip"]["pos_embed"].shape == (16, 32)
    with pytest.raises(ValueError, match="positions of siglip were resampled when they were imported, and not for"):
        restore(tmp_path / "out", shapes(dataclasses.replace(CONFIG, image_size=24)))


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def of_another_kind(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')


def miss_a_shard(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def leave_the_directory(folder):
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (truncate, ValueError, "is no safetensors file, or damaged"),
        (of_another_kind, ValueError, "holds a model of type 'llama'; --siglip takes siglip or"),
        (miss_a_shard, FileNotFoundError, "lacks model-00001-of-00002.safetensors, which"),
        (leave_the_directory, ValueError, "which is not in its directory"),
        (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "no safetensors files in"),
    ],
)
def test_damaged_sources_are_refused(tmp_path, damage, error, words):
    folder = changed(tmp_path, lambda tensors: None)
    damage(folder)
    with pytest.raises(error, match=words):
        import_weights("small", CONFIG, shapes(), {"siglip": folder}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_module_that_the_model_lacks(tmp_path):
    with pytest.raises(ValueError, match="model 'small' has no clip; it has "):
        import_weights("small", CONFIG, shapes(), {"clip": FIXTURES / "clip"}, tmp_path / "out")


def test_an_existing_directory_is_left_alone(weights, tmp_path):
    with pytest.raises(FileExistsError, match="is there already"):
        import_weights("small", CONFIG, shapes(), SOURCES, weights)
    assert read_provenance(weights)


def test_weights_of_another_size_or_changed_on_disk(weights, tmp_path, monkeypatch):
    wider = dataclasses.replace(CONFIG, siglip=TowerConfig(**{**vars(CONFIG.siglip), "mlp": 64}))
    with pytest.raises(ValueError, match=r"siglip/blocks/mlp/fc1/.*the model has .*64.*give --model small"):
        restore(weights, shapes(wider))
    record = read_provenance(weights)
    record["fingerprints"]["language/norm/scale"][0][0] ^= 1
    monkeypatch.setattr(imported, "read_provenance", lambda _: record)
    with pytest.raises(ValueError, match="language/norm/scale is not what was imported"):
        restore(weights, shapes())
    with pytest.raises(FileNotFoundError, match="no provenance.json"):
        read_provenance(tmp_path)


PEAK = """
import json, sys
from pathlib import Path
import jax, numpy as np
from octo_integration.model.sizes import CONFIGS
from octo_integration.weights.imported import import_weights
def shapes(width):
    leaf = lambda *s: jax.ShapeDtypeStruct(s, "float32")
    return {"language": {"embed": {"embedding": leaf(8, width)}, "norm": {"scale": leaf(width)},
        "blocks": {"norm1": {"scale": leaf(8, width)}, "norm2": {"scale": leaf(8, width)},
            "attn": {n: {"kernel": leaf(8, width, 4, width // 4)} for n in ("query", "key", "value")}
                  | {"out": {"kernel": leaf(8, 4, width // 4, width)}},
            "mlp": {"gate": {"kernel": leaf(8, width, 2 * width)}, "up": {"kernel": leaf(8, width, 2 * width)},
                    "down": {"kernel": leaf(8, 2 * width, width)}}}}}
folder = Path(sys.argv[1])
def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
def run(name):
    import_weights("x", CONFIGS["tiny"], shapes(WIDTH), {"language": folder}, folder / name)
run("first")  # compiles; what that takes does not grow with the model
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
before = memory("VmRSS")
run("second")
print(json.dumps(memory("VmHWM") - before))
"""
WIDTH = 1280


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux, to forget a peak")
def test_the_peak_of_memory_is_below_1_3_models(tmp_path):
    tensors = {"model.embed_tokens.weight": (8, WIDTH), "model.norm.weight": (WIDTH,)}
    for i in range(8):
        layer = f"model.layers.{i}"
        tensors |= {f"{layer}.self_attn.{n}_proj.weight": (WIDTH, WIDTH) for n in "qkvo"}
        tensors |= {f"{layer}.mlp.{n}_proj.weight": (2 * WIDTH, WIDTH) for n in ("gate", "up")}
        tensors[f"{layer}.mlp.down_proj.weight"] = (WIDTH, 2 * WIDTH)
        tensors |= {f"{layer}.{n}_layernorm.weight": (WIDTH,) for n in ("input", "post_attention")}
    values = {name: np.ones(shape, np.float32) for name, shape in tensors.items()}
    size = sum(value.nbytes for value in values.values())
    save_file(values, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", PEAK.replace("WIDTH", str(WIDTH)), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=300)
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout.splitlines()[-1])
    assert 0.5 * size < peak < 1.3 * size, peak / size
