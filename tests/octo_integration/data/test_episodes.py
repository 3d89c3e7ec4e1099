"""Reading records: order, encodings, damage."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from octo_integration.data import DataConfig, compute_statistics, eval_batches, train_batches
from octo_integration.data.episodes import decode_image, episodes, scan
from octo_integration.data.rlds import open_source

from .conftest import WriteRLDS, assert_one_line, make_episode, step_features

F = tfds.features


def numbers(path: Path, order_seed: int | None = None, split: str = "train") -> list[int]:
    source = open_source(str(path), split, "metaworld")
    return [int(e["episode"]) for e in episodes(source, order_seed).as_numpy_iterator()]


def config(path: Path, **changes: object) -> DataConfig:
    options = {"chunk": 2, "batch_size": 2, "image_size": 16} | changes
    return DataConfig(path=str(path), **options)  # type: ignore[arg-type]


def test_order_is_that_on_disk_or_a_seeded_shuffle_of_the_files(write_rlds: WriteRLDS) -> None:
    path = write_rlds([1] * 12, shards=6)
    assert numbers(path) == list(range(12))
    assert numbers(path, split="train[5:]") == list(range(7))
    orders = [numbers(path, seed) for seed in range(5)]
    assert orders == [numbers(path, seed) for seed in range(5)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5


def test_vectors_may_be_compressed_or_float64_and_images_raw(write_rlds: WriteRLDS) -> None:
    content = [make_episode(i, 3) for i in range(2)]
    for step in (step for episode in content for step in episode["steps"]):
        step["observation"]["state"] = step["observation"]["state"].tolist()
    exact = step_features(image=F.Image(shape=(16, 16, 3), encoding_format="png"))
    steps = step_features(
        image=F.Tensor(shape=(16, 16, 3), dtype=np.uint8),
        state=F.Tensor(shape=(4,), dtype=np.float64),
        action=F.Tensor(shape=(4,), dtype=np.float32, encoding="zlib"),
    )
    usual = write_rlds({"train": content}, steps=exact)
    unusual = write_rlds({"train": content}, steps=steps)
    for a, b in zip(
        eval_batches(config(usual), compute_statistics(config(usual)), split="train"),
        eval_batches(config(unusual), compute_statistics(config(unusual)), split="train"),
        strict=True,
    ):
        tf.nest.map_structure(np.testing.assert_array_equal, a, b)
        assert b["action"].dtype == b["observation"]["proprio"].dtype == np.float32


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["action", "state"])
def test_non_finite_vectors_are_named(write_rlds: WriteRLDS, field: str, value: float) -> None:
    content = [make_episode(i, 4) for i in range(3)]
    step = content[1]["steps"][2]
    (step if field == "action" else step["observation"])[field][3] = value
    path = write_rlds({"train": content})
    with pytest.raises(ValueError) as error:
        compute_statistics(config(path))
    name = "action" if field == "action" else "observation/state"
    assert_one_line(error, str(path), "episode 1, step 2", f"{name}[3] is {value}", "split slice")
    compute_statistics(config(path, split="train[:1]"))  # the remedy


def test_a_split_without_steps(write_rlds: WriteRLDS) -> None:
    with pytest.raises(ValueError) as error:
        compute_statistics(config(write_rlds([0, 0])))
    assert_one_line(error, "its 2 episodes hold no step")


def test_episodes_without_steps_do_no_harm(write_rlds: WriteRLDS) -> None:
    path = write_rlds([2, 0, 1])
    statistics = compute_statistics(config(path))
    assert statistics.num_steps == 3
    batches = list(eval_batches(config(path), statistics, split="train"))
    assert np.concatenate([b["episode"] for b in batches]).tolist() == [0, 0, 2]


def damage(path: Path, how: str) -> Path:
    """Damages the second of two files; returns it."""
    file = path / "toy-train.tfrecord-00001-of-00002"
    content = file.read_bytes()
    if how == "flipped":
        place = len(content) - 30
        content = content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
    elif how == "truncated":
        content = content[:-30]
    elif how == "record lost":
        length = int.from_bytes(content[:8], "little")
        content = content[: 8 + 4 + length + 4]
    file.write_bytes(content)
    os.utime(file, (0, 0))  # tensorflow tells file times to the second
    return file


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("flipped", "damaged at record 1"),
        ("truncated", "damaged at record 1"),
        ("record lost", "ends after 1 of the 2 records"),
    ],
)
def test_damaged_file_is_named(write_rlds: WriteRLDS, how: str, says: str) -> None:
    path = write_rlds([3] * 4, shards=2)
    before = compute_statistics(config(path))
    file = damage(path, how)
    with pytest.raises(ValueError) as error:
        compute_statistics(config(path))
    assert_one_line(error, str(file), says, "copy the file again")
    with pytest.raises(ValueError) as error:
        train_batches(config(path), before, seed=0)
    assert_one_line(error, str(file), says)


def test_damage_after_the_start_is_named_too(write_rlds: WriteRLDS) -> None:
    path = write_rlds([3] * 4, shards=2)
    batches = train_batches(config(path), compute_statistics(config(path)), seed=0)
    file = damage(path, "flipped")
    with pytest.raises(ValueError) as error:
        next(batches)
    assert_one_line(error, str(file), "damaged at record 1")


def test_damaged_image_is_named(write_rlds: WriteRLDS) -> None:
    content = [make_episode(i, 3) for i in range(3)]
    content[2]["steps"][1]["observation"]["image"] = io.BytesIO(b"\xff\xd8\xff no picture")
    path = write_rlds({"train": content})
    batches = eval_batches(config(path), compute_statistics(config(path)), split="train")
    with pytest.raises(ValueError) as error:
        list(batches)
    assert_one_line(error, "toy-train.tfrecord-00000-of-00001", "damaged at record 2")


def test_scan_gives_every_episode_in_order(write_rlds: WriteRLDS) -> None:
    source = open_source(str(write_rlds([2, 1, 3])), "train", "metaworld")
    found = list(scan(source))
    assert [len(action) for action, _ in found] == [2, 1, 3]
    assert [int(proprio[0, 0]) for _, proprio in found] == [0, 1, 2]


def test_images_of_another_size_are_resized_with_antialiasing() -> None:
    lines = np.zeros((32, 48, 3), np.uint8)
    lines[::4] = 200  # a quarter of the rows, which sampling without antialiasing misses
    small = decode_image(tf.constant(lines), 8).numpy()
    assert small.shape == (8, 8, 3) and small.dtype == np.uint8
    # Lanczos weighs the rows at the border unevenly.
    np.testing.assert_allclose(small[2:-2], 50, atol=3)


def test_images_of_the_right_size_are_untouched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(tf.constant(image), 8), image)
    np.testing.assert_array_equal(decode_image(tf.io.encode_png(image), 8), image)
