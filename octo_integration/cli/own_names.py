"""Weights under our own names: one file of safetensors, and beside it what a run that starts from it needs."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octo_integration.common.files import write_json
from octo_integration.policy.trained import Trained
from octo_integration.state.described import MODEL, beside, model_of, record
from octo_integration.state.lora import merge_lora
from octo_integration.weights.imported import TOKENIZER
from octo_integration.weights.store import save_params


def save_run(path: Path, run: Path, trained: Trained, provenance: Mapping[str, str]) -> list[Path]:
    """Writes the parameters of a run, adapters merged, in float32; its model and tokenizer go beside the file.

    Args:
      path: the file, ending in .safetensors.
      provenance: what is said in its header.

    Returns:
      The files.
    """
    params: Any = merge_lora(trained.params, trained.config.lora)
    model, size = model_of(trained.config, run), trained.built.model.config.image_size
    wrote = [path, beside(path, MODEL)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(wrote[-1], record(dataclasses.replace(model, image_size=size)))
    if (tokenizer := run / TOKENIZER).is_file():
        wrote.append(beside(path, TOKENIZER))
        shutil.copyfile(tokenizer, wrote[-1])
    save_params(path, params, {"run": str(run), **provenance})
    return wrote
