"""Blob versions, soft delete, immutability and legal holds, in Azure Blob Storage.

There are no delete markers: a blob that was deleted has older versions only. Where soft delete is
on, a deleted version, or a blob that had none, stays for some days; versions can be deleted for
good before where the account permits permanent deletes. Nothing tells when a version ceased to be
current: its age is that of its content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple
from xml.etree import ElementTree

from registry_drivers.azure import AzureStorage
from registry_drivers.azure_answers import told
from registry_drivers.azure_auth import API_VERSION
from registry_drivers.columns import (
    Column,
    MalformedListing,
    columns,
    http_times,
    integers,
    key_of,
    text_of,
    unescape,
)
from registry_drivers.errors import AccessDenied, NotFound, StorageError, Unavailable
from registry_drivers.object_versions import (
    Gone,
    ObjectVersions,
    Removed,
    Version,
    Versions,
    VersionState,
    removed_of,
)
from registry_drivers.versions import Keep
from registry_drivers.web import Answer

# In the order in which they stand in a row.
_COLUMNS = (
    b"Name",
    b"Deleted",
    b"Snapshot",
    b"VersionId",
    b"IsCurrentVersion",
    b"ResourceType",
    b"Last-Modified",
    b"Content-Length",
    b"DeletedTime",
)


class _SoftDelete(NamedTuple):
    """The account's policy; ``permanent``: soft-deleted versions may be deleted for good."""

    days: int
    permanent: bool


