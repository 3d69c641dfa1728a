"""Keep glibc from handing every large tensor back to the kernel, which costs more than computing it does."""

from __future__ import annotations

import ctypes
import sys

# Parameter numbers of mallopt(3) in <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGEST_INT = 2**31 - 1


def tune_malloc() -> bool:
    """Make this process reuse freed memory instead of mapping it anew; return whether glibc took the settings.

    The same as starting it with MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, MALLOC_TOP_PAD_ and MALLOC_ARENA_MAX
    set. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (_MMAP_THRESHOLD, _LARGEST_INT),
        (_TRIM_THRESHOLD, _LARGEST_INT),
        (_TOP_PAD, 256 << 20),
        (_ARENA_MAX, 1),  # arenas of threads would give large arrays back all the same
    )
    taken = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(taken)
