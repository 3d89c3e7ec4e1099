"""Seeds out of words."""

import zlib

import numpy as np


def seed_of(*words: int | str) -> int:
    """A seed, the same for the same words and unrelated to that of others."""
    numbers = [zlib.crc32(word.encode()) if isinstance(word, str) else word for word in words]
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)  # gymnasium takes 31 bits
