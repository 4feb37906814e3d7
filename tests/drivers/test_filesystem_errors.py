"""What the system refuses: permissions, broken disks, and what each error means."""

from __future__ import annotations

import errno
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from drivers.folders import (
    BLOBS,
    HEX,
    NOBODY,
    TAGS,
    listed,
    make,
)
from registry_drivers import filesystem_patience
from registry_drivers.base import Deletion
from registry_drivers.errors import (
    AccessDenied,
    NotFound,
    Replaced,
    StorageError,
    Unavailable,
)
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.filesystem_errors import translate
from registry_drivers.moving import Mover
from registry_drivers.withdrawal import unless_withdrawn


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def storage(root: Path) -> FilesystemStorage:
    return FilesystemStorage(str(root))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem_patience, "PAUSES", (0.0, 0.0, 0.0))


def as_nobody(work: Callable[[], object]) -> object:
    """What *work* returns, or the error it raises, in a process of a user without rights."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            try:
                answer = work()
            except StorageError as error:
                answer = error
            os.write(theirs, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    assert data, "the child died"
    return pickle.loads(data)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may look into, which tmp_path is not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.parametrize("path", ["closed", "repositories/r/_layers/sha256", f"{BLOBS}{HEX}"])
def test_a_folder_that_may_not_be_opened_names_path_and_user(public: Path, path: str) -> None:
    make(public, f"{BLOBS}{HEX}/data")
    folder = public / path
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0)
    try:
        storage = FilesystemStorage(str(public))
        error = as_nobody(lambda: listed(storage))
        assert isinstance(error, AccessDenied)
        assert error.path.startswith(path)
        assert "(uid " in str(error)
        assert str(public) in str(error)
        again = as_nobody(lambda: storage.children(path + "/"))
        assert isinstance(again, AccessDenied)
    finally:
        folder.chmod(0o755)


def test_a_root_that_may_not_be_opened_is_denied(public: Path) -> None:
    (public / "outer/root").mkdir(parents=True)
    (public / "outer").chmod(0)
    try:
        error = as_nobody(lambda: listed(FilesystemStorage(str(public / "outer/root"))))
        assert isinstance(error, AccessDenied)
    finally:
        (public / "outer").chmod(0o755)


@pytest.mark.parametrize(("mode", "error"), [(0o711, None), (0o000, AccessDenied)])
def test_sizes_of_many_files_need_only_what_the_size_of_one_needs(
    public: Path, mode: int, error: type[AccessDenied] | None
) -> None:
    for name in ("b", "c"):
        make(public, f"a/{name}").chmod(0)
    (public / "a").chmod(mode)
    try:
        storage = FilesystemStorage(str(public))
        one = as_nobody(lambda: storage.stat("a/b"))
        many: Any = as_nobody(lambda: storage.stat_many(["a/b", "a/c"]))
        if error is None:
            assert [entry.path for entry in many] == ["a/b", "a/c"]
            assert many[0] == one
        else:
            assert (type(one), type(many)) == (error, error)
    finally:
        (public / "a").chmod(0o755)


def test_a_layer_link_that_may_not_be_looked_at_is_denied_once_it_is_asked_for(
    public: Path,
) -> None:
    folder = f"r/_layers/sha256/{'ab' * 32}"
    make(public, f"{folder}/link")
    (public / folder).chmod(0)
    try:
        storage = FilesystemStorage(str(public))
        told: Any = as_nobody(lambda: [len(page) for page in storage.list_unasked("r/")])
        assert told == [1]
        asked = as_nobody(lambda: [*storage.list_among([("r/_layers/sha256/", ["ab" * 32])])])
        assert isinstance(asked, AccessDenied)
    finally:
        (public / folder).chmod(0o755)


def test_what_may_not_be_read_written_or_deleted_is_denied_and_stays(public: Path) -> None:
    file = make(public, "a/b")
    (public / "a/empty").mkdir()
    file.chmod(0o600 if os.geteuid() == 0 else 0)
    (public / "a").chmod(0o555)
    storage = FilesystemStorage(str(public))
    try:
        for call in (
            lambda: storage.read("a/b"),
            lambda: storage.write("a/c", b""),
            lambda: storage.move("a/b", "a/d"),
            lambda: storage.remove_folders(["a/empty"], floor=""),
        ):
            error = as_nobody(call)
            assert isinstance(error, AccessDenied)
            assert "(uid " in str(error)
        outcomes = as_nobody(lambda: list(storage.delete(["a/b"])))
        assert isinstance(outcomes, list)
        assert outcomes[0].result is Deletion.FAILED
        assert "denied" in outcomes[0].error
    finally:
        (public / "a").chmod(0o755)
    assert sorted(os.listdir(public / "a")) == ["b", "empty"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ESTALE, Unavailable),
        (errno.ETIMEDOUT, Unavailable),
        (errno.EINTR, Unavailable),
        (errno.EAGAIN, Unavailable),
        (errno.ENOTCONN, Replaced),
        (errno.ECONNABORTED, Replaced),
        (errno.EROFS, AccessDenied),
        (errno.EACCES, AccessDenied),
        (errno.EPERM, AccessDenied),
        (errno.ENOENT, NotFound),
        (errno.ENOTDIR, NotFound),
        (errno.EIO, StorageError),
        (errno.ENOSPC, StorageError),
        (errno.ELOOP, StorageError),
    ],
)
def test_each_error_number_has_one_meaning(number: int, kind: type[StorageError]) -> None:
    error = translate(OSError(number, os.strerror(number)), "a/b", "/root")
    assert type(error) is kind
    assert error.path == "a/b"
    assert "/root" in str(error)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_broken_disk_is_never_taken_for_missing_files(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    make(root, f"{BLOBS}{HEX}/data")
    make(root, "a/b/c")
    ask = os.stat

    def broken(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith(("/data", "/c")):
            raise OSError(number, os.strerror(number), path)
        return ask(path, **options)

    monkeypatch.setattr(os, "stat", broken)
    for prefix in (BLOBS, "a/"):
        with pytest.raises(StorageError) as caught:
            listed(storage, prefix)
        assert not isinstance(caught.value, NotFound)
        assert isinstance(caught.value, Unavailable) == (number == errno.ESTALE)
    with pytest.raises(StorageError) as caught:
        storage.stat_many(["a/b/c", "a/missing"])
    assert not isinstance(caught.value, NotFound)
    assert isinstance(caught.value, Unavailable) == (number == errno.ESTALE)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("folder", [BLOBS, f"{TAGS}v1/index/sha256/"])
def test_a_folder_that_fails_once_it_is_open_is_said(
    root: Path,
    storage: FilesystemStorage,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    number: int,
) -> None:
    make(root, f"{folder}{HEX}/data")

    scandir = os.scandir

    def broken(path: Any) -> Any:
        if isinstance(path, str) and not path.endswith(folder):
            return scandir(path)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "listdir", broken)
    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(StorageError) as caught:
        listed(storage)
    assert caught.value.path == folder[:-1]
    assert isinstance(caught.value, Unavailable) == (number == errno.ESTALE)


@pytest.fixture
def breaking(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, bool], None]:
    """Breaks a file for changes, by an error number, and the root with it."""
    make(root, "a/b")
    storage.children("")

    def break_it(number: int, whole: bool) -> None:
        def broken(*_: Any, **__: Any) -> Any:
            raise OSError(number, os.strerror(number))

        ask = os.stat
        monkeypatch.setattr(os, "unlink", broken)
        monkeypatch.setattr(os, "rename", broken)
        if whole:
            monkeypatch.setattr(
                os, "stat", lambda path, **how: (broken if path == f"{root}/" else ask)(path, **how)
            )

    return break_it


@pytest.mark.parametrize("number", [errno.EIO, errno.ENODEV])
def test_a_file_that_fails_is_one_file_only_while_its_disk_is_there(
    storage: FilesystemStorage, breaking: Callable[[int, bool], None], number: int
) -> None:
    breaking(number, False)
    with closing(Mover(storage)) as mover:
        for outcome in (*storage.delete(["a/b"]), *mover.move([("a/b", "a/c")])):
            assert outcome.result is Deletion.FAILED
            assert os.strerror(number) in outcome.error


@pytest.mark.parametrize("number", [errno.EIO, errno.ENODEV, errno.ENOTCONN])
def test_a_file_that_fails_with_its_whole_disk_is_no_failure_of_one_file(
    storage: FilesystemStorage, breaking: Callable[[int, bool], None], number: int
) -> None:
    # A root that was looked at a moment ago may be answered for from memory.
    breaking(number, number != errno.ENOTCONN)
    with closing(Mover(storage)) as mover:
        for outcomes in (storage.delete(["a/b"]), mover.move([("a/b", "a/c")])):
            with pytest.raises(Replaced, match=os.strerror(number)):
                list(outcomes)


CALLS: dict[str, tuple[str, Callable[[FilesystemStorage], object]]] = {
    "read": ("open", lambda storage: storage.read("a/b")),
    "range": ("open", lambda storage: storage.read_range("a/b", 0, 1)),
    "stat": ("stat", lambda storage: storage.stat("a/b").size),
    "children": ("scandir", lambda storage: storage.children("a/")),
    "list": ("scandir", lambda storage: listed(storage, "a/")),
    "list digests": ("scandir", lambda storage: listed(storage, BLOBS)),
    "open digests": ("open", lambda storage: listed(storage, BLOBS)),
    "stat of a digest": ("stat", lambda storage: listed(storage, BLOBS)),
    "delete": ("unlink", lambda storage: [out.result for out in storage.delete(["a/b"])]),
    "move": ("rename", lambda storage: storage.move("a/b", "c/d")),
    "create": ("link", lambda storage: storage.write("lock", b"1", if_absent=True)),
}


@pytest.fixture
def fails(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Makes calls of the system, on what was made, fail with the numbers given one by one."""
    make(root, "a/b", b"x")
    make(root, f"{BLOBS}{HEX}/data")
    (root / "c").mkdir()
    storage.children("")

    def failing(call: str, *numbers: int) -> None:
        real, left = getattr(os, call), [*numbers]

        def fail(what: Any, *more: Any, **how: Any) -> Any:
            ours = not isinstance(what, str) or what.endswith(
                ("a/b", "a/", BLOBS, "/data", ".tmp", HEX)
            )
            if left and ours:
                raise OSError(left[0], os.strerror(left.pop(0)))
            return real(what, *more, **how)

        monkeypatch.setattr(os, call, fail)

    return failing


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("name", CALLS)
def test_what_fails_in_passing_is_tried_again(
    storage: FilesystemStorage, fails: Callable[..., None], name: str, number: int
) -> None:
    call, ask = CALLS[name]
    usual = None if name in ("delete", "move", "create") else ask(storage)
    fails(call, number, number)
    answer = ask(storage)
    assert answer == ([Deletion.DELETED] if name == "delete" else usual)
    assert 0 < storage.requests.retries <= 2


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("delete", "create")])
def test_what_is_missing_after_it_failed_in_passing_is_not_taken_for_missing(
    storage: FilesystemStorage, fails: Callable[..., None], name: str
) -> None:
    call, ask = CALLS[name]
    fails(call, errno.ESTALE, *[errno.ENOENT] * 9)
    with pytest.raises(StorageError) as caught:
        ask(storage)
    assert not isinstance(caught.value, NotFound)


