"""Which file of a directory a tensor is read from."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from octo_integration.weights.hf import open_checkpoint, read

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def save(folder, files, index=None, name="model.safetensors.index.json"):
    for file, tensors in files.items():
        save_file({tensor: np.full(2, value, np.float32) for tensor, value in tensors.items()}, folder / file)
    if index is not None:
        (folder / name).write_text(json.dumps({"weight_map": index}))


def values(folder):
    checkpoint = open_checkpoint(folder)
    return {name: float(read(checkpoint, name)[0]) for name in checkpoint.tensors}


def refused(folder):
    with pytest.raises(ValueError) as refusal:
        open_checkpoint(folder)
    assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)
    return str(refusal.value)


def test_two_files_without_an_index_are_one_checkpoint(tmp_path):
    save(tmp_path, {ONE: {"a": 1}, TWO: {"b": 2}})
    assert values(tmp_path) == {"a": 1, "b": 2}


def test_a_tensor_in_two_files_without_an_index_is_refused(tmp_path):
    save(tmp_path, {ONE: {"a": 1, "b": 2}, TWO: {"b": 3}})
    assert f"b is in {ONE} and in {TWO}" in refused(tmp_path)


@pytest.mark.parametrize(("file", "b"), [(ONE, 2), (TWO, 3)])
def test_the_index_says_which_copy_counts(tmp_path, file, b):
    save(tmp_path, {ONE: {"a": 1, "b": 2, "stale": 0}, TWO: {"b": 3, "c": 4}}, {"a": ONE, "b": file, "c": TWO})
    assert values(tmp_path) == {"a": 1, "b": b, "c": 4}


def test_files_beside_the_index_are_not_read(tmp_path):
    save(tmp_path, {"model.safetensors": {"a": 9}, ONE: {"a": 1}, "z.safetensors": {"a": 8}}, {"a": ONE})
    assert values(tmp_path) == {"a": 1}


def test_an_index_that_names_the_wrong_file_is_refused(tmp_path):
    save(tmp_path, {ONE: {"a": 1, "b": 2}, TWO: {"c": 3}}, {"a": ONE, "b": TWO, "c": TWO})
    said = refused(tmp_path)
    assert f"model.safetensors.index.json says that b is in {TWO}, but it is in {ONE}" in said
    save(tmp_path, {ONE: {"a": 1}})
    assert f"says that b is in {TWO}, but no file has it" in refused(tmp_path)


def test_of_two_indices_the_models_own_counts(tmp_path):
    files = {ONE: {"a": 1}, "fp16.safetensors": {"a": 2}}
    save(tmp_path, files, {"a": "fp16.safetensors"}, "model.fp16.safetensors.index.json")
    assert values(tmp_path) == {"a": 2}
    save(tmp_path, {}, {"a": ONE})
    assert values(tmp_path) == {"a": 1}
    (tmp_path / "model.safetensors.index.json").rename(tmp_path / "ema.safetensors.index.json")
    assert "ema.safetensors.index.json and model.fp16.safetensors.index.json" in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "it has 'a' twice"),
        ('{"weight_map": ["a"]}', "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "has no weight_map"),
        ("{}", "has no weight_map"),
    ],
)
def test_an_index_that_is_none(tmp_path, text, words):
    save(tmp_path, {"x.safetensors": {"a": 1}, "y.safetensors": {"a": 2}})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert words in refused(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_with_a_number_that_is_not_finite_is_refused(tmp_path, value):
    tensor = np.zeros((3, 4), np.float32)
    tensor[1, 2] = value
    save_file({"a.weight": tensor}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="model.safetensors: a.weight has NaN or infinite values"):
        read(checkpoint, "a.weight")
    np.testing.assert_array_equal(read(checkpoint, "a.weight", slice(0, 1)), tensor[:1])
