"""Records of an RLDS data set -> standardised episodes, images still compressed.

Only what the standardisation reads is parsed.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from octo_integration.data.mapping import WHOLE
from octo_integration.data.rlds import Source, first_line
from octo_integration.data.standardize import Episode, Fields, Span, episode
from octo_integration.data.tf import settled, tf, tfds

READ_BUFFER = 4 << 20  # bytes
INTERLEAVED_FILES = 16
# The second: where a message quotes a damaged record, tensorflow cannot make text of it.
FAILURES = (tf.errors.OpError, UnicodeDecodeError)
NUMBERS = ("skip", "take", "first")  # of a FilePart


def episodes(source: Source, order_seed: Any = None) -> Any:
    """tf.data of standardised episodes, each with its number in the split as "episode" (int64[]).

    Args:
      order_seed: int64[], may be a tensor: shuffles the files and interleaves them. None: the
        order on disk.
    """

    def build(number: Any, steps: Fields) -> Episode:
        return {**episode(source.standardisation, steps), "episode": number}

    return raw_episodes(source, order_seed).map(build, num_parallel_calls=tf.data.AUTOTUNE)


def scan(source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Standardised (action f32[N, A], proprio f32[N, P]) of every episode in the order on disk.

    Raises:
      ValueError: a file is damaged, a raw vector is NaN or infinite or of another convention (`Span`), the fields of an
        episode are not of one length, or there is not one step.
    """

    def vectors(number: Any, steps: Fields) -> tuple[Any, ...]:
        proprio, action, _ = source.standardisation.build(steps)
        raw = {path: steps[path] for path in source.standardisation.vectors}
        return number, _lengths(steps), raw, action, proprio

    data = raw_episodes(source, None).map(vectors, num_parallel_calls=tf.data.AUTOTUNE)
    count = total = 0
    spreads = [_Spread(source, span) for span in source.standardisation.spans]
    with readable(source):
        for number, lengths, raw, action, proprio in settled(data).as_numpy_iterator():
            if uneven := _uneven(lengths):
                raise ValueError(
                    f"{source.name}: episode {number} has {uneven}; repair it, or leave it out by a split slice."
                )
            for path, values in raw.items():
                _check_finite(source, number, path, values)
            for spread in spreads:
                spread.add(number, raw[spread.span.path])
            count, total = count + 1, total + len(action)
            yield action, proprio
    if count < source.num_episodes:
        found = f"{source.name}: {count} of {source.num_episodes} episodes found; copy the files again."
        raise ValueError(_explain(source) or found)
    for spread in spreads:
        spread.check()
    if total == 0:
        raise ValueError(f"{source.name}: its {count} episodes hold no step to learn from; take another split.")


def decode_image(image: Any, size: int) -> Any:
    """One image, compressed (string[]) or uint8[H, W, 3] -> uint8[size, size, 3].

    Resizing is Lanczos with antialiasing, as Octo's, and does not keep the aspect.
    """
    if image.dtype == tf.string:
        image = tf.io.decode_image(image, channels=3, expand_animations=False)

    def resize() -> Any:
        resized = tf.image.resize(image, (size, size), method="lanczos3", antialias=True)
        return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)

    fits = tf.reduce_all(tf.shape(image) == (size, size, 3))
    return tf.ensure_shape(tf.cond(fits, lambda: image, resize), (size, size, 3))


@contextlib.contextmanager
def readable(*sources: Source) -> Iterator[None]:
    """Turns what tensorflow raises while it reads into a ValueError that names file and record."""
    # A local name: at interpreter exit, generators that use this are closed after `tf` is gone.
    failures = FAILURES
    try:
        yield
    except failures as error:
        damaged = (found for source in sources if (found := _explain(source)) is not None)
        names = ", ".join(source.name for source in sources)
        raise ValueError(next(damaged, f"{names}: reading failed ({first_line(error)}).")) from None


def _lengths(steps: Fields) -> dict[str, Any]:
    return {path: tf.shape(values)[0] for path, values in steps.items()}


def _uneven(lengths: Mapping[str, Any]) -> str | None:
    """Which fields of an episode have different numbers of steps, in words; None: they agree."""
    if len(set(map(int, lengths.values()))) < 2:
        return None
    return "steps of different numbers: " + ", ".join(f"{int(n)} {path}" for path, n in sorted(lengths.items()))


