"""Keeps freed memory from staying with the process.

glibc gives each thread a heap of its own and, after large arrays came and went, takes larger ones
from heaps too, which return nothing from their middle. With 16 threads that was tens of megabytes.
"""

from __future__ import annotations

import contextlib
import ctypes

# Source: glibc, malloc/malloc.h.
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8


def tame_allocator() -> None:
    """Few heaps, and arrays outside of them; does nothing where there is no glibc."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 2)
        mallopt(_MMAP_THRESHOLD, 1 << 18)


def return_freed() -> None:
    """Give back what is free between other things in glibc's heaps, else kept for good.

    Listing makes a great many small arrays and texts, of which few stay.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
