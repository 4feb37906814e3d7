"""What the collector tells those who watch it. Algorithms never print; they call these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Observer(Protocol):
    """Sees a run go by. Called from the thread that runs it, often: be quick, raise nothing."""

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """A phase begins; *total* counts of *unit* are ahead, None when nobody knows."""

    def advance(self, count: int) -> None:
        """Another *count* of the phase's unit is done."""

    def finish(self) -> None:
        """The phase has ended."""

    def notice(self, message: str) -> None:
        """Something that the operator should know."""


class Silence:
    """An observer that does nothing."""

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Ignore."""

    def advance(self, count: int) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""

    def notice(self, message: str) -> None:
        """Ignore."""


class PhaseTimer:
    """Passes everything on to *observer*, and adds up how long each phase takes.

    ``seconds``: by the phase's name, of all that have ended.
    """

    def __init__(self, observer: Observer, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = {}
        self._observer = observer
        self._clock = clock
        self._name: str | None = None
        self._began = 0.0

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Begin a phase; the one before ends."""
        self._end()
        self._name, self._began = name, self._clock()
        self._observer.phase(name, total, unit)

    def advance(self, count: int) -> None:
        """Pass it on."""
        self._observer.advance(count)

    def finish(self) -> None:
        """End the phase."""
        self._end()
        self._observer.finish()

    def notice(self, message: str) -> None:
        """Pass it on."""
        self._observer.notice(message)

    def _end(self) -> None:
        if self._name is not None:
            took = self._clock() - self._began
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + took
            self._name = None
