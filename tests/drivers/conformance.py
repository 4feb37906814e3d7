"""What every storage driver must do: one suite, run against each of them.

A driver's own test file subclasses :class:`DriverConformance` and gives it a fixture ``storage``
that yields an *empty* storage::

    class TestMyDriver(DriverConformance):
        @pytest.fixture
        def storage(self) -> Iterator[Storage]:
            with closing(open_mine(...)) as storage:
                yield storage

Class attributes say what a storage cannot do, see :class:`DriverConformance`. Objects are made
through the fixture ``put``; when a test ends it deletes them all, and fails when it finds any
that the test did not make (a temporary file, say).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from registry_drivers.base import (
    UNASKED,
    UNASKED_AGE,
    UNKNOWN_MD5,
    Deleter,
    Deletion,
    Entry,
    Page,
    Reader,
    Storage,
    Writer,
    list_among,
    list_unasked,
    stat_each,
    stat_many,
)
from registry_drivers.errors import AlreadyExists, InvalidPath, NotFound, StorageError, TooLarge

BAD_PATHS = ("", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\0b")
BAD_PREFIXES = ("a", "/", "/a/", "a//", "../", "a/../", "./", "a\0/")
# In the order of their UTF-8 bytes; UTF-16 would put the last before the last but one.
ODD_NAMES = ("n/a b+c%2F&=#.txt", "n/ünï/ключ", "n/\ufffd", "n/\U0001f600")
# Clocks differ by seconds; a wrong unit or time zone by an hour at least.
CLOCK_TOLERANCE_SECONDS = 1800.0


class Put:
    """Writes objects and remembers them, so that what nobody made is noticed."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.known: set[str] = set()

    def __call__(self, path: str, data: bytes = b"x", *, if_absent: bool = False) -> None:
        """Write one object."""
        self.known.add(path)
        self.storage.write(path, data, if_absent=if_absent)

    def many(self, paths: Iterable[str], data: bytes = b"x") -> None:
        """Write objects from several threads."""
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda path: self(path, data), paths):
                pass

    def expect(self, *paths: str) -> None:
        """Say that the test made *paths* in some other way."""
        self.known.update(paths)

    def tear_down(self) -> None:
        """Delete everything; fail when there is something that the test did not make."""
        found = paths_of(self.storage.list(""))
        for outcome in self.storage.delete(found):
            assert outcome.result is not Deletion.FAILED, outcome
        assert set(found) <= self.known, "the driver left something behind"
        assert paths_of(self.storage.list("")) == []


def paths_of(pages: Iterable[Page]) -> list[str]:
    """The paths of *pages* in their order."""
    return [path for page in pages for path in page.paths]


def entries_of(pages: Iterable[Page]) -> dict[str, Entry]:
    """The rows of *pages* by path."""
    return {entry.path: entry for page in pages for entry in page.entries()}


