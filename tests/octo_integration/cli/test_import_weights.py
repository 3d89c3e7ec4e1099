"""`maps-vla import` → `finetune --weights` → `export`, with the small models that torch made."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from octo_integration.cli.commands import main
from octo_integration.model.config import LoraConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.policy.trained import load_run
from tests.octo_integration.weights.test_imported import CONFIG, SOURCES

TRAIN = ["--model=small", "--data.image-size=16", "--data.batch-size=2", "--data.shuffle-buffer=8", "--eval-splits"]
pytestmark = pytest.mark.usefixtures("quick_compiler")
SHORT = ["--optimizer.steps=1", "--optimizer.warmup=0"]


def with_words(folder, words):
    """A copy of the language model with a vocabulary beside it."""
    shutil.copytree(SOURCES["language"], folder)
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def sources(tmp_path):
    """The command's options; beside the language model lies a vocabulary that it has rows for."""
    language = with_words(tmp_path / "qwen2", ["the", "robot", "push"])
    return [f"--{module}={source}" for module, source in {**SOURCES, "language": language}.items()]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(CONFIGS, "small", CONFIG)


def test_published_weights_in_and_out(tmp_path, capsys, sources):
    weights, run, out = (str(tmp_path / name) for name in ("weights", "run", "exported"))
    assert main(["import", "--model=small", f"--out={weights}", *sources]) == 0
    said = capsys.readouterr().out
    assert "1 ignored: stands for masked patches" in said
    assert "made anew by fine-tuning: action_head, bridge, proprio_projector, readout" in said
    assert main(["finetune", f"--out={run}", f"--weights={weights}", *TRAIN, *SHORT]) == 0
    assert main(["export", f"--run={run}", f"--out={out}"]) == 0
    for module, source in SOURCES.items():
        before = load_file(source / "model.safetensors")
        after = load_file(tmp_path / "exported" / module / "model.safetensors")
        moved = max(np.abs(value - before[name]).max() for name, value in after.items() if ".mlp." in name)
        assert 0 < moved < 0.01, module
    fresh = load_file(tmp_path / "exported" / "fresh.safetensors")
    assert {name.split("/")[0] for name in fresh} == {"bridge", "readout", "action_head", "proprio_projector"}
    assert (tmp_path / "run" / "tokenizer.json").is_file()


def test_what_repeats_is_told_and_another_computation_refused(tmp_path, capsys):
    language, out = tmp_path / "qwen2", str(tmp_path / "weights")
    shutil.copytree(SOURCES["language"], language)
    tensors = load_file(language / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, language / "model.safetensors")
    command = ["import", "--model=small", f"--out={out}", f"--language={language}"]
    assert main(command) == 0
    assert "lm_head.weight repeats model.embed_tokens.weight" in capsys.readouterr().out
    shutil.rmtree(out)
    config = json.loads((language / "config.json").read_text())
    (language / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"{language}/config.json does not fit language of the model: hidden_act is 'gelu'" in error
    assert error.count("\n") == 1 and not (tmp_path / "weights").exists()


def test_a_vocabulary_that_the_model_has_no_rows_for(tmp_path, capsys):
    weights = str(tmp_path / "weights")
    flags = [f"--{module}={source}" for module, source in SOURCES.items()]
    assert main(["import", "--model=small", f"--out={weights}", *flags]) == 0
    assert main(["finetune", f"--out={tmp_path / 'run'}", f"--weights={weights}", *TRAIN, *SHORT]) == 2
    assert re.search(r"tokenizer tiny has \d+ tokens, the model's embedding 40 rows", capsys.readouterr().err)


def test_a_published_language_model_is_not_fed_with_bytes(tmp_path, capsys, monkeypatch):
    language = tmp_path / "wide"  # of rows enough for bytes
    shutil.copytree(SOURCES["language"], language)
    tensors = load_file(language / "model.safetensors")
    tensors["model.embed_tokens.weight"] = np.resize(tensors["model.embed_tokens.weight"], (300, 32))
    save_file(tensors, language / "model.safetensors")
    config = json.loads((language / "config.json").read_text())
    (language / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    wide = dataclasses.replace(CONFIG.language, vocabulary=300)
    monkeypatch.setitem(CONFIGS, "small", dataclasses.replace(CONFIG, tokenizer="bytes", language=wide))
    weights = str(tmp_path / "weights")
    assert main(["import", "--model=small", f"--out={weights}", f"--language={language}"]) == 0
    assert main(["finetune", f"--out={tmp_path / 'run'}", f"--weights={weights}", *TRAIN, *SHORT]) == 2
    assert "have a language model, but no tokenizer.json beside them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["import", "--model=small", "--out=x"], "no source; give --dinov2"),
        (["import", "--model=small", "--out=x", "--prismatic=y", "--t5=z"], "leave out --t5"),
        (["export", "--out=x"], "either --run or --weights"),
        (["export", "--out=x", "--weights=nowhere"], "no provenance.json"),
    ],
)
def test_what_makes_no_sense_is_one_line(command, words, capsys):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.fixture
def mine(tmp_path):
    """Weights of a model that has no name: one tower, for images of another size than it was trained at."""
    language = with_words(tmp_path / "qwen2", ["the", "robot", "push"])
    out = tmp_path / "mine"
    options = [f"--dinov2={SOURCES['dinov2']}", f"--language={language}", f"--out={out}", "--image-size=12"]
    assert main(["import", *options]) == 0
    return out


