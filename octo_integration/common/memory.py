"""How much memory there is, so that too little is said before hours of work, and not by the kernel's killer."""

from pathlib import Path

GIB = 2**30
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # version 2


def free() -> int | None:
    """Bytes that this process may still take: of the machine, or of its container; None: the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        machine = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # What files are cached in is given up first.
        return min(machine, int(limit) - int(used) + int(stat["inactive_file"]))
    except (OSError, KeyError, ValueError):  # there is none, or no limit ("max")
        return machine


def check_memory(needed: float, what: str, remedy: str) -> None:
    """Raises ValueError where less than `needed` bytes are free; without a word where the system does not say.

    Args:
      what: needs them, as the beginning of a sentence.
      remedy: what to do.
    """
    there = free()
    if there is not None and there < needed:
        raise ValueError(
            f"{what} takes at least {needed / GIB:.1f} GiB of memory, of which {there / GIB:.1f} are free; {remedy}."
        )
