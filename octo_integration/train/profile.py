"""Does the input or the model limit training? The report of `maps-vla finetune --profile-input`."""

import itertools
import time
from pathlib import Path

import jax

from octo_integration.common.paths import refuse_schemes
from octo_integration.config import FinetuneConfig
from octo_integration.data.profile import profile_input
from octo_integration.train import defaults
from octo_integration.train.assemble import assemble

STEPS = 5


def profile(config: FinetuneConfig) -> str:
    """Times every stage of the input and the train step, per batch; nothing is written.

    Raises:
      FileNotFoundError, ValueError: as `train.loop.finetune`.
    """
    refuse_schemes(config)
    job = assemble(defaults.of_run(config, Path(config.out)))
    state = job.init(job.theta0())
    host = list(itertools.islice(job.read(0), 2))
    start = time.perf_counter()
    batch = jax.block_until_ready(job.place(host[1]))
    transfer = time.perf_counter() - start
    state, _ = jax.block_until_ready(job.step(state, batch))  # compiles
    start = time.perf_counter()
    for _ in range(STEPS):
        state, _ = job.step(state, batch)
    jax.block_until_ready(state)
    model = (time.perf_counter() - start) / STEPS
    stages = profile_input(config.data, job.built.statistics)
    return report(config.data.batch_size, [(s.name, s.seconds) for s in stages], transfer, model)


def report(size: int, stages: list[tuple[str, float]], transfer: float, model: float) -> str:
    """The table and what follows from it.

    Args:
      size: samples in a batch.
      stages: (name, seconds per batch of the pipeline up to it).
      transfer, model: seconds per batch of tokenising and moving it to the devices, and of the train step.
    """
    lines = [f"{'stage':<24}{'ms per batch, adds':>20}{'up to here':>12}{'samples/s':>12}"]
    before = 0.0
    for name, seconds in stages:
        added = max(seconds - before, 0.0)
        lines.append(f"{name:<24}{1e3 * added:>20.1f}{1e3 * seconds:>12.1f}{size / seconds:>12,.0f}")
        before = seconds
    lines.append(f"{'tokenise and transfer':<24}{1e3 * transfer:>20.1f}")
    lines.append(f"{'train step':<24}{1e3 * model:>20.1f}{1e3 * model:>12.1f}{size / model:>12,.0f}")
    pipeline = stages[-1][1] + transfer
    slowest = max(zip(stages, [("", 0.0), *stages]), key=lambda pair: pair[0][1] - pair[1][1])[0][0]
    if pipeline > model:
        lines.append(f"the input limits training; most of its time goes to: {slowest}.")
    else:
        lines.append(f"the train step limits training; the input is {model / pipeline:.1f} times as fast.")
    return "\n".join(lines)
