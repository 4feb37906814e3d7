"""What the operator wants gone: ages, limits and exceptions, in one frozen value. Pure."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from registry_gc.digest import InvalidDigest, check_digest


class Release(msgspec.Struct, frozen=True):
    """A repository, or one digest in it, that shall not be held although it is damaged."""

    repository: str
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Release:
        """Read ``REPOSITORY`` or ``REPOSITORY@DIGEST``.

        :raises ValueError: neither.
        """
        repository, mark, digest = text.partition("@")
        if not repository:
            raise ValueError(f"{text!r} names no repository")
        try:
            return cls(repository, check_digest(digest) if mark else None)
        except InvalidDigest as error:
            raise ValueError(f"{text!r}: what follows the @ is no digest: {error}") from error


class Limit(msgspec.Struct, frozen=True):
    """The most blobs that one run may delete: a count, or a percentage of all."""

    value: float
    percent: bool

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read ``N`` or ``P%``.

        :raises ValueError: neither.
        """
        percent = text.endswith("%")
        number = text[:-1] if percent else text
        try:
            value = float(number) if percent else int(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf") or (percent and value > 100):
            raise ValueError(f"{text!r} is neither a count nor a percentage such as 30%")
        return cls(value, percent)

    def allows(self, eligible: int, total: int) -> bool:
        """Tell whether deleting *eligible* of *total* blobs stays within this limit."""
        return eligible <= (self.value * total / 100 if self.percent else self.value)

    def __str__(self) -> str:
        return f"{self.value:g}%" if self.percent else f"{self.value:.0f}"


GRACE_IN_USE = 24 * 3600.0
"""Seconds of grace, at the least, of what is found dead while a registry may be writing.

A push writes blobs first and the manifest that references them last; 24 h are more than any takes.
"""


class Policy(msgspec.Struct, frozen=True):
    """What is to be kept, and how much may go at once.

    ``grace``: seconds; nothing younger is dead, since a push writes blobs before the manifest
    that references them. ``upload_age``: seconds after which an upload is abandoned, None to
    keep all (the operator's own ``uploadpurging`` says so). ``upload_without_start``: also judge
    uploads that have lost their ``startedat``, by the youngest file in them. ``purge_versions``:
    delete what the storage keeps of what is deleted, now or before. ``quarantine``: seconds for
    which what is deleted is set aside instead; None to delete it. ``allow_writable``: a registry
    may be writing meanwhile.

    :raises ValueError: a duration is negative, or no number: nothing would be young.
    """

    delete_untagged: bool = False
    grace: float = 0.0
    upload_age: float | None = 168 * 3600.0
    upload_without_start: bool = False
    max_delete: Limit | None = None
    allow_empty: bool = False
    accept_shrink: bool = False
    keep_empty_repositories: bool = False
    purge_versions: bool = False
    quarantine: float | None = None
    allow_writable: bool = False
    releases: Collection[Release] = ()

    def __post_init__(self) -> None:
        for name in ("grace", "upload_age", "quarantine"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 <= seconds < float("inf"):
                raise ValueError(f"{name}: {seconds} is no duration in seconds")

    def released(self, repository: str, digest: str | None) -> bool:
        """Tell whether the operator has lifted this hold."""
        # One run releases all that is held, to find out what that is for: tens of thousands.
        return Release(repository) in self.releases or Release(repository, digest) in self.releases
