"""What fine-tuning forgets of published weights, by yardsticks of their own pretraining, next to the action error."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tokenizers import Tokenizer

from benchmarks.real_backbones import pictures
from benchmarks.real_backbones.language import Text, perplexity
from octo_integration.common.files import write_json
from octo_integration.config import FinetuneConfig, read_config
from octo_integration.model.config import Build, VLAConfig
from octo_integration.model.named import shapes_of
from octo_integration.model.tokenizer import vocabulary_of
from octo_integration.model.vit import Tower
from octo_integration.policy.trained import checkpoint_of, load_run
from octo_integration.state.described import model_of
from octo_integration.state.lora import merge_lora
from octo_integration.weights.imported import TOKENIZER, read_provenance, restore

Tree = Any
Row = dict[str, Any]

HERE = Path(__file__).parent
MODULES = ("dinov2", "language")
QUESTION = "Question: {}\nAnswer: "
AT_ONCE = 16
COLUMNS = {
    "name": "weights",
    "method": "method",
    "steps": "steps",
    "text": "perplexity of text",
    "answers": "of answers",
    "pictures": "pictures found",
    "action_l1": "action error",
}


@dataclasses.dataclass(frozen=True)
class Forget:
    """Perplexity of English text and of answers, and retrieval of natural pictures, of weights and of runs from them.

    python -m benchmarks.real_backbones forget --weights real/nano --runs runs/adam runs/maps runs/lora
    """

    weights: Path
    """What maps-vla import made: the first row. The second has its numbers in another order, so it knows nothing."""
    runs: tuple[Path, ...]
    """Directories of maps-vla finetune, of models with these modules."""
    out: Path = HERE / "forgetting.json"
    """Where the numbers go."""


class Subject(NamedTuple):
    """What is asked: a model's configuration, its DINOv2 and language parameters, and its words."""

    config: VLAConfig
    params: Tree
    tokenizer: Path


def run(config: Forget) -> int:
    """Measures, prints the table and writes the numbers."""
    for folder in config.runs:
        read_config(folder)  # a wrong name is told before minutes of work
    pieces = pictures.pieces()
    rows = []
    for row, subject in _subjects(config):
        rows.append({**row, **measure(subject, pieces)})
        print(f"{row['name']}: measured", flush=True)
    write_json(config.out, {"pictures": len(pieces), "rows": rows})
    print(table(rows))
    return 0


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = [row.get(name) for name in COLUMNS]
        told = ["–" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x) for x in cells]
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines)


def measure(subject: Subject, pieces: list[Any]) -> Row:
    """The three yardsticks: text, answers, pictures."""
    language = subject.params["language"]
    texts, answers = words(subject)
    seen = [features(subject, pictures.views(pieces, subject.config.image_size, seed)) for seed in (0, 1)]
    return {
        "text": perplexity(subject.config.language, language, texts),
        "answers": perplexity(subject.config.language, language, answers),
        "pictures": pictures.found(*seen),
    }


def words(subject: Subject) -> tuple[list[Text], list[Text]]:
    """The texts, and the questions with their answers, as the subject's tokens.

    Raises:
      FileNotFoundError, ValueError: there is no tokenizer.json; it does not fit the language model.
    """
    rows = subject.config.language.vocabulary
    if (size := vocabulary_of(str(subject.tokenizer))) > rows:
        raise ValueError(f"tokenizer {subject.tokenizer} has {size} tokens, the embedding {rows} rows; import again.")
    tokenizer = Tokenizer.from_file(str(subject.tokenizer))
    told = json.loads((HERE / "texts.json").read_text())
    answers = []
    for question, answer in told["questions"]:
        asked = tokenizer.encode(QUESTION.format(question).rstrip(), add_special_tokens=False).ids
        answers.append(([*asked, *tokenizer.encode(f" {answer}", add_special_tokens=False).ids], len(asked)))
    return [(tokenizer.encode(text, add_special_tokens=False).ids, 1) for text in told["texts"]], answers


def features(subject: Subject, images: np.ndarray) -> np.ndarray:
    """f32[N, width]: the mean of what DINOv2 makes of an image's patches, where the bridge reads it."""
    look = _tower(subject.config.towers["dinov2"])
    padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % AT_ONCE, axis=0)])
    parts = [look({"params": subject.params["dinov2"]}, x) for x in padded.reshape(-1, AT_ONCE, *images.shape[1:])]
    return np.concatenate([np.asarray(part.mean(1)) for part in parts])[: len(images)]


@functools.cache
def _tower(config: Any) -> Any:
    return jax.jit(Tower(config, Build()).apply)


def _subjects(config: Forget) -> Iterator[tuple[Row, Subject]]:
    """Each when it is its turn: one is in memory at a time."""
    modules = read_provenance(config.weights)["modules"]
    model = model_of(FinetuneConfig("", weights=str(config.weights)))
    _check(model, config.weights, modules)
    shapes = shapes_of(model)
    params = restore(config.weights, {name: shapes[name] for name in MODULES})
    tokenizer = config.weights / TOKENIZER
    yield {"name": config.weights.name, "method": "pretrained"}, Subject(model, params, tokenizer)
    yield {"name": config.weights.name, "method": "shuffled"}, Subject(model, shuffled(params), tokenizer)
    del params
    for folder in config.runs:
        trained = load_run(folder)
        seen = trained.built.model.config
        _check(seen, folder, trained.params)
        if seen.image_size != model.image_size:
            raise ValueError(
                f"{folder} sees {seen.image_size} pixels, {config.weights} {model.image_size}; give runs of that size."
            )
        params = {name: trained.params[name] for name in MODULES}
        row = {"name": folder.name, "method": method(trained.config), "steps": checkpoint_of(folder)}
        row |= action_error(folder)
        yield row, Subject(seen, merge_lora(params, trained.config.lora), folder / TOKENIZER)


def _check(model: VLAConfig, folder: Path, modules: Any) -> None:
    if lacking := [name for name in MODULES if name not in modules or getattr(model, name, None) is None]:
        raise ValueError(f"{folder} has no {lacking[0]}; give weights and runs of models that have it.")


def shuffled(params: Tree) -> Tree:
    """The same leaves with the values of each in another order."""
    rng = np.random.default_rng(0)
    flat = {path: np.array(leaf) for path, leaf in flatten_dict(params).items()}
    for leaf in flat.values():
        rng.shuffle(leaf.reshape(-1))
    return unflatten_dict(flat)


def method(config: FinetuneConfig) -> str:
    """What held the weights."""
    held = config.maps.method if config.maps.method != "maps" else f"maps λ {config.maps.lambda_max:g}"
    lora = config.lora
    return held if not lora.rank else f"{held}, LoRA rank {lora.rank} of {' '.join(lora.targets)}"


def action_error(folder: Path) -> Row:
    """What the run measured last, of the first split; nothing where it measured none."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [(name, x) for line in lines for name, x in line.items() if name.startswith("action_l1/")]
    last = dict(found)
    return {"action_l1": next(iter(last.values()), None), "splits": last}
