"""What is said where memory, or processes, run out. Imports nothing: there may be no room."""

from __future__ import annotations

NO_MEMORY = "out of memory: let it have more, or fewer --workers"
NO_THREADS = "too many processes of this user, or of this container, or too little memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there is no room for what was to be done, or for a library that does it."""
    if isinstance(error, ImportError):
        # As glibc's loader says it; numpy and others hand it on amid an essay.
        return "failed to map segment" in str(error) or "cannot allocate memory" in str(error)
    return isinstance(error, MemoryError)


def is_out_of_threads(error: BaseException | None) -> bool:
    """Whether the system has no room for another thread."""
    return isinstance(error, RuntimeError) and "start new thread" in str(error)
