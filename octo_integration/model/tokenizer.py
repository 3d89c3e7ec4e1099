"""Texts as tokens: their bytes, for models of our own, or a published vocabulary."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PAD, BOS, EOS = 256, 257, 258
VOCABULARY = 259

# Texts -> (int32[n, length] tokens, bool[n, length] mask: True = not padding).
Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


def load_tokenizer(spec: str, length: int, prompt: str, vocabulary: int) -> Tokenize:
    """What turns instructions into tokens.

    Args:
      spec: "bytes", or the path of a tokenizer.json (Hugging Face), whose special tokens are added as it says.
      length: tokens per text; a longer text loses its end.
      vocabulary: rows of the embedding that the tokens are for.
      prompt: "{instruction}" in it stands for the instruction, which a tokenizer.json gets in lower case.

    Raises:
      FileNotFoundError, ValueError: there is no such file; it is damaged, or has more tokens than the model.
    """
    if spec == "bytes":
        _check_vocabulary(spec, VOCABULARY, vocabulary)
        return lambda texts: tokenize([prompt.replace("{instruction}", text) for text in texts], length)
    if not Path(spec).is_file():
        raise FileNotFoundError(f"there is no tokenizer {spec}; give a tokenizer.json, or bytes.")
    from tokenizers import Tokenizer  # only models with a published vocabulary need it

    try:
        published = Tokenizer.from_file(str(spec))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{spec} is no tokenizer.json, or damaged ({error}).") from None
    _check_vocabulary(spec, published.get_vocab_size(), vocabulary)
    published.enable_truncation(length)
    published.no_padding()
    return functools.partial(_encode, published, length, prompt)


def _check_vocabulary(spec: str, size: int, vocabulary: int) -> None:
    if size > vocabulary:
        raise ValueError(
            f"tokenizer {spec} has {size} tokens, the model's embedding {vocabulary} rows; give the tokenizer.json "
            "that belongs to the weights."
        )


def _encode(published: Any, length: int, prompt: str, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    tokens, mask = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)
    prompts = [prompt.replace("{instruction}", text.lower()) for text in texts]
    for row, real, encoding in zip(tokens, mask, published.encode_batch(prompts), strict=True):
        row[: len(encoding.ids)] = encoding.ids
        real[: len(encoding.ids)] = True
    return tokens, mask


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
