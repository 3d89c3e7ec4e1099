"""What transformers computes with the same weights: `reference.py DINOV2 LANGUAGE INPUTS OUT`, with torch alone.

INPUTS holds pixels_<size>, tokens and prompt_<n>; OUT gets what `parity` compares.
"""

import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

NEW_TOKENS = 24  # as `parity` has it
FIRST = 8  # blocks, as `nano_8`


def main(dinov2: str, language: str, inputs: str, out: str) -> None:
    """Writes what they make of the inputs."""
    torch.set_grad_enabled(False)
    given, made = load_file(inputs), {}
    model = AutoModel.from_pretrained(dinov2, attn_implementation="eager").eval()
    for name, pixels in given.items():
        if name.startswith("pixels_"):
            size = name.removeprefix("pixels_")
            states = model(pixels, output_hidden_states=True).hidden_states
            made[f"penultimate_{size}"] = states[-2][:, 1:]
            made[f"last_{size}"] = model.layernorm(states[-1])[:, 1:]
    model = AutoModelForCausalLM.from_pretrained(language, attn_implementation="eager").eval()
    made["logits"] = model(given["tokens"]).logits
    for name, prompt in given.items():
        if name.startswith("prompt_"):
            more = model.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
            made[name] = more[:, prompt.shape[1] :]
    first = AutoModelForCausalLM.from_pretrained(language, num_hidden_layers=FIRST, attn_implementation="eager").eval()
    made["logits_8"] = first(given["tokens"]).logits
    save_file({name: value.contiguous() for name, value in made.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
