"""The bridge alone, between published towers and a published language model that nothing pretrained joins.

The first stage of LLaVA (arXiv 2304.08485): captions of frames and answers about them, towers and language model
frozen. So the features of a frame are computed once, and kept on disk with the run.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from octo_integration.common.files import write_json
from octo_integration.common.memory import check_memory
from octo_integration.common.paths import refuse_schemes
from octo_integration.config import FinetuneConfig
from octo_integration.model.config import VLAConfig
from octo_integration.model.named import shapes_of
from octo_integration.model.tokenizer import published_words
from octo_integration.model.vla import VLA
from octo_integration.pretrain import loop
from octo_integration.pretrain.frames_reader import measure_frames, read_frames
from octo_integration.pretrain.loop import Corpus, PretrainConfig, State
from octo_integration.pretrain.objective import Batch, answer_loss, say
from octo_integration.pretrain.probes import POINTS, Probes, centimetres, ridge
from octo_integration.pretrain.record import check_same_run, made_by, record, table
from octo_integration.pretrain.text import KINDS
from octo_integration.processes import claim
from octo_integration.processes.interrupts import Request, interrupts
from octo_integration.state.described import beside, model_of
from octo_integration.weights.imported import TOKENIZER, read_provenance, restore
from octo_integration.weights.joined import join
from octo_integration.weights.store import save_params

Tree = Any

FEATURES, WEIGHTS = "features", "weights"
SHARD = 256  # frames of one file of features
AT_ONCE = 32
CAPTIONS = 8  # among which one is to be found
PROBED = 64  # held-out frames that are asked about
FITTED = 500


def align(config: PretrainConfig) -> Path:
    """Runs, or resumes, an alignment; see `PretrainConfig`.

    Returns:
      The directory of the weights: what was imported, and the bridge.

    Raises:
      FileNotFoundError, ValueError: no weights, tokenizer or frames, or they do not fit; too little memory; another run
        in `out`.
      FloatingPointError, SystemExit: as `loop.pretrain`.
    """
    refuse_schemes(config)
    if config.weights is None or config.model is not None or config.words is not None:
        raise ValueError(
            "pretrain: --stage align takes --weights, what maps-vla import made, and no --model or --words."
        )
    weights, out = Path(config.weights), Path(config.out)
    provenance = read_provenance(weights)
    sizes = model_of(FinetuneConfig("", weights=config.weights))
    lacking = [name for name in (*sizes.towers, "language") if name not in provenance["modules"]]
    if lacking or "bridge" in provenance["modules"]:
        what = f"lack {lacking[0]}" if lacking else "have a bridge already"
        raise ValueError(f"pretrain: weights {weights} {what}; --stage align makes a bridge between imported parts.")
    with claim.held(out):
        return _align(config, sizes, provenance["fingerprints"], weights, out)


def _align(config: PretrainConfig, sizes: VLAConfig, fingerprints: Tree, weights: Path, out: Path) -> Path:
    check_same_run(out, config)
    if (out / WEIGHTS).exists():  # whole, so the run is done
        return out / WEIGHTS
    total, pixels = measure_frames(config.frames)
    count = loop.check_frames(config, sizes, total, pixels)
    words = published_words(str(beside(weights, TOKENIZER)), sizes.language.vocabulary)
    shapes = shapes_of(sizes)
    _check_memory(config, sizes, shapes, total)
    vla, tx = VLA(sizes), loop.optimizer(config)
    params = restore(weights, shapes)
    frames = read_frames(config.frames)
    write_json(out / "config.json", record(config))
    with interrupts() as request:
        of = repr((sizes.towers, [code for name, code in fingerprints.items() if name.split("/")[0] in sizes.towers]))
        frames = dataclasses.replace(frames, image=_features(vla, params, frames.image, out / FEATURES, of, request))
        language = {"language": params["language"]}
        del params  # towers have served
        train = Corpus(frames.take(slice(count)), config.text_length, words)
        heldout = Corpus(frames.take(slice(count, None)), config.text_length, words)
        start = _start(vla, config, train, tx)
        state = loop.run(config, _make_step(vla, language, tx), train, loop.resume(out, start), out, request)
        probes = {}
        for name, bridge in {"aligned": state.params, "random": start.params}.items():
            probes[name] = _probe(vla, {**language, **bridge}, train, heldout, lambda: loop.heed(request, config.steps))
    print(table(probes))
    write_json(out / "weights.json", {"pretrain": made_by(config), "probes": probes})
    return join(weights, out / WEIGHTS, state.params, {"aligned": made_by(config)})


def _check_memory(config: PretrainConfig, sizes: VLAConfig, shapes: Tree, total: int) -> None:
    """Refuses what the host cannot hold: the model, twice when it is written, frames, features, and a step's logits."""
    patches = (sizes.image_size // next(iter(sizes.towers.values())).patch) ** 2
    width = sum(tower.width for tower in sizes.towers.values())
    model = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    of_frames = total * (3 * sizes.image_size**2 + 4 * patches * width)
    logits = 2 * 4 * config.batch_size * config.text_length * sizes.language.vocabulary
    remedy = "give a smaller --batch-size, fewer frames, or a smaller model"
    check_memory(of_frames + max(2 * model, model + logits), "aligning this model", remedy)


def _features(vla: VLA, params: Tree, images: np.ndarray, folder: Path, of: str, request: Request) -> np.ndarray:
    """f16[N, patches, widths of all towers] of all frames; what is on disk, of these images, is not computed again.

    Args:
      of: what made them, for the record.

    Raises:
      ValueError: a feature is not finite.
    """
    folder.mkdir(exist_ok=True)
    look = jax.jit(functools.partial(vla.apply, method=_look))
    shards = []
    for start in tqdm(range(0, len(images), SHARD), desc="features", unit="shard"):
        file, mine = folder / f"{start:07d}.safetensors", images[start : start + SHARD]
        made_of = hashlib.sha256(of.encode() + mine.tobytes()).hexdigest()
        if (seen := _stored(file, made_of)) is None:
            padded = np.concatenate([mine, np.repeat(mine[-1:], -len(mine) % AT_ONCE, axis=0)])
            parts = [np.asarray(look({"params": params}, x)) for x in padded.reshape(-1, AT_ONCE, *mine.shape[1:])]
            seen = np.concatenate(parts)[: len(mine)]
            if not np.isfinite(seen).all():
                raise ValueError("pretrain: features of the frames are not finite in float16; choose other towers.")
            save_params(file, {"seen": seen}, {"of": made_of})
            loop.heed(request, 0)
        shards.append(seen)
    return np.concatenate(shards)


def _stored(file: Path, made_of: str) -> np.ndarray | None:
    """The features that a file has of these images; None: it is not there, damaged, or has others."""
    try:
        with safe_open(file, framework="np") as found:
            return found.get_tensor("seen") if (found.metadata() or {}).get("of") == made_of else None
    except (SafetensorError, OSError):
        return None


def _look(vla: VLA, images: jax.Array) -> jax.Array:
    seen = jnp.concatenate([getattr(vla, name)(images) for name in vla.config.towers], axis=-1)
    return seen.astype(jnp.float16)


def _split(vla: VLA, seen: Any) -> list[jax.Array]:
    """Each tower's features out of those of all."""
    ends = np.cumsum([tower.width for tower in vla.config.towers.values()])[:-1]
    return jnp.split(jnp.asarray(seen, jnp.float32), ends.tolist(), axis=-1)


def _say(vla: VLA, batch: Batch) -> jax.Array:
    """Logits of the answers about a batch whose images are features."""
    return say(vla, _split(vla, batch.image), batch)


def _start(vla: VLA, config: PretrainConfig, train: Corpus, tx: Any) -> State:
    seen = train.frames.image[:1]

    @jax.jit
    def init() -> State:
        made = vla.init(jax.random.key(config.seed), seen, method=lambda vla, seen: vla.bridge(*_split(vla, seen)))
        params = {"bridge": made["params"]["bridge"]}
        return State(jnp.zeros((), jnp.int32), params, tx.init(params))

    return init()


def _make_step(vla: VLA, language: Tree, tx: Any) -> Callable[[State, Batch], tuple[State, Tree]]:
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, batch: Batch, language: Tree) -> tuple[State, Tree]:
        def loss(bridge: Tree) -> jax.Array:
            logits: Any = vla.apply({"params": {**language, **bridge}}, batch, method=_say)
            total, count = answer_loss(logits, batch.targets)
            return total.sum() / count.sum()

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state), {"loss": value}

    return lambda state, batch: step(state, batch, language)