class DriverConformance:
    """Subclass it; see the module's docstring.

    ``many``: objects that surely need more than one page (or folder).
    ``tells_gone``: a delete can say that there was nothing to delete; S3 cannot.
    ``leaves_folders``: an object store on top of a file system, which goes on naming folders that
    hold nothing, for a while or for good.
    """

    many = 1100
    tells_gone = True
    leaves_folders = False

    @pytest.fixture
    def put(self, storage: Storage) -> Iterator[Put]:
        """How tests make objects."""
        put = Put(storage)
        yield put
        put.tear_down()

    # --- the types

    def test_it_reads_deletes_and_writes(self, storage: Storage) -> None:
        assert isinstance(storage, Reader)
        assert isinstance(storage, Deleter)
        assert isinstance(storage, Writer)
        assert storage.driver
        assert storage.root
        assert storage.capabilities.delete_batch >= 1
        assert storage.capabilities.workers >= 1
        storage.close()

    def test_requests_are_counted_by_kind(self, storage: Storage, put: Put) -> None:
        def sent(kind: str, work: Callable[[], object]) -> range:
            """How many requests *work* sent, without and with those that were tries again."""
            before = storage.requests.totals()
            work()
            after = storage.requests.totals()
            count = after[kind] - before[kind]
            return range(count - after["retries"] + before["retries"], count + 1)

        assert sent("write", lambda: put("a/b"))[-1] >= 1
        assert 1 in sent("read", lambda: storage.read("a/b"))
        assert 1 in sent("list", lambda: paths_of(storage.list("a/")))
        assert 1 in sent("delete", lambda: list(storage.delete(["a/b"])))

    # --- list

    def test_an_empty_storage_lists_nothing(self, storage: Storage) -> None:
        assert paths_of(storage.list("")) == []
        assert paths_of(storage.list("a/b/")) == []

    def test_a_listing_holds_every_file_at_any_depth(self, storage: Storage, put: Put) -> None:
        made = ["a/1", "a/b/2", "a/b/c/d/e/3", "b/4", "top"]
        put.many(made)
        assert sorted(paths_of(storage.list(""))) == made
        assert sorted(paths_of(storage.list("a/"))) == made[:3]
        assert paths_of(storage.list("a/b/c/")) == ["a/b/c/d/e/3"]

    def test_a_missing_prefix_lists_nothing(self, storage: Storage, put: Put) -> None:
        put("a/1")
        assert paths_of(storage.list("missing/")) == []
        assert paths_of(storage.list("a/missing/deeper/")) == []

    def test_a_prefix_that_names_a_file_lists_nothing(self, storage: Storage, put: Put) -> None:
        put("a/1")
        assert paths_of(storage.list("a/1/")) == []

    def test_a_prefix_is_a_folder_and_no_beginning_of_a_name(
        self, storage: Storage, put: Put
    ) -> None:
        put.many(["a/b/1", "a/bc/1", "a/b.d/1", "a/b-e"])
        assert paths_of(storage.list("a/b/")) == ["a/b/1"]

    def test_a_page_has_columns_of_equal_length(self, storage: Storage, put: Put) -> None:
        for size in (0, 1, 300):
            put(f"a/{size}", b"y" * size)
        pages = list(storage.list("a/"))
        for page in pages:
            assert len(page.paths) == len(page.sizes) == len(page.modified) == len(page)
            assert page.md5s is None or len(page.md5s) == len(page)
            assert page.shared is None or len(page.shared) == len(page)
            assert page.sizes.dtype == "int64"
            assert page.modified.dtype == "float64"
        rows = entries_of(pages)
        assert {path: row.size for path, row in rows.items()} == {"a/0": 0, "a/1": 1, "a/300": 300}
        assert not any(row.shared for row in rows.values())

    def test_times_are_in_seconds_by_the_storages_clock(self, storage: Storage, put: Put) -> None:
        put("a/b")
        now = storage.now()
        row = entries_of(storage.list("a/"))["a/b"]
        assert abs(row.modified - now) < CLOCK_TOLERANCE_SECONDS
        assert abs(storage.stat("a/b").modified - row.modified) < 2

    def test_a_listed_md5_is_that_of_the_content(self, storage: Storage, put: Put) -> None:
        contents = {f"a/{n}": os.urandom(n) for n in (0, 7, 71)}
        for path, data in contents.items():
            put(path, data)
        for page in storage.list("a/"):
            if page.md5s is not None:
                for path, md5 in zip(page.paths, page.md5s, strict=True):
                    expected = hashlib.md5(contents[path]).digest()
                    assert md5.tobytes() in (UNKNOWN_MD5, expected)
        for path, data in contents.items():
            assert storage.stat(path).md5 in (None, hashlib.md5(data).digest())

    def test_odd_names_survive(self, storage: Storage, put: Put) -> None:
        for name in ODD_NAMES:
            put(name, name.encode())
        assert sorted(paths_of(storage.list("n/"))) == sorted(ODD_NAMES)
        for name in ODD_NAMES:
            assert storage.read(name) == name.encode()
            assert storage.stat(name).path == name
        assert storage.children("n/ünï/").files == ("ключ",)
        outcomes = list(storage.delete(ODD_NAMES))
        assert {outcome.path for outcome in outcomes} == set(ODD_NAMES)
        assert paths_of(storage.list("n/")) == []

    def test_a_listing_is_in_the_order_of_the_paths_utf8_bytes(
        self, storage: Storage, put: Put
    ) -> None:
        put.many([*ODD_NAMES, "a/b", "a-b", "a0"])
        found = paths_of(storage.list(""))
        assert len(found) == len(ODD_NAMES) + 3
        if storage.capabilities.seekable:
            assert found == sorted(found, key=str.encode)
        else:
            # SeaweedFS lists folder by folder, which is nobody's order of bytes.
            assert sorted(found) == sorted([*ODD_NAMES, "a/b", "a-b", "a0"])

    def test_many_objects_come_once_each_over_several_pages(
        self, storage: Storage, put: Put
    ) -> None:
        made = [f"many/{n % 3}/{n:05}" for n in range(self.many)]
        put.many(made)
        found = paths_of(storage.list("many/"))
        assert len(found) == len(made)
        assert set(found) == set(made)
        assert len(storage.children("many/1/").files) == len(range(1, self.many, 3))
        middle = sorted(made)[len(made) // 2]
        rest = paths_of(storage.list("many/", start_after=middle))
        assert sorted(rest) == sorted(made)[len(made) // 2 + 1 :]

    @pytest.mark.parametrize(
        ("bound", "expected"),
        [
            ("p/", ["p/a", "p/b/1", "p/b/2", "p/c"]),
            ("p/a", ["p/b/1", "p/b/2", "p/c"]),
            ("p/b/1", ["p/b/2", "p/c"]),
            ("p/b/", ["p/b/1", "p/b/2", "p/c"]),
            ("p/c", []),
            ("z", []),
            ("a", ["p/a", "p/b/1", "p/b/2", "p/c"]),
        ],
    )
    def test_a_listing_starts_after_a_bound(
        self, storage: Storage, put: Put, bound: str, expected: list[str]
    ) -> None:
        put.many(["p/a", "p/b/1", "p/b/2", "p/c", "q/d"])
        assert sorted(paths_of(storage.list("p/", start_after=bound))) == expected

    def test_a_listing_that_is_not_read_to_its_end_harms_nobody(
        self, storage: Storage, put: Put
    ) -> None:
        put.many(f"a/{n}/f" for n in range(20))
        for _ in range(3):
            next(iter(storage.list("a/")))
        assert len(paths_of(storage.list("a/"))) == 20

    @pytest.mark.parametrize("prefix", BAD_PREFIXES)
    def test_a_malformed_prefix_is_refused(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(InvalidPath):
            list(storage.list(prefix))
        with pytest.raises(InvalidPath):
            storage.children(prefix)

    # --- children

    def test_children_are_the_sorted_names_directly_below(self, storage: Storage, put: Put) -> None:
        put.many(["a/z", "a/y", "a/d/1", "a/c/deep/2", "ab/no", "top"])
        assert storage.children("a/").folders == ("c", "d")
        assert storage.children("a/").files == ("y", "z")
        assert storage.children("").folders == ("a", "ab")
        assert storage.children("").files == ("top",)

    def test_a_missing_folder_has_no_children(self, storage: Storage, put: Put) -> None:
        put("a/b")
        for prefix in ("missing/", "a/b/", "a/missing/deeper/"):
            children = storage.children(prefix)
            assert children.folders == ()
            assert children.files == ()

    # --- read and stat

    @pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_001])
    def test_what_was_written_is_read(self, storage: Storage, put: Put, size: int) -> None:
        data = os.urandom(size)
        put("a/b", data)
        assert storage.read("a/b") == data
        assert storage.stat("a/b").size == size

    def test_a_range_is_what_lies_there_and_ends_with_the_object(
        self, storage: Storage, put: Put
    ) -> None:
        put("a/ten", b"0123456789")
        put("a/empty", b"")
        assert storage.read_range("a/ten", 0, 10) == b"0123456789"
        assert storage.read_range("a/ten", 3, 4) == b"3456"
        assert storage.read_range("a/ten", 9, 100) == b"9"
        assert storage.read_range("a/ten", 10, 1) == b""
        assert storage.read_range("a/empty", 0, 1) == b""
        with pytest.raises(NotFound):
            storage.read_range("a/none", 0, 1)

    def test_a_limit_is_in_bytes_and_inclusive(self, storage: Storage, put: Put) -> None:
        put("a/empty", b"")
        put("a/ten", b"0123456789")
        assert storage.read("a/empty", limit=0) == b""
        assert storage.read("a/ten", limit=10) == b"0123456789"
        assert storage.read("a/ten", limit=10_000) == b"0123456789"
        with pytest.raises(TooLarge) as caught:
            storage.read("a/ten", limit=9)
        assert caught.value.path.endswith("a/ten")
        with pytest.raises(TooLarge):
            storage.read("a/ten", limit=0)

    @pytest.mark.parametrize("path", ["missing", "a/missing", "a", "a/b/c"])
    def test_what_is_not_there_is_not_found(self, storage: Storage, put: Put, path: str) -> None:
        put("a/b")
        with pytest.raises(NotFound) as caught:
            storage.read(path)
        assert path in str(caught.value)
        assert storage.driver in str(caught.value)
        with pytest.raises(NotFound):
            storage.read(path, limit=5)
        with pytest.raises(NotFound):
            storage.stat(path)

    def test_many_files_are_told_as_each_of_them_is(self, storage: Storage, put: Put) -> None:
        for path in ("a/b", "a/c/d", "a/c/e", *ODD_NAMES):
            put(path, path.encode())
        there = ["a/b", "a/c/e", "a/c/d", *ODD_NAMES, "a/b"]
        assert stat_many(storage, there) == [storage.stat(path) for path in there]
        some = ["a/c/d", "a/c", "a/missing", "a/b/c", "a/c/e", "a"]
        found = stat_many(storage, some)
        assert found == stat_each(storage, some)
        assert [entry is not None for entry in found] == [True, False, False, False, True, False]
        assert stat_many(storage, []) == []
        assert stat_many(storage, ["missing/a", "missing/b"]) == [None, None]

    @pytest.mark.parametrize("kind", ["_layers", "_manifests/tags/t/index"])
    def test_links_may_be_told_by_name_and_asked_for_later(
        self, storage: Storage, put: Put, kind: str
    ) -> None:
        repository = "docker/registry/v2/repositories/r/"
        head = f"{repository}{kind}/"
        names = [f"{number:02x}" * 32 for number in (7, 200, 31)]
        layers = [f"{head}sha256/{name}/link" for name in sorted(names)]
        others = [f"{head}sha512/{'ab' * 64}/link", f"{repository}_uploads/x/data"]
        others.append(f"{repository}_manifests/tags/t/current/link")
        for path in (*layers, *others):
            put(path, path.encode())
        listed = {entry.path: entry for page in storage.list("") for entry in page.entries()}
        told = [entry for page in list_unasked(storage, "") for entry in page.entries()]
        assert [entry.path for entry in told] == list(listed)
        for entry in told:
            if entry.size == UNASKED:
                assert (entry.path in layers, entry.modified) == (True, UNASKED_AGE)
            else:
                assert entry == listed[entry.path]
        some = [*sorted(names[:2]), "ff" * 32]
        pages = [*list_among(storage, [(f"{head}sha256/", some)])]
        assert [entry for page in pages for entry in page.entries()] == [
            listed[path] for path in layers if path.split("/")[-2] in some
        ]
        assert not [
            page for page in list_among(storage, [(f"missing/{kind}/sha256/", some)]) if page
        ]
        assert not [page for page in list_unasked(storage, "missing/") if len(page)]

    @pytest.mark.parametrize("path", BAD_PATHS)
    def test_a_malformed_path_is_refused(self, storage: Storage, path: str) -> None:
        for call in (
            lambda: storage.read(path),
            lambda: storage.stat(path),
            lambda: stat_many(storage, [path]),
            lambda: stat_many(storage, ["x", path, "x"]),
            lambda: storage.write(path, b""),
            lambda: storage.move(path, "a"),
            lambda: storage.move("a", path),
        ):
            with pytest.raises(InvalidPath):
                call()

    def test_errors_cross_process_borders(self, storage: Storage) -> None:
        with pytest.raises(StorageError) as caught:
            storage.read("missing")
        again = pickle.loads(pickle.dumps(caught.value))
        assert type(again) is NotFound
        assert str(again) == str(caught.value)
        assert again.path == caught.value.path

    def test_many_threads_may_ask_at_once(self, storage: Storage, put: Put) -> None:
        made = {f"a/{n % 4}/{n}": os.urandom(50) for n in range(40)}
        for path, data in made.items():
            put(path, data)

        def ask(path: str) -> bool:
            return storage.read(path) == made[path] and len(paths_of(storage.list("a/"))) == 40

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, made))

    # --- write and move

    def test_a_write_replaces_what_is_there(self, storage: Storage, put: Put) -> None:
        put("a/b", b"a long first content")
        put("a/b", b"second")
        assert storage.read("a/b") == b"second"
        assert entries_of(storage.list("a/"))["a/b"].size == 6

    def test_a_conditional_write_replaces_nothing(self, storage: Storage, put: Put) -> None:
        put("a/b", b"first", if_absent=True)
        with pytest.raises(AlreadyExists) as caught:
            put("a/b", b"second", if_absent=True)
        assert caught.value.path.endswith("a/b")
        assert storage.read("a/b") == b"first"
        list(storage.delete(["a/b"]))
        put("a/b", b"third", if_absent=True)
        assert storage.read("a/b") == b"third"

    def test_of_racing_conditional_writes_exactly_one_wins(
        self, storage: Storage, put: Put
    ) -> None:
        racers = 8
        barrier = Barrier(racers)

        def race(number: int) -> int | None:
            barrier.wait(30)
            try:
                put("race/lock", b"%d" % number * 1000, if_absent=True)
            except AlreadyExists:
                return None
            return number

        with ThreadPoolExecutor(racers) as pool:
            winners = [number for number in pool.map(race, range(racers)) if number is not None]
        assert len(winners) == 1
        assert storage.read("race/lock") == b"%d" % winners[0] * 1000

    def test_a_move_gives_an_object_another_path(self, storage: Storage, put: Put) -> None:
        put("a/b", b"content")
        put.expect("c/d/e")
        storage.move("a/b", "c/d/e")
        assert paths_of(storage.list("")) == ["c/d/e"]
        assert storage.read("c/d/e") == b"content"

    def test_a_move_replaces_its_target(self, storage: Storage, put: Put) -> None:
        put("a", b"new")
        put("b", b"old")
        storage.move("a", "b")
        assert storage.read("b") == b"new"
        assert paths_of(storage.list("")) == ["b"]

    def test_a_move_of_nothing_is_not_found_and_changes_nothing(
        self, storage: Storage, put: Put
    ) -> None:
        put("b", b"old")
        with pytest.raises(NotFound):
            storage.move("missing", "b")
        assert storage.read("b") == b"old"

    def test_a_move_onto_itself_loses_nothing(self, storage: Storage, put: Put) -> None:
        put("a", b"content")
        storage.move("a", "a")
        assert storage.read("a") == b"content"

    # --- delete

    def test_a_delete_tells_what_became_of_each_path(self, storage: Storage, put: Put) -> None:
        put.many(["a/1", "a/2", "a/3"])
        outcomes = list(storage.delete(["a/1", "a/missing", "a/3"]))
        results = {outcome.path: outcome.result for outcome in outcomes}
        assert len(outcomes) == 3
        assert results["a/1"] is Deletion.DELETED
        assert results["a/3"] is Deletion.DELETED
        if self.tells_gone:
            assert results["a/missing"] is Deletion.GONE_ALREADY
        else:
            assert results["a/missing"] is not Deletion.FAILED
        assert paths_of(storage.list("")) == ["a/2"]

    def test_deleting_nothing_asks_for_nothing(self, storage: Storage) -> None:
        before = storage.requests.totals()
        assert list(storage.delete([])) == []
        assert storage.requests.totals() == before

    def test_a_path_twice_in_a_batch_has_two_outcomes(self, storage: Storage, put: Put) -> None:
        put("a/1")
        outcomes = list(storage.delete(["a/1", "a/1"]))
        assert [outcome.path for outcome in outcomes] == ["a/1", "a/1"]
        results = sorted(outcome.result.name for outcome in outcomes)
        assert results == ["DELETED", "GONE_ALREADY"] or (
            not self.tells_gone and results == ["DELETED", "DELETED"]
        )

    def test_a_delete_never_takes_what_lies_below(self, storage: Storage, put: Put) -> None:
        put("a/b/c")
        (outcome,) = storage.delete(["a/b"])
        if storage.capabilities.folders:
            assert outcome.result is Deletion.FAILED
            assert outcome.error
        assert paths_of(storage.list("")) == ["a/b/c"]

    def test_a_delete_over_several_batches_has_every_outcome(
        self, storage: Storage, put: Put
    ) -> None:
        put.many(f"a/{n}" for n in range(10))
        batch = storage.capabilities.delete_batch
        missing = (f"missing/{n}" for n in range(batch))
        paths = [f"a/{n}" for n in range(5)] + list(missing) + [f"a/{n}" for n in range(5, 10)]
        outcomes = list(storage.delete(iter(paths)))
        assert sorted(outcome.path for outcome in outcomes) == sorted(paths)
        assert paths_of(storage.list("")) == []

    def test_a_delete_takes_one_batch_at_a_time(self, storage: Storage, put: Put) -> None:
        put.many(["a/0", "a/last"])
        batch = storage.capabilities.delete_batch
        taken = 0

        def paths() -> Iterator[str]:
            nonlocal taken
            for number in itertools.chain(range(3 * batch), ["last"]):
                taken += 1
                yield f"a/{number}"

        outcomes = iter(storage.delete(paths()))
        assert taken == 0
        next(outcomes)
        assert taken <= batch
        del outcomes
        assert paths_of(storage.list("")) == ["a/last"]

    @pytest.mark.parametrize("path", BAD_PATHS)
    def test_a_malformed_path_is_not_deleted_and_others_are(
        self, storage: Storage, put: Put, path: str
    ) -> None:
        put.many(["a/b", "a/c"])
        outcomes = {outcome.path: outcome for outcome in storage.delete(["a/b", path, "a/c"])}
        assert outcomes[path].result is Deletion.FAILED
        assert outcomes[path].error
        assert outcomes["a/b"].result is outcomes["a/c"].result is Deletion.DELETED

    def test_folders_that_hold_something_stay(self, storage: Storage, put: Put) -> None:
        put("a/b/c")
        assert storage.remove_folders(["a/b", "a"], floor="") == 0
        assert paths_of(storage.list("")) == ["a/b/c"]

    def test_emptied_folders_go_upwards_to_the_floor(self, storage: Storage, put: Put) -> None:
        put.many(["r/a/b/c/1", "r/d/2"])
        list(storage.delete(["r/a/b/c/1"]))
        gone = storage.remove_folders(["r/a/b/c"], floor="r/")
        assert gone == (3 if storage.capabilities.folders else 0)
        left = storage.children("r/").folders
        assert left == ("d",) or (self.leaves_folders and left == ("a", "d"))
        list(storage.delete(["r/d/2"]))
        storage.remove_folders(["r/d", "r/missing/deep"], floor="r/")
        left = storage.children("").folders
        assert left == (("r",) if storage.capabilities.folders or self.leaves_folders else ())
