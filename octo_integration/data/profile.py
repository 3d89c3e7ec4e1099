"""Where the time of the input pipeline goes: it is built up stage by stage, and each state of it is timed."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from octo_integration.data.augment import draw
from octo_integration.data.batches import augmented, decoded, open_members, samples
from octo_integration.data.config import DataConfig
from octo_integration.data.episodes import raw_episodes
from octo_integration.data.rlds import first_episodes
from octo_integration.data.statistics import MixtureStatistics, Statistics
from octo_integration.data.tf import settled, tf

# Episodes that are read; enough for a steady state of small sets, and a bound for large ones.
EPISODES = 64


class Stage(NamedTuple):
    """The pipeline up to a stage.

    Attributes:
      name: of its last stage.
      seconds: per batch, of all stages so far, run as fast as they can.
    """

    name: str
    seconds: float


def profile_input(config: DataConfig, statistics: Statistics | MixtureStatistics) -> list[Stage]:
    """Times the pipeline of the first data set of `config`, from reading records to augmented batches.

    Stages run in parallel, so that the time of all is less than the sum of what each would take alone; what a stage
    adds is the difference to the one before.
    """
    member, whole = open_members(config, statistics)[0]
    source = first_episodes(whole, EPISODES)
    windows = samples((member, source), config, statistics, tf.constant(0, tf.int64))
    images = windows.map(lambda sample: decoded(sample, config), num_parallel_calls=tf.data.AUTOTUNE)
    names = [*config.cameras, *(["goal"] if config.goal else [])]
    size = config.batch_size

    def changed(numbers: Any, batch: Any) -> Any:
        seeds = tf.stack([tf.zeros_like(numbers), numbers], axis=1)
        draws = tf.map_fn(draw, seeds, fn_output_signature=tf.float32)
        return augmented(batch, dict.fromkeys(names, draws))

    batches = images.enumerate().batch(size)
    pipelines: dict[str, Callable[[], Any]] = {
        "read": lambda: tf.data.TFRecordDataset([part.path for part in source.parts]),
        "parse": lambda: raw_episodes(source, None),
        "standardise and cut": lambda: windows.batch(size),
        "decode and resize": lambda: images.batch(size),
        "augment": lambda: batches.map(changed, num_parallel_calls=tf.data.AUTOTUNE),
    }
    total = sum(1 for _ in windows)
    return [Stage(name, _time(make()) * size / total) for name, make in pipelines.items()]


def _time(data: Any) -> float:
    """Seconds of one pass, the better of two: the first also starts threads and warms the disk's cache."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        for _ in settled(data.prefetch(2)):
            pass
        seconds.append(time.perf_counter() - start)
    return min(seconds)
