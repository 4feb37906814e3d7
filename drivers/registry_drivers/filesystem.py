"""A registry on a file system: ``storage.filesystem`` of the registry's config.

Each call runs on one thread. Listing is bound by the interpreter, so that worker processes make
it faster and threads do not (36,640 blobs: 0.13 s in one process, 0.08 s in two, 0.3 s in two
threads); ``capabilities.processes`` says so.

Symbolic links below the root are followed for listing and reading, as the registry does, since
operators put ``blobs`` or ``repositories`` on another disk so. None is ever unlinked or removed.
A link to nothing is an error, not a missing file: a disk that is not mounted looks like this.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from registry_drivers.base import (
    Capabilities,
    Children,
    Deletion,
    Entry,
    Named,
    Outcome,
    Page,
    Requests,
    stat_each,
)
from registry_drivers.errors import (
    AlreadyExists,
    InvalidPath,
    IsFolder,
    NoFile,
    NotFound,
    Replaced,
    StorageError,
    TooLarge,
    Unavailable,
)
from registry_drivers.filesystem_aliases import Aliases
from registry_drivers.filesystem_entries import FOLDER, READ, named_for_sure, sorted_out
from registry_drivers.filesystem_errors import (
    DISK_GONE,
    DRIVER,
    MISSING,
    PASSING,
    UTF_8,
    check_names,
    is_there,
    translate,
)
from registry_drivers.filesystem_names import LOST_AND_FOUND
from registry_drivers.filesystem_patience import again, patiently
from registry_drivers.filesystem_walk import Walk
from registry_drivers.filesystem_watch import Identity, Watch
from registry_drivers.filesystem_write import move_file, write_file
from registry_drivers.parameters import DEFAULT_ROOT, Parameters
from registry_drivers.paths import check_path, check_paths, check_prefix

# Between two looks at the guard; a file is one request each way.
_DELETE_BATCH = 256
# Files of which the delete was tried again in vain (2.6 seconds each), before no other is.
_MOST_IN_VAIN = 20
# A folder that somebody fills, that is gone, that is a file or a symbolic link, or that is a
# mount point: it stays, and that is no failure.
_STAYS = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EBUSY})
# Between two looks at what is mounted, while files are moved one by one.
_SECONDS = 1.0
# Bytes; more than nearly all manifests have.
_SMALL = 16 << 10


def open_filesystem(parameters: Mapping[str, Any]) -> FilesystemStorage:
    """Open the folder that *parameters* name: ``rootdirectory``, ``maxthreads``.

    Nothing is looked at yet. ``maxthreads`` is the registry's own affair; only its form is
    checked, as the registry does.

    :raises DriverConfigError: a parameter is of the wrong kind.
    """
    given = Parameters(DRIVER, parameters)
    if "rootdirectory" in parameters and not given.has("rootdirectory"):
        raise given.error("rootdirectory", "is empty; name the registry's folder")
    if not given.number("maxthreads", 100.0).is_integer():
        raise given.error("maxthreads", "expected a whole number")
    root = given.text("rootdirectory", default=DEFAULT_ROOT)
    try:
        possible = b"\0" not in os.fsencode(root)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise given.error("rootdirectory", f"{root!r} cannot be the name of a folder")
    try:
        return FilesystemStorage(root)
    except FileNotFoundError as error:
        why = f"{root!r} is relative, and the working directory cannot be found"
        raise given.error("rootdirectory", why) from error


def _above(folders: Sequence[str]) -> str:
    """The folder in which all *folders* lie, which is the only one itself; with ``/``, or empty."""
    common = os.path.commonprefix(folders)  # noqa: RUF071 - cut below
    return common[: common.rfind("/") + 1]


class FilesystemStorage:
    """A :class:`~registry_drivers.base.Storage` below a folder.

    Listings come in the order of the paths' UTF-8 bytes and take the two shortcuts that
    :mod:`registry_drivers.filesystem_walk` describes: a file that lies beside the expected one
    in a digest's or a tag's folder is not listed, but shown by :meth:`children`.

    :param root: the config's ``rootdirectory``. Asking for a root that is not there, or is no
        folder, raises :class:`~registry_drivers.errors.NotFound`, whatever is asked.
    """

    def __init__(self, root: str) -> None:
        self.driver = DRIVER
        self.root = os.path.abspath(root)
        self.capabilities = Capabilities(
            delete_batch=_DELETE_BATCH,
            folders=True,
            processes=True,
            workers=min(8, os.cpu_count() or 1),
        )
        self.requests = Requests()
        self._watch = Watch(self.root)
        self._aliases = Aliases(self.root)
        # How many deletes have failed in passing until patience was at its end.
        self._in_vain = 0
        # What is wrong with the root is said when it is asked for something.
        with contextlib.suppress(StorageError):
            self._watch.look()

    def _error(self, error: OSError, path: str) -> StorageError:
        if error.errno in MISSING:
            return self._watch.missing(path)
        return translate(error, path, self.root)

    def _of_one(self, error: OSError, path: str) -> StorageError:
        """The error for one file that cannot be changed, of a storage that is still there.

        :raises Replaced: it is not.
        """
        if error.errno in DISK_GONE:
            self._watch.look()
        told = translate(error, path, self.root)
        if isinstance(told, Replaced):
            raise told from error
        return told

    # --- reading

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        """See :class:`~registry_drivers.base.Reader`.

        :raises AccessDenied: a folder that this user may not look into.
        :raises StorageError: a symbolic link to nothing or in a loop; a folder was replaced
            while it was listed.
        """
        check_prefix(prefix, DRIVER)
        return self._list(prefix, lambda walk: walk.pages(prefix), start_after or "")

    def list_unasked(self, *prefixes: str) -> Iterator[Page]:
        """See :class:`~registry_drivers.base.FolderReader`. Raises what :meth:`list` raises."""
        for prefix in prefixes:
            check_prefix(prefix, DRIVER)
        return self._list(_above(prefixes), lambda walk: walk.unasked(prefixes))

    def list_among(self, named: Sequence[Named]) -> Iterator[Page]:
        """See :class:`~registry_drivers.base.FolderReader`. Raises what :meth:`list` raises."""
        for folder, _ in named:
            check_prefix(folder, DRIVER)
        above = _above([folder for folder, _ in named])
        return self._list(above, lambda walk: walk.among(named))

    def _list(
        self, prefix: str, pages: Callable[[Walk], Iterator[Page]], after: str = ""
    ) -> Iterator[Page]:
        self._watch.look()
        self._watch.passed(prefix)
        before = self._folder_identity(prefix)
        if before is None:
            return
        yield from pages(Walk(self.root, self._watch, self.requests, after))
        # A disk that goes away under the walk looks like folders that vanish one by one.
        self._watch.look()
        if self._folder_identity(prefix) not in (before, None):
            raise StorageError(
                f"replaced while it was listed, below {self.root}", path=prefix, driver=DRIVER
            )

    def _folder_identity(self, prefix: str) -> Identity | None:
        """Which folder it is; None when there is none.

        :raises StorageError: a symbolic link on the way dangles, or the root is gone.
        """
        try:
            status = patiently(lambda: os.stat(f"{self.root}/{prefix}"), self.requests)
        except OSError as error:
            if error.errno in MISSING:
                self._watch.missing(prefix)
                return None
            raise translate(error, prefix.rstrip("/"), self.root) from error
        return self._watch.identity(status)

    def children(self, prefix: str) -> Children:
        """See :class:`~registry_drivers.base.Reader`."""
        check_prefix(prefix, DRIVER)
        self.requests.add(list=1)
        folders: set[str] = set()
        files: set[str] = set()
        try:
            try:
                folders, files = self._names(prefix)
            except (Unavailable, OSError) as error:
                folders, files = again(error, partial(self._names_for_sure, prefix), self.requests)
        except OSError as error:
            # Only here: what is missing after it failed in passing is not known to be.
            if error.errno not in MISSING:
                raise translate(error, prefix.rstrip("/"), self.root) from error
            self._watch.missing(prefix)
        if not UTF_8:
            check_names(prefix + name for name in (*folders, *files))
        # An empty folder is what an unmounted disk leaves.
        self._watch.look()
        folders.discard(LOST_AND_FOUND)
        return Children(tuple(sorted(folders)), tuple(sorted(files)))

    def _names(self, prefix: str) -> tuple[set[str], set[str]]:
        """The names of the folders and of the files in *prefix*."""
        folders: set[str] = set()
        files: set[str] = set()
        with os.scandir(f"{self.root}/{prefix}") as entries:
            for plain, others in sorted_out(entries):
                folders.update(plain)
                for entry in others:
                    path = prefix + entry.name
                    if self._is_dir(entry, path):
                        folders.add(entry.name)
                        self._watch.passed(path)
                    elif not entry.is_symlink() or self._leads_somewhere(path):
                        files.add(entry.name)
        return folders, files

    def _names_for_sure(self, prefix: str) -> tuple[set[str], set[str]]:
        folders: set[str] = set()
        files: set[str] = set()
        for name, is_folder, link in named_for_sure(f"{self.root}/{prefix}"):
            (folders if is_folder else files).add(name)
            if is_folder and link:
                self._watch.passed(prefix + name)
        return folders, files

    def _is_dir(self, entry: os.DirEntry[str], path: str) -> bool:
        try:
            return entry.is_dir()
        except OSError as error:
            raise translate(error, path, self.root) from error

    def _leads_somewhere(self, link: str) -> bool:
        """True; False when the link is gone by now.

        :raises StorageError: it is there, and leads to nothing.
        """
        try:
            os.stat(f"{self.root}/{link}")
        except OSError as error:
            if error.errno not in MISSING:
                raise translate(error, link, self.root) from error
            self._watch.missing(link)
            return False
        return True

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        """See :class:`~registry_drivers.base.Reader`."""
        return patiently(lambda: self._read_once(path, limit), self.requests)

    def _read_once(self, path: str, limit: int | None) -> bytes:
        handle = self._open(path)
        try:
            # Nearly all that is read is small and a file: its end is as good a proof as its
            # status, at a quarter of the price. Folders and pipes have nothing to give here.
            wanted = _SMALL if limit is None or limit >= _SMALL else limit + 1
            try:
                data = os.read(handle, wanted)
                if 0 < len(data) < wanted and not os.read(handle, 1):
                    return data
            except OSError as error:
                if error.errno in PASSING:
                    raise
                # What is wrong with it is found out below.
            return self._read_all(handle, path, limit)
        except OSError as error:
            raise translate(error, path, self.root) from error
        finally:
            os.close(handle)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """See :class:`~registry_drivers.base.Reader`."""
        return patiently(lambda: self._read_range_once(path, start, length), self.requests)

    def _read_range_once(self, path: str, start: int, length: int) -> bytes:
        handle = self._open(path)
        try:
            return self._read_range(handle, path, start, length)
        except OSError as error:
            raise translate(error, path, self.root) from error
        finally:
            os.close(handle)

    def _open(self, path: str) -> int:
        check_path(path, DRIVER)
        self.requests.add(read=1)
        try:
            return os.open(f"{self.root}/{path}", READ)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise self._no_file(path) from error
            raise self._error(error, path) from error

    def _read_range(self, handle: int, path: str, start: int, length: int) -> bytes:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise self._no_file(path)
        chunks: list[bytes] = []
        while length and (data := os.pread(handle, length, start)):
            chunks.append(data)
            start += len(data)
            length -= len(data)
        return b"".join(chunks)

    def _read_all(self, handle: int, path: str, limit: int | None) -> bytes:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise self._is_folder(path)
        if not stat.S_ISREG(status.st_mode):
            raise self._no_file(path)
        size = status.st_size
        if limit is not None and size > limit:
            raise TooLarge(f"{size} bytes, more than {limit}", path=path, driver=DRIVER)
        os.lseek(handle, 0, os.SEEK_SET)
        data = os.read(handle, size + 1)
        if len(data) == size:
            # One byte more was asked for: this is its end.
            return data
        chunks = [data]
        length = len(data)
        while data:
            if limit is not None and length > limit:
                raise TooLarge(f"grows beyond {limit} bytes", path=path, driver=DRIVER)
            data = os.read(handle, 1 << 20)
            chunks.append(data)
            length += len(data)
        # What somebody has just written anew is told by its size.
        if length < size <= os.fstat(handle).st_size:
            raise StorageError(f"gave {length} of its {size} bytes", path=path, driver=DRIVER)
        return b"".join(chunks)

    def _is_folder(self, path: str) -> IsFolder:
        return IsFolder(f"is a folder, below {self.root}", path=path, driver=DRIVER)

    def _no_file(self, path: str) -> NoFile:
        return NoFile(f"{NoFile.what}, below {self.root}", path=path, driver=DRIVER)

    def stat(self, path: str) -> Entry:
        """See :class:`~registry_drivers.base.Reader`."""
        return patiently(lambda: self._stat_once(path), self.requests)

    def _stat_once(self, path: str) -> Entry:
        check_path(path, DRIVER)
        self.requests.add(read=1)
        try:
            status = os.stat(f"{self.root}/{path}")
        except OSError as error:
            raise self._error(error, path) from error
        if stat.S_ISDIR(status.st_mode):
            raise self._is_folder(path)
        if not stat.S_ISREG(status.st_mode):
            raise self._no_file(path)
        return Entry(
            path=path,
            size=status.st_size,
            modified=status.st_mtime,
            shared=status.st_nlink > 1,
        )

    def stat_many(self, paths: Sequence[str]) -> Sequence[Entry | None]:
        """See :class:`~registry_drivers.base.ManyReader`."""
        check_paths(paths, DRIVER)
        # What is common after the last slash is the beginning of names.
        common = os.path.commonprefix(paths)  # noqa: RUF071 - the same, quicker than by parts
        folder = common.rpartition("/")[0]
        try:
            handle = self._folder_handle(folder)
        except OSError as error:
            if error.errno in PASSING:
                raise translate(error, folder, self.root) from error
            # What is wrong is said of each by those who ask by its whole path.
            return stat_each(self, paths)
        start = len(folder) + 1 if folder else 0
        found: list[Entry | None] = []
        asked = 0
        ask = os.stat
        try:
            for path in paths:
                try:
                    status = ask(path[start:], dir_fd=handle)
                except OSError as error:
                    if error.errno in MISSING:
                        found += stat_each(self, (path,))
                        continue
                    status = self._asked_again(error, path)
                if not stat.S_ISREG(status.st_mode):
                    found += stat_each(self, (path,))
                    continue
                asked += 1
                shared = status.st_nlink > 1
                found.append(Entry(path, status.st_size, status.st_mtime, None, shared))
        finally:
            os.close(handle)
            self.requests.add(read=asked)
        return found

    def _folder_handle(self, folder: str) -> int:
        full = f"{self.root}/{folder}"
        return patiently(lambda: os.open(full, FOLDER), self.requests)

    def _asked_again(self, error: OSError, path: str) -> os.stat_result:
        """The status of *path*, for which *error* was said, and not that it is missing."""
        try:
            return again(error, partial(os.stat, f"{self.root}/{path}"), self.requests)
        except OSError as last:
            raise translate(last, path, self.root) from last

    def now(self) -> float:
        """This machine's clock; a file server may have another, of which its files tell."""
        return time.time()

    def close(self) -> None:
        """Nothing is kept open."""

    # --- deleting

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """See :class:`~registry_drivers.base.Deleter`; a symbolic link is never unlinked.

        :raises Replaced: the root, or a disk below it, is another than it was, or is gone.
        :raises StorageError: nothing can be told.
        """
        self._watch.look_closely()
        # One by one: who is interrupted hands out no further path, and that ends it at once.
        for path in paths:
            yield self._delete(path)

    def _delete(self, path: str) -> Outcome:
        try:
            check_path(path, DRIVER)
        except InvalidPath as error:
            return Outcome(path, Deletion.FAILED, error.message)
        self.requests.add(delete=1)
        full = f"{self.root}/{path}"
        # A file that fails does not end the sweep: each of a million would take its seconds.
        pauses = () if self._in_vain >= _MOST_IN_VAIN else None
        try:
            mode = patiently(lambda: os.lstat(full).st_mode, self.requests, pauses)
            if stat.S_ISLNK(mode):
                return Outcome(path, Deletion.FAILED, "is a symbolic link, which is never unlinked")
            if stat.S_ISDIR(mode):
                return Outcome(path, Deletion.FAILED, os.strerror(errno.EISDIR))
            patiently(lambda: os.unlink(full), self.requests, pauses)
        except OSError as error:
            if error.errno in MISSING:
                self._watch.missing(path)
                return Outcome(path, Deletion.GONE_ALREADY)
            self._in_vain += error.errno in PASSING
            return Outcome(path, Deletion.FAILED, self._of_one(error, path).message)
        return Outcome(path, Deletion.DELETED)

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        """See :class:`~registry_drivers.base.Deleter`.

        :raises AccessDenied: after all others were tried, for the first that refused.
        """
        check_prefix(floor, DRIVER)
        removed = 0
        refusal: StorageError | None = None
        for folder in folders:
            check_path(folder, DRIVER)
            while folder and folder.startswith(floor):
                try:
                    if self._aliases.lead_to(folder):
                        break
                    # Fails for a symbolic link and for what is not empty: nothing to check first.
                    os.rmdir(f"{self.root}/{folder}")
                except OSError as error:
                    if error.errno not in _STAYS:
                        # That of another, where it could not be found out what leads to this one.
                        path = str(error.filename or "").removeprefix(f"{self.root}/")
                        refusal = refusal or translate(error, path or folder, self.root)
                    break
                self._watch.forget(folder)
                removed += 1
                folder = folder.rpartition("/")[0]
        if refusal is not None:
            raise refusal
        return removed

    # --- writing

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """See :class:`~registry_drivers.base.Writer`; on disk when it returns."""
        check_path(path, DRIVER)
        tries = 0

        def work() -> None:
            nonlocal tries
            tries += 1
            try:
                self._write_once(path, data, if_absent)
            except AlreadyExists:
                # An earlier try may have come through, and its answer not: these bytes are ours.
                if tries == 1 or self._read_once(path, None) != data:
                    raise

        patiently(work, self.requests)

    def _write_once(self, path: str, data: bytes, if_absent: bool) -> None:
        # Else a root that was unmounted would be made anew, folder by folder.
        self._watch.look()
        self.requests.add(write=1)
        try:
            full = f"{self.root}/{path}"
            write_file(full, data, if_absent=if_absent, look=self._watch.look)
        except FileExistsError as error:
            raise AlreadyExists("it is there already", path=path, driver=DRIVER) from error
        except OSError as error:
            raise self._write_error(error, path) from error

    def move(self, source: str, target: str) -> None:
        """See :class:`~registry_drivers.base.Writer`; keeps the file's age and owner.

        :raises StorageError: *source* is a symbolic link, which is never moved.
        """
        check_path(source, DRIVER)
        check_path(target, DRIVER)
        seen: os.stat_result | None = None

        def work() -> None:
            nonlocal seen
            self._watch.look_closely(_SECONDS)
            self.requests.add(write=1)
            before = seen
            try:
                seen = self._status(source)
                self._move_once(source, target, seen)
            except NotFound:
                # As above: what is not here any more, and there, was moved. Another hand may have
                # taken it, and what is there be older.
                if before is None or not self._is_the_same(before, target):
                    raise

        patiently(work, self.requests)

    def _is_the_same(self, before: os.stat_result, path: str) -> bool:
        """Whether the file at *path* is the one that was *before* elsewhere, or its copy."""
        status = self._status(path)
        if status.st_dev == before.st_dev and (
            self._watch.identity(status) != self._watch.identity(before)
        ):
            return False
        # A copy on another disk has its age too; FAT's clock ticks every two seconds.
        return status.st_size == before.st_size and abs(status.st_mtime - before.st_mtime) < 2

    def _status(self, path: str) -> os.stat_result:
        try:
            return os.lstat(f"{self.root}/{path}")
        except OSError as error:
            raise self._error(error, path) from error

    def _move_once(self, source: str, target: str, status: os.stat_result) -> None:
        full = f"{self.root}/{source}"
        if stat.S_ISDIR(status.st_mode):
            raise self._is_folder(source)
        if stat.S_ISLNK(status.st_mode):
            raise StorageError(
                "is a symbolic link, which is never moved", path=source, driver=DRIVER
            )
        try:
            move_file(full, f"{self.root}/{target}", look=self._watch.look)
        except OSError as error:
            if error.errno in MISSING and not self._still_there(full, source):
                raise self._error(error, source) from error
            raise self._write_error(error, target) from error

    def _still_there(self, full: str, path: str) -> bool:
        try:
            return is_there(full)
        except OSError as error:
            raise translate(error, path, self.root) from error

    def renew(self, path: str) -> None:
        """See :class:`~registry_drivers.base.Renewer`: by the clock that writes go by."""
        check_path(path, DRIVER)
        self.requests.add(write=1)
        try:
            os.utime(f"{self.root}/{path}", follow_symlinks=False)
        except OSError as error:
            raise self._error(error, path) from error

    def _write_error(self, error: OSError, path: str) -> StorageError:
        if error.errno in MISSING:
            # Not that something is missing: a file stands where a folder is needed.
            said = error.strerror or type(error).__name__
            return StorageError(f"{said}, below {self.root}", path=path, driver=DRIVER)
        return self._of_one(error, path)
