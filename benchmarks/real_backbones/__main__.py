"""Really pretrained backbones inside, not stand-ins: DINOv2 ViT-S/14 and SmolLM2-135M.

    python -m benchmarks.real_backbones prepare --out real
    python -m benchmarks.real_backbones parity --real real --python .venv-parity/bin/python
    python -m benchmarks.real_backbones forget --weights real/nano --runs runs/adam runs/maps

Needs the extra `real` (gguf, onnx, scikit-image); `--python` is an interpreter with torch and transformers.
"""

import sys

import tyro

from benchmarks.real_backbones import forget, parity, prepare

COMMANDS = {
    "prepare": (prepare.Prepare, prepare.run),
    "parity": (parity.Parity, parity.run),
    "forget": (forget.Forget, forget.run),
}


def main(words: list[str]) -> int:
    """Runs the command that the first word names; returns the exit code."""
    if not words or words[0] not in COMMANDS:
        print(f"usage: python -m benchmarks.real_backbones {{{','.join(COMMANDS)}}} [OPTIONS]", file=sys.stderr)
        return 2
    options, run = COMMANDS[words[0]]
    try:
        return run(tyro.cli(options, args=words[1:], prog=f"benchmarks.real_backbones {words[0]}"))
    except (ValueError, OSError, ImportError) as error:
        print(f"benchmarks.real_backbones: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
