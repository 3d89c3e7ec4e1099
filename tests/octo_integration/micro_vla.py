"""The real model, as small as it goes."""

import dataclasses

from octo_integration.model.heads.regression import L1Config
from octo_integration.model.sizes import CONFIGS

TINY = CONFIGS["tiny"]
CONFIG = dataclasses.replace(
    TINY,
    dinov2=dataclasses.replace(TINY.dinov2, patch=16, width=16, depth=2, heads=2, mlp=32),
    siglip=dataclasses.replace(TINY.siglip, patch=16, width=16, depth=2, heads=2, mlp=32),
    language=dataclasses.replace(TINY.language, width=16, depth=2, heads=2, kv_heads=1, mlp=32),
    head=L1Config(hidden=16),
)
