"""What a walk that something failed in may still believe.

A system that fails in passing may come back, or half of it, and call missing what is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from registry_drivers.base import Requests
from registry_drivers.errors import Unavailable
from registry_drivers.filesystem_errors import MISSING, PASSING, UNSURE, translate
from registry_drivers.filesystem_patience import again
from registry_drivers.filesystem_watch import Watch

T = TypeVar("T")


class Doubts:
    """What has failed in one walk and was not said to be missing; the first of it is told.

    :param root: absolute path of the storage root.
    :param watch: tells what is missing from what has been unmounted.
    """

    def __init__(self, root: str, watch: Watch, requests: Requests) -> None:
        self._root = root
        self._watch = watch
        self._requests = requests
        self._doubt: Unavailable | OSError | None = None

    def ask(self, work: Callable[[], T]) -> T:
        """What *work* returns, tried again where it fails in passing."""
        try:
            return work()
        except (Unavailable, OSError) as error:
            return self.again(error, work)

    def again(self, error: Unavailable | OSError, work: Callable[[], T]) -> T:
        """What *work* returns, which has failed with *error* before."""
        self._note(error)
        return again(error, work, self._requests)

    def shortcut(self, error: OSError, work: Callable[[], T], path: str) -> T | None:
        """What a shortcut gives that has failed with *error*; None where the long way tells.

        Not of what fails in passing: the long way begins anew, and would believe "missing".
        """
        if error.errno not in PASSING:
            self._note(error)
            return None
        try:
            return self.again(error, work)
        except OSError as last:
            raise translate(last, path.rstrip("/"), self._root) from last

    def _note(self, error: Unavailable | OSError) -> None:
        if self._doubt is None and (isinstance(error, Unavailable) or error.errno in UNSURE):
            self._doubt = error

    def vanished(self, error: OSError, path: str) -> None:
        """Return when *path* was there and is no more; else raise what *error* means.

        After a failure on the way, nothing that was named a moment ago is known to be gone.
        """
        if error.errno not in MISSING:
            raise translate(error, path.rstrip("/"), self._root) from error
        if isinstance(self._doubt, Unavailable):
            raise self._doubt from error
        if self._doubt is not None:
            raise translate(self._doubt, path.rstrip("/"), self._root) from error
        self._watch.missing(path)
