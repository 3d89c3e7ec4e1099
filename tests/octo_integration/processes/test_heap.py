"""A process that keeps its heap touches no fresh page for what it has had before."""

import os
import platform
import subprocess
import sys

import pytest

ROUNDS, BYTES = 5, 2**26
SCRIPT = f"""
import resource, sys
from octo_integration.processes.heap import keep_heap
kept = sys.argv[1] == "kept" and keep_heap()
bytes(1) * {BYTES}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    b"x" * {BYTES}
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, **environment: str) -> tuple[bool, int]:
    """Whether the heap is kept, and the fresh pages of some rounds of buffers."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", SCRIPT, mode]
    kept, count = subprocess.check_output(command, env={**clean, **environment}, text=True).split()
    return kept == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_what_was_given_back_is_taken_again_without_a_fresh_page() -> None:
    kept, few = faults("kept")
    _, many = faults("not kept")
    assert kept
    assert few < 100 < many


def test_what_the_user_has_set_stands() -> None:
    assert not faults("kept", MALLOC_ARENA_MAX="2")[0]
