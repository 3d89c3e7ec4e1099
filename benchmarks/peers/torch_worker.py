"""PyTorch's side, for an interpreter that has torch: answers each line "name" with the seconds of a step by it.

torch_worker.py LEAVES SIDE [FILE.py:CLASS ...]     on the CPU, or on the device that PEER_DEVICE names
"""

import importlib.util
import os
import sys
import time
from pathlib import Path

import torch

STRENGTH = 3.2


def load(spec: str) -> type:
    """The class of "file.py:Class"; runs the file, which its user has fetched."""
    file, name = spec.rsplit(":", 1)
    module_spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return getattr(module, name)


def main(leaves: int, side: int, official: list[str]) -> None:
    """Makes the optimizers, says what they are called, then steps on request."""
    device = os.environ.get("PEER_DEVICE", "cpu")
    torch.set_default_device(device)
    finished = torch.cuda.synchronize if device == "cuda" else int
    torch.manual_seed(0)
    there = [0.01 * torch.randn(side, side) for _ in range(leaves)]
    back = [-g for g in there]

    def parameters() -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(0.02 * torch.randn(side, side)) for _ in range(leaves)]

    optimizers = {"Adam": torch.optim.Adam(parameters(), lr=1e-3)}
    for spec in official:
        held = parameters()
        anchors = [p.detach().clone() for p in held]
        group = {"params": held, "pre": anchors, "weight_decay": STRENGTH, "name": [""] * leaves}
        optimizers[spec.rsplit(":", 1)[1]] = load(spec)([group], lr=1e-3)
    print("\t".join(optimizers), flush=True)
    taken = dict.fromkeys(optimizers, 0)
    for line in sys.stdin:
        name = line.strip()
        # The official code projects only where it triggers: every other gradient asks to go back.
        for p, g in zip(optimizers[name].param_groups[0]["params"], back if taken[name] % 2 else there):
            p.grad = g
        taken[name] += 1
        finished()
        start = time.perf_counter()
        optimizers[name].step()
        finished()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
