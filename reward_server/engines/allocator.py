"""The C library's allocator, told to keep what it was given. With glibc; elsewhere nothing happens.

A layer makes tensors of megabytes. glibc takes each from the kernel anew and gives it back at once, so that its pages
are cleared again for every tensor of every layer; and a thread other than the first gets small heaps of its own. On two
cores of a CPU that was a quarter of a batch's time. The price: memory that was once needed stays with the process.
"""

import ctypes
import sys

# Of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8

LARGEST = 2**30


def keep_memory() -> bool:
    """Set it for the whole process, best before other threads start; whether it could be set."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, LARGEST))
    return [mallopt(*setting) for setting in settings] == [1] * len(settings)
