import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from octo_integration.common.files import write_json
from octo_integration.model.config import PRETRAINED
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.tokenizer import BOS, EOS, PAD, detokenize, load_words
from octo_integration.model.vla import VLA
from octo_integration.pretrain import frames_reader, objective, text
from octo_integration.pretrain import loop as pretraining
from octo_integration.pretrain import probes as pretrain_probes
from octo_integration.pretrain.loop import Corpus, PretrainConfig, pretrain
from octo_integration.pretrain.record import check_same_run, record
from octo_integration.processes import claim
from octo_integration.weights.store import load_params
from tests.octo_integration.model.small import SMALL, inputs

COUNT = 140


def frames(count=COUNT):
    rng = np.random.default_rng(0)
    hand, thing, goal = rng.uniform(0, 0.5, (3, count, 3)).astype(np.float32)
    return frames_reader.Frames(
        image=rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8),
        hand=hand,
        object=thing,
        goal=goal,
        hand_pixel=hand[:, :2] * 2,
        object_pixel=thing[:, :2] * 2,
        opening=rng.random(count, np.float32),
        shape=np.stack([thing, goal, hand], 1),
        shape_pixel=np.stack([thing, goal, hand], 1)[..., :2] * 2,
        shape_names=np.array(["red ball; blue disc; green cube", ""] * (count // 2), object),
        instruction=np.array(["move to the red ball", "push the puck"] * (count // 2), object),
        caption=np.array([f"frame number {i}, the light is dim" for i in range(count)], object),
        task=np.array(["push", "reach"] * (count // 2), object),
    )


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A config of a small model on frames in memory."""
    monkeypatch.setitem(CONFIGS, "small", SMALL)
    monkeypatch.setattr(pretraining, "read_frames", lambda path: frames())
    monkeypatch.setattr(pretraining, "measure_frames", lambda path: (COUNT, 16))
    return PretrainConfig(
        frames=str(tmp_path / "frames"),
        out=str(tmp_path / "run"),
        model="small",
        steps=4,
        warmup=1,
        batch_size=4,
        text_length=60,
        heldout=0.5,
        log_every=2,
        save_every=3,
    )


def compile_once(monkeypatch, *names):
    """Makes functions of the module keep their first result: runs here differ only in `out`."""
    for name in names:
        real, kept = getattr(pretraining, name), []

        def first(*args, real=real, kept=kept):
            if not kept:
                kept.append(real(*args))
            return kept[0]

        monkeypatch.setattr(pretraining, name, first)


def test_a_run_its_resumption_and_what_it_leaves(small, tmp_path, monkeypatch, capsys):
    compile_once(monkeypatch, "_start", "_make_step")
    weights = pretrain(small)
    content = weights.read_bytes()

    like = jax.eval_shape(VLA(SMALL).init, jax.random.key(0), *inputs())["params"]
    like = {name: like[name] for name in PRETRAINED if name in like}
    params = load_params(weights, like)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    provenance = json.loads(weights.with_suffix(".json").read_text())
    assert provenance["pretrain"]["seed"] == 0 and provenance["pretrain"]["frames"] == "frames"
    assert "out" not in provenance["pretrain"]
    probes = provenance["probes"]
    assert set(probes) == {"pretrained", "random"}
    assert probes["pretrained"].keys() == probes["random"].keys()
    assert probes["random"]["perplexity_caption"] == pytest.approx(SMALL.language.vocabulary, rel=0.2)
    assert probes["pretrained"]["perplexity_caption"] < probes["random"]["perplexity_caption"]
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert {"loss", *objective.WEIGHTS} < set(lines[0])

    # Interrupted after its second step, the same run goes on as if nothing had been.
    other = dataclasses.replace(small, out=str(tmp_path / "other"))
    calls = []
    batch = Corpus.batch

    def interrupted(self, index, kinds):
        calls.append(kinds)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, index, kinds)

    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "batch", interrupted)
        with pytest.raises(SystemExit) as caught:
            pretrain(other)
    assert caught.value.code == 128 + signal.SIGTERM
    assert "at step 2, saved" in capsys.readouterr().out

    # The same while the probes measure what was learnt, by Ctrl-C.
    calls.clear()

    def while_probing(self, index, kinds):
        if isinstance(kinds, str):  # all of one kind, as no step has
            calls.append(kinds)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGINT)
        return batch(self, index, kinds)

    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "batch", while_probing)
        with pytest.raises(SystemExit) as caught:
            pretrain(other)
    assert caught.value.code == 128 + signal.SIGINT and len(calls) == 3
    assert "at step 4, saved" in capsys.readouterr().out
    assert not (tmp_path / "other" / "weights.safetensors").exists()
    assert pretrain(other).read_bytes() == content
    capsys.readouterr()

    read = []
    monkeypatch.setattr(pretraining, "read_frames", read.append)
    with pytest.raises(ValueError, match="holds a run with seed=0, this one has 1"):
        pretrain(dataclasses.replace(small, seed=1))
    record = tmp_path / "run" / "config.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "versions": {"jax_enable_x64": True}}))
    with pytest.raises(ValueError, match="holds a run made with JAX_ENABLE_X64=True, this process has False"):
        pretrain(small)
    with claim.held(tmp_path / "run"), pytest.raises(OSError, match=f"is in use by process {os.getpid()} on "):
        pretrain(small)
    with pytest.raises(ValueError, match="holds other, but no run"):
        pretrain(dataclasses.replace(small, out=str(tmp_path)))
    assert read == []


def test_one_tower_learns_captions_and_answers_alone(small, tmp_path, monkeypatch):
    clip = dataclasses.replace(CONFIGS["tiny_clip"].clip, width=16, depth=2, heads=2, mlp=32)
    monkeypatch.setitem(CONFIGS, "small", dataclasses.replace(SMALL, dinov2=None, siglip=None, clip=clip))
    weights = pretrain(dataclasses.replace(small, steps=2, words="tiny"))
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss", "text", "answer"} <= line.keys() and not {"place", "patch", "views"} & line.keys()
    probes = json.loads(weights.with_suffix(".json").read_text())["probes"]["pretrained"]
    assert {"clip_hand_cm", "retrieval", "perplexity_caption"} <= probes.keys() and "head_hand_cm" not in probes
    assert not (tmp_path / "run" / "tokenizer.json").exists()


def test_the_order_is_a_function_of_the_seed_and_epochs_use_every_frame_once(small):
    config = dataclasses.replace(small, batch_size=5)
    index = np.concatenate([pretraining._sample(config, 10, step)[0] for step in range(4)])
    assert sorted(index[:10]) == sorted(index[10:]) == list(range(10))
    assert (index[:10] != index[10:]).any()
    other = np.concatenate([pretraining._sample(dataclasses.replace(config, seed=1), 10, s)[0] for s in range(4)])
    assert (other != index).any()


def test_only_the_kinds_that_are_named_are_asked_in_the_shares_that_they_have_among_them(small):
    config = dataclasses.replace(small, batch_size=2000, kinds=("hand", "caption"))
    asked = pretraining._sample(config, 10, 0)[1]
    assert set(asked) == {"hand", "caption"}
    assert (asked == "caption").mean() == pytest.approx(0.3 / (0.3 + 0.1), abs=0.03)
    everything = pretraining._sample(dataclasses.replace(config, kinds=text.ASKED), 10, 0)[1]
    assert (everything == "move").mean() == pytest.approx(0.35, abs=0.03)


def test_a_run_of_other_kinds_is_not_resumed_and_one_from_before_there_was_a_choice_is(small, tmp_path):
    kept = {name: value for name, value in record(small).items() if name != "kinds"}
    write_json(tmp_path / "config.json", kept)
    check_same_run(tmp_path, small)
    with pytest.raises(ValueError, match="kinds=None, this one has .'hand'.; choose another --out"):
        check_same_run(tmp_path, dataclasses.replace(small, kinds=("hand",)))
    write_json(tmp_path / "config.json", record(dataclasses.replace(small, kinds=("hand",))))
    check_same_run(tmp_path, dataclasses.replace(small, kinds=("hand",)))


def test_bad_input_is_refused_before_the_frames_are_read(small, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "read_frames", lambda path: pytest.fail("the frames were read"))
    for change, message in {
        "no model": (dict(model="huge"), "no model 'huge'; there are"),
        "no objective": (dict(model="octo_small"), "'octo_small' has neither dinov2 with siglip nor clip alone"),
        "weights": (dict(weights="imported"), "--weights is for --stage align; leave it out"),
        "few": (dict(heldout=0.1), "140 frames .* are too few"),
        "no words": (dict(words="none.json"), "none.json"),
        "bytes": (dict(words="bytes"), "words 'bytes' .* do not fit model 'small', whose tokenizer is 'tiny'"),
        "size": (dict(model="tiny"), "have 16 pixels, model 'tiny' sees 64; render them with --image-size 64"),
    }.values():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            pretrain(dataclasses.replace(small, **change))
    assert not (tmp_path / "run").exists()
    for change, message in (
        (dict(steps=0), "steps is 0"),
        (dict(warmup=4), "warmup is 4 of 4"),
        (dict(heldout=1.0), "heldout is 1.0"),
        (dict(kinds=()), "kinds is None; name one or more"),
        (dict(kinds=("find", "find")), "kinds is find find; name one or more, each once"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(small, **change)


def test_a_loss_that_is_not_finite_stops_the_run():
    parts = dict.fromkeys(("loss", *objective.WEIGHTS), np.float32(np.nan))
    with pytest.raises(FloatingPointError, match="loss is nan by step 7"):
        pretraining._mean([parts], 7)


def test_dialogues_are_questions_then_causal_answers():
    some = frames(2)
    tokens, times, targets = (x[0] for x in text.dialogues(some, "caption", 60, load_words("bytes")))
    question, answer = "describe the scene", "frame number 0, the light is dim"
    n, m = len(question) + 2, len(answer) + 1
    assert tokens[0] == BOS and tokens[n - 1] == EOS and detokenize(tokens[:n]) == question
    np.testing.assert_array_equal(tokens[n : n + m], [BOS, *answer.encode()])
    np.testing.assert_array_equal(targets[n : n + m], [*answer.encode(), EOS])
    assert (targets[:n] == text.NO_TARGET).all() and (tokens[n + m :] == PAD).all()
    np.testing.assert_array_equal(times[: n + m], [-1] * n + list(range(1, m + 1)))
    assert (times[n + m :] == text.PADDING_TIME).all()


def test_a_long_answer_loses_its_last_clause():
    question = len("describe the scene") + 2
    targets = text.dialogues(frames(2), "caption", question + 20, load_words("bytes"))[2]
    assert detokenize(targets[0][question:]) == "frame number 0"
    assert (targets[0] == EOS).sum() == 1


def test_what_an_instruction_asks_for_in_centimetres():
    some = dataclasses.replace(
        frames(2),
        hand=np.array([[0.0, 0.6, 0.2]] * 2, np.float32),
        object=np.array([[0.1, 0.6, 0.02]] * 2, np.float32),
        goal=np.array([[0.1, 0.85, 0.021]] * 2, np.float32),
    )
    assert text.KINDS["move"].ask(some, 0) == (some.instruction[0], "10 0 -18 0 25 0")
    assert sum(kind.share for kind in text.KINDS.values()) == pytest.approx(1)


def test_shapes_are_asked_for_by_name_and_objects_where_there_are_none():
    some = frames(2)
    some.shape_names[:] = ["red cube; blue ball", ""]
    some.shape_pixel[0, 0] = 0.25, 0.5
    some.object_pixel[1] = 0.75, 0.125
    assert text.KINDS["find"].ask(some, 0) == ("where is the red cube", "25 50")
    assert text.KINDS["find"].ask(some, 1) == ("where is the puck", "75 12")


def test_shapes_are_looked_for_in_all_their_patches_and_only_where_there_are_any():
    attention = np.full((4, 64, 1), -20.0, np.float32)
    attention[[0, 2], 8 * 2 + 5] = attention[[0, 2], 8 * 6 + 1] = 20.0  # both views of the first frame
    places = np.zeros((2, 2, 2), np.float32)
    places[0] = [[5.5 / 8, 2.5 / 8], [1.5 / 8, 6.5 / 8]]
    loss = objective._shape_loss(attention, places)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)  # shared between two patches
    assert objective._shape_loss(attention, np.zeros_like(places)) == 0


def test_bags_hold_words_and_neighbours_without_order_of_clauses():
    a, b, c = text.bags_of_words(["red puck", "red puck, red puck", "puck red"])
    assert (a > 0).sum() == 3 and (b > 0).sum() == 7
    assert len(set(a[:3]) & set(c[:3])) == 2 and a.max() < text.WORD_BUCKETS


def test_points_are_looked_for_in_their_patch():
    attention = np.full((1, 64, 1), -20.0, np.float32)
    attention[0, 8 * 2 + 5] = 20.0  # row 2, column 5
    here, there = ([[[5.5 / 8, 2.5 / 8]]], [[[2.5 / 8, 5.5 / 8]]])
    assert objective._patch_loss(attention, np.array(here)).mean() < 1e-6
    assert objective._patch_loss(attention, np.array(there)).mean() > 30


def test_patch_centres_are_columns_and_rows():
    centres = objective.patch_centres(64)
    np.testing.assert_allclose(centres[8 * 2 + 5], [5.5 / 8, 2.5 / 8])


def test_views_differ_from_their_frames_and_stay_images():
    images = frames(4).image.astype(np.float32)
    for view in (objective.mild_view, objective.strong_view):
        view = jax.jit(view)
        seen = np.asarray(view(images, jax.random.key(0)))
        assert seen.shape == images.shape and 0 <= seen.min() and seen.max() <= 255
        assert 1 < np.abs(seen - images).mean()
        np.testing.assert_array_equal(seen, view(images, jax.random.key(0)))


def test_the_ridge_probe_finds_a_linear_map():
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(200, 30)), rng.normal(size=(50, 30))
    w = rng.normal(size=(30, 3))
    guess = pretrain_probes.ridge(x, x @ w + 1, new)
    assert np.abs(guess - (new @ w + 1)).max() < 0.2
    noise = rng.normal(size=(50, 30))
    assert np.abs(pretrain_probes.ridge(x, x @ w + 1, noise) - (new @ w + 1)).max() > 1


def test_frames_are_read_as_they_were_written(tmp_path):
    made = frames(6)
    assert_same(frames_reader.read_frames(write(tmp_path / "frames", made)), made)
    assert frames_reader.measure_frames(tmp_path / "frames") == (6, 16)


def assert_same(got, wanted):
    for name in frames_reader.SHAPES:
        a, b = getattr(got, name), getattr(wanted, name)
        assert a.dtype == b.dtype
        if name != "image":  # JPEG
            np.testing.assert_array_equal(a, b)
    assert got.image.shape == wanted.image.shape


def write(path, made, split="train"):
    from octo_integration.collect.frames import frame_features
    from octo_integration.collect.writer import new_dataset

    rows = [{name: getattr(made, name)[i] for name in frames_reader.SHAPES} for i in range(len(made))]
    with new_dataset(
        path,
        name="frames",
        description="test",
        features=frame_features(16),
        splits=[split],
        expected_bytes=1000,
    ) as add:
        add({split: rows})
    return path


def test_frames_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no dataset_info.json"):
        frames_reader.read_frames(tmp_path)
    bad = frames(6)
    bad.hand[3, 1] = np.nan
    with pytest.raises(ValueError, match="hand has values that are not finite"):
        frames_reader.read_frames(write(tmp_path / "nan", bad))
    good = write(tmp_path / "good", frames(6))
    features = json.loads((good / "features.json").read_text())
    content = features["featuresDict"]["features"]
    content["seen"] = content.pop("hand")
    (good / "features.json").write_text(json.dumps(features))
    for read in (frames_reader.read_frames, frames_reader.measure_frames):
        with pytest.raises(ValueError, match="feature hand is missing"):
            read(good)
    record = next((tmp_path / "nan").glob("*.tfrecord*"))
    record.write_bytes(record.read_bytes()[:-40])
    with pytest.raises(ValueError, match="is damaged"):
        frames_reader.read_frames(tmp_path / "nan")
