"""What every process of a run has to have alike, because none of them would notice otherwise."""

import zlib
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils


def code(values: np.ndarray) -> int:
    """A check sum of an array's bits."""
    return zlib.crc32(np.ascontiguousarray(values).tobytes())


def check(what: str, codes: Mapping[str, int]) -> None:
    """Raises ValueError, in all processes, where one has another name or code than process 0; all have to call it.

    Args:
      what: is to be alike, for the message.
      codes: name of a part -> a whole number, of which the last 32 bits count.
    """
    if jax.process_count() == 1:
        return
    names = zlib.crc32("\n".join(codes).encode())
    if others := _others([names, len(codes)]):
        raise ValueError(f"{what}: process {others[0][0]} has other names in it than process 0; give all the same.")
    if codes and (others := _others(list(codes.values()))):
        process, part = others[0]
        raise ValueError(
            f"{what} differs between processes: {list(codes)[part]} is another one in process {process} than in "
            "process 0; give all the same."
        )


def _others(numbers: list[int]) -> list[tuple[int, int]]:
    """(process, place) of every number that is not that of process 0."""
    every = multihost_utils.process_allgather(np.asarray([number % 2**32 for number in numbers], np.uint32))
    return [(int(process), int(place)) for process, place in np.argwhere(every != every[0])]
