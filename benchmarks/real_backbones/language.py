"""The language model of a VLA by itself: what follows each token of a text, as in its pretraining."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from octo_integration.model.config import Build, LanguageConfig
from octo_integration.model.language import Decoder

Text = tuple[Sequence[int], int]  # tokens, and how many first ones are given and not asked about


def logits(config: LanguageConfig, params: Any, tokens: np.ndarray) -> jax.Array:
    """f32[B, L, vocabulary] after each of int[B, L] tokens, which see those before them."""
    found: jax.Array = _decoder(config)({"params": params}, jnp.asarray(tokens, jnp.int32))
    return found


def perplexity(config: LanguageConfig, params: Any, texts: Sequence[Text]) -> float:
    """Per token of all texts together; a text's first token is always given."""
    entropy, count, length = 0.0, 0, max(len(tokens) for tokens, _ in texts)
    for tokens, given in texts:
        row = np.zeros((1, length), np.int32)  # what is behind a text is seen by nothing
        row[0, : len(tokens)] = tokens
        asked = slice(max(given, 1), len(tokens))
        told = logits(config, params, row)[0, asked.start - 1 : asked.stop - 1]
        entropy += float(optax.softmax_cross_entropy_with_integer_labels(told, row[0, asked]).sum())
        count += asked.stop - asked.start
    return math.exp(entropy / count)


@functools.cache
def _decoder(config: LanguageConfig) -> Any:
    decoder = Decoder(config, Build())

    def run(module: Decoder, tokens: jax.Array) -> jax.Array:
        rows, length = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
        causal = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (rows, length, length))
        return module.logits(module(module.words(tokens), positions, causal))

    return jax.jit(functools.partial(decoder.apply, method=run))