def _probe(vla: VLA, params: Tree, train: Corpus, heldout: Corpus, heed: Callable[[], None]) -> Probes:
    """Measures a bridge on frames that it has not seen.

    Returns:
      perplexity_{kind}, and given another frame; retrieval: share of the captions that are likeliest with their own
      frame among CAPTIONS; {point}_cm: distance of a linear probe of the bridge's tokens, mean_{point}_cm: of a guess
      that sees nothing.
    """
    found: Probes = {}
    step = len(heldout.frames) // CAPTIONS  # neighbours are of one episode
    firsts = np.linspace(0, step - 1, min(step, PROBED // CAPTIONS)).astype(int)
    for kind in KINDS:
        shifts = range(CAPTIONS if kind == "caption" else 2)
        sums = []
        for first in tqdm(firsts, desc=f"probe {kind}", unit="group"):
            batch = heldout.batch(first + step * np.arange(CAPTIONS), kind)
            sums.append(jax.device_get([_losses(vla, params, batch, shift) for shift in shifts]))
            heed()
        total, count = np.moveaxis(np.array(sums), 2, 0)  # [groups, shifts, rows]
        found[f"perplexity_{kind}"] = float(np.exp(total[:, 0].sum() / count[:, 0].sum()))
        found[f"perplexity_{kind}_other_image"] = float(np.exp(total[:, 1].sum() / count[:, 1].sum()))
        if kind == "caption":
            found["retrieval"] = float((total.argmin(1) == 0).mean())
    few = np.linspace(0, len(train.frames) - 1, min(FITTED, len(train.frames))).astype(int)
    known, new = (_joined(vla, params, x) for x in (train.frames.image[few], heldout.frames.image))
    for point in POINTS:
        truth, places = getattr(heldout.frames, point), getattr(train.frames, point)
        found[f"{point}_cm"] = centimetres(ridge(known, places[few], new) - truth)
        found[f"mean_{point}_cm"] = centimetres(places.mean(0) - truth)
    return found


@functools.partial(jax.jit, static_argnums=0)
def _losses(vla: VLA, params: Tree, batch: Batch, shift: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and tokens of each answer, given the frame `shift` rows on."""
    moved = batch._replace(image=jnp.roll(jnp.asarray(batch.image), shift, axis=0))
    logits: Any = vla.apply({"params": params}, moved, method=_say)
    return answer_loss(logits, batch.targets)


def _joined(vla: VLA, params: Tree, seen: np.ndarray) -> np.ndarray:
    """f32[N, patches * width]: what the bridge makes of features."""
    tokens = jax.jit(functools.partial(vla.apply, method=lambda vla, seen: vla.bridge(*_split(vla, seen))))
    parts = [tokens({"params": params}, seen[i : i + AT_ONCE]) for i in range(0, len(seen), AT_ONCE)]
    return np.concatenate([np.asarray(part).reshape(len(part), -1) for part in parts])
