"""What the language model learns to say about a frame, and the text tower's bags of words."""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from octo_integration.model.tokenizer import Words
from octo_integration.pretrain.frames_reader import Frames
from octo_integration.simulators.metaworld.tasks import get_task

# The time of a question's tokens for `blockwise_mask`, as of an instruction in fine-tuning; images
# have time 0, and the i-th token of an answer 1 + i, so answers are causal. Padding has a time of its own.
QUESTION_TIME = -1
ANSWER_TIME = 1
PADDING_TIME = -2
NO_TARGET = -1

WORD_BUCKETS = 2048
BAG = 32


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
      times: int32[N, L] for `blockwise_mask`, PADDING_TIME where there is nothing.
      targets: int32[N, L], the next token where it belongs to an answer, else NO_TARGET.
    """

    tokens: np.ndarray
    times: np.ndarray
    targets: np.ndarray


def _centimetres(*vectors: np.ndarray) -> str:
    return " ".join(f"{round(100 * float(x))}" for vector in vectors for x in vector)


def _move(frames: Frames, i: int) -> tuple[str, str]:
    """What an instruction asks for, as the ways from hand to object and from object to goal."""
    hand, thing, goal = frames.hand[i], frames.object[i], frames.goal[i]
    return frames.instruction[i], _centimetres(thing - hand, goal - thing)


def _find(frames: Frames, i: int) -> tuple[str, str]:
    """Where one of the shapes, or the object, is in the image: column and row in hundredths."""
    shapes = frames.shape_names[i].split("; ") if frames.shape_names[i] else []
    k = i % max(len(shapes), 1)
    name = shapes[k] if shapes else get_task(frames.task[i]).object
    pixel = frames.shape_pixel[i, k] if shapes else frames.object_pixel[i]
    return f"where is the {name}", _centimetres(pixel)


Asked = Literal["caption", "hand", "find", "move"]
ASKED: tuple[Asked, ...] = get_args(Asked)
KINDS: dict[str, Kind] = {
    "caption": Kind(0.3, lambda frames, i: ("describe the scene", frames.caption[i])),
    "hand": Kind(0.1, lambda frames, i: ("where is the robot hand", _centimetres(frames.hand_pixel[i]))),
    "find": Kind(0.25, _find),
    "move": Kind(0.35, _move),
}


def texts(frames: Frames) -> set[str]:
    """All questions and answers, for the vocabulary."""
    return {text for kind in KINDS.values() for i in range(len(frames)) for text in kind.ask(frames, i)}


def dialogues(frames: Frames, kind: str, length: int, words: Words) -> Dialogues:
    """The dialogue of one kind about every frame; answers lose whole clauses, then tokens, to fit.

    Each is the question as fine-tuning encodes an instruction (BOS, words, EOS), then BOS and the answer's words,
    which the model shall continue with EOS.
    """
    shape = (len(frames), length)
    tokens = np.full(shape, words.pad, np.int32)
    times = np.full(shape, PADDING_TIME, np.int32)
    targets = np.full(shape, NO_TARGET, np.int32)
    encode = functools.lru_cache(maxsize=None)(words.encode)  # questions are few
    for i in range(len(frames)):
        question, answer = KINDS[kind].ask(frames, i)
        asked = [words.bos, *encode(question), words.eos]
        start = len(asked)
        said = [*_fitting(answer, length - start - 1, words), words.eos][: length - start]
        end = start + len(said)
        tokens[i, :start] = asked
        tokens[i, start:end] = [words.bos, *said[:-1]]
        times[i, :start] = QUESTION_TIME
        times[i, start:end] = ANSWER_TIME + np.arange(len(said))
        targets[i, start:end] = said
    return Dialogues(tokens, times, targets)


def _fitting(text: str, length: int, words: Words) -> list[int]:
    while len(tokens := words.encode(text)) > length and ", " in text:
        text = text.rpartition(", ")[0]
    return tokens


def bags_of_words(texts: Sequence[str]) -> np.ndarray:
    """Words and pairs of neighbours as hashes: int32[N, 2 * BAG], 0 = none, for the text tower.

    Captions are short and name few things, so their bag says what they say.
    """
    bags = np.zeros((len(texts), 2 * BAG), np.int32)
    for row, text in zip(bags, texts, strict=True):
        words = text.replace(",", "").split()[:BAG]
        pairs = [*words, *(f"{a} {b}" for a, b in zip(words, words[1:]))]
        row[: len(pairs)] = [1 + zlib.crc32(p.encode()) % (WORD_BUCKETS - 1) for p in pairs]
    return bags
