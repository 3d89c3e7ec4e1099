"""Data sets that cannot be used are refused before anything is read, in one line that helps."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from octo_integration.data.rlds import open_source

from .conftest import WriteRLDS, assert_one_line, make_episode, step_features

F = tfds.features


def refused(path: Path | str, *parts: str, split: str = "train", name: str = "metaworld") -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        open_source(str(path), split, name, ("primary",))
    assert_one_line(error, *parts)


def test_source_lists_the_files_of_a_split(write_rlds: WriteRLDS) -> None:
    path = write_rlds([3, 4, 5, 2, 1], shards=2)  # three episodes in one file, two in the other
    whole = open_source(str(path), "train", "metaworld")
    assert [(p.skip, p.take, p.total, p.first) for p in whole.parts] == [(0, 3, 3, 0), (0, 2, 2, 3)]
    assert whole.num_episodes == 5
    part = open_source(str(path), "train[1:4]", "metaworld")
    assert [(p.skip, p.take, p.total, p.first) for p in part.parts] == [(1, 2, 3, 0), (0, 1, 2, 2)]
    assert part.num_episodes == 3


def test_demo_is_the_shipped_set() -> None:
    source = open_source("demo", "train", "metaworld")
    assert source.num_episodes == 60


def test_missing_directory(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", str(tmp_path / "nowhere"), "no directory", "demo")


def test_directory_above_the_version(write_rlds: WriteRLDS) -> None:
    path = write_rlds([2])
    refused(path.parent, "dataset_info.json", f"did you mean {path}?")


def test_the_newest_version_is_found_by_number(tmp_path: Path) -> None:
    for version in ("1.0.0", "9.0.0", "10.0.0", "10.0.0-old/nested"):
        (tmp_path / "set" / version).mkdir(parents=True)
        (tmp_path / "set" / version / "dataset_info.json").write_text("{}")
    refused(tmp_path / "set", f"did you mean {tmp_path}/set/10.0.0?")


def test_directory_of_something_else(tmp_path: Path) -> None:
    refused(tmp_path, "not an RLDS data set", "give the directory that holds it")


def test_damaged_metadata(write_rlds: WriteRLDS) -> None:
    path = write_rlds([2])
    text = (path / "features.json").read_text()
    (path / "features.json").write_text(text[: len(text) // 2])
    refused(path, str(path), "features.json is damaged", "copy")


def test_other_file_format(write_rlds: WriteRLDS) -> None:
    path = write_rlds([2])
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace('"tfrecord"', '"array_record"'))
    refused(path, str(path), "array_record", "convert")


def test_records_without_steps(tmp_path: Path) -> None:
    path = tmp_path / "plain" / "1.0.0"
    path.mkdir(parents=True)
    (path / "plain-train.tfrecord-00000-of-00001").touch()
    tfds.folder_dataset.write_metadata(
        data_dir=path,
        features=F.FeaturesDict({"image": F.Image(), "label": F.ClassLabel(num_classes=2)}),
        split_infos=[
            tfds.core.SplitInfo(
                name="train",
                shard_lengths=[1],
                num_bytes=0,
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=path, dataset_name="plain", filetype_suffix="tfrecord", split="train"
                ),
            )
        ],
        check_data=False,
    )
    refused(path, "not an RLDS data set", "no steps", "image, label")


@pytest.mark.parametrize("split", ["heldout", "train[", "train[:200%]", "train[9:]"])
def test_unknown_split_lists_the_known_ones(write_rlds: WriteRLDS, split: str) -> None:
    episodes = [make_episode(0, 2)]
    path = write_rlds({"train": episodes, "val": episodes * 2})
    refused(path, split, "train (1 episodes), val (2 episodes)", split=split)


def test_empty_split(write_rlds: WriteRLDS) -> None:
    path = write_rlds({"train": [make_episode(0, 2)], "none": []})
    refused(path, "split 'none' is empty", "train (1 episodes)", split="none")
    refused(path, "split 'train[:0]' is empty", "train (1 episodes)", split="train[:0]")


def test_unknown_standardisation_lists_the_known_ones(write_rlds: WriteRLDS) -> None:
    refused(write_rlds([2]), "'aloha'", "bridge, calvin, libero, metaworld", name="aloha")


def test_missing_file_is_named(write_rlds: WriteRLDS) -> None:
    path = write_rlds([2, 2], shards=2)
    gone = "toy-train.tfrecord-00001-of-00002"
    (path / gone).unlink()
    refused(path, gone, "missing", "copy")


@pytest.mark.parametrize("key", ["state", "action", "language_instruction"])
def test_missing_feature_is_named(write_rlds: WriteRLDS, key: str) -> None:
    path = write_rlds({"train": []}, steps=step_features(**{key: None}))
    refused(
        write_with_one_file(path),
        f"steps have no {'observation/' if key == 'state' else ''}{key}",
        "metaworld",
        "give the standardize of this data set (there are bridge, calvin, libero, metaworld)",
    )


@pytest.mark.parametrize(
    ("key", "feature", "parts"),
    [
        ("action", F.Tensor(shape=(7,), dtype=np.float32), ["float32[7]", "float[4]"]),
        ("action", F.Tensor(shape=(4,), dtype=np.int32), ["int32[4]", "float[4]"]),
        ("state", F.Tensor(shape=(2, 4), dtype=np.float32), ["float32[2, 4]", "float[4]"]),
        ("image", F.Tensor(shape=(8, 8, 3), dtype=np.float32), ["float32[8, 8, 3]", "uint8"]),
        ("image", F.Image(shape=(8, 8, 3), dtype=np.uint16), ["uint16[8, 8, 3]", "uint8"]),
        ("image", F.Image(shape=(8, 8, 1)), ["uint8[8, 8, 1]", "uint8[height, width, 3]"]),
        ("language_instruction", F.Tensor(shape=(512,), dtype=np.float32), ["float32[512]"]),
    ],
)
def test_wrong_feature_is_named(write_rlds: WriteRLDS, key: str, feature: F.FeatureConnector, parts: list[str]) -> None:
    path = write_rlds({"train": []}, steps=step_features(**{key: feature}))
    refused(write_with_one_file(path), f"/{key} is ", "standardize", *parts)


def write_with_one_file(path: Path) -> Path:
    """Makes the metadata list one episode: features are refused before any is read."""
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace('"0"', '"1"'))
    return path


def test_fingerprint_tells_splits_and_files_apart(write_rlds: WriteRLDS, tmp_path: Path) -> None:
    path = write_rlds([3, 3])
    file = path / "toy-train.tfrecord-00000-of-00001"
    os.utime(file, ns=(0, 0))

    def fingerprint(where: Path = path, split: str = "train") -> str:
        return open_source(str(where), split, "metaworld").fingerprint

    first = fingerprint()
    assert fingerprint() == first
    copied = tmp_path / "elsewhere"
    shutil.copytree(path, copied)
    assert fingerprint(copied) == first
    assert fingerprint(split="train[:1]") != first
    os.utime(file, ns=(0, 10**9))
    assert fingerprint() != first


def test_fingerprint_changes_with_the_code_of_the_standardisation(
    write_rlds: WriteRLDS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, own = write_rlds([2]), tmp_path / "own_arm.py"
    monkeypatch.syspath_prepend(tmp_path)
    code = "from octo_integration.data.standardisations.metaworld import STANDARDISATION as ARM\n"
    found = []
    for change in ("", "# changed", ""):
        own.write_text(code + change)
        found.append(open_source(str(path), "train", "own_arm:ARM").fingerprint)
    assert found[0] == found[2] != found[1]
    assert found[0] != open_source(str(path), "train", "metaworld").fingerprint
