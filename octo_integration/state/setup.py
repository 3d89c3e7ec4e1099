"""From a config to what a run is made of: the model for its data set, its stack of layers, theta0."""

import contextlib
import dataclasses
import functools
import importlib.resources
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import maps_optax as mx
from octo_integration.config import FinetuneConfig
from octo_integration.data import MixtureStatistics, Statistics
from octo_integration.model.config import FRESH, VLAConfig
from octo_integration.model.named import random_params
from octo_integration.model.tokenizer import load_tokenizer
from octo_integration.model.vla import VLA
from octo_integration.state import lora
from octo_integration.state.described import check_computation, found_beside, model_of
from octo_integration.state.origin import kind, shipped
from octo_integration.state.start import fit_of, read_run
from octo_integration.weights.imported import TOKENIZER, check_imported, restore
from octo_integration.weights.store import check_params, load_params

Tree = Any
Batch = Mapping[str, Any]


class Built(NamedTuple):
    """A model, where its leaves sit in the pretrained stack, the statistics of its data, and its input form."""

    model: VLA
    layers: mx.LayerStack
    statistics: Statistics | MixtureStatistics
    device_form: Callable[[Batch], dict[str, Any]]


def to_device_form(batch: Batch, tokenize: Callable[[list[str]], tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """A reader's batch, with or without actions, as the jitted functions take it: instructions become tokens.

    Of a missing instruction (task/pad_mask_dict/instruction is False) no token is left in the mask.
    """
    task = dict(batch["task"])
    tokens, mask = tokenize([str(text) for text in task.pop("instruction")])
    if "instruction" in task.get("pad_mask_dict", {}):
        mask = mask & task["pad_mask_dict"]["instruction"][:, None]
    actions = {name: batch[name] for name in ("action", "action_pad_mask") if name in batch}
    return {"observation": dict(batch["observation"]), "task": {**task, "tokens": tokens, "mask": mask}, **actions}


def build(config: FinetuneConfig, statistics: Statistics | MixtureStatistics, run: Path | None = None) -> Built:
    """The model that `config` names, with the input and output sizes of its data set.

    Args:
      run: directory of a run, whose model.json and tokenizer.json are then used; default: those of `config.weights`.

    Raises:
      ValueError: no such model; names those that there are.
    """
    named = model_of(config, run)
    vla = dataclasses.replace(
        named,
        action_dim=statistics.action_dim,
        proprio_dim=statistics.proprio_dim,
        chunk=config.data.chunk,
        instruction_length=config.instruction_length or named.instruction_length,
        image_size=config.data.image_size or named.image_size,
        cameras=config.data.cameras,
        goal=config.data.goal,
        dtype=config.compute_dtype,
        lora=config.lora,
        remat=config.remat or named.remat,
        cudnn=config.cudnn,
    )
    found = find_tokenizer(config) if run is None else run / TOKENIZER
    spec = str(found) if found is not None and found.is_file() else vla.tokenizer
    tokenize = load_tokenizer(spec, vla.instruction_length, vla.prompt, (vla.t5 or vla.language).vocabulary)
    form = functools.partial(to_device_form, tokenize=tokenize)
    return Built(VLA(vla), mx.presets.vla(), statistics, form)


def find_tokenizer(config: FinetuneConfig) -> Path | None:
    """The tokenizer.json that came with weights, or None."""
    return found_beside(config.weights, TOKENIZER)


def initial_params(config: FinetuneConfig, built: Built, like: Tree) -> Tree:
    """The start: pretrained modules from `config.weights`, the rest from `config.seed`, placed as `like` says.

    Imported weights and those of a run go from disk straight to their devices, and only adapters and fresh modules that
    they lack are computed.

    Args:
      like: the parameters as `jax.ShapeDtypeStruct`s, with shardings or without.

    Raises:
      FileNotFoundError, ValueError: the weights are not there, or not of this model.
    """
    weights, readers = str(config.weights), {"run": read_run, "imported": lambda w, like: restore(Path(w), like)}
    reader = readers.get(kind(config.weights))
    loaded = {} if reader is None else flatten_dict(reader(weights, lora.base(like)))
    shardings = {path: leaf.sharding for path, leaf in flatten_dict(like).items() if path not in loaded}

    @functools.partial(jax.jit, out_shardings=shardings)
    def fresh(key: jax.Array) -> Tree:  # compiled once for all seeds
        params = flatten_dict(random_params(built.model, config.data.window, key))
        return {path: params[path] for path in shardings}

    params = unflatten_dict({**fresh(jax.random.key(config.seed)), **loaded})
    if config.weights is None or reader is not None:
        return params
    with _weights_file(weights) as path:
        params = lora.whole(load_params(path, lora.base(params), fresh=FRESH), lora.adapters(params))
    return jax.tree.map(lambda leaf, place: jax.device_put(leaf, place.sharding), params, like)


def check_weights(config: FinetuneConfig, model: VLAConfig, like: Tree) -> None:
    """`initial_params` without reading a tensor: are pretrained modules there, with the names and shapes of `like`,
    and of what `model` computes?

    Raises:
      FileNotFoundError, ValueError: they are not.
    """
    if config.weights is None:
        return
    check_computation(config, model)
    if kind(config.weights) == "run":
        fit_of(config.weights, lora.base(like))
        return
    if kind(config.weights) == "imported":
        record, _ = check_imported(Path(config.weights), lora.base(like))
        reads = {"language", "t5"} & set(record["modules"])
        if reads and model.tokenizer == "bytes" and find_tokenizer(config) is None:
            raise ValueError(
                f"weights {config.weights} have a language model, but no {TOKENIZER} beside them, and bytes are not "
                "its words; put it there, or import them again from a directory that has it."
            )
        return
    with _weights_file(config.weights) as path:
        check_params(path, lora.base(like), fresh=FRESH)


@contextlib.contextmanager
def _weights_file(weights: str) -> Iterator[Path]:
    """The file of shipped weights, or the one that a path names."""
    ours = shipped(weights)
    if ours is None:
        yield Path(weights)
        return
    with importlib.resources.as_file(ours) as path:
        yield path


def abstract_params(config: FinetuneConfig, built: Built) -> Tree:
    """The parameters as `jax.ShapeDtypeStruct`s, without shardings.

    Raises:
      ValueError: a target of the LoRA configuration names no kernel.
    """
    shapes = jax.eval_shape(functools.partial(random_params, built.model, config.data.window), jax.random.key(0))
    lora.check_targets(shapes, config.lora)
    return shapes
