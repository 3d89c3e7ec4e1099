"""Imported weights with modules that were learnt between them, as one directory that fine-tuning and export take."""

import datetime
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from octo_integration.weights.convert import unload
from octo_integration.weights.imported import (
    PARAMS,
    PROVENANCE,
    check_new,
    fingerprints,
    read_provenance,
    restore,
    save,
    stored_shapes,
    written_whole,
)
from octo_integration.weights.names import FORMATS

Tree = Any


def join(weights: Path, out: Path, learnt: Tree, how: Mapping[str, Any]) -> Path:
    """Writes what was imported and `learnt` as weights, whole or not at all; returns `out`.

    Args:
      weights: what `import_weights` made; what lies beside its arrays (model.json, tokenizer.json) is copied.
      learnt: module -> its leaves; exported under the first of its FORMATS.
      how: how they were learnt, for the record.

    Raises:
      FileExistsError, FileNotFoundError, ValueError, OSError: as `import_weights` and `restore`.
    """
    check_new(out)
    record = read_provenance(weights)
    params = {**restore(weights, stored_shapes(weights)), **learnt}
    record["modules"] |= {module: {**_record(module, leaves), **how} for module, leaves in learnt.items()}
    record["fresh"] = [module for module in record["fresh"] if module not in learnt]
    record |= {"date": datetime.date.today().isoformat(), "fingerprints": fingerprints(params)}
    with written_whole(out) as temporary:
        save(temporary / PARAMS, params)
        (temporary / PROVENANCE).write_text(json.dumps(record, indent=1) + "\n")
        for file in weights.iterdir():
            if file.is_file() and file.name != PROVENANCE:
                shutil.copyfile(file, temporary / file.name)
    return out


def _record(module: str, leaves: Tree) -> dict[str, Any]:
    """What the provenance says of a module that no file of names is of."""
    layout = FORMATS[module][0]
    flat = {"/".join(path): leaf for path, leaf in flatten_dict(leaves).items()}
    shapes = {name: list(value.shape) for name, value in unload(module, layout, flat)}
    empty = {"prefix": "", "class_positions": 0, "patches": 0, "files": [], "ignored": {}, "copies": {}}
    return {"format": layout.name, **empty, "shapes": shapes}
