"""What the collector tells those who watch it. Algorithms never print; they call these."""

from __future__ import annotations

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
