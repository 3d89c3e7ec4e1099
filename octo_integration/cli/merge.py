"""`maps-vla merge`: the adapters of a LoRA run into its weights."""

import dataclasses
import shutil
from pathlib import Path

from octo_integration.common.files import write_json
from octo_integration.config import read_config
from octo_integration.policy.trained import load_run
from octo_integration.state.described import MODEL, beside, model_of, record
from octo_integration.state.lora import merge_lora
from octo_integration.weights.imported import TOKENIZER
from octo_integration.weights.store import save_params


@dataclasses.dataclass(frozen=True)
class Options:
    """Adds the adapters of a LoRA run to the kernels beside them and writes the parameters as safetensors, in float32.

    maps-vla merge --run runs/tiny-lora --out merged.safetensors

    Of a run that started from imported weights, their model and tokenizer go beside it (merged.model.json,
    merged.tokenizer.json), which belong to it.
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
    provenance = {"run": config.run, "merged": f"rank {lora.rank}, alpha {lora.alpha:g}"}
    save_params(out, merge_lora(trained.params, lora), provenance)
    wrote = [out]
    if trained.config.model is None:
        wrote.append(beside(out, MODEL))
        model, size = model_of(trained.config, Path(config.run)), trained.built.model.config.image_size
        write_json(wrote[-1], record(dataclasses.replace(model, image_size=size)))
    if (tokenizer := Path(config.run) / TOKENIZER).is_file():
        wrote.append(beside(out, TOKENIZER))
        shutil.copyfile(tokenizer, wrote[-1])
    print("\n".join(map(str, wrote)))
    return 0
