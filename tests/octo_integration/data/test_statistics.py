import dataclasses
import json
import logging
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from octo_integration.data import (
    DataConfig,
    Moments,
    Statistics,
    compute_statistics,
    statistics_from_json,
    train_batches,
)
from octo_integration.data import episodes as episodes_module

from .conftest import WriteRLDS, make_episode


def config(path: Path, **changes: object) -> DataConfig:
    return DataConfig(path=str(path), **changes)  # type: ignore[arg-type]


def toy(normalisation: str = "mean_std") -> Statistics:
    rng = np.random.default_rng(0)
    values = rng.normal(3, [0.01, 5, 100, 0], (200, 4)).astype(np.float32)
    moments = Moments.of(values)
    return Statistics(moments, Moments.of(values[:, :2]), 4, 200, normalisation, "f")  # type: ignore[arg-type]


def test_moments_are_numpys(write_rlds: WriteRLDS) -> None:
    values = np.random.default_rng(0).normal(1e4, 1e-2, (1000, 2)).astype(np.float32)
    moments = Moments.of(values)
    x = values.astype(np.float64)
    np.testing.assert_allclose(moments.std, x.std(0), rtol=1e-6)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(moments.min, values.min(0))
    np.testing.assert_array_equal(moments.max, values.max(0))
    np.testing.assert_allclose(moments.q01, np.quantile(x, 0.01, axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.q99, np.quantile(x, 0.99, axis=0), rtol=1e-6)


def test_statistics_of_a_split(write_rlds: WriteRLDS) -> None:
    path = write_rlds([3, 5, 2])
    whole = compute_statistics(config(path))
    assert (whole.num_episodes, whole.num_steps) == (3, 10)
    steps = [(e, s) for e, n in enumerate([3, 5, 2]) for s in range(n)]
    np.testing.assert_allclose(whole.proprio.mean[:2], np.mean(steps, 0), rtol=1e-6)
    np.testing.assert_allclose(whole.proprio.std[:2], np.std(steps, 0), rtol=1e-6)
    part = compute_statistics(config(path, split="train[1:]"))
    assert (part.num_episodes, part.num_steps) == (2, 7)
    assert part.proprio.min[0] == 1


def test_normalised_actions_have_mean_0_and_std_1() -> None:
    statistics = toy()
    x = np.random.default_rng(0).normal(3, [0.01, 5, 100, 0], (200, 4)).astype(np.float32)
    y = statistics.normalise_action(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(y.std(0), [1, 1, 1, 0], atol=1e-3)
    assert np.isfinite(statistics.normalise_action(x + 1)).all()  # 3, constant, becomes 4


@pytest.mark.parametrize("normalisation", ["mean_std", "bounds"])
def test_a_dimension_of_numbers_below_the_smallest_normal_one_is_only_shifted(normalisation: str) -> None:
    denormal = Moments.of(np.array([[0.0], [3e-39]]))
    assert denormal.std > 0
    _, scale = denormal.affine(normalisation)  # type: ignore[arg-type]
    assert scale == 1


def test_bounds_put_the_percentiles_at_plus_and_minus_1() -> None:
    statistics = toy("bounds")
    moments = statistics.action
    np.testing.assert_allclose(statistics.normalise_action(moments.q01)[:3], -1, rtol=1e-4)
    np.testing.assert_allclose(statistics.normalise_action(moments.q99)[:3], 1, rtol=1e-4)
    beyond = statistics.normalise_action(moments.q99 + (moments.q99 - moments.q01))
    np.testing.assert_allclose(beyond[:3], 3, rtol=1e-3)  # nothing is clipped


@pytest.mark.parametrize("normalisation", ["mean_std", "bounds"])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_unnormalise_is_the_inverse(normalisation: str, array) -> None:  # type: ignore[no-untyped-def]
    statistics = toy(normalisation)
    x = np.random.default_rng(1).normal(0, 10, (6, 8, 4)).astype(np.float32)
    back = statistics.unnormalise_action(statistics.normalise_action(array(x)))
    np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-4)
    proprio = statistics.normalise_proprio(array(x[..., :2]))
    np.testing.assert_allclose(proprio, statistics.normalise_action(x)[..., :2], rtol=1e-6)


def test_json_gives_back_every_bit() -> None:
    statistics = toy()
    again = Statistics.from_json(statistics.to_json())
    assert again.to_json() == statistics.to_json()
    for moments in ("action", "proprio"):
        for field in dataclasses.fields(Moments):
            a = getattr(getattr(statistics, moments), field.name)
            b = getattr(getattr(again, moments), field.name)
            assert a.tobytes() == b.tobytes() and b.dtype == np.float32


def damaged_texts() -> list[str]:
    good = json.loads(toy().to_json())
    no_key = {k: v for k, v in good.items() if k != "num_steps"}
    extra = {**good, "surprise": 1}
    ragged = {**good, "action": {**good["action"], "std": [1.0]}}
    nan = {**good, "action": {**good["action"], "std": [float("nan")] * 4}}
    text = {**good, "action": "none"}
    return ["", "{", "[]", *(json.dumps(v) for v in (no_key, extra, ragged, nan, text))]


@pytest.mark.parametrize("text", damaged_texts())
def test_damaged_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^statistics: the JSON is damaged .*compute them again"):
        Statistics.from_json(text)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sources that were read."""
    seen: list[str] = []
    scan = episodes_module.scan

    def counted(source):  # type: ignore[no-untyped-def]
        seen.append(source.name)
        return scan(source)

    monkeypatch.setattr(episodes_module, "scan", counted)
    return seen


def test_cache_is_used_and_leaves_nothing_else(write_rlds: WriteRLDS, tmp_path: Path, scans: list[str]) -> None:
    path, cache = write_rlds([3, 2]), tmp_path / "a" / "cache"
    first = compute_statistics(config(path), cache)
    again = compute_statistics(config(path), cache)
    assert again.to_json() == first.to_json() and len(scans) == 1
    assert len(os.listdir(cache)) == 1
    bounds = compute_statistics(config(path, normalisation="bounds"), cache)
    assert bounds.normalisation == "bounds" and len(scans) == 1
    compute_statistics(config(path, split="train[:1]"), cache)
    assert len(scans) == 2 and len(os.listdir(cache)) == 2


def test_changed_data_are_read_again(write_rlds: WriteRLDS, tmp_path: Path, scans: list[str]) -> None:
    path = write_rlds([3, 2])
    compute_statistics(config(path), tmp_path)
    os.utime(path / "toy-train.tfrecord-00000-of-00001", ns=(0, 0))
    compute_statistics(config(path), tmp_path)
    assert len(scans) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"half"])
def test_corrupted_cache_is_made_anew(write_rlds: WriteRLDS, tmp_path: Path, scans: list[str], content: bytes) -> None:
    path, cache = write_rlds([3, 2]), tmp_path / "cache"
    first = compute_statistics(config(path), cache)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    again = compute_statistics(config(path), cache)
    assert again.to_json() == first.to_json() and len(scans) == 2
    assert file.read_bytes() == whole


def test_a_full_disk_costs_the_cache_only(
    write_rlds: WriteRLDS,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        statistics = compute_statistics(config(write_rlds([3])), tmp_path / "cache")
    assert statistics.num_steps == 3
    assert "No space left" in caplog.text
    assert os.listdir(tmp_path / "cache") == []


def test_bounds_clipped_keep_all_within_what_was_learnt_from() -> None:
    statistics = toy("bounds_clipped")
    low, high = statistics.action.q01, statistics.action.q99
    x = np.stack([low - 9, low, (low + high) / 2, high, high + 9])
    normalised = np.array([-1, -1, 0, 1, 1], np.float32)[:, None] * np.ones(3, np.float32)
    for array in (np.asarray, jnp.asarray, tf.constant):
        y = statistics.normalise_action(array(x))
        assert y.dtype == np.float32
        np.testing.assert_allclose(np.asarray(y)[:, :3], normalised, atol=1e-4)
        assert np.abs(y).max() <= 1  # also where the dimension is constant
        back = statistics.unnormalise_action(array(2 * np.asarray(y)))
        np.testing.assert_allclose(np.asarray(back)[:, :3], np.clip(x, low, high)[:, :3], rtol=1e-5)
    proprio = statistics.normalise_proprio(x[:, :2])
    np.testing.assert_array_equal(proprio, statistics.normalise_action(x)[:, :2])


def test_bounds_clipped_are_what_training_reads_and_a_run_keeps(write_rlds: WriteRLDS) -> None:
    clipped = config(write_rlds([9, 11]), normalisation="bounds_clipped", image_size=16, batch_size=20)
    statistics = statistics_from_json(compute_statistics(clipped).to_json())
    assert statistics.of().normalisation == "bounds_clipped"
    found = {
        name: next(train_batches(clipped, dataclasses.replace(statistics.of(), normalisation=name), seed=0))
        for name in ("bounds", "bounds_clipped")
    }
    for read in (lambda batch: batch["action"], lambda batch: batch["observation"]["proprio"]):
        assert np.abs(read(found["bounds"])).max() > 1
        np.testing.assert_array_equal(read(found["bounds_clipped"]), read(found["bounds"]).clip(-1, 1))


def rarely_moving() -> list[dict]:
    """Of 600 steps one moves the last entry by 1, the others by 0.01; the last of the state moves by very little."""
    episode = make_episode(0, 600)
    for number, step in enumerate(episode["steps"]):
        step["action"][3] = 1.0 if number == 300 else 0.01 * (number % 2)
        step["observation"]["state"][3] = 5.0 + 1e-3 * (number % 2)
    return [episode]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Ours; TensorFlow has its own."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("octo_integration")]


@pytest.mark.parametrize(("normalisation", "factor"), [("bounds", 199), ("mean_std", 24)])
def test_a_dimension_that_hardly_ever_moves_is_named_whenever_statistics_are_made(
    write_rlds: WriteRLDS, tmp_path: Path, caplog: pytest.LogCaptureFixture, normalisation: str, factor: int
) -> None:
    content = rarely_moving()
    rare = config(write_rlds({"train": content}), normalisation=normalisation)
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        statistics = compute_statistics(rare, tmp_path / "cache").of()
        values = np.stack([step["action"] for step in content[0]["steps"]])
        largest = np.abs(statistics.normalise_action(values)).max(0)
        np.testing.assert_allclose(statistics.action.largest(normalisation), largest, rtol=1e-5)
        (message,) = warnings(caplog)
        assert message.startswith(f"{rare.path} [train]: normalised by {normalisation}, these dimensions reach")
        assert f": action[3] ({factor}); give --data.normalisation bounds_clipped" in message
    caplog.clear()
    clipped = compute_statistics(dataclasses.replace(rare, normalisation="bounds_clipped"), tmp_path / "cache").of()
    assert not warnings(caplog) and np.abs(clipped.normalise_action(values)).max() == 1


def test_data_that_move_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for normalisation in ("mean_std", "bounds"):
        compute_statistics(DataConfig(normalisation=normalisation))  # type: ignore[arg-type]
    assert not warnings(caplog)
