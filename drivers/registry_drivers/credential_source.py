"""Whoever gives credentials, asked by many threads: one at a time, and not anew for each of them.

A source that has gone away lets everyone who asks wait for its time-outs. One after the other, the
threads of a run waited for minutes so, and no signal ended that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from registry_drivers.errors import Unavailable
from registry_drivers.withdrawal import is_withdrawn

T = TypeVar("T")

_MOMENT_SECONDS = 2.0


class CredentialSource:
    """Asked only for what nobody has: credentials that are good are used without a turn.

    :param clock: seconds that only grow.
    """

    def __init__(self, driver: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._driver = driver
        self._clock = clock
        self._turn = threading.Lock()
        self._answers = 0
        self._failed: Exception | None = None
        self._failed_at = -float("inf")

    def ask(self, get: Callable[[], T], *, in_line: bool = False) -> T:
        """What *get*, which may take long, returns.

        :param in_line: this thread has waited elsewhere, as obstore's do, which asks for one after
            the other: nobody knows since when, so a failure of this moment is its answer too.
        :raises Exception: what it raises, or has raised to another thread while this one waited.
        :raises Unavailable: nobody wants it any more.
        """
        # Before the turn: whoever finds that out may have to sign in for it.
        if is_withdrawn():
            raise Unavailable("new credentials are not wanted any more", driver=self._driver)
        known = self._answers
        with self._turn:
            waited = self._answers > known
            waited |= in_line and self._clock() - self._failed_at < _MOMENT_SECONDS
            if self._failed is not None and waited:
                raise self._failed.with_traceback(None)
            try:
                got = get()
            except Exception as error:
                self._failed, self._failed_at = error, self._clock()
                raise
            else:
                self._failed = None
                return got
            finally:
                self._answers += 1
