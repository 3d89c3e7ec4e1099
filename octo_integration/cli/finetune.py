"""`maps-vla finetune`; its options are beside what they configure."""

import jax

from octo_integration.cli.devices import say_devices
from octo_integration.cli.following import say_next
from octo_integration.config import FinetuneConfig
from octo_integration.logs.run_log import openers
from octo_integration.processes import distributed


def run(config: FinetuneConfig) -> int:
    """Fine-tunes, or resumes, or only profiles."""
    openers(config.log)  # before anything else, should its package be missing
    distributed.start(config.mesh)
    say_devices()
    if config.profile_input:
        from octo_integration.train.profile import profile

        print(profile(config))
        return 0

    from octo_integration.train.loop import finetune

    outcome = finetune(config)
    if outcome.signal is not None:
        print(f"stopped by signal {outcome.signal} at step {outcome.step}, saved; the same command resumes it.")
        return 128 + outcome.signal
    for split, error in outcome.errors.items():
        print(f"action error on {split}: {error.l1:.4f} ± {error.se:.4f} (normalised L1, {error.episodes} episodes)")
    print(f"done: {config.out} at step {outcome.step}")
    acts = config.data.mixture is None and config.data.standardize == "metaworld"
    if jax.process_index() == 0:
        say_next(
            ("plot", config.out, "--out", f"{config.out}/drift.png"),
            *([("evaluate", "--run", config.out)] if acts else []),
        )
    return 0
