"""What is stored and yet missing, for the reader and for a policy alike."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from octo_integration.data import DataConfig, compute_statistics, eval_batches, train_batches
from octo_integration.data.missing import BLANK, says, shows

from .conftest import WriteRLDS, make_episode

BLANKS = ["", " ", "\n", " \r\n\t\v\f ", "\x00", "\x00" * 8, "\x85", "\u00a0", "\u2003\u3000", "\u200b", "\ufeff\u2029"]
WORDS = ["push", "\x00push\x00", " x\n", ".", "\u63a8", "\ufffd", "0"]
COLOURS = [(0, 0, 0), (255, 255, 255), (0, 0, 255), (130, 130, 130)]


@pytest.mark.parametrize("text", [*BLANKS, *WORDS])
def test_the_reader_and_a_policy_agree_on_what_is_blank(text: str) -> None:
    assert says(text) == (text in WORDS)
    assert bool(tf.strings.regex_full_match(text.encode(), BLANK)) == (text in BLANKS)


def test_bytes_that_are_no_text_are_an_instruction() -> None:
    assert not tf.strings.regex_full_match(b"\xff", BLANK) and says(b"\xff".decode(errors="replace"))


@pytest.mark.parametrize("colour", COLOURS)
def test_an_image_shows_something_if_one_pixel_differs_from_the_others(colour: tuple[int, int, int]) -> None:
    image = np.full((4, 6, 3), colour, np.uint8)
    assert not shows(image)
    image[3, 5, 2] ^= 1
    assert shows(image)


def config(path: Path, **changes: object) -> DataConfig:
    options = {"image_size": 24, "batch_size": 4, "chunk": 1, **changes}
    return DataConfig(path=str(path), **options)  # type: ignore[arg-type]


def test_blank_instructions_are_missing(write_rlds: WriteRLDS) -> None:
    texts = [*BLANKS, *WORDS]
    episode = make_episode(0, len(texts))
    for step, text in zip(episode["steps"], texts, strict=True):
        step["language_instruction"] = text
    whole = config(write_rlds({"train": [episode]}), batch_size=len(texts))
    (batch,) = eval_batches(whole, compute_statistics(whole), split="train")
    assert batch["task"]["pad_mask_dict"]["instruction"].tolist() == [text in WORDS for text in texts]


def test_a_blank_instruction_keeps_its_goal(write_rlds: WriteRLDS) -> None:
    episode = make_episode(0, 8)
    for step in episode["steps"]:
        step["language_instruction"] = " \n"
    dropping = config(write_rlds({"train": [episode]}), goal=True, drop_goal=1.0)
    for batch in itertools.islice(train_batches(dropping, compute_statistics(dropping), seed=0), 4):
        assert batch["task"]["pad_mask_dict"]["image_primary"].all()


@pytest.mark.parametrize("colour", COLOURS)
def test_an_image_of_one_colour_is_missing_and_stays_so_under_augmentation(
    write_rlds: WriteRLDS, colour: tuple[int, int, int]
) -> None:
    """Also as a goal: the last frame of this episode is of one colour too."""
    episode = make_episode(1, 4)
    for step in (0, 3):
        episode["steps"][step]["observation"]["image"] = np.full((16, 16, 3), colour, np.uint8)
    goals = config(write_rlds({"train": [episode]}), window=2, goal=True)
    statistics = compute_statistics(goals)
    (plain,) = eval_batches(goals, statistics, split="train")
    present = plain["observation"]["pad_mask_dict"]["image_primary"]
    assert present.tolist() == [[False, False], [False, True], [True, True], [True, False]]
    assert not plain["task"]["pad_mask_dict"]["image_primary"].any()
    seen = next(train_batches(dataclasses.replace(goals, shuffle_buffer=1), statistics, seed=0))
    for batch in (plain, seen):
        for images, masks in (
            (batch["observation"]["image_primary"], batch["observation"]["pad_mask_dict"]["image_primary"]),
            (batch["task"]["image_primary"], batch["task"]["pad_mask_dict"]["image_primary"]),
        ):
            assert images.any(axis=(-3, -2, -1)).tolist() == masks.tolist()


def test_the_wrist_camera_of_bridge_which_was_not_there(bridge_path: str) -> None:
    real = DataConfig(path=bridge_path, standardize="bridge", cameras=("primary", "wrist"), batch_size=64)
    batch = next(eval_batches(real, compute_statistics(real), split="train"))
    masks = batch["observation"]["pad_mask_dict"]
    assert masks["image_primary"].sum() == 64 and masks["image_wrist"].sum() == 0
