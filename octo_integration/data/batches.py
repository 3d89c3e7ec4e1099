"""Batches for training and evaluation, in an order that is a function of the seed alone.

Training samples are numbered 0, 1, 2, ... through all epochs. Sample i of a run is the same
whatever batch it falls in, whichever host makes it and wherever the run was interrupted: epoch
i // N has its own seeds for the order of files and windows, and sample i its own seed for the
augmentation. Batch n holds samples n * batch_size and following; epochs join without a gap, so
every epoch uses every sample once.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from octo_integration.data._tf import tf
from octo_integration.data.augment import augment, draw
from octo_integration.data.config import DataConfig
from octo_integration.data.episodes import decode_image, episodes, readable, scan
from octo_integration.data.rlds import Source, open_source
from octo_integration.data.statistics import Statistics
from octo_integration.data.windows import windows

Batch = dict[str, Any]
MAX_SEED = 2**63


def train_batches(
    config: DataConfig,
    statistics: Statistics,
    *,
    seed: int,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Endless batches of shuffled, augmented windows; what does not fit is raised at once.

    Args:
      seed: of the order and the augmentation, 0 <= seed < 2**63.
      start: batches already consumed. The first batch given is number `start`, bit for bit;
        finished epochs are not read again, and what is skipped of the present one is read but not
        decoded.
      shard: (index, count) of this host. It gets rows index * b to (index + 1) * b of every batch,
        b = batch_size / count, so the hosts together see the same batch whatever their number.

    Yields:
      Batches of numpy arrays:
        {"observation": {"image_primary": uint8[b, window, image_size, image_size, 3],
                         "proprio": f32[b, window, P], normalised,
                         "timestep_pad_mask": bool[b, window], True = real},
         "task": {"instruction": object[b] of str},
         "action": f32[b, chunk, A], normalised,
         "action_pad_mask": bool[b, chunk, A], True = before the episode's end,
         "episode": int64[b], number in the split}

    Raises:
      FileNotFoundError, ValueError: as `open_source`; statistics of vectors of another length;
        fewer windows than a batch has rows; a batch size that the hosts cannot share. Later, a
        damaged file.
    """
    index, count = shard
    if not 0 <= index < count or config.batch_size % count:
        raise ValueError(
            f"data.batch_size is {config.batch_size}, shard {index} of {count}; "
            "give a batch size that is a multiple of the number of hosts."
        )
    if start < 0 or not 0 <= seed < MAX_SEED:
        raise ValueError(f"start is {start}, seed {seed}; give start >= 0 and 0 <= seed < 2**63.")
    source = _open(config, statistics, config.split)
    total = _count(source, statistics)
    if total < config.batch_size:
        raise ValueError(
            f"{source.name}: data.batch_size is {config.batch_size}, but there are only {total} "
            "windows; lower it, or take a larger split."
        )
    first, rows = start * config.batch_size, config.batch_size // count

    def epoch(number: Any) -> Any:
        # Negative, because `draw` has [seed, number of the sample].
        seeds = tf.random.stateless_uniform(
            [2], [seed, -1 - number], minval=None, maxval=None, dtype=tf.int64, alg="philox"
        )
        samples = _samples(source, config, statistics, seeds[0])
        # No reshuffling: tf.data would draw another seed for it.
        return samples.shuffle(config.shuffle_buffer, seed=seeds[1], reshuffle_each_iteration=False)

    def mine(number: Any, _: Batch) -> Any:
        return number % config.batch_size // rows == index

    def make(number: Any, sample: Batch) -> tuple[Batch, Any]:
        return _decode(sample, config), draw(tf.stack([seed, number]))

    def finish(batch: Batch, draws: Any) -> Batch:
        if not config.augment:
            return batch
        images = augment(batch["observation"]["image_primary"], draws)
        return {**batch, "observation": {**batch["observation"], "image_primary": images}}

    data = tf.data.Dataset.range(first // total, tf.int64.max).flat_map(epoch)
    data = data.skip(first % total).enumerate(start=first)
    if count > 1:
        data = data.filter(mine)
    data = data.map(make, num_parallel_calls=tf.data.AUTOTUNE).batch(rows, drop_remainder=True)
    return _iterate(source, data.map(finish, num_parallel_calls=tf.data.AUTOTUNE))


def eval_batches(config: DataConfig, statistics: Statistics, *, split: str) -> Iterator[Batch]:
    """Every window of `split` once, in the order on disk, unaugmented; the last batch may be short.

    Batches and errors are those of `train_batches`. `statistics` are usually those of the training
    split, which the model knows.
    """
    source = _open(config, statistics, split)
    data = _samples(source, config, statistics, None)
    data = data.map(lambda sample: _decode(sample, config), num_parallel_calls=tf.data.AUTOTUNE)
    return _iterate(source, data.batch(config.batch_size))


def _open(config: DataConfig, statistics: Statistics, split: str) -> Source:
    source = open_source(config.path, split, config.standardize)
    spec = episodes(source).element_spec
    for name, values, moments in (
        ("action", spec["action"], statistics.action),
        ("proprio", spec["observation"]["proprio"], statistics.proprio),
    ):
        if values.shape[-1] != len(moments.mean):
            raise ValueError(
                f"{source.name}: {name} has {values.shape[-1]} dimensions, its statistics "
                f"{len(moments.mean)}; give the statistics of this data set."
            )
    return source


def _count(source: Source, statistics: Statistics) -> int:
    """Windows per epoch: one per standardised step."""
    if statistics.fingerprint == source.fingerprint:
        return statistics.num_steps
    return sum(len(action) for action, _ in scan(source))


def _samples(source: Source, config: DataConfig, statistics: Statistics, order_seed: Any) -> Any:
    """tf.data of single windows, normalised, with images as stored."""

    def cut(episode: Batch) -> Batch:
        observation = episode["observation"]
        proprio = statistics.normalise_proprio(observation["proprio"])
        action = statistics.normalise_action(episode["action"])
        normalised = {
            **episode,
            "observation": {**observation, "proprio": proprio},
            "action": action,
        }
        samples = windows(normalised, config.window, config.chunk)
        return {**samples, "episode": tf.repeat(episode["episode"], tf.shape(action)[0])}

    cuts = episodes(source, order_seed).map(cut, num_parallel_calls=tf.data.AUTOTUNE)
    return cuts.unbatch()


def _decode(sample: Batch, config: DataConfig) -> Batch:
    images = sample["observation"]["image_primary"]
    frames = tf.stack([decode_image(images[t], config.image_size) for t in range(config.window)])
    return {**sample, "observation": {**sample["observation"], "image_primary": frames}}


def _iterate(source: Source, data: Any) -> Iterator[Batch]:
    options = tf.data.Options()
    options.deterministic = True
    with readable(source):
        for batch in data.prefetch(2).with_options(options).as_numpy_iterator():
            texts = [t.decode("utf-8", errors="replace") for t in batch["task"]["instruction"]]
            yield {**batch, "task": {"instruction": np.array(texts, dtype=object)}}
