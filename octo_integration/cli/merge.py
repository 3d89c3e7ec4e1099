"""`maps-vla merge`: the adapters of a LoRA run into its weights."""

import dataclasses
from pathlib import Path

from octo_integration.cli.own_names import save_run
from octo_integration.config import read_config
from octo_integration.policy.trained import load_run


@dataclasses.dataclass(frozen=True)
class Options:
    """Adds the adapters of a LoRA run to the kernels beside them and writes the parameters as safetensors, in float32.

    maps-vla merge --run runs/tiny-lora --out merged.safetensors

    Its model, and the tokenizer where the run has one, go beside it (merged.model.json, merged.tokenizer.json), and
    belong to it.
    """

    run: str
    """Run directory of finetune with --lora.rank above 0."""
    out: str
    """The file to write, ending in .safetensors; finetune takes it as --weights."""
    step: int | None = None
    """Step of the checkpoint; default: the latest."""


def run(config: Options) -> int:
    """Merges, and prints the file.

    Raises:
      FileNotFoundError, ValueError: no run, or one without adapters.
      OSError: the file could not be written.
    """
    out, lora = Path(config.out), read_config(Path(config.run)).lora
    if lora.rank == 0:
        raise ValueError(f"{config.run} was trained without adapters; its parameters are what they are.")
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"--out is {config.out}; give a file that ends in .safetensors.")
    trained = load_run(Path(config.run), config.step)
    wrote = save_run(out, Path(config.run), trained, {"merged": f"rank {lora.rank}, alpha {lora.alpha:g}"})
    print("\n".join(map(str, wrote)))
    return 0