def _check_finite(source: Source, number: int, path: str, values: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        step, entry = bad[0]
        raise ValueError(
            f"{source.name}: episode {number}, step {step}: {path}[{entry}] is "
            f"{values[step, entry]}; repair the episode, or leave it out by a split slice."
        )


BEYOND = 0.05  # of a span, that values may lie outside it


class _Spread:
    """The least and the greatest of the values that a span is of; refuses those of another convention."""

    def __init__(self, source: Source, span: Span) -> None:
        self.span, self._source = span, source
        self._least, self._greatest = np.inf, -np.inf

    def add(self, number: int, values: np.ndarray) -> None:
        span, chosen = self.span, values[:, self.span.entries]
        if not chosen.size:
            return
        margin = BEYOND * (span.high - span.low)
        beyond = np.argwhere((chosen < span.low - margin) | (chosen > span.high + margin))
        if len(beyond):
            step, entry = beyond[0]
            self._refuse(
                f"[{span.entries.start + entry}] is {chosen[step, entry]:.3g} in episode {number}, step {step}"
            )
        self._least, self._greatest = min(self._least, chosen.min()), max(self._greatest, chosen.max())

    def check(self) -> None:
        spread = self._greatest - self._least
        if self.span.signed and BEYOND < spread / (self.span.high - self.span.low) < 0.5 + BEYOND:
            self._refuse(f"[{self.span.entries.start}] goes from {self._least:.3g} to {self._greatest:.3g}")

    def _refuse(self, found: str) -> None:
        raise ValueError(
            f"{self._source.name}: steps/{self.span.path}{found}, but this standardisation reads values from "
            f"{self.span.low:g} to {self.span.high:g}: the data have another convention; give the data.standardize "
            "that is theirs, or one of your own."
        )


def raw_episodes(source: Source, order_seed: Any) -> Any:
    """tf.data of (number in the split int64[], {path: tensor over the steps})."""

    def records(path: Any, skip: Any, take: Any, first: Any) -> Any:
        part = tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER).skip(skip).take(take)
        return part.enumerate(start=first)

    def parse(number: Any, record: Any) -> tuple[Any, Fields]:
        return number, _parse(source, record)

    parts = source.parts
    columns = (tf.constant([getattr(p, field) for p in parts], tf.int64) for field in NUMBERS)
    files = tf.data.Dataset.from_tensor_slices((tf.constant([p.path for p in parts]), *columns))
    interleaved = 1
    if order_seed is not None:
        files = files.shuffle(len(parts), seed=order_seed, reshuffle_each_iteration=False)
        interleaved = min(INTERLEAVED_FILES, len(parts))
    numbered = files.interleave(records, cycle_length=interleaved, block_length=1)
    return numbered.map(parse, num_parallel_calls=tf.data.AUTOTUNE)


def _parse(source: Source, record: Any) -> Fields:
    """One record -> {path: tensor over the steps}: images as stored, vectors as float32."""
    # TFDS would decode `steps` into a data set per episode; skipped, they are batched tensors.
    skip = {"steps": tfds.decode.SkipDecoding()}
    found = source.features.deserialize_example(record, decoders=skip)
    steps = found["steps"]
    for path in source.standardisation.vectors:
        feature = source.features["steps"].feature[path]
        if steps[path].dtype == tf.string:  # Tensor(encoding="zlib") or "bytes"
            spec = tf.TensorSpec(feature.shape, feature.tf_dtype)
            steps[path] = tf.map_fn(feature.decode_example, steps[path], fn_output_signature=spec)
        values = tf.cast(steps[path], tf.float32)
        steps[path] = values[:, None] if feature.shape == () else values
    instruction = source.standardisation.instruction
    if instruction.startswith(WHOLE):
        length = tf.shape(next(iter(steps.values())))[0]
        steps[instruction] = tf.fill([length], found[instruction.removeprefix(WHOLE)])
    return steps


def _explain(source: Source) -> str | None:
    """Reads file after file until one fails, as tensorflow does not say which one did; None if none does."""
    for part in source.parts:
        record = 0
        try:
            for content in settled(tf.data.TFRecordDataset(part.path)):
                steps = _parse(source, content)
                if uneven := _uneven(_lengths(steps)):
                    return (
                        f"{source.name}: {part.path} is damaged at record {record}, which has {uneven}; copy the file "
                        "again, or leave the episode out by a split slice."
                    )
                for camera in source.cameras:
                    for image in steps[source.standardisation.images[camera]]:
                        decode_image(image, 1)
                record += 1
        except FAILURES as found:
            return (
                f"{source.name}: {part.path} is damaged at record {record} ({first_line(found)}); "
                "copy the file again, or leave the episode out by a split slice."
            )
        if record < part.total:
            return (
                f"{source.name}: {part.path} ends after {record} of the {part.total} records that "
                "dataset_info.json lists; copy the file again."
            )
    return None
