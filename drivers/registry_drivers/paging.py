"""Whether the pages of a listing make sense one after the other."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from itertools import chain
from typing import TypeVar

from registry_drivers.errors import StorageError
from registry_drivers.withdrawal import is_withdrawn

Token = TypeVar("Token", bound=Hashable)

MOST_EMPTY = 10_000
"""Pages without a row, one after the other. A store may send some: it stops looking after so many
keys, and those that it looked at were deleted. So many pages are of some ten million keys."""


class PageTokens:
    """What the pages of one listing were asked for with, from *first* on.

    A storage, or a cache before it, that tells one of them a second time would be asked for ever.
    Of each only a hash is kept: 100 million keys have 100,000 pages. Two tokens of one hash, one
    chance in four thousand million for so many, end a run before it deletes anything. Nor is it
    asked for ever by a token that is new each time, of pages that hold nothing.
    """

    __slots__ = ("_driver", "_empty", "_path", "_seen")

    def __init__(self, path: str, driver: str, first: Hashable = "") -> None:
        self._path, self._driver = path, driver
        self._seen = {hash(first)}
        self._empty = 0

    def next(self, token: Token, *, empty: bool) -> Token:
        """*token*, which asks for the page that comes now.

        :param empty: the page that told it has no row. Whoever takes the rows has no turn then to
            end the listing, so it is asked here whether it is wanted still.
        :raises StorageError: it was asked for before, or there are too many empty pages.
        """
        self._empty = self._empty + 1 if empty else 0
        if self._empty > MOST_EMPTY:
            raise StorageError(
                f"the listing goes on and on, and {MOST_EMPTY} pages of it hold nothing",
                path=self._path,
                driver=self._driver,
            )
        if empty and is_withdrawn():
            raise StorageError(
                "the listing is not wanted any more", path=self._path, driver=self._driver
            )
        known = len(self._seen)
        self._seen.add(hash(token))
        if len(self._seen) == known:
            raise StorageError(
                "the storage sends the same page again", path=self._path, driver=self._driver
            )
        return token


def check_order(
    before: bytes, keys: Sequence[bytes], *, sorted_by_bytes: bool, path: str, driver: str
) -> None:
    """Look whether a page, with all its keys, can come after the key *before*.

    :param sorted_by_bytes: the storage is one that lists so. Whoever cuts its listing at bounds
        would miss what is out of its place.
    :raises StorageError: it cannot.
    """
    wrong = operator.ge if sorted_by_bytes else operator.eq
    if any(map(wrong, chain((before,), keys), keys)):
        raise StorageError(
            "this storage does not list in order, and is none that is known to do so"
            if sorted_by_bytes
            else "this storage lists a key twice",
            path=path,
            driver=driver,
        )
