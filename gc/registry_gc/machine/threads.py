"""Work for a pool of threads, where the system may have no room for another one.

``ThreadPoolExecutor.submit`` queues the work before it starts a thread for it. Where that fails it
raises, and a thread that runs already does the work all the same, of which nobody is told.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from registry_gc.machine.shortage import is_out_of_threads

T = TypeVar("T")


def submit(pool: ThreadPoolExecutor, work: Callable[[], T]) -> Future[T]:
    """What becomes of *work*, which is done once: by a thread of *pool*, or here if it has none.

    Whatever this raises, nobody does the work.
    """
    slot: Future[T] = Future()
    try:
        pool.submit(_fill, slot, work)
    except Exception as error:
        if not slot.cancel():
            return slot  # a thread that runs already has begun with it
        if not is_out_of_threads(error):
            raise
        slot = Future()
        _fill(slot, work)
    return slot


def _fill(slot: Future[T], work: Callable[[], T]) -> None:
    if not slot.set_running_or_notify_cancel():
        return
    try:
        done = work()
    except BaseException as error:
        # Whoever waits for it would wait for good.
        slot.set_exception(error)
    else:
        slot.set_result(done)
