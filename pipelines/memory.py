"""Memory settings of the process."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation; does nothing on other systems.

    Batches of ever-changing shapes make torch allocate and free large buffers in every step. By default glibc hands
    each back to the kernel, and on a CPU most of the time goes into page faults (docs/decisions.md).
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)
