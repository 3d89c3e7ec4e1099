"""An RLDS data set on disk, found fit for use; or one line that says what is wrong and what to do.

RLDS: one record per episode, whose feature `steps` is a nested data set
(https://github.com/google-research/rlds). Nothing here reads an episode.
"""

import dataclasses
import hashlib
import importlib.resources
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from octo_integration.data.mapping import WHOLE
from octo_integration.data.proposal import Leaf, texts
from octo_integration.data.standardize import Standardisation, find, known, source
from octo_integration.data.tf import tf, tfds
from octo_integration.data.trusted import check_features, check_inside


class FilePart(NamedTuple):
    """`take` episodes from the `skip`th of a file of `total`; that one is `first` in the split."""

    path: str
    skip: int
    take: int
    total: int
    first: int


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set that has the features its standardisation reads.

    Attributes:
      name: directory and split, for messages.
      features: TFDS features of what the standardisation reads: one flat `steps`, and an instruction beside it.
      cameras: those of its images that the data set has and that are wanted.
      fingerprint: changes with the data files, the split and the standardisation.
    """

    name: str
    standardisation: Standardisation
    features: Any
    cameras: tuple[str, ...]
    parts: tuple[FilePart, ...]
    num_episodes: int
    fingerprint: str


def open_source(path: str, split: str, standardize: str, cameras: Sequence[str] = ()) -> Source:
    """Finds a data set and checks, without reading an episode, that it can be used.

    Args:
      path: directory with dataset_info.json, or "demo".
      split: TFDS split, slices allowed.
      standardize: name of a standardisation, as for `standardize.find`.
      cameras: whose images are wanted; those that the data set lacks are left out.

    Raises:
      FileNotFoundError: there is no such directory, or a file of the data set is missing.
      ValueError: not RLDS, damaged, unknown or empty split, unknown standardisation, features that do
        not fit it or are not TFDS's own, or files elsewhere.
    """
    standardisation = find(standardize)
    directory = _demo() if path == "demo" else path
    builder = _builder(directory)
    parts = _parts(builder, directory, split)
    features = _features(builder.info.features, directory, standardize, cameras)
    steps = features["steps"].feature
    return Source(
        name=f"{directory} [{split}]",
        standardisation=standardisation,
        features=features,
        cameras=tuple(camera for camera in cameras if standardisation.images.get(camera) in steps),
        parts=parts,
        num_episodes=sum(part.take for part in parts),
        fingerprint=_fingerprint(directory, standardize, parts),
    )


def open_whole(path: str, split: str) -> tuple[Source, dict[str, str], dict[str, Leaf]]:
    """A data set whose fields nobody has mapped yet, to be looked at.

    Returns:
      (source of all its images, each a camera of its own path, float vectors, and the likeliest instruction if any;
       path -> type and shape of all fields; those that a mapping can name).

    Raises:
      FileNotFoundError, ValueError: as `open_source`, but for the standardisation.
    """
    directory = _demo() if path == "demo" else path
    builder = _builder(directory)
    _check_steps(builder.info.features, directory)
    parts = _parts(builder, directory, split)
    found = dict(sorted(leaves(builder.info.features).items(), key=lambda item: (item[0][0] == WHOLE, item[0])))
    usable = {at: leaf for at, feature in found.items() if (leaf := _leaf(feature))}
    images, vectors = (
        [at for at, leaf in usable.items() if leaf.kind == kind and at[0] != WHOLE] for kind in ("image", "vector")
    )
    if not images and not vectors:
        raise ValueError(f"{directory}: steps have no image and no float vector, but {', '.join(sorted(found))}.")
    standardisation = Standardisation(
        images={at: at for at in images},
        vectors={at: usable[at].size for at in vectors},
        instruction=next(iter(texts(usable)), ""),
        build=lambda steps: (None, None, slice(None)),  # there is nothing to build yet
    )
    read = (*images, *vectors, *filter(None, (standardisation.instruction,)))
    source = Source(
        name=f"{directory} [{split}]",
        standardisation=standardisation,
        features=_only(found, read),
        cameras=tuple(images),
        parts=parts,
        num_episodes=sum(part.take for part in parts),
        fingerprint="",
    )
    return source, {at: _described(feature) for at, feature in found.items()}, usable


def split_names(path: str) -> tuple[str, ...]:
    """The splits of a data set that have episodes, in its own order.

    Raises:
      FileNotFoundError, ValueError: as `open_source`.
    """
    splits = _builder(_demo() if path == "demo" else path).info.splits
    return tuple(name for name, info in splits.items() if info.num_examples)


def deal(source: Source, streams: int) -> list[Source]:
    """The source in `streams` parts: whole files where there are enough of them, else ranges of episodes.

    Raises:
      ValueError: there are fewer episodes than streams.
    """
    if streams == 1:
        return [source]
    if source.num_episodes < streams:
        raise ValueError(
            f"{source.name}: {source.num_episodes} episodes cannot be dealt to data.streams={streams}; lower it."
        )
    if len(source.parts) >= streams:
        dealt = [source.parts[i::streams] for i in range(streams)]
    else:
        edges = [source.num_episodes * i // streams for i in range(streams + 1)]
        dealt = [tuple(_cut(source.parts, *edges[i : i + 2])) for i in range(streams)]
    return [dataclasses.replace(source, parts=p, num_episodes=sum(part.take for part in p)) for p in dealt]


def first_episodes(source: Source, count: int) -> Source:
    """The source's first `count` episodes, or all of them."""
    parts = tuple(_cut(source.parts, 0, min(count, source.num_episodes)))
    return dataclasses.replace(source, parts=parts, num_episodes=sum(part.take for part in parts))


