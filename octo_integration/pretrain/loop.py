"""Makes pretrained weights, those of `tiny` that are shipped among them, from labelled, visually randomised frames.

    maps-vla collect-frames ...            # see octo_integration/collect/frames.py
    maps-vla pretrain --frames frames --out runs/pretrain

What is learned, and why: objective.py; what came of it is measured by probes.py.
"""

import contextlib
import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from octo_integration.common import limits
from octo_integration.common.files import write_json
from octo_integration.common.limits import check_limits
from octo_integration.common.paths import refuse_schemes
from octo_integration.logs.run_log import open_log
from octo_integration.model.config import PRETRAINED, VLAConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.tokenizer import Words, load_words, train_words
from octo_integration.model.vla import VLA
from octo_integration.pretrain.frames_reader import Frames, measure_frames, read_frames
from octo_integration.pretrain.objective import Batch, Heads, objective, run_model, see
from octo_integration.pretrain.probes import ROWS, Probes, probe
from octo_integration.pretrain.record import check_same_run, made_by, record, table
from octo_integration.pretrain.text import ASKED, KINDS, Asked, bags_of_words, dialogues, texts
from octo_integration.processes import claim
from octo_integration.processes.interrupts import Request, interrupts
from octo_integration.state.described import DEFAULT, beside
from octo_integration.weights.imported import TOKENIZER
from octo_integration.weights.store import load_params, save_params

Tree = Any

DECAYED = ("kernel", "embedding")
AHEAD = 1  # as in `train.loop`

LIMITS = {
    **dict.fromkeys(("steps", "batch_size", "text_length", "log_every", "save_every"), limits.AT_LEAST_1),
    "lr": limits.POSITIVE,
    "weight_decay": limits.AT_LEAST_0,
    "heldout": limits.SHARE,
    "seed": limits.SEED,
}


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Pretrains the towers, the bridge and the language model on rendered frames, or the bridge alone.

    maps-vla pretrain --frames frames --out runs/pretrain
    maps-vla pretrain --stage align --weights weights/mine --frames frames --out runs/align

    The same command again resumes at the last saved step, bit for bit. SIGTERM and Ctrl-C finish
    the step, save, and exit with code 143 or 130.
    """

    frames: str
    """TFDS directory of labelled frames (octo_integration/collect/frames.py)."""
    out: str
    """Run directory; weights.safetensors (align: the folder weights) and weights.json (provenance, probes) are its
    result."""
    stage: Literal["whole", "align"] = "whole"
    """whole: all of a model, from a random start; align: only the bridge between the imported towers and language model
    of --weights, with captions and answers."""
    model: str | None = None
    """Name of the model's configuration (octo_integration/model/sizes.py); None: tiny, or that of --weights."""
    weights: str | None = None
    """What maps-vla import made (align only)."""
    steps: int = 5000
    """Optimizer steps."""
    batch_size: int = 32
    """Frames per step."""
    lr: float = 2e-3
    """Peak learning rate."""
    warmup: int = 150
    """Steps of linear warmup; a cosine down to 0 follows."""
    weight_decay: float = 0.05
    """Decoupled weight decay, on matrices only (kernels and embeddings)."""
    text_length: int = 44
    """Tokens of a question with its answer."""
    words: str | None = None
    """Vocabulary: "tiny", the shipped one, or a tokenizer.json; default: made from the texts of the frames."""
    kinds: tuple[Asked, ...] = ASKED
    """What the language model is asked about a frame: caption, to describe it; hand and find, where the hand or a thing
    is; move, the ways from hand to object to goal. Of several each keeps its share among them."""
    heldout: float = 0.1
    """Share of the frames, the last ones on disk, that only the probes see."""
    seed: int = 0
    """Of the initial values, the order and the augmentation."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    save_every: int = 500
    """Steps between saves of the training state."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense before anything is loaded."""
        check_limits(self, LIMITS)
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"pretrain: kinds is {' '.join(self.kinds) or None}; name one or more, each once.")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"pretrain: warmup is {self.warmup} of {self.steps} steps; give fewer.")


class State(NamedTuple):
    """All that a run carries from step to step; params are {"model": ..., "heads": ...}."""

    step: jax.Array
    params: Tree
    opt_state: Tree


Step: TypeAlias = Callable[[State, Batch], tuple[State, Tree]]


