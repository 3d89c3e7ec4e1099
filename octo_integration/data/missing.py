"""What is stored and yet missing: the rules that the reader and a policy, which has no tensorflow, have in common."""

import unicodedata

import numpy as np

# Separators, controls (line ends, NUL) and invisible format characters; as a regular expression of RE2, and below.
BLANK = r"[\p{Z}\p{Cc}\p{Cf}]*"


def shows(image: np.ndarray) -> bool:
    """Whether an image [H, W, C] has two pixels that differ; without a camera, data sets store a single colour."""
    return bool((image != image[:1, :1]).any())


def says(instruction: str) -> bool:
    """Whether an instruction has a character that is not blank."""
    return not all(c[0] == "Z" or c in ("Cc", "Cf") for c in map(unicodedata.category, instruction))