def _cut(parts: tuple[FilePart, ...], start: int, stop: int) -> Iterator[FilePart]:
    """What of `parts` lies between two numbers in their sequence."""
    before = 0
    for part in parts:
        low, high = max(start - before, 0), min(stop - before, part.take)
        if low < high:
            yield part._replace(skip=part.skip + low, take=high - low, first=part.first + low)
        before += part.take


def first_line(error: Exception) -> str:
    """What an exception says, without tensorflow's node names and stack."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*?\]( name:.*)?", "", str(error)).strip()
    return text.splitlines()[0].strip().rstrip(".") if text else type(error).__name__


def _demo() -> str:
    return str(importlib.resources.files("octo_integration") / "assets" / "metaworld_tiny" / "1.0.0")


def _builder(directory: str) -> Any:
    if not tf.io.gfile.isdir(directory):
        raise FileNotFoundError(
            f"data.path: there is no directory {directory}; give that of an RLDS data set, or demo."
        )
    if not tf.io.gfile.exists(os.path.join(directory, "dataset_info.json")):
        inside = sorted(tf.io.gfile.glob(os.path.join(directory, "*", "dataset_info.json")), key=_numbers_as_such)
        remedy = f"did you mean {os.path.dirname(inside[-1])}?" if inside else "give the directory that holds it."
        raise ValueError(f"data.path: {directory} is not an RLDS data set, it has no dataset_info.json; {remedy}")
    try:
        check_features(directory)
        builder = tfds.builder_from_directory(directory)
        # Read when they are asked for.
        file_format, splits, features = builder.info.file_format, builder.info.splits, builder.info.features
        if file_format is None or not splits or not features:
            raise ValueError("they lack the file format, the splits or the features")
    except Exception as error:  # TFDS raises whatever its JSON and protobuf parsers raise
        raise ValueError(
            f"data.path: {directory}: dataset_info.json or features.json is damaged "
            f"({first_line(error)}); copy them again."
        ) from None
    if file_format.value != "tfrecord":
        raise ValueError(
            f"data.path: {directory} is stored as {file_format.value}, which has no reader here; "
            "convert it to tfrecord (tfds convert_format)."
        )
    return builder


def _numbers_as_such(name: str) -> list[Any]:
    """A key to sort names by: 9.0.0 comes before 10.0.0."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _instructions(builder: Any, directory: str, split: str) -> list[Any]:
    """TFDS's list of the files, and the part of each, that make up the split."""
    splits = sorted(builder.info.splits.items())
    known = ", ".join(f"{name} ({info.num_examples} episodes)" for name, info in splits)
    try:
        instructions = builder.info.splits[split].file_instructions
    except Exception as error:  # of damaged numbers of examples, anything
        raise ValueError(f"{directory}: split {split!r} cannot be had ({first_line(error)}); it has {known}.") from None
    if not instructions:
        raise ValueError(f"{directory}: split {split!r} is empty; it has {known}.")
    if min(part.take for part in instructions) < 1:
        raise ValueError(f"{directory}: dataset_info.json gives a file of split {split!r} no number of episodes.")
    return instructions


def _parts(builder: Any, directory: str, split: str) -> tuple[FilePart, ...]:
    instructions = _instructions(builder, directory, split)
    for instruction in instructions:
        check_inside(os.fspath(builder.data_dir), os.fspath(instruction.filename))
    takes = [part.take for part in instructions]
    return tuple(
        FilePart(os.fspath(p.filename), p.skip, p.take, p.examples_in_shard, int(first))
        for p, first in zip(instructions, np.cumsum([0, *takes[:-1]]), strict=True)
    )


