"""Batches: contents, order, exact resumption, shares of hosts, and what does not fit."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from octo_integration.data import (
    DataConfig,
    Statistics,
    batches,
    compute_statistics,
    eval_batches,
    train_batches,
)

from .conftest import WriteRLDS, assert_one_line, make_episode

LENGTHS = [3, 7, 5, 1, 6, 4]  # 26 windows: no multiple of the batch sizes below
TOTAL = sum(LENGTHS)


@pytest.fixture
def config(write_rlds: WriteRLDS) -> DataConfig:
    path = write_rlds(LENGTHS, shards=3)
    return DataConfig(path=str(path), chunk=3, window=2, image_size=16, batch_size=4, shuffle_buffer=10)


# Once per data set: each test has its own, but some ask many times.
compute_statistics = functools.cache(compute_statistics)


def take(config: DataConfig, count: int, **options: Any) -> list[dict]:
    found = train_batches(config, compute_statistics(config), **{"seed": 0, **options})
    return list(itertools.islice(found, count))


def assert_same(a: Any, b: Any) -> None:
    tf.nest.assert_same_structure(a, b)
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def places(found: list[dict], statistics: Statistics) -> list[tuple[int, int]]:
    """(episode as written, step) of every sample, which the state holds."""
    offset, scale = statistics.proprio.affine(statistics.normalisation)
    proprio = np.concatenate([b["observation"]["proprio"][:, -1] for b in found])
    return [(int(e), int(s)) for e, s in np.round(proprio * scale + offset)[:, :2]]


def all_places() -> list[tuple[int, int]]:
    return [(e, s) for e, n in enumerate(LENGTHS) for s in range(n)]


def test_a_batch_has_the_agreed_form(config: DataConfig) -> None:
    for batch in (take(config, 1)[0], next(iter(evaluated(config)))):
        observation = batch["observation"]
        assert observation["image_primary"].shape == (4, 2, 16, 16, 3)
        assert observation["image_primary"].dtype == np.uint8
        assert observation["proprio"].shape == (4, 2, 4)
        assert observation["proprio"].dtype == np.float32
        assert observation["timestep_pad_mask"].shape == (4, 2)
        assert observation["timestep_pad_mask"].dtype == bool
        assert batch["action"].shape == (4, 4, 4) and batch["action"].dtype == np.float32
        assert batch["action_pad_mask"].shape == batch["action"].shape and batch["action_pad_mask"].dtype == bool
        assert batch["task"]["instruction"].dtype == object
        assert all(isinstance(text, str) for text in batch["task"]["instruction"])
        assert batch["episode"].shape == (4,) and batch["episode"].dtype == np.int64


def evaluated(config: DataConfig, split: str = "train") -> list[dict]:
    return list(eval_batches(config, compute_statistics(config), split=split))


def test_the_parts_of_a_sample_belong_together(config: DataConfig) -> None:
    statistics = compute_statistics(config)
    plain = dataclasses.replace(config, augment=False)
    found = take(plain, 14)
    for (episode, step), image, text, action, mask in zip(
        places(found, statistics),
        np.concatenate([b["observation"]["image_primary"][:, -1] for b in found]),
        np.concatenate([b["task"]["instruction"] for b in found]),
        np.concatenate([b["action"] for b in found]),
        np.concatenate([b["action_pad_mask"] for b in found]),
        strict=True,
    ):
        assert abs(int(image[8, 8, 0]) - (10 * episode + step)) <= 1  # JPEG
        assert text == f"do task {episode} ö"
        source = [s["action"] for s in make_episode(episode, LENGTHS[episode])["steps"]]
        # One step before the present and three from it on.
        wanted = range(step - 1, step + 3)
        assert mask.tolist() == [[0 <= i < len(source)] * 4 for i in wanted]
        real = np.stack([source[i] for i in wanted if 0 <= i < len(source)])
        np.testing.assert_allclose(statistics.unnormalise_action(action[mask[:, 0]]), real, rtol=1e-4, atol=1e-5)


def test_evaluation_sees_every_window_once_in_order(config: DataConfig) -> None:
    found = evaluated(config)
    assert [len(b["action"]) for b in found] == [4] * 6 + [2]
    statistics = compute_statistics(config)
    on_disk = [e for shard in range(3) for e in range(shard, len(LENGTHS), 3)]
    assert places(found, statistics) == [(e, s) for e in on_disk for s in range(LENGTHS[e])]
    numbers = np.concatenate([b["episode"] for b in found])
    assert numbers.tolist() == [i for i, e in enumerate(on_disk) for _ in range(LENGTHS[e])]
    for a, b in zip(found, evaluated(config), strict=True):
        assert_same(a, b)


def test_evaluation_normalises_with_the_statistics_given(config: DataConfig) -> None:
    train = dataclasses.replace(config, split="train[:3]")
    statistics = compute_statistics(train)
    held = np.concatenate([b["action"][:, 0] for b in eval_batches(train, statistics, split="train[3:]")])
    raw = np.concatenate(
        [
            b["action"][:, 0] * (s := compute_statistics(config)).action.std + s.action.mean
            for b in eval_batches(config, compute_statistics(config), split="train[3:]")
        ]
    )
    np.testing.assert_allclose(statistics.unnormalise_action(held), raw, rtol=1e-4, atol=1e-5)


def test_every_epoch_is_another_permutation_of_all_samples(config: DataConfig) -> None:
    found = take(config, TOTAL)  # 4 epochs, as a batch has 4 samples
    order = places(found, compute_statistics(config))
    epochs = [order[i : i + TOTAL] for i in range(0, len(order), TOTAL)]
    assert len(epochs) == 4
    for epoch in epochs:
        assert sorted(epoch) == all_places()
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_is_that_of_the_seed(config: DataConfig) -> None:
    statistics = compute_statistics(config)
    found = [take(config, 7, seed=seed) for seed in (0, 0, 2**62)]
    for a, b in zip(found[0], found[1], strict=True):
        assert_same(a, b)
    assert places(found[2], statistics) != places(found[0], statistics)


def test_resuming_anywhere_gives_the_same_batches_bit_for_bit(config: DataConfig) -> None:
    whole = take(config, 22)  # more than three epochs
    # Within the first epoch, astride its end, at the common end of epoch and batch, beyond.
    for start in (1, 6, 13, 20):
        for a, b in zip(whole[start:], take(config, 22 - start, start=start), strict=True):
            assert_same(a, b)


def test_skipped_samples_are_not_decoded(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def counted(image: Any, size: int) -> Any:
        tick = tf.numpy_function(lambda: decoded.append(1) or 0, [], tf.int64)
        with tf.control_dependencies([tick]):
            return tf.zeros((size, size, 3), tf.uint8)

    monkeypatch.setattr(batches, "decode_image", counted)
    monkeypatch.setattr(batches.tf.data, "AUTOTUNE", 1)
    big = dataclasses.replace(config, batch_size=13, window=1)
    next(train_batches(big, compute_statistics(big), seed=0, start=4001))
    # One batch is asked for and a few are prefetched; 4001 were skipped.
    assert len(decoded) <= 13 * 8


def test_hosts_share_the_batches_of_one(config: DataConfig) -> None:
    whole = take(config, 9, start=4)
    shares = [take(config, 9, start=4, shard=(i, 2)) for i in range(2)]
    assert {len(b["action"]) for share in shares for b in share} == {2}
    for n, batch in enumerate(whole):
        joined = tf.nest.map_structure(lambda *x: np.concatenate(x), *(s[n] for s in shares))
        assert_same(joined, batch)


def test_augmentation_differs_between_samples_and_epochs(config: DataConfig) -> None:
    config = dataclasses.replace(config, window=1)
    found = take(config, TOTAL)
    images = np.concatenate([b["observation"]["image_primary"] for b in found])
    seen: dict[tuple[int, int], list[bytes]] = {}
    for place, image in zip(places(found, compute_statistics(config)), images, strict=True):
        seen.setdefault(place, []).append(image.tobytes())
    assert all(len(set(copies)) >= 3 for copies in seen.values())


def test_other_image_size(config: DataConfig) -> None:
    config = dataclasses.replace(config, image_size=24)
    for batch in (take(config, 1)[0], evaluated(config)[0]):
        assert batch["observation"]["image_primary"].shape == (4, 2, 24, 24, 3)


def test_statistics_of_another_source_do_not_shift_the_epochs(config: DataConfig) -> None:
    other = dataclasses.replace(compute_statistics(config), fingerprint="another", num_steps=999)
    found = list(itertools.islice(train_batches(config, other, seed=0, start=9), 3))
    for a, b in zip(found, take(config, 3, start=9), strict=True):
        assert_same(a, b)


def refused(config: DataConfig, *parts: str, **options: Any) -> None:
    """Raised by the call itself, not by the first batch."""
    statistics = options.pop("statistics", None) or compute_statistics(config)
    with pytest.raises(ValueError) as error:
        train_batches(config, statistics, **{"seed": 0, **options})
    assert_one_line(error, *parts)


def test_batch_larger_than_the_data_set(config: DataConfig) -> None:
    take(dataclasses.replace(config, batch_size=TOTAL), 2)
    large = dataclasses.replace(config, batch_size=TOTAL + 1)
    refused(large, config.path, f"batch_size is {TOTAL + 1}", f"only {TOTAL} windows", "lower it")


@pytest.mark.parametrize("shard", [(0, 3), (2, 2), (-1, 2)])
def test_impossible_shares(config: DataConfig, shard: tuple[int, int]) -> None:
    refused(config, "data.batch_size is 4", f"shard {shard[0]} of {shard[1]}", shard=shard)


@pytest.mark.parametrize("options", [{"start": -1}, {"seed": -1}, {"seed": 2**63}])
def test_impossible_numbers(config: DataConfig, options: dict[str, int]) -> None:
    refused(config, "give start >= 0 and 0 <= seed < 2**63", **options)


@pytest.mark.parametrize("name", ["action", "proprio"])
def test_statistics_of_another_robot(config: DataConfig, name: str) -> None:
    good = compute_statistics(config)
    seven = {f.name: np.ones(7, np.float32) for f in dataclasses.fields(good.action)}
    bad = dataclasses.replace(good, **{name: type(good.action)(**seven)})
    refused(config, f"{name} has 4 dimensions, its statistics 7", statistics=bad)
    with pytest.raises(ValueError, match="its statistics 7"):
        eval_batches(config, bad, split="train")


def test_real_bridge_episodes(bridge_path: str) -> None:
    config = DataConfig(path=bridge_path, standardize="bridge", split="train[:20]", batch_size=16)
    statistics = compute_statistics(config)
    assert (statistics.num_episodes, statistics.num_steps) == (20, 180)
    assert statistics.action.mean.shape == statistics.proprio.mean.shape == (7,)
    found = take(config, 12)
    actions = np.concatenate([b["action"][:, 0] for b in found])[:180]  # one epoch
    np.testing.assert_allclose(actions.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(actions.std(0), 1, atol=1e-3)
    gripper = statistics.unnormalise_action(actions)[:, 6]
    assert set(np.round(gripper, 3)) <= {0.0, 1.0}
    held_out = list(eval_batches(config, statistics, split="train[20:]"))
    assert sum(len(b["action"]) for b in held_out) == 45
    assert set(np.concatenate([b["episode"] for b in held_out])) == set(range(5))
    image = held_out[0]["observation"]["image_primary"]
    assert image.shape == (16, 1, 64, 64, 3) and 60 < image.mean() < 200
    assert Path(bridge_path).name == "1.0.0"
