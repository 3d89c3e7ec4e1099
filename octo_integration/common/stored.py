"""What Orbax has stored, without its values and without opening an array: TensorStore loses memory for each one whose
specification is asked for (`benchmarks/memory`), as Orbax does for its own metadata.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tensorstore as ts

METADATA = "_METADATA"  # Orbax's list of the leaves


def shapes(directory: Path) -> dict[str, Any]:
    """The leaves of a PyTree that Orbax stored, as `jax.ShapeDtypeStruct`s in dictionaries of their keys.

    Args:
      directory: the one that holds METADATA.

    Raises:
      Exception: whatever is wrong with it.
    """
    listed = json.loads((directory / METADATA).read_text())["tree_metadata"].values()
    paths = [[str(key["key"]) for key in leaf["key_metadata"]] for leaf in listed]
    base = {"driver": "file", "path": f"{directory.absolute()}/"}
    stored = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    reads = [stored.read(".".join(path) + "/.zarray") for path in paths]
    root: dict[str, Any] = {}
    for path, read in zip(paths, reads):
        array = json.loads(read.result().value)
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jax.ShapeDtypeStruct(tuple(array["shape"]), jnp.dtype(array["dtype"]))
    return root