NAMELESS = ["--data.batch-size=2", "--data.shuffle-buffer=8", "--eval-splits", "--optimizer.warmup=0"]


def test_a_model_without_a_name_from_import_to_export(tmp_path, capsys, mine):
    said = capsys.readouterr().out
    assert "positions of 4 x 4 patches, resampled to 3 x 3" in said
    assert "tokenizer: 4 tokens, the embedding has 40 rows" in said
    assert f"maps-vla finetune --out runs/mine --weights {mine}\n" in said
    assert main(["inspect", f"--weights={mine}"]) == 0
    assert "dinov2" in capsys.readouterr().out
    run = tmp_path / "run"
    command = ["finetune", f"--out={run}", f"--weights={mine}", *NAMELESS]
    assert main([*command, "--optimizer.steps=1"]) == 0
    assert json.loads((run / "config.json").read_text())["model"] is None
    assert main([*command, "--optimizer.steps=2"]) == 0  # resumes
    assert "resumed" in capsys.readouterr().out
    trained = load_run(run)
    assert trained.params["dinov2"]["pos_embed"].shape == (9, 32)
    assert trained.built.model.config.language.rope_theta == 1e6
    assert main(["export", f"--run={run}", f"--out={tmp_path / 'trained'}"]) == 0
    assert "dinov2: positions of 9 patches, resampled from the 16 that were imported" in capsys.readouterr().out
    assert main(["export", f"--weights={mine}", f"--out={tmp_path / 'exported'}"]) == 0
    assert "resampled" not in capsys.readouterr().out
    for module in ("dinov2", "language"):
        before = load_file(SOURCES[module] / "model.safetensors")
        after = load_file(tmp_path / "exported" / module / "model.safetensors")
        for name, value in after.items():
            if "cls_token" in name or "position" in name:  # the token keeps its position
                continue
            np.testing.assert_array_equal(value, before[name], err_msg=name)
    positions = "embeddings.position_embeddings"
    exported = load_file(tmp_path / "exported" / "dinov2" / "model.safetensors")[positions]
    np.testing.assert_array_equal(exported[:, 1:], load_file(SOURCES["dinov2"] / "model.safetensors")[positions][:, 1:])


def test_another_size_of_images_in_fine_tuning(tmp_path, mine):
    run = tmp_path / "run"
    options = ["--data.image-size=8", "--optimizer.steps=1", *NAMELESS]
    assert main(["finetune", f"--out={run}", f"--weights={mine}", *options]) == 0
    assert load_run(run).params["dinov2"]["pos_embed"].shape == (4, 32)


def test_a_merged_run_brings_its_model_and_tokenizer(tmp_path, mine):
    run, merged = tmp_path / "run", tmp_path / "merged.safetensors"
    options = ["--lora.rank=2", "--optimizer.steps=1", *NAMELESS]
    assert main(["finetune", f"--out={run}", f"--weights={mine}", *options]) == 0
    assert main(["merge", f"--run={run}", f"--out={merged}"]) == 0
    again = tmp_path / "again"
    assert main(["finetune", f"--out={again}", f"--weights={merged}", "--optimizer.steps=1", *NAMELESS]) == 0
    assert load_run(again).built.model.config == dataclasses.replace(
        load_run(run).built.model.config, lora=LoraConfig()
    )
    assert (again / "tokenizer.json").read_text() == (mine / "tokenizer.json").read_text()


def test_weights_imported_again_in_another_way_do_not_go_on_in_a_run(tmp_path, capsys, mine):
    command = ["finetune", f"--out={tmp_path / 'run'}", f"--weights={mine}", *NAMELESS]
    assert main([*command, "--optimizer.steps=1"]) == 0
    file = mine / "model.json"
    values = json.loads(file.read_text())
    values["model"]["language"]["rope_theta"] = 1e4
    file.write_text(json.dumps(values))
    assert main([*command, "--optimizer.steps=2"]) == 2
    assert "holds a run of a model with language.rope_theta=1000000.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (None, "there is no {language}/tokenizer.json; save it there"),
        ([f"w{i}" for i in range(60)], "has 61 tokens, the model's embedding 40 rows"),
    ],
)
def test_a_tokenizer_that_is_not_there_or_does_not_fit(tmp_path, capsys, words, said):
    language = with_words(tmp_path / "qwen2", words or [])
    if words is None:
        (language / "tokenizer.json").unlink()
    options = [f"--dinov2={SOURCES['dinov2']}", f"--language={language}", f"--out={tmp_path / 'out'}"]
    assert main(["import", *options]) == 2
    error = capsys.readouterr().err
    assert said.format(language=language) in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
