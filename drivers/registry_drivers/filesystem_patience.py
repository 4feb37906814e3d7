"""Asking a file system again for what failed in passing: a file server that restarts, for one.

Few times, and for seconds only: what a mount with its own patience (NFS, ``hard``) tells of has
been tried for long. Whoever asks for the first time pays nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from registry_drivers.base import Requests
from registry_drivers.errors import NotFound, Unavailable
from registry_drivers.filesystem_errors import MISSING, PASSING
from registry_drivers.withdrawal import is_withdrawn

T = TypeVar("T")

PAUSES = (0.1, 0.5, 2.0)
"""Seconds before each further try; short, as a signal waits for their end."""


def patiently(
    work: Callable[[], T], requests: Requests, pauses: Sequence[float] | None = None
) -> T:
    """What *work* returns, tried again where it fails in passing.

    What is missing only after that is not known to be: the server may have come back without it.

    :param pauses: None for :data:`PAUSES`; empty for no further try.
    :raises OSError, Unavailable: the first failure in passing, when patience is at its end.
    """
    try:
        return work()
    except (Unavailable, OSError) as error:
        return again(error, work, requests, pauses)


def again(
    first: Unavailable | OSError,
    work: Callable[[], T],
    requests: Requests,
    pauses: Sequence[float] | None = None,
) -> T:
    """As :func:`patiently`, of *work* that has failed with *first* already.

    For shortcuts: whoever goes the long way instead has forgotten *first*, and believes "missing".

    :raises OSError, Unavailable: *first*, at once where it does not pass.
    """
    if not passes(first):
        raise first
    for pause in PAUSES if pauses is None else pauses:
        if is_withdrawn():
            break
        time.sleep(pause)
        requests.add(retries=1)
        try:
            return work()
        except NotFound as error:
            raise first from error
        except (Unavailable, OSError) as error:
            if isinstance(error, OSError) and error.errno in MISSING:
                raise first from error
            if not passes(error):
                raise
    raise first


def passes(error: Exception) -> bool:
    """Whether *error* is one that what is asked again may not show."""
    return isinstance(error, Unavailable) or (isinstance(error, OSError) and error.errno in PASSING)
