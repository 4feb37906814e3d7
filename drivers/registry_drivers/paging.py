"""Whether the pages of a listing make sense one after the other."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from itertools import chain
from typing import TypeVar

from registry_drivers.errors import StorageError

Token = TypeVar("Token", bound=Hashable)


class PageTokens:
    """What the pages of one listing were asked for with, from *first* on.

    A storage, or a cache before it, that tells one of them a second time would be asked for ever.
    Of each only a hash is kept: 100 million keys have 100,000 pages. Two tokens of one hash, one
    chance in four thousand million for so many, end a run before it deletes anything.
    """

    __slots__ = ("_driver", "_path", "_seen")

    def __init__(self, path: str, driver: str, first: Hashable = "") -> None:
        self._path, self._driver = path, driver
        self._seen = {hash(first)}

    def next(self, token: Token) -> Token:
        """*token*, which asks for the page that comes now.

        :raises StorageError: it was asked for before.
        """
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
