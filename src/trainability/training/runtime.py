"""Settings of the process that a program, unlike a library, may change: the allocator's thresholds."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def tune_allocator() -> str:
    """Let glibc keep freed memory instead of giving it back to the system at every step; say what was set.

    Large tensors that are freed and allocated again each step otherwise cost a page fault per 4 KiB.
    """
    if not sys.platform.startswith("linux"):
        return "unchanged"
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return "unchanged"
    done = mallopt(_M_MMAP_THRESHOLD, 2**31 - 1) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return "glibc keeps freed memory (mmap and trim thresholds 2 GiB)" if done else "unchanged"
