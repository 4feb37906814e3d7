"""What has failed in passing is tried again, for minutes. By then it may not be wanted any more.

Whoever deletes says by :func:`unless_withdrawn` who is to be asked before a delete goes out again;
whoever lists and reads in threads, who is to be asked before they go on for nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Given = TypeVar("Given")

Allowed = Callable[[], bool]
"""Whether what has failed in passing may be tried again."""

# Of one thread: not an argument, as between those who know and those who try lie all drivers and
# wrappers, and a single one that forgot to pass it on would go unnoticed.
_allowed: ContextVar[Allowed | None] = ContextVar("allowed", default=None)


@contextmanager
def unless_withdrawn(allowed: Allowed | None) -> Iterator[None]:
    """In this block and this thread, nothing is tried again that *allowed* does not allow.

    What is not tried again ends as if patience were at its end. None asks nobody.
    """
    before = _allowed.set(allowed)
    try:
        yield
    finally:
        _allowed.reset(before)


def asked_as_here(work: Callable[[Given], T]) -> Callable[[Given], T]:
    """*work* for another thread, in which the same is asked before a further try as in this one."""
    allowed = _allowed.get()

    def run(given: Given) -> T:
        with unless_withdrawn(allowed):
            return work(given)

    return run


def may_be_withdrawn() -> bool:
    """Whether anybody is asked in this thread."""
    return _allowed.get() is not None


def is_withdrawn() -> bool:
    """Whether what failed in this thread must not be tried again."""
    allowed = _allowed.get()
    if allowed is None:
        return False
    # To find out is to ask a storage too, which is tried again without finding out.
    with unless_withdrawn(None):
        return not allowed()
