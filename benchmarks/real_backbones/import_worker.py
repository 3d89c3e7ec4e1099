"""Time and peak memory of an import: `import_worker DINOV2 LANGUAGE OUT` prints a line of JSON.

`nano_8` is imported first, so that programs are compiled: what that takes does not grow with the model.
"""

import json
import sys
import time
from pathlib import Path

import jax

from octo_integration.model.named import model_config, shapes_of
from octo_integration.weights.imported import import_weights


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def imported(name: str, dinov2: str, language: str, out: Path) -> int:
    """Imports a model of that name; returns the bytes of its leaves."""
    config = model_config(name)
    shapes, sources = shapes_of(config), {"dinov2": Path(dinov2), "language": Path(language)}
    import_weights(name, config, shapes, sources, out / name)
    return sum(4 * leaf.size for module in sources for leaf in jax.tree.leaves(shapes[module]))


def main(dinov2: str, language: str, out: str) -> None:
    """Measures the second import."""
    imported("nano_8", dinov2, language, Path(out))
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, start = memory("VmRSS"), time.perf_counter()
    size = imported("nano", dinov2, language, Path(out))
    print(
        json.dumps(
            {"seconds": time.perf_counter() - start, "peak_bytes": memory("VmHWM") - before, "model_bytes": size}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
