"""glibc's heap, kept from step to step: fresh pages for every step's buffers are dear on a CPU."""

import ctypes
import os
import platform

# Of glibc's malloc.h. No limit on what stays at the top of the heap; nothing is mapped by itself; one arena, because
# what one thread gives back the next may take.
KEPT = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}


def keep_heap() -> bool:
    """Lets the process keep the memory that it has once had; to be called before JAX makes its first array.

    Without it, every step asks the kernel anew for the pages of its temporaries. The price: memory that was needed once
    stays with the process. What the user has set (`MALLOC_...`, `GLIBC_TUNABLES`) stands.

    Returns:
      Whether it was done: glibc alone has it.
    """
    users = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if users or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(*setting) for setting in KEPT.values()])
