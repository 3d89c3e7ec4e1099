"""Configurations of models on file."""

import dataclasses
import json

import pytest

from octo_integration.config import FinetuneConfig
from octo_integration.model.heads.diffusion import DiffusionConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.state.described import MODEL, beside, check_computation, model_of, read_model, record


def write(folder, model):
    (folder / MODEL).write_text(json.dumps(record(model)))
    return folder / MODEL


@pytest.mark.parametrize("name", ["tiny", "nano_8", "mini", "openvla", "octo_small"])
def test_it_comes_back_equal(tmp_path, name):
    assert read_model(write(tmp_path, CONFIGS[name])) == CONFIGS[name]


def test_it_is_the_model_of_weights_and_of_a_run(tmp_path):
    model = dataclasses.replace(CONFIGS["nano"], image_size=70, lr=0.25)
    weights, run = tmp_path / "weights", tmp_path / "run"
    for folder in (weights, run):
        folder.mkdir()
    write(weights, model)
    config = FinetuneConfig("x", weights=str(weights))
    assert model_of(config) == model
    assert model_of(dataclasses.replace(config, head="diffusion")).head == DiffusionConfig(hidden=576)
    assert model_of(dataclasses.replace(config, model="tiny")) == CONFIGS["tiny"]
    write(run, dataclasses.replace(model, lr=0.5))  # what the run was made with, even if its weights are gone
    assert model_of(dataclasses.replace(config, weights="gone"), run).lr == 0.5
    assert model_of(FinetuneConfig("x", weights=None)) == CONFIGS["tiny"]
    assert str(beside(tmp_path / "merged.safetensors", MODEL)) == str(tmp_path / "merged.model.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(version=2), "is of version 2, this code reads 1"),
        (lambda r: r.pop("model"), "is damaged .'model'.; import the weights again"),
        (lambda r: r.update(head="os:system"), "there is no action head 'os:system'"),
        (lambda r: r.update(head=["l1"]), "head is .'l1'., but should be a name"),
        (lambda r: r["model"]["language"].update(width="wide"), "model.language.width is 'wide', which it cannot be"),
        (lambda r: r["model"]["language"].update(rope_scaling=2), "model.language: unknown field 'rope_scaling'"),
        (lambda r: r["model"].update(image_size=111), "image_size 111 is no multiple of the patch size 14"),
        (lambda r: r["model"].update(dinov2=None), "there is no image tower"),
    ],
)
def test_damage_is_one_line_that_names_the_file(tmp_path, change, words):
    values = json.loads(json.dumps(record(CONFIGS["nano"])))
    change(values)
    (tmp_path / MODEL).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=words) as refusal:
        read_model(tmp_path / MODEL)
    assert "\n" not in str(refusal.value)


def test_a_named_model_that_computes_otherwise_than_the_weights_is_refused(tmp_path):
    nano = CONFIGS["nano"]
    write(tmp_path, dataclasses.replace(nano, language=dataclasses.replace(nano.language, rope_theta=1e4)))
    config = FinetuneConfig("x", model="nano", weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"with language.rope_theta=10000.0, this one has 100000.0; leave out --model"):
        check_computation(config, model_of(config))
    free = dataclasses.replace(nano, dinov2=dataclasses.replace(nano.dinov2, features="last", layer_scale=0.5))
    write(tmp_path, free)
    check_computation(config, model_of(config))
