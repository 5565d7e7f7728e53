"""Memory of a process that computes on the CPU: freed blocks are kept for the next step."""

import ctypes
import sys
from functools import cache

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, instead of handing large blocks back to the kernel; True where that was possible.

    A training step allocates and frees the same large activations again and again. Each time the kernel would map
    them anew, page by page and filled with zeros, which costs more than reading and writing them. The process keeps
    its peak of memory in return.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
