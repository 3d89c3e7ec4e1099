"""The yardsticks of forgetting, on models small and random."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks.real_backbones import forget, language, pictures
from benchmarks.real_backbones.__main__ import main
from octo_integration.cli.commands import main as maps_vla
from octo_integration.config import FinetuneConfig, MapsConfig
from octo_integration.model.config import LoraConfig
from octo_integration.model.named import shapes_of
from octo_integration.state.described import MODEL, read_model
from octo_integration.weights.imported import restore
from tests.octo_integration.weights.published import import_small


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return import_small(tmp_path_factory.mktemp("forget"))


@pytest.fixture(scope="module")
def subject(weights):
    config = read_model(weights / MODEL)
    return forget.Subject(config, restore(weights, shapes_of(config)), weights / "tokenizer.json")


@pytest.fixture
def pieces(monkeypatch):
    """In place of scikit-image's."""
    rng = np.random.default_rng(0)
    made = [Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)) for _ in range(3)]
    monkeypatch.setattr(pictures, "pieces", lambda: made)
    return made


def test_perplexity_counts_what_is_asked_about_and_looks_no_further(subject):
    config, params = subject.config.language, subject.params["language"]
    texts = [([3, 4, 5, 6, 7], 3), ([1, 2], 0)]
    bits = []
    for tokens, first in ((texts[0][0], 3), (texts[1][0], 1)):
        told = np.asarray(language.logits(config, params, np.array([tokens])), np.float64)[0]
        chances = np.exp(told) / np.exp(told).sum(1, keepdims=True)
        bits += [math.log(chances[i - 1, tokens[i]]) for i in range(first, len(tokens))]
    assert len(bits) == 3
    assert language.perplexity(config, params, texts) == pytest.approx(math.exp(-np.mean(bits)), rel=1e-5)


def test_questions_are_given_and_answers_are_asked_for(subject, monkeypatch):
    texts, answers = forget.words(subject)
    told = json.loads((forget.HERE / "texts.json").read_text())
    assert (len(texts), len(answers)) == (len(told["texts"]), len(told["questions"]))
    assert all(given == 1 for _, given in texts)
    assert all(0 < given < len(tokens) for tokens, given in answers)
    config = dataclasses.replace(subject.config, language=dataclasses.replace(subject.config.language, vocabulary=4))
    with pytest.raises(ValueError, match="has 8 tokens, the embedding 4 rows"):
        forget.words(subject._replace(config=config))


def test_pictures_find_the_nearest_by_direction():
    gallery = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert pictures.found(5 * gallery, gallery) == 1
    assert pictures.found(gallery[[0, 2, 1]] + 0.1, gallery) == pytest.approx(1 / 3)


def test_views_are_parts_of_their_piece_and_follow_the_seed(pieces):
    one, again, other = (pictures.views(pieces, 16, seed) for seed in (0, 0, 1))
    assert one.shape == (3, 16, 16, 3) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    grey = [Image.new("RGB", (20, 30), (100, 100, 100))]
    levels = [pictures.views(grey, 16, seed) for seed in range(8)]
    assert all(len(np.unique(level)) == 1 for level in levels)  # nothing from beyond its edge
    assert len({int(level[0, 0, 0, 0]) for level in levels}) > 4


def test_shuffled_weights_have_the_same_numbers(subject):
    mixed = forget.shuffled(subject.params)
    for old, new in zip(jax.tree.leaves(subject.params), jax.tree.leaves(mixed)):
        np.testing.assert_array_equal(np.sort(np.asarray(old), axis=None), np.sort(new, axis=None))
    assert (mixed["language"]["embed"]["embedding"] != subject.params["language"]["embed"]["embedding"]).any()


def test_what_held_the_weights():
    assert forget.method(FinetuneConfig("")) == "maps λ 3.2"
    adam = FinetuneConfig("", maps=MapsConfig(method="adam"), lora=LoraConfig(rank=4, targets=("bridge/",)))
    assert forget.method(adam) == "adam, LoRA rank 4 of bridge/"


def test_the_action_error_is_the_last_one(tmp_path):
    lines = [{"step": 1, "action_l1/heldout": 0.5}, {"step": 2, "loss": 1.0}, {"step": 2, "action_l1/heldout": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert forget.action_error(tmp_path)["action_l1"] == 0.25
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}))
    assert forget.action_error(tmp_path)["action_l1"] is None


def test_weights_and_runs_side_by_side(weights, pieces, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "forgetting.json"
    lora = ["--maps.method=adam", "--lora.rank=2", "--data.batch-size=2", "--data.shuffle-buffer=4", "--eval-splits"]
    steps = ["--optimizer.steps=1", "--optimizer.lr=0.01"]
    assert maps_vla(["finetune", f"--out={run}", f"--weights={weights}", *lora, *steps]) == 0
    assert main(["forget", f"--weights={weights}", f"--runs={run}", f"--out={out}"]) == 0
    before, shuffled, after = json.loads(out.read_text())["rows"]
    assert (before["method"], shuffled["method"]) == ("pretrained", "shuffled")
    assert after["method"].startswith("adam, LoRA rank 2 of") and after["steps"] == 1
    for yardstick in ("text", "answers"):
        assert before[yardstick] != after[yardstick] == pytest.approx(before[yardstick], rel=0.2)
        assert abs(before[yardstick] - after[yardstick]) < abs(before[yardstick] - shuffled[yardstick])
    assert "| weights | pretrained | – |" in capsys.readouterr().out


def test_bad_input_is_one_line(weights, tmp_path, capsys, pieces):
    for arguments, message in (
        (["--weights", str(tmp_path), "--runs"], "no provenance.json"),
        (["--weights", str(weights), "--runs", str(tmp_path / "none")], "give the --out folder of a finetune run"),
    ):
        assert main(["forget", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_the_pictures_are_in_the_package():
    pytest.importorskip("skimage")
    found = pictures.pieces()
    assert len(found) == 4 * len(pictures.NAMES) and all(piece.mode == "RGB" for piece in found)
