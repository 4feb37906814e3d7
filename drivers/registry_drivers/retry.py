"""Trying again what failed in passing: exponential backoff with jitter, counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
import tenacity

from registry_drivers.base import Requests
from registry_drivers.errors import Unavailable
from registry_drivers.parameters import Parameters

T = TypeVar("T")


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

    def call(self, work: Callable[[], T], requests: Requests) -> T:
        """What *work* returns, tried again while it raises :class:`Unavailable`.

        :raises Unavailable: the last one, when patience is at its end.
        """
        try:
            return work()
        except Unavailable as error:
            # Most calls end above: tenacity costs as much time as a read of a manifest.
            failures = [error]

        def again() -> T:
            if failures:
                raise failures.pop()
            return work()

        def count(_: tenacity.RetryCallState) -> None:
            requests.add(retries=1)

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            stop=tenacity.stop_after_attempt(self.times + 1),
            wait=tenacity.wait_random_exponential(multiplier=self.first, max=self.longest),
            sleep=self.sleep,
            before_sleep=count,
            reraise=True,
        )(again)
