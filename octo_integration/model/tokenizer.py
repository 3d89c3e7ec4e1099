"""Texts as tokens: their bytes, the vocabulary of a tokenizer.json, or the one that is shipped."""

import functools
import importlib.resources
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PAD, BOS, EOS = 256, 257, 258
VOCABULARY = 259
# Padding, beginning and end in a vocabulary of `train_words`.
MARKS = ("<pad>", "<bos>", "<eos>")
# Of published vocabularies: Qwen2 and SmolLM2, Llama 2, Llama 3.
ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>")

# Texts -> (int32[n, length] tokens, bool[n, length] mask: True = not padding).
Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


def load_tokenizer(spec: str, length: int, prompt: str, vocabulary: int) -> Tokenize:
    """What turns instructions into tokens.

    Args:
      spec: "bytes", the path of a tokenizer.json (Hugging Face), whose special tokens are added as it says, or the name
        of a shipped one ("tiny").
      length: tokens per text; a longer text loses its end, which the first time is a warning.
      vocabulary: rows of the embedding that the tokens are for.
      prompt: "{instruction}" in it stands for the instruction, which a tokenizer.json gets in lower case.

    Raises:
      FileNotFoundError, ValueError: there is no such file; it is damaged, or has more tokens than the model.
    """
    warn = _Warning(length)
    if spec == "bytes":
        _check_vocabulary(spec, VOCABULARY, vocabulary)
        return functools.partial(_bytes, length, prompt, warn)
    published = _open(spec)
    _check_vocabulary(spec, _rows(published), vocabulary)
    published.enable_truncation(length)
    published.no_padding()
    return functools.partial(_encode, published, length, prompt, warn)


def vocabulary_of(spec: str) -> int:
    """Rows of an embedding that a tokenizer.json, or a shipped one, needs.

    Raises:
      FileNotFoundError, ValueError: there is no such file; it is damaged.
    """
    return _rows(_open(spec))


class Words(NamedTuple):
    """A vocabulary with marks of its own, for writing dialogues.

    Attributes:
      size: tokens in all.
      pad, bos, eos: the marks.
      encode: a text -> its tokens, without marks.
    """

    size: int
    pad: int
    bos: int
    eos: int
    encode: Callable[[str], list[int]]


def load_words(spec: str) -> Words:
    """The vocabulary of a `spec` of `load_tokenizer`, marks and all.

    Raises:
      FileNotFoundError, ValueError: there is no such file; it is damaged, or lacks one of the marks of `train_words`.
    """
    if spec == "bytes":
        return Words(VOCABULARY, PAD, BOS, EOS, lambda text: list(text.encode()))
    published = _open(spec)
    pad, bos, eos = (published.token_to_id(mark) for mark in MARKS)
    if None in (pad, bos, eos):
        raise ValueError(f"tokenizer {spec} lacks one of {', '.join(MARKS)}; give one that `train_words` made.")
    return Words(published.get_vocab_size(), pad, bos, eos, functools.partial(_plain, published))


def published_words(spec: str, vocabulary: int) -> Words:
    """The vocabulary of a published language model, whose end of a text (one of ENDS) is all its marks.

    Raises:
      FileNotFoundError, ValueError: there is no such file; it is damaged, has more tokens than `vocabulary`, or no end.
    """
    published = _open(spec)
    _check_vocabulary(spec, _rows(published), vocabulary)
    end = next((found for mark in ENDS if (found := published.token_to_id(mark)) is not None), None)
    if end is None:
        raise ValueError(f"tokenizer {spec} has none of {', '.join(ENDS)}; give one that has.")
    return Words(_rows(published), end, end, end, functools.partial(_plain, published))


def train_words(texts: Sequence[str], size: int) -> Any:
    """A byte-level BPE of `size` tokens (arXiv 1508.07909) on texts; any text can be written in it.

    Returns:
      tokenizers.Tokenizer; it puts BOS and EOS around a text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words.train_from_iterator(sorted(text.lower() for text in texts), trainer)
    _, bos, eos = MARKS
    marks = [(mark, words.token_to_id(mark)) for mark in (bos, eos)]
    words.post_processor = processors.TemplateProcessing(single=f"{bos} $A {eos}", special_tokens=marks)
    return words


def _open(spec: str) -> Any:
    """tokenizers.Tokenizer of a shipped name or a path."""
    shipped = importlib.resources.files("octo_integration") / "assets" / f"{spec}.tokenizer.json"
    file = shipped if shipped.is_file() else Path(spec)
    if not file.is_file():
        raise FileNotFoundError(f"there is no tokenizer {spec}; give a tokenizer.json, or bytes.")
    from tokenizers import Tokenizer  # only models with a vocabulary of words need it

    try:
        return Tokenizer.from_str(file.read_text())
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{spec} is no tokenizer.json, or damaged ({error}).") from None


def _rows(published: Any) -> int:
    """Up to the last token: an added one may leave a gap before it."""
    return 1 + max(published.get_vocab().values(), default=-1)


def _check_vocabulary(spec: str, size: int, vocabulary: int) -> None:
    if size > vocabulary:
        raise ValueError(
            f"tokenizer {spec} has {size} tokens, the model's embedding {vocabulary} rows; give the tokenizer.json "
            "that belongs to the weights."
        )


def _plain(published: Any, text: str) -> list[int]:
    """The tokens of a text in lower case, without marks."""
    ids: list[int] = published.encode(text.lower(), add_special_tokens=False).ids
    return ids


class _Warning:
    """Tells once that a text is too long: what tells it from others may be at its end."""

    def __init__(self, length: int) -> None:
        self._length, self._told = length, False

    def __call__(self, text: str, needed: int) -> None:
        if not self._told:
            logging.getLogger(__name__).warning(
                "the instruction %r takes %d tokens, of which the model reads %d: its end is lost; give "
                "--instruction-length %d or more.",
                text,
                needed,
                self._length,
                needed,
            )
        self._told = True


def _bytes(length: int, prompt: str, warn: _Warning, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    prompts = [prompt.replace("{instruction}", text) for text in texts]
    for text, whole in zip(texts, prompts, strict=True):
        if (needed := len(whole.encode()) + 2) > length:
            warn(text, needed)
    return tokenize(prompts, length)


def _encode(
    published: Any, length: int, prompt: str, warn: _Warning, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    tokens, mask = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)
    prompts = [prompt.replace("{instruction}", text.lower()) for text in texts]
    for text, row, real, encoding in zip(texts, tokens, mask, published.encode_batch(prompts), strict=True):
        row[: len(encoding.ids)] = encoding.ids
        real[: len(encoding.ids)] = True
        if encoding.overflowing:
            warn(text, length + sum(part.special_tokens_mask.count(0) for part in encoding.overflowing))
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
