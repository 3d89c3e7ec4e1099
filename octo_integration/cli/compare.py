"""`maps-vla compare`."""

import dataclasses
from pathlib import Path

import tyro

from octo_integration.evaluate import record
from octo_integration.evaluate.compare import differences, lengths, paired
from octo_integration.evaluate.table import difference_table
from octo_integration.simulators.protocol import find


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares evaluated runs in pairs, on the same episodes from the same initial states.

    maps-vla compare runs/maps --against runs/adam
    maps-vla compare runs/maps-0 runs/maps-1 runs/maps-2 --against runs/adam-0 runs/adam-1 runs/adam-2

    Of one pair of runs the intervals are over episodes and tasks, of several pairs over the pairs. Of chains the
    lengths are compared, too.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories of finetune with one evaluation each, or files of episodes."""
    against: tuple[str, ...]
    """As many, in the order that pairs them (by seed, say)."""


def run(config: Options) -> int:
    """Prints the differences in success, and in the length of chains."""
    first, second = ([record.read(record.find(Path(run))) for run in runs] for runs in (config.runs, config.against))
    pairs = paired(first, second)
    left_out = max(len(side.outcomes) for side in (*first, *second)) - len(pairs[0][0])
    if left_out:
        print(f"note: {left_out} episodes of one side, which not all others have, are left out")
    suites = find(str(first[0].settings["simulator"])).suites
    print(difference_table(differences(pairs, suites), len(pairs), lengths(pairs)))
    return 0