def _check_steps(features: Any, directory: str) -> None:
    if "steps" not in features or not isinstance(features["steps"], tfds.features.Dataset):
        raise ValueError(
            f"data.path: {directory} is not an RLDS data set: its records have no steps but "
            f"{', '.join(sorted(features))}; give one whose records are episodes."
        )


def _features(features: Any, directory: str, standardize: str, cameras: Sequence[str]) -> Any:
    """The part of the TFDS features that the standardisation reads, its types and sizes checked."""
    _check_steps(features, directory)
    steps = leaves(features)
    needs = find(standardize)
    images = [p for camera in cameras if (p := needs.images.get(camera)) in steps]
    paths = (*images, *needs.vectors, needs.instruction)
    remedy = f"give the standardize of this data set (there are {', '.join(known())}), or a JSON mapping."
    for path in paths:
        if path not in steps:
            raise ValueError(
                f"{directory}: steps have no {path}, which standardize={standardize!r} reads, but "
                f"{', '.join(sorted(steps))}; {remedy}"
            )
        wanted, fits = _expected(needs, path)
        found = steps[path]
        if not fits(found):
            raise ValueError(
                f"{directory}: steps/{path} is {_described(found)}, "
                f"standardize={standardize!r} reads {wanted}; {remedy}"
            )
    return _only(steps, paths)


def _only(found: Mapping[str, Any], paths: Sequence[str]) -> Any:
    """The features of a record that has these fields alone, flat."""
    steps = {path: found[path] for path in paths if path[0] != WHOLE}
    beside = {path.removeprefix(WHOLE): found[path] for path in paths if path[0] == WHOLE}
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps), **beside})


def _leaf(feature: Any) -> Leaf | None:
    """What a mapping can make of a feature."""
    dtype, shape = feature.tf_dtype, feature.shape
    if dtype == tf.string and shape == ():
        return Leaf("text", 0)
    if dtype == tf.uint8 and shape is not None and len(shape) == 3 and shape[2] == 3:
        return Leaf("image", 0)
    if _is_float(dtype) and len(shape) <= 1 and None not in shape:
        return Leaf("vector", shape[0] if shape else 1)
    return None


def _expected(needs: Standardisation, path: str) -> tuple[str, Any]:
    """What the standardisation reads at `path`: in words, and as a test of a TFDS feature."""
    if path in needs.images.values():
        return "uint8[height, width, 3]", lambda f: f.np_dtype == np.uint8 and f.shape[2:] == (3,)
    if path == needs.instruction:
        return "string[]", lambda f: f.tf_dtype == tf.string and f.shape == ()
    size = needs.vectors[path]
    shapes = ((size,), ()) if size == 1 else ((size,),)
    return f"float[{size}]", lambda f: _is_float(f.tf_dtype) and f.shape in shapes


def _is_float(dtype: Any) -> bool:
    return isinstance(dtype, tf.DType) and bool(dtype.is_floating)


def _described(feature: Any) -> str:
    """float32[4], say; nested features have no single type."""
    if not isinstance(feature.tf_dtype, tf.DType):
        return f"a {type(feature).__name__}"
    return f"{feature.tf_dtype.name}{list(feature.shape)}"


def leaves(features: Any) -> dict[str, Any]:
    """{path: feature} of the steps, and of what the episode has once under "/path"."""
    beside = {f"{WHOLE}{path}": f for path, f in _leaves(features) if path != "steps"}
    return {**dict(_leaves(features["steps"].feature)), **beside}


def _leaves(feature: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(feature, tfds.features.FeaturesDict):
        yield prefix, feature
        return
    for key, value in feature.items():
        yield from _leaves(value, f"{prefix}/{key}" if prefix else key)


def _fingerprint(directory: str, standardize: str, parts: tuple[FilePart, ...]) -> str:
    """Hash of all that decides what the episodes hold; of the data's files, size and time."""
    digest = hashlib.sha256(standardize.encode())
    digest.update(source(standardize))
    with tf.io.gfile.GFile(os.path.join(directory, "features.json"), "rb") as file:
        digest.update(file.read())
    for part in parts:
        name = os.path.basename(part.path)
        try:
            stat = tf.io.gfile.stat(part.path)
        except tf.errors.NotFoundError:
            raise FileNotFoundError(
                f"{directory}: {name} is missing, which dataset_info.json lists; copy it again."
            ) from None
        digest.update(f"{name} {part.skip} {part.take} {stat.length} {stat.mtime_nsec}\n".encode())
    return digest.hexdigest()
