"""Trying again what failed in passing: exponential backoff with jitter, counted.

Where whoever asks has said so (:mod:`registry_drivers.withdrawal`), nothing goes out again that is
not wanted any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
import tenacity

from registry_drivers.base import Requests
from registry_drivers.errors import Unavailable
from registry_drivers.parameters import Parameters
from registry_drivers.withdrawal import is_withdrawn, may_be_withdrawn

T = TypeVar("T")

_LOOK_SECONDS = 2.0


class Retry(msgspec.Struct, frozen=True):
    """How patiently a storage is asked.

    :ivar times: tries after the first.
    :ivar first: longest pause before the second try, in seconds; doubled for each further one.
    :ivar longest: the longest pause of all, in seconds.
    :ivar sleep: how to pause; tests give one that does not.
    """

    times: int = 10
    first: float = 0.2
    longest: float = 20.0
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def of(cls, given: Parameters, times: str, first: str = "") -> Retry:
        """As the parameters called *times* and *first* say; 0 or less is no word on it.

        :raises DriverConfigError: they are no number, no duration.
        """
        usual = cls()
        tries = int(given.number(times, 0))
        pause = given.seconds(first, 0) if first else 0.0
        return cls(times=tries if tries > 0 else usual.times, first=pause or usual.first)

    def call(
        self, work: Callable[[], T], requests: Requests, asked: Callable[[], float] = float
    ) -> T:
        """What *work* returns, tried again while it raises :class:`Unavailable`.

        :param asked: seconds for which the storage wants to be left alone (``Retry-After``); a
            pause is no shorter, up to the longest of all.
        :raises Unavailable: the last one, when patience is at its end, or the work withdrawn.
        """
        try:
            return work()
        except Unavailable as error:
            # Most calls end above: tenacity costs as much time as a read of a manifest.
            last = error
        tries = 0
        withdrawn = False

        def again() -> T:
            nonlocal last, tries, withdrawn
            tries += 1
            # After the pause, not before it: it may be of twenty seconds.
            withdrawn = withdrawn or (tries > 1 and is_withdrawn())
            if tries == 1 or withdrawn:
                raise last
            requests.add(retries=1)
            try:
                return work()
            except Unavailable as error:
                last = error
                raise

        def pause(seconds: float) -> None:
            nonlocal withdrawn
            wanted = min(asked(), self.longest)
            if seconds < wanted:
                # And as much later as it would have been anyway: not all threads at once.
                seconds += wanted
            # Whoever waits for this thread, as when a signal has come, does not wait for a pause.
            while may_be_withdrawn() and seconds > _LOOK_SECONDS and not withdrawn:
                self.sleep(_LOOK_SECONDS)
                seconds -= _LOOK_SECONDS
                withdrawn = is_withdrawn()
            if not withdrawn:
                self.sleep(seconds)

        def is_over(state: tenacity.RetryCallState) -> bool:
            return withdrawn or state.attempt_number > self.times

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            stop=is_over,
            wait=tenacity.wait_random_exponential(multiplier=self.first, max=self.longest),
            sleep=pause,
            reraise=True,
        )(again)
