"""What can go wrong with storage.

::

    StorageError                  anything a driver raises; str() names the driver and the path
    ├── NotFound                  the object is not there
    │   └── NoFile                there is a pipe, a socket or a device instead
    │       └── IsFolder          there is a folder instead
    ├── AlreadyExists             write(if_absent=True) met an object
    ├── TooLarge                  read(limit=…) met a larger object
    ├── AccessDenied              the storage refuses these credentials, or this user
    ├── Unavailable               a passing fault: worth another try
    ├── Replaced                  it is not the storage that it was: unmounted, or another
    ├── InvalidPath               the path could leave the root, or is malformed
    ├── Unsupported               this storage cannot do what was asked
    └── DriverConfigError         the driver's parameters are wrong or incomplete
        └── MissingExtra          the driver's SDK is not installed

"Missing" and "could not be read" are different classes on purpose: who handles one must not
handle the other by accident. No exception of an SDK leaves a driver; it is the ``__cause__``.
"""

from __future__ import annotations


class StorageError(Exception):
    """Root of everything that a driver raises."""

    def __init__(self, message: str, *, path: str = "", driver: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.driver = driver

    def __str__(self) -> str:
        where = f"{self.driver}: " if self.driver else ""
        what = f"{self.path}: " if self.path else ""
        return f"{where}{what}{self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders; keyword arguments would be lost by the default pickling.
        return (_rebuild, (type(self), self.message, self.path, self.driver))


def _rebuild(kind: type[StorageError], message: str, path: str, driver: str) -> StorageError:
    return kind(message, path=path, driver=driver)


class NotFound(StorageError):
    """The object is not there."""


class NoFile(NotFound):
    """What is there is no file. ``what`` says what it is, for messages."""

    what = "neither a file nor a folder"


class IsFolder(NoFile):
    """There is a folder where the object is to be."""

    what = "a folder"


class AlreadyExists(StorageError):
    """A conditional write met an object that exists."""


class TooLarge(StorageError):
    """An object is larger than the limit that the reader gave."""


class AccessDenied(StorageError):
    """The storage refuses: credentials, permissions, a lock or a retention rule."""


class Unavailable(StorageError):
    """A passing fault: throttling, a time-out, a broken connection, a server error."""


class Replaced(StorageError):
    """The storage is gone, or another is in its place: said of all of it, not of one object."""


class InvalidPath(StorageError):
    """A path that could leave the root, or is not in normal form."""


class Unsupported(StorageError):
    """This storage cannot do what was asked."""


class DriverConfigError(StorageError):
    """The driver's parameters are wrong or incomplete; the message names the parameter."""


class MissingExtra(DriverConfigError):
    """The driver's SDK is not installed; the message names the extra that brings it."""