class Corpus:
    """Frames with their texts as tokens; makes batches."""

    def __init__(self, frames: Frames, text_length: int, words: Words) -> None:
        """text_length: tokens of a question with its answer, in the vocabulary `words`."""
        self.frames = frames
        self.words = bags_of_words(frames.caption.tolist())
        self.dialogues = {kind: dialogues(frames, kind, text_length, words) for kind in KINDS}

    def batch(self, index: np.ndarray, kinds: np.ndarray | str) -> Batch:
        """The frames of int[B] indices, each with the dialogue of its kind (or all of one kind)."""
        frames = self.frames
        names = [kinds] * len(index) if isinstance(kinds, str) else kinds
        chosen = [[x[i] for x in self.dialogues[str(kind)]] for kind, i in zip(names, index)]
        tokens, times, targets = (np.stack(column) for column in zip(*chosen))
        return Batch(
            image=frames.image[index],
            points=np.stack([frames.hand[index], frames.object[index], frames.goal[index]], 1),
            pixels=np.stack([frames.hand_pixel[index], frames.object_pixel[index]], 1),
            shapes=frames.shape_pixel[index],
            words=self.words[index],
            tokens=tokens,
            times=times,
            targets=targets,
        )


def pretrain(config: PretrainConfig) -> Path:
    """Runs, or resumes, a pretraining run; see `PretrainConfig`.

    Returns:
      The weights file: bfloat16, the modules `model.config.PRETRAINED`.

    Raises:
      FileNotFoundError, ValueError: no frames, too few, another run in `out`, unknown model.
      FloatingPointError: the loss became NaN or inf.
      SystemExit: stopped by a signal, after saving.
    """
    refuse_schemes(config)
    if config.weights is not None:
        raise ValueError("pretrain: --weights is for --stage align; leave it out.")
    config = dataclasses.replace(config, model=config.model or DEFAULT)
    if config.model not in CONFIGS:
        raise ValueError(f"there is no model {config.model!r}; there are: {', '.join(CONFIGS)}.")
    sizes = CONFIGS[config.model]
    if set(sizes.towers) not in ({"dinov2", "siglip"}, {"clip"}) or not sizes.language.vocabulary:
        raise ValueError(
            f"pretrain: model {config.model!r} has neither dinov2 with siglip nor clip alone, or no words of its own "
            "language model; there is an objective for those only, choose another model."
        )
    out = Path(config.out)
    with claim.held(out):
        return _pretrain(config, sizes, out)


def _pretrain(config: PretrainConfig, sizes: VLAConfig, out: Path) -> Path:
    check_same_run(out, config)
    given = _given_words(config, sizes)
    count = check_frames(config, sizes, *measure_frames(config.frames))
    frames = read_frames(config.frames)
    vla = VLA(sizes)
    write_json(out / "config.json", record(config))
    words = given or _own_words(out, frames.take(slice(count)), sizes)
    train = Corpus(frames.take(slice(count)), config.text_length, words)
    heldout = Corpus(frames.take(slice(count, None)), config.text_length, words)
    tx = optimizer(config)
    start = _start(vla, config, train, tx)
    with interrupts() as request:
        state = run(config, _make_step(vla, config, tx), train, resume(out, start), out, request)
        rounded = jax.tree.map(_to_bfloat16_and_back, state.params["model"])

        def batches(part: Frames, kind: str, index: np.ndarray) -> Batch:
            heed(request, config.steps)
            return (train if part is train.frames else heldout).batch(index, kind)

        measure = functools.partial(probe, vla, train=train.frames, heldout=heldout.frames, batches=batches)
        probes = {
            "pretrained": measure({"model": rounded, "heads": state.params["heads"]}),
            "random": measure(start.params),
        }
    print(table(probes))
    return _publish(out, config, rounded, probes)


def check_frames(config: PretrainConfig, sizes: VLAConfig, total: int, pixels: int) -> int:
    """How many frames are trained on, of so many of so many pixels.

    Raises:
      ValueError: they are too few, or of another size than the model sees.
    """
    count = total - round(config.heldout * total)
    if min(count, total - count) < max(ROWS, config.batch_size):
        raise ValueError(
            f"pretrain: {total} frames in {config.frames} are too few for batch_size "
            f"{config.batch_size} and heldout {config.heldout}; render more."
        )
    if pixels != sizes.image_size:
        model = f"of {config.weights}" if config.model is None else repr(config.model)
        raise ValueError(
            f"pretrain: the frames in {config.frames} have {pixels} pixels, model {model} sees "
            f"{sizes.image_size}; render them with --image-size {sizes.image_size}."
        )
    return count


def _given_words(config: PretrainConfig, sizes: VLAConfig) -> Words | None:
    """The vocabulary of a model of bytes, or the one that `config` names; None: it has to be made."""
    spec = config.words or ("bytes" if sizes.tokenizer == "bytes" else None)
    if spec is None:
        return None
    words = load_words(spec)
    if (spec == "bytes") != (sizes.tokenizer == "bytes") or words.size > sizes.language.vocabulary:
        raise ValueError(
            f"pretrain: words {spec!r} ({words.size} tokens) do not fit model {config.model!r}, whose tokenizer is "
            f"{sizes.tokenizer!r} with {sizes.language.vocabulary} rows of embedding; give others, or none."
        )
    return words


