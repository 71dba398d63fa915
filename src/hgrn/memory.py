"""Keep freed memory in the process, so that the next tensor need not ask the system for pages."""

import ctypes
import sys

# The parameters' numbers in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def can_keep_freed_memory() -> bool:
    """Whether this process runs on glibc's malloc."""
    return sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep all freed memory; return whether that worked.

    By default every tensor of more than some megabytes is mapped anew. The system then clears its
    pages at first touch, which costs more than most elementwise operations. With this setting,
    memory stays at its high-water mark. It works on Linux with glibc only.

    It acts on the whole process, so programs should call it, not libraries: the command line calls
    it before it trains or measures.
    """
    if not can_keep_freed_memory():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # mallopt takes an int, so any positive threshold would be one of at most 2 GiB.
    never = -1
    ahead = 64 << 20
    return all(
        mallopt(*pair)
        for pair in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, never), (_M_TOP_PAD, ahead))
    )
