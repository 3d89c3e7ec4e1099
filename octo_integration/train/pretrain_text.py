"""What the language model learns to say about a frame, and the text tower's bags of words."""

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from octo_integration.data.collect.tasks import get_task
from octo_integration.data.frames_reader import Frames
from octo_integration.model.tokenizer import BOS, EOS, PAD

# The time of a question's tokens for `blockwise_mask`, as of an instruction in fine-tuning; images
# have time 0, and the i-th token of an answer 1 + i, so answers are causal.
QUESTION_TIME = -1
ANSWER_TIME = 1

WORD_BUCKETS = 2048
WORDS = 32


class Kind(NamedTuple):
    """One sort of question.

    Attributes:
      share: of the samples that ask it.
      ask: (frames, i) -> the question about frame i and its answer.
    """

    share: float
    ask: Callable[[Frames, int], tuple[str, str]]


class Dialogues(NamedTuple):
    """Questions with answers as tokens, one row each.

    Attributes:
      tokens: int32[N, L].
      times: int32[N, L] for `blockwise_mask`.
      targets: int32[N, L], the next token where it belongs to an answer, else PAD.
    """

    tokens: np.ndarray
    times: np.ndarray
    targets: np.ndarray


def _centimetres(*vectors: np.ndarray) -> str:
    return " ".join(f"{round(100 * float(x))}" for vector in vectors for x in vector)


def _move(frames: Frames, i: int) -> tuple[str, str]:
    """What an instruction asks for, as the ways from hand to object and from object to goal."""
    hand, thing, goal = frames.hand[i], frames.object[i], frames.goal[i]
    return get_task(frames.task[i]).instruction, _centimetres(thing - hand, goal - thing)


KINDS: dict[str, Kind] = {
    "caption": Kind(0.4, lambda frames, i: ("describe the scene", frames.caption[i])),
    "hand": Kind(0.15, lambda frames, i: ("where is the robot hand", _centimetres(frames.hand[i]))),
    "object": Kind(0.15, lambda frames, i: ("where is the object", _centimetres(frames.object[i]))),
    "move": Kind(0.3, _move),
}


def dialogues(frames: Frames, kind: str, length: int) -> Dialogues:
    """The dialogue of one kind about every frame; answers lose whole clauses, then bytes, to fit.

    Each is the question as fine-tuning encodes an instruction (BOS, bytes, EOS), then BOS and the
    answer's bytes, which the model shall continue with EOS.
    """
    count = len(frames)
    tokens = np.full((count, length), PAD, np.int32)
    times = np.full((count, length), QUESTION_TIME, np.int32)
    targets = np.full((count, length), PAD, np.int32)
    for i in range(count):
        question, answer = KINDS[kind].ask(frames, i)
        asked = [BOS, *question.encode(), EOS]
        start = len(asked)
        said = [*_fitting(answer, length - start - 1).encode(), EOS][: length - start]
        end = start + len(said)
        tokens[i, :start] = asked
        tokens[i, start:end] = [BOS, *said[:-1]]
        times[i, start:end] = ANSWER_TIME + np.arange(len(said))
        targets[i, start:end] = said
    return Dialogues(tokens, times, targets)


def _fitting(text: str, length: int) -> str:
    while len(text.encode()) > length and ", " in text:
        text = text.rpartition(", ")[0]
    return text


def bags_of_words(texts: Sequence[str]) -> np.ndarray:
    """Words and pairs of neighbours as hashes: int32[N, 2 * WORDS], 0 = none, for the text tower.

    Captions are short and name few things, so their bag says what they say.
    """
    bags = np.zeros((len(texts), 2 * WORDS), np.int32)
    for row, text in zip(bags, texts, strict=True):
        words = text.replace(",", "").split()[:WORDS]
        pairs = [*words, *(f"{a} {b}" for a, b in zip(words, words[1:]))]
        row[: len(pairs)] = [1 + zlib.crc32(p.encode()) % (WORD_BUCKETS - 1) for p in pairs]
    return bags
