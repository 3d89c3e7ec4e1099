"""`maps-vla import` → `finetune --weights` → `export`, with the small models that torch made."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from octo_integration.cli.commands import main
from octo_integration.model.sizes import CONFIGS
from tests.octo_integration.weights.test_imported import CONFIG, SOURCES

TRAIN = ["--model=small", "--data.image-size=16", "--data.batch-size=2", "--data.shuffle-buffer=8", "--eval-splits"]
SHORT = ["--optimizer.steps=1", "--optimizer.warmup=0"]


@pytest.fixture
def sources(tmp_path):
    """The command's options; beside the language model lies a vocabulary that it has rows for."""
    language = tmp_path / "qwen2"
    shutil.copytree(SOURCES["language"], language)
    words = {"[UNK]": 0, "the": 1, "robot": 2, "push": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(language / "tokenizer.json"))
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
