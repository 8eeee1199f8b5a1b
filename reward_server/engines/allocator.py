"""Settings of the C library's allocator that keep freed memory in the process. For glibc; no effect elsewhere.

A layer makes tensors of megabytes. By default, glibc gets each of them from the kernel and returns it when it is
freed, so that the kernel clears the pages again for every tensor of every layer. Threads other than the first also get
small heaps of their own. On two cores of a CPU, this took a quarter of a batch's time. With these settings, memory that
was needed once stays with the process.
"""

import ctypes
import sys

# From malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

MAX_KEPT_BYTES = 2**30


def keep_memory() -> bool:
    """Apply the settings to the whole process, best before other threads start. Returns True if all were accepted."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, MAX_KEPT_BYTES), (M_TRIM_THRESHOLD, MAX_KEPT_BYTES))
    results = [mallopt(*setting) for setting in settings]
    return all(result == 1 for result in results)
