"""Noncurrent versions, soft delete, retention and holds, in Google Cloud Storage.

There are no delete markers: a key without a current object has noncurrent versions only. What is
soft-deleted nobody can delete before its time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from operator import itemgetter

import msgspec

from registry_drivers.columns import MalformedListing, integer, times
from registry_drivers.errors import AccessDenied
from registry_drivers.gcs import GCSStorage
from registry_drivers.gcs_answers import decoded, told
from registry_drivers.object_versions import (
    ObjectVersions,
    Removed,
    Version,
    Versions,
    VersionState,
    removed_of,
)
from registry_drivers.paging import PageTokens
from registry_drivers.versions import Keep

_SETTINGS = "versioning,softDeletePolicy,retentionPolicy,defaultEventBasedHold,objectRetention"
_DAY = 86400


class _Versioning(msgspec.Struct):
    enabled: bool = False


class _SoftDelete(msgspec.Struct):
    seconds: str = msgspec.field(default="0", name="retentionDurationSeconds")


class _Retention(msgspec.Struct):
    seconds: str = msgspec.field(default="0", name="retentionPeriod")
    locked: bool = msgspec.field(default=False, name="isLocked")


class _ObjectRetention(msgspec.Struct):
    mode: str = ""


class _Bucket(msgspec.Struct, rename="camel"):
    versioning: _Versioning = msgspec.field(default_factory=_Versioning)
    soft_delete_policy: _SoftDelete = msgspec.field(default_factory=_SoftDelete)
    retention_policy: _Retention | None = None
    default_event_based_hold: bool = False
    object_retention: _ObjectRetention = msgspec.field(default_factory=_ObjectRetention)
    # There is none in a bucket; an answer that is one has it, whatever its status.
    error: msgspec.Raw | None = None


class _Item(msgspec.Struct, rename="camel"):
    name: str
    generation: str
    size: str = "0"
    updated: str = ""
    time_deleted: str = ""
    soft_delete_time: str = ""


class _Items(msgspec.Struct):
    """An answer of ``objects.list``."""

    kind: str
    items: list[_Item] = msgspec.field(default_factory=list)
    token: str = msgspec.field(default="", name="nextPageToken")


_decode_bucket = msgspec.json.Decoder(_Bucket).decode
_decode_items = msgspec.json.Decoder(_Items).decode


class GCSVersions(ObjectVersions[GCSStorage]):
    """What one bucket keeps; see :class:`~registry_drivers.versions.Versioned`."""

    # --- settings

    def keeps(self) -> tuple[Keep, ...]:
        """See :class:`~registry_drivers.versions.Versioned`; one request."""
        try:
            return tuple(_keeps(self._bucket))
        except AccessDenied as error:
            message = (
                "nobody knows whether the bucket keeps what is deleted: its settings may not be "
                f"read (storage.buckets.get): {error.message}"
            )
            return (Keep("unknown", message, listed=True),)

    @cached_property
    def _bucket(self) -> _Bucket:
        storage = self._storage
        url = f"{storage._objects.rpartition('/')[0]}?fields={_SETTINGS}"

        def ask() -> _Bucket:
            bucket = decoded(_decode_bucket, storage._request("GET", url, place=True).data)
            if bucket.error is not None:
                raise MalformedListing("the answer is no bucket's settings")
            return bucket

        return self._ask(ask, "", read=1)

    def _soft_deletes(self) -> bool:
        try:
            return int(self._bucket.soft_delete_policy.seconds) > 0
        except AccessDenied:
            return False

    # --- versions

    def _list(self, prefix: str, start: str, token: str) -> Versions:
        query = {"startOffset": start} if start > prefix else {}
        return self._items(prefix, {**query, "versions": "true"}, token)

    def _items(self, prefix: str, query: dict[str, str], token: str) -> Versions:
        storage = self._storage
        fields = "name,generation,size,updated,timeDeleted,softDeleteTime"
        whole = {
            "fields": f"kind,nextPageToken,items({fields})",
            "maxResults": str(storage.page_size),
            "prefix": prefix,
            **query,
        }
        if token:
            whole["pageToken"] = token
        answer = decoded(_decode_items, storage._get_list(prefix, whole))
        if answer.kind != "storage#objects":
            raise MalformedListing("the answer is no listing")
        rows = [_version(item) for item in answer.items]
        return Versions(rows, rows[-1].key if rows else "", answer.token)

    def _every(self, prefix: str) -> Iterator[tuple[str, list[Version]]]:
        if not self._soft_deletes():
            yield from self._keys(prefix)
            return
        # Two listings in the same order: what is there, or noncurrent; and what is soft-deleted.
        merged = heapq.merge(
            ((key.encode(), versions) for key, versions in self._keys(prefix)),
            self._soft_deleted(prefix),
            key=itemgetter(0),
        )
        for key, groups in groupby(merged, key=itemgetter(0)):
            yield key.decode(), [row for _, rows in groups for row in rows]

    def _soft_deleted(self, prefix: str) -> Iterator[tuple[bytes, list[Version]]]:
        token = ""
        tokens = PageTokens(prefix, self._storage.driver)
        while True:

            def ask(token: str = token) -> Versions:
                return self._items(prefix, {"softDeleted": "true"}, token)

            page = self._ask(ask, prefix, list=1)
            for row in page.rows:
                if row.state is VersionState.RETAINED:
                    yield row.key.encode(), [row]
            if not page.token:
                return
            token = tokens.next(page.token, empty=not page.rows)

    def _remove(self, versions: Sequence[Version]) -> Removed:
        paths = [(version.key, f"?generation={version.id}") for version in versions]
        parts = self._storage._send_deletes(paths)
        return removed_of(versions, parts, lambda part: told(part.data))


def _version(item: _Item) -> Version:
    state = VersionState.CURRENT
    if item.soft_delete_time:
        state = VersionState.RETAINED
    elif item.time_deleted:
        state = VersionState.OLD
    known = [text for text in (item.updated, item.time_deleted, item.soft_delete_time) if text]
    modified = max((float(times([text.encode()])[0]) for text in known), default=0.0)
    return Version(item.name, item.generation, integer(item.size), modified, state)


def _keeps(bucket: _Bucket) -> Iterator[Keep]:
    # Off says nothing of the past: many tools write it down for buckets that never had any.
    if bucket.versioning.enabled:
        message = (
            "versioning is on: deleting an object frees nothing while its versions stay; "
            "--purge-versions deletes them"
        )
        yield Keep("versioning", message, listed=True)
    if seconds := int(bucket.soft_delete_policy.seconds):
        message = (
            f"soft delete is on: what is deleted takes room, and is paid for, for another "
            f"{seconds / _DAY:g} days; nobody can shorten that for what is deleted already"
        )
        yield Keep("soft-delete", message)
    if bucket.retention_policy is not None:
        locked = "locked " if bucket.retention_policy.locked else ""
        message = (
            f"a {locked}retention policy is on: no object can be deleted that is younger than "
            f"{int(bucket.retention_policy.seconds) / _DAY:g} days"
        )
        yield Keep("retention-policy", message)
    if bucket.object_retention.mode:
        message = "objects may have retention times of their own, and cannot be deleted before"
        yield Keep("object-lock", message)
    if bucket.default_event_based_hold:
        message = "new objects are held until somebody releases them, and cannot be deleted before"
        yield Keep("holds", message)
