"""What a bucket's settings say about what is deleted: versioning, object lock, lifecycle."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from registry_drivers.columns import text_of
from registry_drivers.errors import AccessDenied, NotFound, StorageError, Unavailable, Unsupported
from registry_drivers.object_versions import ObjectVersions
from registry_drivers.s3 import S3Storage
from registry_drivers.versions import Keep

# In the name of the root of each setting's document, which is not everywhere Amazon's.
_ROOTS = {"versioning": b"Versioning", "object-lock": b"ObjectLock", "lifecycle": b"Lifecycle"}
# Other than "there is no such setting", which stores other than Amazon's say with 400 too.
_ABOUT_CREDENTIALS = (
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "TokenRefreshRequired",
)
_DAY = 86400
_PURGE = "--purge-versions deletes them"


class S3Settings(ObjectVersions[S3Storage]):
    """The part of a bucket's versions that asks for its settings."""

    def keeps(self) -> tuple[Keep, ...]:
        """See :class:`~registry_drivers.versions.Versioned`; two requests."""
        return (*self._versioning(), *self._object_lock())

    def _setting(self, name: str) -> bytes | Keep | None:
        """The document of a setting; None where the store has none, or does not know of it.

        What is no such document is no "off": a :class:`Keep` says that nobody knows.
        """
        storage = self._storage

        def ask() -> bytes:
            return storage._request("GET", query=[(name, "")]).data

        def unknown(why: str) -> Keep:
            message = (
                f"nobody knows whether the bucket keeps what is deleted: its setting {name!r} {why}"
            )
            return Keep("unknown", message, listed=name == "versioning")

        try:
            document = self._ask(ask, "", read=1)
        except AccessDenied as error:
            return unknown(f"may not be read: {error.message}")
        except Unsupported:
            return None
        except NotFound as error:
            if "NoSuchBucket" in error.message:
                raise
            # A store names what there is not; a page of a proxy's says nothing.
            return unknown(f"is not told: {error.message}") if _is_nameless(error) else None
        except StorageError as error:
            # Stores other than Amazon's say so in one of these ways.
            if (
                isinstance(error, Unavailable)
                or error.message.startswith(_ABOUT_CREDENTIALS)
                or not any(said in error.message for said in ("HTTP 400", "HTTP 405"))
            ):
                raise
            return None
        return document if _ROOTS[name] in document else unknown("is not told as S3 does")

    def _versioning(self) -> Iterator[Keep]:
        document = self._setting("versioning")
        if isinstance(document, Keep):
            yield document
            return
        status = text_of(document or b"", b"Status")
        if status == "Enabled":
            message = (
                "versioning is on: deleting an object frees nothing while its versions stay; "
                + _PURGE
            )
            yield Keep("versioning", message, listed=True)
        elif status == "Suspended":
            message = (
                "versioning is suspended: objects written while it was on keep their versions, "
                f"and take room after a delete; {_PURGE}"
            )
            yield Keep("versioning-suspended", message, listed=True)
        if text_of(document or b"", b"MfaDelete") == "Enabled":
            message = "MFA delete is on: versions cannot be deleted without the owner's device"
            yield Keep("mfa-delete", message)

    def _object_lock(self) -> Iterator[Keep]:
        document = self._setting("object-lock")
        if isinstance(document, Keep):
            yield document
            return
        if document is None or text_of(document, b"ObjectLockEnabled") != "Enabled":
            return
        mode = text_of(document, b"Mode")
        message = "object lock is on: a version under retention or legal hold cannot be deleted"
        if mode:
            days, years = text_of(document, b"Days"), text_of(document, b"Years")
            time = f"{years} years" if days in ("", "0") else f"{days} days"
            message += f"; by default each is retained for {time} ({mode.lower()})"
        yield Keep("object-lock", message)

    def keeps_for(self, seconds: float) -> bool:
        """See :class:`~registry_drivers.versions.Undeleter`; two requests."""
        versioning = self._setting("versioning")
        if not isinstance(versioning, bytes) or text_of(versioning, b"Status") != "Enabled":
            return False
        lifecycle = self._setting("lifecycle")
        if isinstance(lifecycle, Keep):
            return False
        return lifecycle is None or not _expires_within(lifecycle, seconds)


def _is_nameless(error: StorageError) -> bool:
    return error.message.startswith("error:") or ": error:" in error.message


def _expires_within(lifecycle: bytes, seconds: float) -> bool:
    """Whether any rule of the bucket deletes versions so soon; which keys it is for counts not."""
    try:
        root = ElementTree.fromstring(lifecycle)  # noqa: S314  # expat loads nothing
    except ElementTree.ParseError:
        return True
    for rule in root.iterfind("{*}Rule"):
        days = rule.findtext("{*}NoncurrentVersionExpiration/{*}NoncurrentDays")
        if rule.findtext("{*}Status") != "Enabled" or days is None:
            continue
        if not days.isdecimal() or int(days) * _DAY < seconds:
            return True
    return False
