"""The RLDS side of a conversion: the features, and whether what is on disk is what was to be written."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from octo_integration.data.rlds import first_line
from octo_integration.data.tf import settled, tf, tfds

FLAGS = ("is_first", "is_last", "is_terminal")


def rlds_features(fields: Mapping[str, Any], encoding: str) -> Any:
    """The TFDS features of an episode whose steps have these fields (`write.Field`)."""
    F = tfds.features
    made = {
        use.path: F.Image(shape=use.shape, encoding_format=encoding)
        if use.kind == "image"
        else F.Tensor(shape=use.shape, dtype=np.float32)
        for use in fields.values()
    }
    step = {
        "action": made.pop("action"),
        "observation": {path.removeprefix("observation/"): feature for path, feature in made.items()},
        "language_instruction": F.Text(),
        **{flag: F.Scalar(np.bool_) for flag in FLAGS},
    }
    return F.FeaturesDict({"steps": F.Dataset(step), "episode_metadata": {"source": F.Text()}})


def digest(example: Mapping[str, Any]) -> str:
    """Of every bit of an episode that is to be written."""
    steps = [dict(_leaves(step)) for step in example["steps"]]
    return _digest({path: [step[path] for step in steps] for path in steps[0]}, example["episode_metadata"]["source"])


def check_same(directory: Path, digests: Sequence[str]) -> None:
    """Reads a data set back, images as they are stored.

    Raises:
      OSError: an episode is not what was to be written.
    """
    found = digests_of(directory, len(digests))
    if found != list(digests):
        wrong = next((i for i, (one, other) in enumerate(zip(found, digests)) if one != other), len(found))
        raise OSError(f"episode {wrong} reads back differently from what was written; is the disk sound?")


def digests_of(directory: Path, count: int) -> list[str]:
    """`digest` of each of the `count` episodes on disk; a damaged file is an OSError."""
    builder = tfds.builder_from_directory(directory)
    features = builder.info.features
    files = [str(part.filename) for part in builder.info.splits["train"].file_instructions]
    found = []
    try:
        for record in tqdm(settled(tf.data.TFRecordDataset(files)), "check", count, unit="episode"):
            read = features.deserialize_example(record, decoders={"steps": tfds.decode.SkipDecoding()})
            steps = {path: list(values.numpy()) for path, values in _leaves(read["steps"])}
            found.append(_digest(steps, read["episode_metadata"]["source"].numpy()))
    except tf.errors.OpError as error:
        raise OSError(f"what was written cannot be read back ({first_line(error)})") from None
    return found


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _digest(steps: Mapping[str, Sequence[Any]], name: str | bytes) -> str:
    total = hashlib.sha256(_bytes(name))
    for path in sorted(steps):
        total.update(path.encode())
        for value in steps[path]:
            content = _bytes(value)
            total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes | str):
        return value.encode() if isinstance(value, str) else value
    array = np.asarray(value)
    return array.tobytes() if array.dtype == np.bool_ else array.astype(np.float32).tobytes()
