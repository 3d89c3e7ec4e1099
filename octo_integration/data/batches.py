"""Batches for training and evaluation, in an order that is a function of the seed alone.

Training samples are numbered 0, 1, 2, ... through all epochs. Sample i of a run is the same
whatever batch it falls in, whichever host makes it and wherever the run was interrupted: epoch
i // N has its own seeds for the order of files and windows, and sample i its own seed for the
augmentation. Batch n holds samples n * batch_size and following; epochs join without a gap, so
every epoch uses every sample once.

With data.streams = S > 1 the episodes are dealt to S streams, each of which is numbered, and passes
through epochs, in this way on its own; stream s makes rows s * b to (s + 1) * b of every batch,
b = batch_size / S. Of a mixture, every stream has a sequence per data set, and draws for each of its
samples which of them gives the next.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from octo_integration.data.augment import augment, draw
from octo_integration.data.config import DataConfig
from octo_integration.data.episodes import decode_image, episodes, readable, scan
from octo_integration.data.missing import BLANK
from octo_integration.data.mixture import Member, member_of, members
from octo_integration.data.rlds import Source, deal, open_source
from octo_integration.data.statistics import MixtureStatistics, Statistics
from octo_integration.data.tf import settled, tf
from octo_integration.data.windows import windows

Batch = dict[str, Any]
MAX_SEED = 2**63
# Draws of a mixture are made in blocks, so that those before a start are counted fast.
BLOCK = 4096
GOAL = "image_primary"


def train_batches(
    config: DataConfig,
    statistics: Statistics | MixtureStatistics,
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
        decoded (of a mixture, decoded too).
      shard: (index, count) of this host. It gets rows index * b to (index + 1) * b of every batch,
        b = batch_size / count, so the hosts together see the same batch whatever their number. Where
        count divides data.streams it opens the files of its own streams only.

    Yields:
      Batches of numpy arrays:
        {"observation": {"image_<camera>": uint8[b, window, image_size, image_size, 3],
                         "proprio": f32[b, window, P], normalised,
                         "timestep_pad_mask": bool[b, window],
                         "pad_mask_dict": {each of the above: bool[b, window]}},
         "task": {"instruction": object[b] of str, with goals "image_primary": uint8[b, S, S, 3],
                  "pad_mask_dict": {each of these: bool[b]}},
         "action": f32[b, window - 1 + chunk, A], normalised, from the window's first timestep on,
         "action_pad_mask": bool[b, window - 1 + chunk, A], False outside the episode and in
           dimensions that only other data sets of the mixture have,
         "episode": int64[b], number in the split, "dataset": int64[b], number in the mixture}
        In all masks True is real; what is not is zeros.

    Raises:
      FileNotFoundError, ValueError: as `open_source`; statistics of vectors of another length;
        fewer windows than a batch has rows; a batch size or streams that the hosts cannot share; a
        camera that no data set has. Later, a damaged file.
    """
    index, count = shard
    streams = config.streams
    if not 0 <= index < count or config.batch_size % count:
        raise ValueError(
            f"data.batch_size is {config.batch_size}, shard {index} of {count}; "
            "give a batch size that is a multiple of the number of hosts."
        )
    if streams > 1 and streams % count:
        raise ValueError(f"data.streams is {streams}, but there are {count} hosts; give a multiple of their number.")
    if start < 0 or not 0 <= seed < MAX_SEED:
        raise ValueError(f"start is {start}, seed {seed}; give start >= 0 and 0 <= seed < 2**63.")
    opened = open_members(config, statistics)
    rows, mine = config.batch_size // streams, (0, config.batch_size)
    if count > 1 and streams == 1:
        mine = (index * rows // count, (index + 1) * rows // count)
    own = range(streams) if streams == 1 else range(index * streams // count, (index + 1) * streams // count)
    parts = [_stream(config, statistics, opened, seed, start * rows, number, rows, mine) for number in own]

    def finish(batch: Batch, draws: Mapping[str, Any]) -> Batch:
        seen = augmented(batch, draws) if config.augment else batch
        return _drop(seen, draws["drop"], config)

    data = parts[0] if len(parts) == 1 else tf.data.Dataset.zip(tuple(parts)).map(_join)
    data = data.map(finish, num_parallel_calls=tf.data.AUTOTUNE)
    return _iterate([source for _, source in opened], data)


def eval_batches(config: DataConfig, statistics: Statistics | MixtureStatistics, *, split: str) -> Iterator[Batch]:
    """Every window of `split` once, in the order on disk, unaugmented; the last batch may be short.

    Batches and errors are those of `train_batches`; goals are the last frames. `statistics` are usually those of the
    training split, which the model knows. Of a mixture, split is "name/split" (see `member_of`).
    """
    member, name = member_of(config, split)
    opened = _open(member, statistics, config, name)
    if config.mixture is None:
        check_cameras(config, [opened])
    data = samples(opened, config, statistics, None)
    data = data.map(lambda sample: decoded(sample, config), num_parallel_calls=tf.data.AUTOTUNE)
    return _iterate([opened[1]], data.batch(config.batch_size))


def open_members(config: DataConfig, statistics: Statistics | MixtureStatistics) -> list[tuple[Member, Source]]:
    """The data sets that a run trains on, found fit for use; errors are those of `train_batches`."""
    opened = [_open(member, statistics, config) for member in members(config)]
    check_cameras(config, opened)
    return opened


def _stream(
    config: DataConfig,
    statistics: Statistics | MixtureStatistics,
    opened: list[tuple[Member, Source]],
    seed: int,
    first: int,
    number: int,
    rows: int,
    mine: tuple[int, int],
) -> Any:
    """tf.data of (rows of a batch, their draws), of stream `number`, from its sample `first`; of `rows` only `mine`."""
    dealt = [(member, deal(source, config.streams)[number]) for member, source in opened]
    own = seed if config.streams == 1 else _stream_seed(seed, number)
    choices, starts = None, [first]
    if len(dealt) > 1:
        weights = [member.weight for member, _ in dealt]
        choices, starts = _choices(own, weights, first), _counts(own, weights, first)
    sequences = [
        _endless(part, config, statistics, own, begin, rows) for part, begin in zip(dealt, starts, strict=True)
    ]

    def draws(place: Any) -> dict[str, Any]:
        # Of the sample's number in the run, whatever its stream.
        at = place // rows * config.batch_size + number * rows + place % rows
        names = [*config.cameras, *(["goal"] if config.goal else []), "drop"]
        # The first camera has the seeds of runs with one; the others, numbers of their own.
        return {name: draw(tf.stack([seed, at - i * MAX_SEED // 16])) for i, name in enumerate(names)}

    def make(place: Any, sample: Batch) -> tuple[Batch, Any]:
        return (sample if choices is not None else decoded(sample, config)), draws(place)

    if choices is None:
        data = sequences[0]
    else:
        ready = [s.map(lambda x: decoded(x, config), num_parallel_calls=tf.data.AUTOTUNE) for s in sequences]
        data = tf.data.Dataset.choose_from_datasets(ready, choices, stop_on_empty_dataset=True)
    data = data.enumerate(start=first)
    if mine != (0, config.batch_size):
        data = data.filter(lambda place, _: (place % rows >= mine[0]) & (place % rows < mine[1]))
    size = min(rows, mine[1] - mine[0])
    return data.map(make, num_parallel_calls=tf.data.AUTOTUNE).batch(size, drop_remainder=True)


def _stream_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)


def _endless(
    part: tuple[Member, Source],
    config: DataConfig,
    statistics: Statistics | MixtureStatistics,
    seed: int,
    first: int,
    rows: int,
) -> Any:
    """tf.data of the shuffled samples of one data set through all epochs, from number `first`."""
    member, source = part
    total = _count(source, statistics.of(member.name))
    if member.name is None and total < rows:
        raise ValueError(
            f"{source.name}: data.batch_size is {rows * config.streams}, but there are only {total} "
            f"windows{' in a stream' if config.streams > 1 else ''}; lower it, or take a larger split."
        )

    def epoch(number: Any) -> Any:
        # Negative, because `draw` has [seed, number of the sample].
        seeds = tf.random.stateless_uniform(
            [2], [seed, -1 - number], minval=None, maxval=None, dtype=tf.int64, alg="philox"
        )
        # No reshuffling: tf.data would draw another seed for it.
        return samples(part, config, statistics, seeds[0]).shuffle(
            config.shuffle_buffer, seed=seeds[1], reshuffle_each_iteration=False
        )

    data = tf.data.Dataset.range(first // total, tf.int64.max).flat_map(epoch)
    return data.skip(first % total)


def _block(seed: int, weights: list[float], number: Any) -> Any:
    """int64[BLOCK], which data set gives each of the samples number * BLOCK and following of a stream."""
    uniform = tf.random.stateless_uniform([BLOCK], [seed, -MAX_SEED // 2 + number], alg="philox")
    return tf.searchsorted(tf.constant(np.cumsum(weights[:-1]), tf.float32), uniform, side="right", out_type=tf.int64)


def _choices(seed: int, weights: list[float], first: int) -> Any:
    """tf.data of int64[], which data set gives sample `first` and those after it."""
    blocks = tf.data.Dataset.range(first // BLOCK, tf.int64.max)
    return blocks.map(lambda number: _block(seed, weights, number)).unbatch().skip(first % BLOCK)


def _counts(seed: int, weights: list[float], first: int) -> list[int]:
    """How many of the samples before `first` each data set gave."""
    counts = np.zeros(len(weights), np.int64)
    for number in range(math.ceil(first / BLOCK)):
        block = _block(seed, weights, tf.constant(number, tf.int64)).numpy()[: first - number * BLOCK]
        counts += np.bincount(block, minlength=len(weights))
    return [int(count) for count in counts]


def _join(*parts: Any) -> Any:
    """The rows of several streams, one after the other."""
    return tf.nest.map_structure(lambda *rows: tf.concat(rows, axis=0), *parts)


def _open(
    member: Member, statistics: Statistics | MixtureStatistics, config: DataConfig, split: str | None = None
) -> tuple[Member, Source]:
    source = open_source(member.config.path, split or member.config.split, member.config.standardize, config.cameras)
    spec, own = episodes(source).element_spec, statistics.of(member.name)
    for name, values, moments in (
        ("action", spec["action"], own.action),
        ("proprio", spec["observation"]["proprio"], own.proprio),
    ):
        if values.shape[-1] != len(moments.mean):
            raise ValueError(
                f"{source.name}: {name} has {values.shape[-1]} dimensions, its statistics "
                f"{len(moments.mean)}; give the statistics of this data set."
            )
    return member, source


def check_cameras(config: DataConfig, opened: list[tuple[Member, Source]]) -> None:
    """Raises ValueError where a camera that the run wants is in none of its data sets."""
    for camera in config.cameras:
        if not any(camera in source.cameras for _, source in opened):
            known = sorted({c for _, source in opened for c in source.standardisation.images})
            raise ValueError(
                f"{', '.join(source.name for _, source in opened)}: there is no camera {camera!r}; the standardisation "
                f"knows {', '.join(known)}, of which the data set may lack some; leave it out of data.cameras."
            )
    if config.goal and not any("primary" in source.cameras for _, source in opened):
        raise ValueError("data.goal needs the images of camera 'primary'; add it to data.cameras.")


def _count(source: Source, statistics: Statistics) -> int:
    """Windows per epoch: one per standardised step."""
    if statistics.fingerprint == source.fingerprint and statistics.num_episodes == source.num_episodes:
        return statistics.num_steps
    return sum(len(action) for action, _ in scan(source))


def samples(
    part: tuple[Member, Source],
    config: DataConfig,
    statistics: Statistics | MixtureStatistics,
    order_seed: Any,
) -> Any:
    """tf.data of single windows, normalised, with images as stored."""
    member, source = part
    own = statistics.of(member.name)
    number = [m.name for m in members(config)].index(member.name)
    wider_action = statistics.action_dim - own.action_dim
    wider_proprio = statistics.proprio_dim - own.proprio_dim

    def cut(episode: Batch) -> Batch:
        observation, action = episode["observation"], own.normalise_action(episode["action"])
        proprio = tf.pad(own.normalise_proprio(observation["proprio"]), [[0, 0], [0, wider_proprio]])
        normalised = {**episode, "observation": {**observation, "proprio": proprio}, "action": action}
        length = tf.shape(action)[0]
        later = None
        if config.goal:
            later = tf.ones(length) if order_seed is None else _later(order_seed, episode["episode"], length)
        found = windows(normalised, config.window, config.chunk, later)
        for name in ("action", "action_pad_mask"):
            found[name] = tf.pad(found[name], [[0, 0], [0, 0], [0, wider_action]])
        return {
            **found,
            "episode": tf.repeat(episode["episode"], length),
            "dataset": tf.fill([length], tf.constant(number, tf.int64)),
        }

    cuts = episodes(source, order_seed).map(cut, num_parallel_calls=tf.data.AUTOTUNE)
    return cuts.unbatch()


def _later(order_seed: Any, episode: Any, length: Any) -> Any:
    """f32[length] in [0, 1): how far ahead each step's goal is, drawn anew in every epoch."""
    return tf.random.stateless_uniform([length], tf.stack([order_seed, episode]), alg="philox")


def decoded(sample: Batch, config: DataConfig) -> Batch:
    """Images decoded; those of one colour, or that the data set lacks, are zeros, and masks say which are there."""
    observation, task, size = sample["observation"], sample["task"], config.pixels
    images, present = {}, {}
    for name in (f"image_{camera}" for camera in config.cameras):
        if name in observation:
            stored = [decode_image(observation[name][t], size) for t in range(config.window)]
        else:
            stored = [tf.zeros([size, size, 3], tf.uint8)] * config.window
        images[name], present[name] = _shown(tf.stack(stored))
    words = {"instruction": task["instruction"]}
    given = {"instruction": ~tf.strings.regex_full_match(task["instruction"], BLANK)}
    if config.goal:
        goal = decode_image(task[GOAL], size) if GOAL in task else tf.zeros([size, size, 3], tf.uint8)
        words[GOAL], given[GOAL] = _shown(goal)
    kept = {name: observation[name] for name in ("proprio", "timestep_pad_mask")}
    masks = {**present, "proprio": tf.fill([config.window], True)}
    return {
        **sample,
        "observation": {**images, **kept, "pad_mask_dict": masks},
        "task": {**words, "pad_mask_dict": given},
    }


def _shown(images: Any) -> tuple[Any, Any]:
    """Images [..., H, W, 3], zeros where they are of one colour, and bool[...], where they are not: `missing.shows`."""
    there = tf.reduce_any(tf.not_equal(images, images[..., :1, :1, :]), axis=(-3, -2, -1))
    return images * tf.cast(there, tf.uint8)[..., None, None, None], there


def augmented(batch: Batch, draws: Mapping[str, Any]) -> Batch:
    """A batch with its images changed by {camera or "goal": f32[B, DRAWS]}; images that are not there stay zeros."""
    observation, task = batch["observation"], batch["task"]
    images = {}
    for name, there in observation["pad_mask_dict"].items():
        if name.startswith("image_"):
            camera = name.removeprefix("image_")
            changed = augment(observation[name], draws[camera], crop=camera != "wrist")
            images[name] = tf.where(there[:, :, None, None, None], changed, tf.zeros_like(changed))
    if "goal" in draws:
        changed = augment(task[GOAL][:, None], draws["goal"])[:, 0]
        task = {**task, GOAL: tf.where(task["pad_mask_dict"][GOAL][:, None, None, None], changed, task[GOAL])}
    return {**batch, "observation": {**observation, **images}, "task": task}


def _drop(batch: Batch, draws: Any, config: DataConfig) -> Batch:
    """Hides the instruction or the goal of some samples, never both."""
    task = batch["task"]
    if not config.goal or not config.drop_instruction + config.drop_goal:
        return batch
    uniform, given = draws[:, 0], task["pad_mask_dict"]
    no_words = (uniform < config.drop_instruction) & given[GOAL]
    no_goal = (uniform >= 1.0 - config.drop_goal) & given["instruction"]
    masks = {"instruction": given["instruction"] & ~no_words, GOAL: given[GOAL] & ~no_goal}
    return {**batch, "task": {**task, "pad_mask_dict": masks}}


def _iterate(sources: list[Source], data: Any) -> Iterator[Batch]:
    with readable(*sources):
        for batch in settled(data.prefetch(2)).as_numpy_iterator():
            texts = [t.decode("utf-8", errors="replace") for t in batch["task"]["instruction"]]
            yield {**batch, "task": {**batch["task"], "instruction": np.array(texts, dtype=object)}}
