"""How the process treats memory that it has freed: keep it, so that the next tensor need not ask the system for pages."""

import ctypes
import sys

# from glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def can_keep_freed_memory() -> bool:
    """Whether this process runs on glibc's malloc."""
    return sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to give no freed memory back to the system while the process lives; whether it could.

    By default every tensor of more than some megabytes is mapped anew, and the system clears its pages at first touch,
    which costs more than most elementwise operations themselves. With this setting memory stays at its high-water mark.
    Elsewhere than on Linux with glibc it does nothing. It acts on the whole process, so it is for programs to call, not
    for libraries: the command line does before it trains or measures.
    """
    if not can_keep_freed_memory():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # any positive threshold would be one of at most 2 GiB
    never = -1
    ahead = 64 << 20
    return all(
        mallopt(*pair)
        for pair in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, never), (_M_TOP_PAD, ahead))
    )
