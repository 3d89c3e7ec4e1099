"""Damaged records, metadata, statistics and configs: sound values, or one line that names the file; never a hang.

By default a few hundred seeded mutations; with TORTURE=1, ten thousand.
"""

import dataclasses
import json
import os
import random
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from octo_integration.config import FinetuneConfig, read_config, to_dict
from octo_integration.data import DataConfig, compute_statistics, eval_batches, read_statistics, train_batches
from octo_integration.data.mixture import members

from . import mutations
from .conftest import WriteRLDS, assert_one_line, make_episode, write

TORTURE = os.environ.get("TORTURE") == "1"
PIPELINES = 1000 if TORTURE else 3  # of each of four kinds: each builds and runs a tf.data pipeline
FILES = 1500 if TORTURE else 60  # of each of four kinds
PATIENCE = 120  # seconds
USER_ERRORS = (ValueError, OSError)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of two episodes."""
    episodes = [make_episode(i, n) for i, n in enumerate([3, 2, 4, 1])]
    return write(tmp_path_factory.mktemp("sound") / "toy" / "1.0.0", {"train": episodes}, shards=2)


def outcome(call: Callable[[], Any], context: Any) -> Exception | None:
    """What a call ends in, within PATIENCE."""
    found: list[Exception | None] = []

    def run() -> None:
        try:
            call()
            found.append(None)
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not found:
        where = "".join(traceback.format_stack(sys._current_frames()[thread.ident]))
        pytest.fail(f"{context}: it has not ended within {PATIENCE} s; it is at\n{where}")
    return found[0]


def assert_sound_or_told(call: Callable[[], Any], path: Path, context: Any) -> bool:
    """Whether it was told; anything but success and one line about `path` is a failure."""
    error = outcome(call, context)
    if error is None:
        return False
    assert isinstance(error, USER_ERRORS), (context, repr(error))
    message = str(error)
    assert "\n" not in message and str(path) in message, (context, type(error), message)
    return True


def assert_finite(batch: Any) -> None:
    for values in tf.nest.flatten(batch):
        if values.dtype == np.float32:
            assert np.isfinite(values).all(), "a silent NaN"


def read_all(path: Path) -> None:
    """Statistics, every window, and two batches of training."""
    config = DataConfig(path=str(path), chunk=2, batch_size=2, image_size=16, shuffle_buffer=4)
    statistics = compute_statistics(config)
    for batch in eval_batches(config, statistics, split="train"):
        assert_finite(batch)
    if statistics.num_steps >= config.batch_size:
        batches = train_batches(config, statistics, seed=0)
        for _ in range(2):
            assert_finite(next(batches))


def damage_file(path: Path, rng: random.Random) -> None:
    file = rng.choice(sorted(path.glob("*.tfrecord*")))
    file.write_bytes(mutations.of_bytes(file.read_bytes(), rng))


def damage_record(path: Path, rng: random.Random) -> None:
    """Behind the back of the checksums: the file is written anew around a damaged record."""
    file = rng.choice(sorted(path.glob("*.tfrecord*")))
    records = [bytes(record.numpy()) for record in tf.data.TFRecordDataset(str(file))]
    victim = rng.randrange(len(records))
    records[victim] = mutations.of_bytes(records[victim], rng)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record)


def damage_features(path: Path, rng: random.Random) -> None:
    file = path / "features.json"
    file.write_bytes(mutations.of_json(file.read_text(), rng))


def damage_info(path: Path, rng: random.Random) -> None:
    file = path / "dataset_info.json"
    file.write_bytes(mutations.of_json(file.read_text(), rng))


@pytest.mark.filterwarnings("ignore")  # TFDS and protobuf warn of some damage
@pytest.mark.parametrize("damage", [damage_file, damage_record, damage_features, damage_info])
def test_a_damaged_data_set_is_read_soundly_or_told_in_one_line(sound: Path, tmp_path: Path, damage: Any) -> None:
    told = 0
    for seed in range(PIPELINES):
        path = tmp_path / str(seed)
        shutil.copytree(sound, path)
        damage(path, random.Random(seed))
        told += assert_sound_or_told(lambda path=path: read_all(path), path, (damage.__name__, seed))
        shutil.rmtree(path)
    assert told >= PIPELINES // 3  # the mutations do harm


def run_config(path: Path) -> str:
    return json.dumps(to_dict(FinetuneConfig(out="runs/x", weights=None)))


def statistics(path: Path) -> str:
    return compute_statistics(DataConfig(path=str(path))).to_json()


def mixture(path: Path) -> str:
    row = {"path": str(path), "standardize": "metaworld", "split": "train"}
    return json.dumps([{**row, "name": "a", "weight": 1.0}, {**row, "name": "b", "weight": 3}])


def mixture_of_statistics(path: Path) -> str:
    return json.dumps({"mixture": {name: json.loads(statistics(path)) for name in ("a", "b")}})


def use_statistics(file: Path) -> None:
    found = read_statistics(file)
    for own in getattr(found, "members", {None: found}).values():
        assert np.isfinite(own.normalise_action(own.action.max)).all(), "a silent NaN"


def use_mixture(file: Path) -> None:
    found = members(DataConfig(mixture=str(file)))
    assert sum(member.weight for member in found) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "make", "use"),
    [
        ("config.json", run_config, lambda file: read_config(file.parent)),
        ("statistics.json", statistics, use_statistics),
        ("statistics.json", mixture_of_statistics, use_statistics),
        ("mixture.json", mixture, use_mixture),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_damaged_json_file_is_used_soundly_or_told_in_one_line(
    sound: Path, tmp_path: Path, name: str, make: Any, use: Any
) -> None:
    text, file, told = make(sound), tmp_path / name, 0
    file.write_text(text)
    use(file)
    for seed in range(FILES):
        file.write_bytes(mutations.of_json(text, random.Random(seed)))
        told += assert_sound_or_told(lambda: use(file), tmp_path, (name, seed))
    assert told > FILES // 3  # the mutations do harm


@pytest.mark.parametrize(
    "content", ["[]", "7", "null", '"x"', "[" * 100_000, "\udcff".encode(errors="surrogateescape")]
)
@pytest.mark.parametrize("name", ["config.json", "statistics.json", "mixture.json"])
def test_a_file_of_something_else_is_named(tmp_path: Path, name: str, content: Any) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    use = {
        "config.json": lambda f: read_config(f.parent),
        "statistics.json": use_statistics,
        "mixture.json": use_mixture,
    }
    with pytest.raises(ValueError) as error:
        use[name](file)
    assert_one_line(error, str(file))


def test_a_field_of_a_config_with_a_wrong_type_is_named(tmp_path: Path) -> None:
    values = to_dict(FinetuneConfig(out="runs/x"))
    for change, says in (
        ({"seed": "zero"}, "config.json.seed is 'zero'"),
        ({"data": 5}, "config.json.data is '5', but should hold fields"),
        ({"maps": {"method": "sgd"}}, "config.json.maps.method is 'sgd'"),
        ({"optimizer": {"betas": [0.9]}}, "config.json.optimizer.betas is '[0.9]'"),
        ({"keep": True}, "config.json.keep is 'True'"),
        ({"log_every": 0}, "config.json: log_every is 0"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(ValueError) as error:
            read_config(tmp_path)
        assert_one_line(error, str(tmp_path), says)
    del values["out"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="'out'"):
        read_config(tmp_path)


@pytest.mark.parametrize("weight", ["Infinity", "NaN", "1" + "0" * 400, "1e31", "0"])
def test_a_weight_that_makes_shares_senseless_is_refused(tmp_path: Path, weight: str) -> None:
    file = tmp_path / "mixture.json"
    file.write_text(f'[{{"path": "a", "standardize": "bridge", "weight": {weight}}}]')
    with pytest.raises(ValueError) as error:
        members(DataConfig(mixture=str(file)))
    assert_one_line(error, str(file), "entry 0: weight is ", "give a finite number above 0")


def test_statistics_that_contradict_themselves_are_refused(sound: Path, tmp_path: Path) -> None:
    good = json.loads(statistics(sound))
    file = tmp_path / "statistics.json"
    for change in (
        {"num_steps": 0},
        {"num_episodes": "many"},
        {"normalisation": "none"},
        {"fingerprint": None},
        {"action": {**good["action"], "std": [-1.0] * 4}},
        {"action": {**good["action"], "mean": [1e9] * 4}},
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError) as error:
            read_statistics(file)
        assert_one_line(error, str(file), "compute them again")


def test_large_bounds_do_not_overflow(sound: Path) -> None:
    moments = dataclasses.replace(
        compute_statistics(DataConfig(path=str(sound))).action,
        **{name: np.full(4, 3e38, np.float32) for name in ("min", "max", "q01", "q99")},
    )
    assert all(np.isfinite(x).all() for x in moments.affine("bounds"))


def uneven(path: Path) -> None:
    """Rewrites the second record of the first file without the last of its states."""
    file = sorted(path.glob("*.tfrecord*"))[0]
    records = [bytes(record.numpy()) for record in tf.data.TFRecordDataset(str(file))]
    example = tf.train.Example.FromString(records[1])
    del example.features.feature["steps/observation/state"].float_list.value[-4:]
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(records[0])
        writer.write(example.SerializeToString())


def test_an_episode_with_a_state_too_few_is_named(write_rlds: WriteRLDS) -> None:
    path = write_rlds([3, 2, 4, 3], shards=2)
    config = DataConfig(path=str(path), chunk=2, batch_size=2, image_size=16)
    before = compute_statistics(config)
    uneven(path)
    with pytest.raises(ValueError) as error:
        compute_statistics(config)
    assert_one_line(error, str(path), "episode 1 has steps of different numbers", "3 observation/state", "4 action")
    with pytest.raises(ValueError) as error:
        list(eval_batches(config, before, split="train"))
    assert_one_line(error, sorted(map(str, path.glob("*.tfrecord*")))[0], "record 1", "3 observation/state")