def _own_words(out: Path, frames: Frames, sizes: VLAConfig) -> Words:
    """Made from the frames' texts; lies beside the weights."""
    path = out / TOKENIZER
    if not path.is_file():
        train_words(sorted(texts(frames)), sizes.language.vocabulary).save(str(path))
    return load_words(str(path))


def optimizer(config: PretrainConfig) -> optax.GradientTransformation:
    """AdamW with warmup and a cosine down to 0, after clipping."""
    rate = optax.warmup_cosine_decay_schedule(0.0, config.lr, config.warmup, config.steps)

    def decayed(params: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)

    adamw = optax.adamw(rate, b2=0.98, weight_decay=config.weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def _start(vla: VLA, config: PretrainConfig, train: Corpus, tx: Any) -> State:
    batch = train.batch(np.arange(2), "caption")
    keys = jax.random.split(jax.random.key(config.seed))

    @jax.jit
    def init() -> State:
        image = jnp.asarray(batch.image)
        model = vla.init(keys[0], image, image, batch, method=see)["params"]
        seen = run_model(vla, model, image, image, batch)
        heads = Heads().init(keys[1], seen.dino, seen.captioned, batch.words)["params"]
        params = {"model": model, "heads": heads}
        return State(jnp.zeros((), jnp.int32), params, tx.init(params))

    return init()


def run(config: PretrainConfig, step: Step, train: Corpus, state: State, out: Path, request: Request) -> State:
    """Takes the steps that are missing, and saves; a signal ends the command after it has saved."""
    done = start = int(state.step)
    stop = None
    pending: list[Tree] = []
    with open_log(out, start=done, steps=config.steps, name="pretrain") as log:
        while done < config.steps and stop is None:
            index, kinds = _sample(config, len(train.frames), done)
            batch = train.batch(index, kinds)
            with request.unheeded() if done == start else contextlib.nullcontext():  # compiles
                state, parts = step(state, batch)
            pending.append(parts)
            jax.block_until_ready(pending[-1 - AHEAD : -AHEAD])
            done += 1
            log.advance()
            stop = request.ask()
            ending = done == config.steps or stop is not None
            if ending or done % config.log_every == 0:
                log.scalars(done, _mean(jax.device_get(pending), done))
                pending = []
            if ending or done % config.save_every == 0:
                save_params(out / "state.safetensors", _named(state))
    heed(request, done)
    return state


def heed(request: Request, done: int) -> None:
    """Ends the command, of which `done` steps are saved, if a signal asked to stop."""
    if (stop := request.ask()) is not None:
        print(f"stopped by signal {stop} at step {done}, saved; the same command resumes it.")
        raise SystemExit(128 + stop)


def _make_step(vla: VLA, config: PretrainConfig, tx: Any) -> Callable[[State, Batch], tuple[State, Tree]]:
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, batch: Batch) -> tuple[State, Tree]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        loss = functools.partial(objective, vla)
        (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, opt_state), {"loss": total, **parts}

    return step


def _sample(config: PretrainConfig, count: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Which frames step number `step` sees, and what it asks about them; a function of the seed."""
    numbers = step * config.batch_size + np.arange(config.batch_size)
    index = [_order(config.seed, n // count, count)[n % count] for n in numbers.tolist()]
    rng = np.random.default_rng([config.seed, 1, step])
    asked = [kind for kind in KINDS if kind in config.kinds]
    shares = np.array([KINDS[kind].share for kind in asked])
    return np.array(index), rng.choice(asked, config.batch_size, p=shares / shares.sum())


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def _mean(pending: list[Tree], done: int) -> dict[str, float]:
    values = {name: float(np.mean([p[name] for p in pending])) for name in pending[0]}
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(f"pretrain: loss is {values['loss']} by step {done}; lower lr and resume.")
    return values


def _named(state: State) -> dict[str, Any]:
    """The leaves of the training state by their path, for the weights' file format."""
    pairs = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in pairs}


def resume(out: Path, start: State) -> State:
    """The saved state, or a copy of `start`, which the step may then donate."""
    path = out / "state.safetensors"
    if not path.exists():
        return jax.tree.map(jnp.copy, start)
    loaded = load_params(path, _named(start))
    return jax.tree.unflatten(jax.tree.structure(start), map(jnp.asarray, loaded.values()))


def _to_bfloat16_and_back(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16).astype(x.dtype)


def _publish(out: Path, config: PretrainConfig, params: Tree, probes: dict[str, Probes]) -> Path:
    """Writes the weights with their provenance beside them."""
    path = out / "weights.safetensors"
    made = made_by(config)
    pretrained = {name: params[name] for name in PRETRAINED if name in params}
    save_params(path, pretrained, {"made_by": json.dumps(made)}, dtype=jnp.bfloat16)
    if (own := out / TOKENIZER).is_file():
        shutil.copyfile(own, beside(path, TOKENIZER))
    write_json(path.with_suffix(".json"), {"pretrain": made, "probes": probes})
    return path
