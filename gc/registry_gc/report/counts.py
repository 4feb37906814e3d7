"""Counts in sentences: a word with its number, in the form that belongs to it."""

from __future__ import annotations

_PLURALS = {
    "tag history": "tag histories",
    "repository": "repositories",
    "missing child": "missing children",
}


def counted(count: int, noun: str) -> str:
    """``1 blob``, ``2,000 blobs``."""
    plural = _PLURALS.get(noun, f"{noun}s")
    return f"{count:,} {noun if count == 1 else plural}"
