"""One jitted program that fine-tunes by almost every method of the study: what tells methods apart are its inputs.

Strengths, learning rate, decay and frozen modules are arrays, so λ grids, schedules and baselines share one
compilation. Only what changes the program itself makes another: the estimate, adaptive λ, adapters.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maps_optax as mx
from benchmarks.generalization import prices
from benchmarks.generalization.data import Windows
from benchmarks.generalization.methods import Point
from benchmarks.generalization.prices import Moment, Pricing
from benchmarks.generalization.strengths import adapter_tree, rate_tree, strength_tree
from octo_integration.model.config import PRETRAINED, LoraConfig, VLAConfig
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.tokenizer import Tokenize, load_tokenizer
from octo_integration.model.vla import VLA
from octo_integration.state.lora import ADAPTERS
from octo_integration.state.optimizer import decay_mask

Tree = Any
Array = jax.Array | np.ndarray

SHARED = CONFIGS["tiny"]  # its words, length of instructions and robot state are those of every model of the study
BATCH_SIZE = 16
CHUNK_OF_STEPS = 10
WARMUP = 0.1  # share of the steps
CLIP = 1.0
EMA_STEPS = 50  # the moving average forgets over so many


class Knobs(NamedTuple):
    """What a point is to the program.

    Attributes:
      strength, l2: trees like params of λ per tensor; None: free.
      moving: tree of 0. (frozen) and 1.; rate: tree of what multiplies the learning rate, 0 where frozen.
      lr, weight_decay, max_pull, steps: scalars.
    """

    strength: Tree
    l2: Tree
    moving: Tree
    rate: Tree
    lr: Any
    weight_decay: Any
    max_pull: Any
    steps: Any


class Inputs(NamedTuple):
    """Data of N windows: image uint8[N, H, W, 3], tokens int32[T, L] with their mask, text int32[N], and actions."""

    image: Array
    tokens: Array
    token_mask: Array
    text: Array
    action: Any = None
    mask: Any = None


class Result(NamedTuple):
    """The end of a run, the mean loss of its last 50 steps, and of every CHUNK_OF_STEPS on the way; what λ did."""

    params: Tree
    average: Tree
    loss: float
    losses: tuple[float, ...]
    moments: tuple[Moment, ...] = ()


@dataclasses.dataclass(frozen=True)
class Program:
    """What changes the compiled program: model, adapters, how λ acts on them, the criterion, the adaptive rule."""

    model: str = "tiny"
    lora: int = 0
    lora_spd: str = ""
    criterion: str = "gradient"
    adaptive: str | None = None
    rate: float = 0.0
    budget: float = 0.0


def program_of(point: Point) -> Program:
    """The program that runs a point."""
    return Program(point.model, point.lora, point.lora_spd, point.criterion, point.adaptive, point.rate, point.budget)


def model_config(program: Program) -> VLAConfig:
    """The model, with adapters where the program has them."""
    adapters = LoraConfig(rank=program.lora, alpha=float(2 * program.lora))
    return dataclasses.replace(CONFIGS[program.model], lora=adapters)


def inputs_of(windows: Windows, blind: bool) -> Inputs:
    """Windows as the program takes them; blind: with black images."""
    tokens, mask = text_tokens([str(text) for text in windows.texts])
    image = np.zeros_like(windows.image) if blind else windows.image
    return Inputs(image, tokens, mask, windows.text, windows.action, windows.mask)


def text_tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Instructions as the model takes them: int32[n, L] tokens and bool[n, L] mask."""
    return _tokenizer()(texts)


@functools.cache
def _tokenizer() -> Tokenize:
    return load_tokenizer(SHARED.tokenizer, SHARED.instruction_length, SHARED.prompt, SHARED.language.vocabulary)


def observe(inputs: Inputs, index: Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Observation and task of `VLA` for windows int[B]; the robot's own state is hidden, so that it has to look."""
    rows = index.shape[0]
    observation = {
        "image_primary": inputs.image[index][:, None],
        "proprio": jnp.zeros((rows, 1, SHARED.proprio_dim)),
        "timestep_pad_mask": jnp.ones((rows, 1), bool),
        "pad_mask_dict": {"proprio": jnp.zeros((rows, 1), bool)},
    }
    text = inputs.text[index]
    return observation, {"tokens": inputs.tokens[text], "mask": inputs.token_mask[text]}


def knobs_of(point: Point, params: Tree, lr: float, steps: int) -> Knobs:
    """The inputs that make the program run `point`.

    Args:
      params: parameters or their shapes.
      lr, steps: of the study, where the point has none of its own.
    """

    def moving(path: Any, leaf: Any) -> float:
        del leaf
        module, name = path[0].key, path[-1].key
        adapted = point.lora and module in PRETRAINED and name not in ADAPTERS
        return 0.0 if module in point.frozen or adapted else 1.0

    uniform = dataclasses.replace(point, schedule="constant", order="paper", lambda_max=1.0)
    l2 = jax.tree.map(lambda x: None if x is None else point.l2 * x, strength_tree(uniform, params), is_leaf=_is_none)
    moves = jax.tree_util.tree_map_with_path(moving, params)
    return Knobs(
        strength=adapter_tree(point, params) if point.lora else strength_tree(point, params),
        l2=l2,
        moving=moves,
        rate=jax.tree.map(lambda moves, rate: np.float32(moves) * rate, moves, rate_tree(point, params)),
        lr=np.float32(lr if point.lr is None else point.lr),
        weight_decay=np.float32(point.weight_decay),
        max_pull=np.float32(math.inf if point.max_pull is None else point.max_pull),
        steps=np.float32(steps if point.steps is None else point.steps),
    )


def _is_none(x: Any) -> bool:
    return x is None


def _optimizer(program: Program, knobs: Knobs) -> optax.GradientTransformationExtraArgs:
    def rate(count: jax.Array) -> jax.Array:
        warm = jnp.minimum(1.0, (count + 1) / (WARMUP * knobs.steps))
        return knobs.lr * warm * (0.55 + 0.45 * jnp.cos(jnp.pi * jnp.minimum(count / knobs.steps, 1.0)))

    frozen = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, knobs.moving))
    rates = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, knobs.rate))
    adamw = optax.adamw(rate, weight_decay=knobs.weight_decay, mask=decay_mask)
    chain = optax.chain if program.criterion == "auto" else mx.chain
    return chain(frozen, mx.l2_sp(knobs.l2), optax.clip_by_global_norm(CLIP), adamw, rates, _hold(program, knobs))


