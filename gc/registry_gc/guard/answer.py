"""What a registry says when it is asked whether it takes writes."""

from __future__ import annotations

import enum

import msgspec


class AnswerKind(enum.Enum):
    """What an answer, or its absence, tells; from what counts most to what counts least."""

    WRITABLE = "takes writes"
    UNAUTHORIZED = "wants other credentials"
    ODD = "answers something else"
    SILENT = "does not answer"
    READ_ONLY = "is read-only"
    REFUSES = "refuses the connection"


class Answer(msgspec.Struct, frozen=True):
    """What a registry said; ``detail`` is for people and holds nothing secret.

    ``remedy``: what to do about it, where that is not what helps in most cases.
    """

    kind: AnswerKind
    detail: str = ""
    remedy: str = ""

    @property
    def answered(self) -> bool:
        """Whether anything at all is there."""
        return self.kind not in (AnswerKind.REFUSES, AnswerKind.SILENT)
