"""Do imported real weights compute what transformers computes with them?"""

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from benchmarks.real_backbones import language as language_model
from octo_integration.common.files import write_json
from octo_integration.model.config import Build, VLAConfig
from octo_integration.model.named import model_config, shapes_of
from octo_integration.model.vit import Tower
from octo_integration.weights.imported import restore

HERE = Path(__file__).parent
SIZES = (518, 224, 112)  # the first is that of the positions
NEW_TOKENS = 24
TEXT = """The harbour was quiet in the early morning. Two fishermen mended their nets on the stone wall while the tide
went out, and a dog slept beside them in the sun. Later in the day the ferry brought visitors from the city, who walked
along the beach, bought bread and cheese in the small shop, and asked about the weather. Nobody could say whether it
would rain, but everybody had an opinion, and the oldest of the men said that the wind from the west always tells."""
PROMPTS = ("The capital of France is", "Water boils at a temperature of", "A robot arm is a machine that")
# Of the greatest difference, relative to the greatest value; and of perplexities.
CLOSE, SAME_PERPLEXITY, MOST_MEMORY = 1e-4, 1e-3, 1.3


@dataclasses.dataclass(frozen=True)
class Parity:
    """Compares outputs, continuations and perplexity with transformers', and measures the import.

    python -m benchmarks.real_backbones parity --real real --python .venv-parity/bin/python
    """

    python: str
    """An interpreter with torch and transformers."""
    real: Path = Path("real")
    """The folder that prepare made."""
    out: Path = HERE / "results.json"
    """Where the numbers go."""


def run(config: Parity) -> int:
    """Measures, prints the table and writes the numbers; 1 if one of them is not as it should be."""
    dinov2, language = config.real / "dinov2", config.real / "language"
    for folder in (dinov2, language):
        if not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"there is no {folder / 'model.safetensors'}; run prepare --out {config.real}.")
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        command = [sys.executable, "-m", "benchmarks.real_backbones.import_worker", dinov2, language, temporary]
        measured = json.loads(_output(command).splitlines()[-1])
        inputs = _inputs(Tokenizer.from_file(str(language / "tokenizer.json")))
        save_file(inputs, temporary / "inputs.safetensors")
        theirs_file = temporary / "theirs.safetensors"
        script = HERE / "reference.py"
        _output(
            [config.python, "-W", "ignore", script, dinov2, language, temporary / "inputs.safetensors", theirs_file]
        )
        rows = list(_compare(temporary, inputs, load_file(theirs_file)))
    peak = measured["peak_bytes"] / measured["model_bytes"]
    rows.append({"what": "import of nano: peak memory / model", "value": peak, "wanted": MOST_MEMORY})
    rows.append({"what": "import of nano: seconds", "value": measured["seconds"], "wanted": None})
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax")}
    versions |= json.loads(_output([config.python, "-c", VERSIONS]))
    write_json(config.out, {"versions": versions, "import": measured, "rows": rows})
    print(table(rows))
    return int(any(row["wanted"] is not None and not row["value"] <= row["wanted"] for row in rows))


VERSIONS = """
import json, torch, transformers
print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}))
"""


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| what | measured | at most |", "|---|---|---|"]
    for row in rows:
        wanted = "–" if row["wanted"] is None else f"{row['wanted']:g}"
        lines.append(f"| {row['what']} | {row['value']:.2g} | {wanted} |")
    return "\n".join(lines)


def _output(command: list[Any]) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise ValueError(f"{' '.join(map(str, command))} failed: {done.stderr[-500:]}")
    return done.stdout


def _inputs(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    pixels = {f"pixels_{size}": rng.normal(size=(1, 3, size, size)).astype(np.float32) for size in SIZES}
    texts = {"tokens": TEXT.replace("\n", " "), **{f"prompt_{i}": prompt for i, prompt in enumerate(PROMPTS)}}
    return pixels | {name: np.array([tokenizer.encode(text).ids], np.int64) for name, text in texts.items()}


def _compare(weights: Path, inputs: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    nano = model_config("nano")
    for size in SIZES:
        params = _restored(weights / "nano", dataclasses.replace(nano, image_size=size))["dinov2"]
        how = "native" if size == SIZES[0] else "resampled"
        for features in ("penultimate", "last"):
            # Pixels 0..255 shall come out as the normal numbers that they are.
            tower = dataclasses.replace(nano.towers["dinov2"], features=features, mean=(0.0,) * 3, std=(1 / 255,) * 3)
            seen = jax.jit(Tower(tower, Build()).apply)(
                {"params": params}, inputs[f"pixels_{size}"].transpose(0, 2, 3, 1)
            )
            error = _error(seen, theirs[f"{features}_{size}"])
            yield {"what": f"DINOv2-S, {size} pixels ({how}), {features} features", "value": error, "wanted": CLOSE}
    language = _restored(weights / "nano", nano)["language"]
    logits = functools.partial(language_model.logits, nano.language, language)
    tokens = inputs["tokens"]
    mine = np.asarray(logits(tokens))
    yield {"what": "SmolLM2-135M, logits of a text", "value": _error(mine, theirs["logits"]), "wanted": CLOSE}
    ours, other = _perplexity(mine, tokens), _perplexity(theirs["logits"], tokens)
    yield {"what": f"its perplexity, {ours:.4f}: difference", "value": abs(ours - other), "wanted": SAME_PERPLEXITY}
    wrong = sum(
        int((_continued(logits, inputs[f"prompt_{i}"]) != theirs[f"prompt_{i}"]).sum()) for i in range(len(PROMPTS))
    )
    count = len(PROMPTS) * NEW_TOKENS
    yield {"what": f"greedy continuations: tokens that differ of {count}", "value": wrong, "wanted": 0}
    eight = model_config("nano_8")
    mine = np.asarray(language_model.logits(eight.language, _restored(weights / "nano_8", eight)["language"], tokens))
    yield {"what": "its first 8 blocks (nano_8), logits", "value": _error(mine, theirs["logits_8"]), "wanted": CLOSE}


def _restored(folder: Path, config: VLAConfig) -> Any:
    return restore(folder, shapes_of(config))


def _error(mine: Any, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(mine) - theirs).max() / np.abs(theirs).max())


def _continued(logits: Any, prompt: np.ndarray) -> np.ndarray:
    """int[1, NEW_TOKENS], each the likeliest after those before it; what is behind it is seen by nothing."""
    at = prompt.shape[1]
    tokens = np.pad(prompt, [(0, 0), (0, NEW_TOKENS)])
    for i in range(at, at + NEW_TOKENS):
        tokens[0, i] = int(logits(tokens)[0, i - 1].argmax())
    return tokens[:, at:]


def _perplexity(logits: np.ndarray, tokens: np.ndarray) -> float:
    entropy = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits[:, :-1]), jnp.asarray(tokens[:, 1:]))
    return math.exp(float(entropy.mean()))
