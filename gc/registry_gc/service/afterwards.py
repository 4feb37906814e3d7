"""Looks whether the registry is there again after its second command. It is only told.

A command can say that all is well and do nothing. Only what answered before is missed: an address
that nobody could ask from here says nothing. A registry that is slow to start is given a few
seconds; more would hold up those who wait for the run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from registry_gc.guard.addresses import Address
from registry_gc.guard.answer import Answer, AnswerKind

PATIENCE = 5.0
"""Seconds for the registry to answer, and for all that is done here."""

_PAUSE_SECONDS = 0.2
_MOST = 16  # addresses that are kept in mind
_THERE = frozenset(AnswerKind) - {AnswerKind.REFUSES, AnswerKind.SILENT}

Ask = Callable[[], Sequence[tuple[Address, Answer]]]


def there(ask: Ask, patience: float = PATIENCE) -> int:
    """Which addresses answer at all, and which of those are not read-only: a bit for each.

    None where that takes too long.
    """
    found = [0]

    def look() -> None:
        kinds = [answer.kind for _, answer in ask()[:_MOST]]
        found[0] = sum(
            (1 if kind is AnswerKind.READ_ONLY else 1 | 1 << _MOST) << number
            for number, kind in enumerate(kinds)
            if kind in _THERE
        )

    _within(patience, look)
    return found[0]


def missing(ask: Ask, before: int, *, stops: bool, patience: float = PATIENCE) -> str:
    """What is not as it was, with a finished sentence; empty where all is, or nobody knows.

    :param before: what :func:`there` said before the first command.
    :param stops: the registry was stopped, else made read-only.
    """
    found = [""]
    end = time.monotonic() + patience

    def look() -> None:
        while True:
            found[0] = _missing(ask(), before, stops=stops)
            if not found[0] or time.monotonic() + _PAUSE_SECONDS > end:
                return
            time.sleep(_PAUSE_SECONDS)

    # A look that does not end says nothing new: the one before it counts.
    _within(patience, look)
    return found[0]


def _missing(answers: Sequence[tuple[Address, Answer]], before: int, *, stops: bool) -> str:
    kinds = [answer.kind for _, answer in answers]
    for number, (address, answer) in enumerate(answers[:_MOST]):
        if answer.kind is AnswerKind.REFUSES and before >> number & 1:
            return f"THE REGISTRY DOES NOT ANSWER: {address.name} refuses the connection"
        if stops or answer.kind is not AnswerKind.READ_ONLY or AnswerKind.WRITABLE in kinds:
            # Where another one takes writes, this one may be there for reading alone.
            continue
        if before >> _MOST + number & 1:
            return f"THE REGISTRY IS STILL READ-ONLY: {address.name} {answer.detail}".rstrip()
    return ""


def _within(seconds: float, look: Callable[[], None]) -> None:
    """Do it, and wait no longer than that: a name may take for ever to be resolved."""

    def quietly() -> None:
        try:
            look()
        except Exception:
            return  # nothing is known then, and nothing rests on it

    thread = threading.Thread(target=quietly, name="afterwards", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return  # no room for one
    thread.join(seconds)
