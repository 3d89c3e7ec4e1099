"""The bridge alone, between towers and a language model that were imported."""

import dataclasses
import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from octo_integration.cli.commands import main
from octo_integration.common import memory
from octo_integration.model.named import shapes_of
from octo_integration.pretrain import align as alignment
from octo_integration.pretrain.align import align
from octo_integration.pretrain.loop import Corpus, PretrainConfig
from octo_integration.state.described import MODEL, read_model
from octo_integration.weights.imported import read_provenance, restore
from tests.octo_integration.pretrain.test_pretrain import COUNT, frames
from tests.octo_integration.weights.published import import_small

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return import_small(tmp_path_factory.mktemp("align"))


@pytest.fixture
def config(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "read_frames", lambda path: frames())
    monkeypatch.setattr(alignment, "measure_frames", lambda path: (COUNT, 16))
    monkeypatch.setattr(alignment, "SHARD", 100)
    options = {"steps": 6, "warmup": 1, "batch_size": 4, "text_length": 24, "heldout": 0.5, "log_every": 2}
    return PretrainConfig("frames", str(tmp_path / "run"), "align", weights=str(weights), **options)


def test_it_learns_the_bridge_alone_and_goes_on_where_it_stopped(config, weights, tmp_path, monkeypatch, capsys):
    made = align(config)
    model = read_model(made / MODEL)
    before, after = restore(weights, shapes_of(model)), restore(made, shapes_of(model))
    for module in ("dinov2", "language"):
        for old, new in zip(jax.tree.leaves(before[module]), jax.tree.leaves(after[module])):
            np.testing.assert_array_equal(old, new)
    assert "bridge" not in before and "bridge" not in read_provenance(made)["fresh"]
    probes = json.loads((tmp_path / "run" / "weights.json").read_text())["probes"]
    for kind in ("caption", "hand", "find", "move"):
        assert {f"perplexity_{kind}", f"perplexity_{kind}_other_image"} < probes["aligned"].keys()
    assert probes["aligned"]["perplexity_caption"] < probes["random"]["perplexity_caption"]
    assert {"retrieval", "hand_cm", "object_cm"} < probes["random"].keys() == probes["aligned"].keys()

    other = dataclasses.replace(config, out=str(tmp_path / "other"))
    batch, calls = Corpus.batch, []

    def interrupted(self, index, kinds):
        calls.append(kinds)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, index, kinds)

    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "batch", interrupted)
        with pytest.raises(SystemExit):
            align(other)
    assert "at step 3, saved" in capsys.readouterr().out
    monkeypatch.setattr(alignment, "_look", lambda *_: pytest.fail("features that are on disk were computed again"))
    again = restore(align(other), shapes_of(model))
    jax.tree.map(np.testing.assert_array_equal, again, after)

    assert align(other) == tmp_path / "other" / "weights"  # is done

    exported = tmp_path / "exported"
    assert main(["export", f"--weights={made}", f"--out={exported}"]) == 0
    assert {file.parent.name for file in exported.rglob("*.safetensors")} == {"dinov2", "language", "bridge"}
    with pytest.raises(ValueError, match="have a bridge already"):
        align(dataclasses.replace(config, weights=str(made), out=str(tmp_path / "third")))


def test_features_of_other_frames_or_damaged_ones_are_computed_again(config, tmp_path, monkeypatch):
    stored = []
    real = alignment.save_params

    def kept(file, *args):
        stored.append(file.name)
        real(file, *args)

    monkeypatch.setattr(alignment, "save_params", kept)
    monkeypatch.setattr(alignment.loop, "run", lambda *_: pytest.fail("stop here"))

    def computed():
        stored.clear()
        with pytest.raises(pytest.fail.Exception, match="stop here"):
            align(config)
        return [int(name.partition(".")[0]) for name in stored]

    assert computed() == [0, 100]
    assert computed() == []
    made = frames()
    made.image[120] += 1
    monkeypatch.setattr(alignment, "read_frames", lambda path: made)
    assert computed() == [100]
    first = tmp_path / "run" / "features" / "0000000.safetensors"
    first.write_bytes(first.read_bytes()[:-10])
    assert computed() == [0]


def test_what_cannot_be_aligned_is_one_line(config, weights, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="takes --weights, what maps-vla import made, and no --model"):
        align(dataclasses.replace(config, weights=None))
    with pytest.raises(ValueError, match="takes --weights, what maps-vla import made, and no --model or --words"):
        align(dataclasses.replace(config, words="tiny"))
    with pytest.raises(FileNotFoundError, match="no provenance.json"):
        align(dataclasses.replace(config, weights=str(tmp_path)))
    monkeypatch.setattr(alignment, "measure_frames", lambda path: (COUNT, 64))
    with pytest.raises(
        ValueError, match="have 64 pixels, model of .*weights sees 16; render them with --image-size 16"
    ):
        align(config)
    without = tmp_path / "without"
    shutil.copytree(weights, without)
    file = without / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "end"))
    monkeypatch.setattr(alignment, "measure_frames", lambda path: (COUNT, 16))
    with pytest.raises(ValueError, match=re.escape("has none of <|endoftext|>, </s>")):
        align(dataclasses.replace(config, weights=str(without)))
    file.write_text(file.read_text().replace('"dim": 7', '"dim": 1000'))
    with pytest.raises(ValueError, match="has 1001 tokens, the model's embedding .* rows"):
        align(dataclasses.replace(config, weights=str(without)))
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match="is no tokenizer.json, or damaged"):
        align(dataclasses.replace(config, weights=str(without)))
    file.unlink()
    with pytest.raises(FileNotFoundError, match="there is no tokenizer .*without/tokenizer.json"):
        align(dataclasses.replace(config, weights=str(without)))
    monkeypatch.setattr(memory, "free", lambda: 10**5)
    with pytest.raises(ValueError, match="aligning this model takes at least 0.0 GiB of memory, .* --batch-size"):
        align(config)
    assert not (tmp_path / "run" / "config.json").exists()
