"""What names and config.json say of a computation and no shape tells: the GELU of a tower, a head of its own."""

import dataclasses
import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from octo_integration.model.sizes import CONFIGS
from octo_integration.weights.imported import import_weights
from tests.octo_integration.weights.test_imported import CONFIG, FIXTURES, TIMM, prismatic, shapes
from tests.octo_integration.weights.test_parity import DECODERS


def refused(config, sources, tmp_path, whole=None):
    """What the import of these says, in one line."""
    with pytest.raises(ValueError) as refusal:
        import_weights("small", config, shapes(), sources, tmp_path / "out", whole)
    assert "\n" not in str(refusal.value) and not (tmp_path / "out").exists()
    return str(refusal.value)


@pytest.mark.parametrize("naming", ["timm", "prismatic"])
def test_names_of_timm_mean_the_exact_gelu(tmp_path, naming):
    whole, sources = None, {"siglip": FIXTURES / "timm_siglip"}
    if naming == "prismatic":
        prismatic(tmp_path / "minivla")
        whole, sources = tmp_path / "minivla", {}
    said = refused(CONFIG, sources, tmp_path, whole)
    assert "timm names mean 'gelu' (the model computes with 'gelu_pytorch_tanh')" in said
    import_weights("small", TIMM, shapes(), sources, tmp_path / "out", whole)


def test_a_file_that_says_the_activation_counts_more_than_names(tmp_path):
    folder = tmp_path / "siglip"
    shutil.copytree(FIXTURES / "timm_siglip", folder)
    config = {"architecture": "vit", "model_args": {"act_layer": "gelu_tanh"}}
    (folder / "config.json").write_text(json.dumps(config))
    import_weights("small", CONFIG, shapes(), {"siglip": folder}, tmp_path / "out")
    assert "model_args.act_layer is 'gelu_tanh'" in refused(TIMM, {"siglip": folder}, tmp_path / "other")


@pytest.mark.parametrize("model", ["mini", "openvla"])
def test_the_siglip_of_prismatics_models_is_timms(model):
    assert CONFIGS[model].siglip.gelu == CONFIGS[model].dinov2.gelu == "exact"


HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("tied", "head", "words"),
    [
        (True, "none", None),
        (True, "equal", None),
        (False, "equal", None),
        (True, "other", f"tie_word_embeddings is True, but {HEAD} differs from {EMBEDDING}"),
        (False, "other", f"{HEAD} differs from {EMBEDDING}, but language of the model has one leaf"),
        (False, "none", f"tie_word_embeddings is False, but there is no {HEAD}"),
        (None, "none", f"tie_word_embeddings is absent, which means False, but there is no {HEAD}"),
        ("yes", "none", "tie_word_embeddings is 'yes'; it must be true or false"),
    ],
)
def test_whether_the_head_is_the_embedding_is_as_the_file_says(tmp_path, tied, head, words):
    folder = tmp_path / "qwen2"
    shutil.copytree(FIXTURES / "qwen2", folder)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    if head != "none":
        tensors[HEAD] = tensors[EMBEDDING] + (head == "other")
    config["tie_word_embeddings"] = tied
    if tied is None:
        del config["tie_word_embeddings"]
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if words is None:
        import_weights("small", CONFIG, shapes(), {"language": folder}, tmp_path / "out")
    else:
        assert words in refused(CONFIG, {"language": folder}, tmp_path)


def test_a_head_of_its_own_that_the_file_calls_the_embedding(tmp_path):
    folder = tmp_path / "llama"
    shutil.copytree(FIXTURES / "llama", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    llama = dataclasses.replace(CONFIG, language=DECODERS["llama"])
    with pytest.raises(ValueError, match=f"tie_word_embeddings is True, but {HEAD} differs from {EMBEDDING}"):
        import_weights("small", llama, shapes(llama), {"language": folder}, tmp_path / "out")