def test_a_delete_is_not_confirmed_by_what_is_missing_after_it_failed_in_passing(
    storage: FilesystemStorage, fails: Callable[..., None]
) -> None:
    fails("unlink", errno.ETIMEDOUT, errno.ENOENT)
    (outcome,) = storage.delete(["a/b"])
    assert outcome.result is Deletion.FAILED


def test_a_create_or_a_move_whose_answer_was_lost_is_known_by_what_is_there(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root, "a/b", b"x")

    def lose_answer(act: Callable[[str, str], None]) -> Callable[[str, str], None]:
        def acting(source: str, target: str) -> None:
            act(source, target)
            if target.endswith(("lock", "c/d")):
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

        return acting

    monkeypatch.setattr(os, "link", lose_answer(os.link))
    monkeypatch.setattr(os, "rename", lose_answer(os.rename))
    storage.write("lock", b"1", if_absent=True)
    storage.move("a/b", "c/d")
    assert listed(storage) == ["c/d", "lock"]


def test_what_nobody_wants_any_more_is_not_tried_again(
    storage: FilesystemStorage, fails: Callable[..., None]
) -> None:
    fails("unlink", errno.ESTALE)
    with unless_withdrawn(lambda: False):
        (outcome,) = storage.delete(["a/b"])
    assert outcome.result is Deletion.FAILED
    assert storage.requests.retries == 0


def test_deletes_that_fail_one_after_the_other_are_soon_not_tried_again(
    root: Path, storage: FilesystemStorage, fails: Callable[..., None]
) -> None:
    paths = [f"{number}/data" for number in range(100)]
    for path in paths:
        make(root, path)
    fails("unlink", *[errno.ESTALE] * 1000)
    outcomes = list(storage.delete(paths))
    assert {outcome.result for outcome in outcomes} == {Deletion.FAILED}
    assert storage.requests.retries == 3 * 20
