"""Action heads: from the decoder's readouts to a chunk of actions.

Every head is a module made by HEADS[config.kind](config, action_dim, dtype) with two methods:

  loss(x, action, mask, key) -> (f32[] to minimise, {name: f32[]} to log)
  predict(x, key) -> f32[B, chunk, A], normalised

x: [B, chunk, W] readouts; action: f32[B, chunk, A], normalised; mask: bool[B, chunk, A], True where the entry counts;
key: where a head draws noise. Losses are float32 whatever the precision of the pass.
"""

from octo_integration.model.config import HeadKind
from octo_integration.model.heads.common import ActionHead
from octo_integration.model.heads.diffusion import DiffusionHead
from octo_integration.model.heads.regression import L1Head
from octo_integration.model.heads.tokens import TokensHead

HEADS: dict[HeadKind, type[ActionHead]] = {"l1": L1Head, "diffusion": DiffusionHead, "tokens": TokensHead}