class AzureVersions(ObjectVersions[AzureStorage]):
    """What one container keeps; see :class:`~registry_drivers.versions.Versioned`."""

    # Listings cannot begin at a name.
    seekable = False

    # --- settings

    def keeps(self) -> tuple[Keep, ...]:
        """See :class:`~registry_drivers.versions.Versioned`; three requests."""
        return (
            *self._told("versions", self._versioning),
            *self._told("soft delete", self._soft_delete_keeps),
            *self._told("immutability", self._immutability),
        )

    def _told(self, what: str, ask: Callable[[], Iterator[Keep]]) -> list[Keep]:
        try:
            return [*ask()]
        except AccessDenied as error:
            message = (
                f"nobody knows whether the container keeps what is deleted ({what}): "
                f"that may not be read: {error.message}"
            )
            return [Keep("unknown", message, listed=what == "versions")]

    def _versioning(self) -> Iterator[Keep]:
        """Only the account's management knows; where versioning is on, rows have a version."""
        self._storage._prepare()

        def ask() -> bytes:
            prefix = self._storage.folder
            query = {"prefix": prefix, "maxresults": "1", "include": "versions"}
            return self._storage._listing("", query)

        try:
            document = self._ask(ask, "", list=1)
        except (AccessDenied, NotFound, Unavailable):
            raise
        except StorageError as error:
            # Accounts with a hierarchical namespace have no versions, and refuse to list them.
            if "HTTP 400" not in error.message and "HTTP 409" not in error.message:
                raise
            return
        if b"<VersionId>" in document:
            message = (
                "blob versions are on, or were: deleting a blob frees nothing while its versions "
                "stay; --purge-versions deletes them"
            )
            yield Keep("versioning", message, listed=True)

    @cached_property
    def _soft_delete(self) -> _SoftDelete:
        """The account's policy; zero days where it has none."""

        def ask() -> _SoftDelete:
            url = f"{self._storage._service}/?restype=service&comp=properties"
            answer = self._get(url)
            try:
                root = ElementTree.fromstring(answer.data)  # noqa: S314  # expat loads nothing
            except ElementTree.ParseError as error:
                raise MalformedListing(f"the answer is not XML: {error}") from error
            if root.tag != "StorageServiceProperties":
                raise MalformedListing("the answer is no account's settings")
            policy = root.find("DeleteRetentionPolicy")
            if policy is None or policy.findtext("Enabled") != "true":
                return _SoftDelete(0, False)
            permanent = policy.findtext("AllowPermanentDelete") == "true"
            return _SoftDelete(int(policy.findtext("Days") or "0"), permanent)

        return self._ask(ask, "", read=1)

    def _get(self, url: str) -> Answer:
        storage = self._storage
        signed = storage._credential.sign("GET", url, {"x-ms-version": API_VERSION})
        answer = storage._send("GET", storage._credential.url(url), signed)
        if answer.status >= 300:
            storage._refused_by(answer, *told(answer.headers, answer.data), place=True)
        return answer

    def _soft_delete_keeps(self) -> Iterator[Keep]:
        policy = self._soft_delete
        if policy.days:
            message = f"soft delete is on: what is deleted takes room for another {policy.days} "
            message += "days"
            if policy.permanent:
                message += ", except versions, which --purge-versions deletes for good"
            yield Keep("soft-delete", message, listed=policy.permanent)

    def _immutability(self) -> Iterator[Keep]:
        def ask() -> Answer:
            return self._storage._request("HEAD", query={"restype": "container"})

        headers = self._ask(ask, "", read=1).headers
        if headers.get("x-ms-has-immutability-policy") == "true":
            message = "an immutability policy is on: blobs cannot be deleted before their time"
            yield Keep("retention-policy", message)
        if headers.get("x-ms-immutable-storage-with-versioning-enabled") == "true":
            message = "versions may be immutable, each for a time of its own, and cannot be deleted"
            yield Keep("object-lock", message)
        if headers.get("x-ms-has-legal-hold") == "true":
            message = "a legal hold is on: no blob of this container can be deleted"
            yield Keep("legal-hold", message)

    # --- versions

    @cached_property
    def _permanent(self) -> bool:
        try:
            return self._soft_delete.permanent
        except AccessDenied:
            return False

    def _list(self, prefix: str, start: str, token: str) -> Versions:
        query = {
            "prefix": prefix,
            "maxresults": str(self._storage.page_size),
            "include": "versions,deleted",
        }
        if token:
            query["marker"] = token
        document = self._storage._listing(prefix, query)
        cut = columns(document, b"Blob", _COLUMNS)
        rows = [*_rows(cut, permanent=self._permanent)]
        last = rows[-1].key if rows else ""
        return Versions(rows, last, text_of(document, b"NextMarker"))

    def _remove(self, versions: Sequence[Version]) -> Removed:
        removed = dict(self._send_deletes(versions, {}))
        if self._permanent:
            # The first delete makes them soft-deleted; those that were get the second only.
            again = [version for version, what in removed.items() if isinstance(what, Gone)]
            if again:
                self._storage.requests.add(delete=1)
                removed.update(self._send_deletes(again, {"deletetype": "permanent"}))
        return removed

    def _send_deletes(self, versions: Sequence[Version], query: dict[str, str]) -> Removed:
        parts = self._storage._send_deletes(
            [(version.key, {"versionid": version.id, **query}) for version in versions]
        )
        return removed_of(versions, parts, lambda part: told(part.headers, part.data))


def _rows(cut: Sequence[Column], *, permanent: bool) -> Iterator[Version]:
    """The versions in a page.

    :param permanent: soft-deleted versions can be deleted for good.
    """
    names, deleted, snapshots, ids, current, kinds, modified, sizes, ends = cut
    written = http_times(modified).tolist()
    for name, gone, snapshot, number, is_current, kind, time, size, end in zip(
        names,
        deleted,
        snapshots,
        ids,
        current,
        kinds,
        written,
        integers(sizes).tolist(),
        ends,
        strict=True,
    ):
        if snapshot or kind == b"directory":
            # No registry makes snapshots; the delete of a blob that has some fails.
            continue
        if not name:
            raise MalformedListing("a row of the listing has no name")
        state = VersionState.CURRENT
        if gone == b"true":
            state = VersionState.OLD if number and permanent else VersionState.RETAINED
        elif number and is_current != b"true":
            state = VersionState.OLD
        ended = float(http_times([end])[0]) if end else 0.0
        yield Version(
            key_of(unescape(name)), unescape(number).decode(), size, max(time, ended), state
        )
