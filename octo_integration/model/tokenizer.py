"""Texts as bytes: 256 tokens for the bytes of UTF-8, and three more."""

from collections.abc import Sequence

import numpy as np

PAD, BOS, EOS = 256, 257, 258
VOCABULARY = 259


def tokenize(texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """BOS, the bytes, EOS, then padding; a text that is too long loses its end.

    Args:
      texts: any number of them.
      length: tokens per text.

    Returns:
      (int32[len(texts), length] tokens, bool[len(texts), length] mask: True = not padding).
    """
    tokens = np.full((len(texts), length), PAD, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        sequence = [BOS, *text.encode(), EOS][:length]
        row[: len(sequence)] = sequence
    return tokens, tokens != PAD


def detokenize(tokens: np.ndarray) -> str:
    """The text of int[n] tokens up to the first EOS; bytes that are no UTF-8 become U+FFFD."""
    end = np.flatnonzero(tokens == EOS)
    kept = tokens[: end[0]] if len(end) else tokens
    return bytes(kept[kept < PAD].astype(np.uint8)).decode(errors="replace")
