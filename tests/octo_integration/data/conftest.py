"""Small RLDS data sets, written with TFDS as a user would write them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

F = tfds.features
WriteRLDS = Callable[..., Path]


def step_features(**changes: Any) -> dict[str, Any]:
    """Features of the steps of our own data sets; `changes` replaces or (None) removes some."""
    features = {
        "image": F.Image(shape=(16, 16, 3), encoding_format="jpeg"),
        "state": F.Tensor(shape=(4,), dtype=np.float32),
        "action": F.Tensor(shape=(4,), dtype=np.float32),
        "language_instruction": F.Text(),
        **changes,
    }
    kept = {name: feature for name, feature in features.items() if feature is not None}
    observation = {name: kept.pop(name) for name in ("image", "state") if name in kept}
    return {"observation": F.FeaturesDict(observation), **kept}


def two_colours(value: int, size: int = 16) -> np.ndarray:
    """An image of one value but for its first quarter, as one of a single colour counts as missing."""
    image = np.full((size, size, 3), value, np.uint8)
    image[: size // 2, : size // 2] = 255 - value
    return image


def make_episode(number: int, length: int, size: int = 16) -> dict[str, Any]:
    """An episode whose state says where each step is from: (episode, step, 0, 0); its images do, too."""
    rng = np.random.default_rng(number)
    steps = [
        {
            "observation": {
                "image": two_colours((10 * number + step) % 256, size),
                "state": np.array([number, step, 0, 0], np.float32),
            },
            "action": rng.normal(size=4).astype(np.float32),
            "language_instruction": f"do task {number} ö",
        }
        for step in range(length)
    ]
    return {"steps": steps}


def write(
    directory: Path,
    splits: Mapping[str, Sequence[dict[str, Any]]],
    steps: Mapping[str, Any] | None = None,
    shards: int = 1,
) -> Path:
    """Writes the episodes of each split, dealt out to `shards` files; returns the directory."""
    features = F.FeaturesDict({"steps": F.Dataset(steps or step_features())})
    directory.mkdir(parents=True)
    infos = []
    template = tfds.core.ShardedFileTemplate(data_dir=directory, dataset_name="toy", filetype_suffix="tfrecord")
    for split, episodes in splits.items():
        shares = [episodes[i::shards] for i in range(shards)]
        split_template = template.replace(split=split)
        for i, share in enumerate(shares):
            path = split_template.sharded_filepath(shard_index=i, num_shards=shards)
            with tf.io.TFRecordWriter(str(path)) as writer:
                for episode in share:
                    writer.write(features.serialize_example(episode))
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(share) for share in shares],
                num_bytes=0,
                filename_template=split_template,
            )
        )
    tfds.folder_dataset.write_metadata(data_dir=directory, features=features, split_infos=infos, check_data=False)
    return directory


@pytest.fixture
def write_rlds(tmp_path: Path) -> WriteRLDS:
    """write_rlds(lengths or {split: episodes}, steps=features, shards=1) -> directory."""
    names = (tmp_path / f"toy{i}" / "1.0.0" for i in itertools.count())

    def call(content: Any, **options: Any) -> Path:
        if not isinstance(content, Mapping):
            content = {"train": [make_episode(i, length) for i, length in enumerate(content)]}
        return write(next(names), content, **options)

    return call


def assert_one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    """The message is one line that says all of `parts`."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