def _hold(program: Program, knobs: Knobs) -> optax.GradientTransformationExtraArgs:
    if program.lora:
        if not program.lora_spd:
            return optax.with_extra_args_support(optax.identity())
        return mx.lora_spd(knobs.strength, scale=2.0, treatment=program.lora_spd, max_pull=knobs.max_pull)
    rules: Mapping[str, Callable[[], Any]] = {
        "hypergradient": lambda: mx.hypergradient(program.rate),
        "drift_budget": lambda: mx.drift_budget(program.budget, program.rate),
    }
    adapt = {} if program.adaptive is None else {"adapt": rules[program.adaptive]()}
    return mx.spd(knobs.strength, max_pull=knobs.max_pull, criterion=program.criterion, **adapt)


@functools.cache
def _loss(program: Program) -> Callable[[Tree, Inputs, jax.Array], jax.Array]:
    model = VLA(model_config(program))

    def loss(params: Tree, inputs: Inputs, index: jax.Array) -> jax.Array:
        observation, task = observe(inputs, index)
        batch = {
            "observation": observation,
            "task": task,
            "action": inputs.action[index],
            "action_pad_mask": inputs.mask[index],
        }
        value: Any = model.apply({"params": params}, batch, jax.random.key(0), method="loss")
        return value[0]

    return loss


@functools.cache
def _compiled(program: Program) -> tuple[Any, Any]:
    loss = _loss(program)

    @jax.jit
    def begin(params: Tree, knobs: Knobs) -> tuple[Tree, Tree, Tree]:
        copy = jax.tree.map(jnp.copy, params)
        return copy, _optimizer(program, knobs).init(copy), jax.tree.map(jnp.copy, params)

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(carry: Tree, inputs: Inputs, index: jax.Array, knobs: Knobs) -> tuple[Tree, jax.Array]:
        tx = _optimizer(program, knobs)

        def step(carry: Tree, rows: jax.Array) -> tuple[Tree, jax.Array]:
            params, opt_state, average = carry
            value, grads = jax.value_and_grad(loss)(params, inputs, rows)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            average = jax.tree.map(lambda a, p: a + (p - a) / EMA_STEPS, average, params)
            return (params, opt_state, average), value

        return jax.lax.scan(step, carry, index)

    return begin, advance


def fine_tune(
    program: Program, params: Tree, knobs: Knobs, inputs: Inputs, order: np.ndarray, pricing: Pricing | None = None
) -> Result:
    """Fine-tunes `params` on the windows int[steps, BATCH_SIZE] of `batches`; steps are a multiple of CHUNK_OF_STEPS.

    Args:
      pricing: moves λ on the way; its steps are a multiple of CHUNK_OF_STEPS too.

    Raises:
      FloatingPointError: the loss became NaN or inf.
    """
    begin, advance = _compiled(program)
    carry, losses = begin(params, knobs), []
    moments = []
    for first in range(0, len(order), CHUNK_OF_STEPS):
        if pricing and first and first % pricing.every == 0:
            ask = prices.compiled(_loss(program), pricing.size)
            found = np.asarray(ask(carry[0], params, pricing.parts, inputs, order[first]))
            knobs = knobs._replace(strength=prices.moved(knobs.strength, pricing.parts, found, pricing.share))
            now = prices.of_parts(knobs.strength, pricing.parts, pricing.size)
            moments.append(Moment(first, float(found[0]), tuple(found[1:].round(5).tolist()), now))
        carry, values = advance(carry, inputs, order[first : first + CHUNK_OF_STEPS], knobs)
        losses.append(values)
    loss = float(jnp.concatenate(losses[-5:]).mean())
    if not math.isfinite(loss):
        raise FloatingPointError(f"fine_tune: the loss is {loss} after {len(order)} steps; lower the learning rate.")
    return Result(carry[0], carry[2], loss, tuple(float(values.mean()) for values in losses), tuple(moments))


def batches(task: np.ndarray, steps: int, seed: int) -> np.ndarray:
    """int32[steps, BATCH_SIZE] windows: the tasks take turns, each through its own in random order, time after time.

    Args:
      task: int[N], of every window; tasks with short episodes are seen as often as others.
    """
    rng = np.random.default_rng(seed)
    total, tasks = steps * BATCH_SIZE, np.unique(task)
    share = -(-total // len(tasks))
    columns = []
    for name in tasks:
        own = np.flatnonzero(task == name)
        columns.append(np.concatenate([rng.permutation(own) for _ in range(-(-share // len(own)))])[:share])
    return np.stack(columns, axis=1).reshape(-1)[:total].reshape(steps, BATCH_SIZE).astype(np.int32)
