"""The storage that fails on purpose does what each fault says, and nothing worse."""

from __future__ import annotations

import pytest

from drivers.conformance import DriverConformance, paths_of
from registry_drivers.base import Deletion, Storage
from registry_drivers.errors import StorageError, Unavailable
from registry_drivers.faulty import Fault, Faulty
from registry_drivers.memory import MemoryStorage


class TestFaultyAtRest(DriverConformance):
    many = 30

    @pytest.fixture
    def storage(self) -> Storage:
        return Faulty(MemoryStorage(page_size=7), 1, 0.0, Fault)


@pytest.fixture
def memory() -> MemoryStorage:
    storage = MemoryStorage(now=lambda: 1000.0, page_size=2)
    for number in range(6):
        storage.put(f"a/{number}", b"12345678", modified=100.0 * number)
    return storage


def always(memory: MemoryStorage, *kinds: Fault, young: float = 0.0) -> Faulty:
    return Faulty(memory, 1, 1.0, kinds, young=young, sleep=lambda _: None)


@pytest.mark.parametrize(
    ("fault", "kind"), [(Fault.UNAVAILABLE, Unavailable), (Fault.ERROR, StorageError)]
)
def test_a_fault_comes_before_anything_is_done(
    memory: MemoryStorage, fault: Fault, kind: type[StorageError]
) -> None:
    faulty = always(memory, fault)
    before = memory.snapshot()
    for call in (
        lambda: list(faulty.list("a/")),
        lambda: faulty.children("a/"),
        lambda: faulty.read("a/1"),
        lambda: faulty.stat("a/1"),
        lambda: faulty.stat_many(["a/1"]),
        lambda: list(faulty.delete(["a/1"])),
        lambda: faulty.remove_folders(["a"], floor=""),
        lambda: faulty.write("a/9", b""),
        lambda: faulty.move("a/1", "a/9"),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert type(caught.value) is kind
    assert memory.snapshot() == before
    assert faulty.struck[fault] == 9


def test_a_lost_answer_comes_after_the_work(memory: MemoryStorage) -> None:
    faulty = always(memory, Fault.LOST_ANSWER)
    with pytest.raises(Unavailable):
        faulty.write("b", b"")
    with pytest.raises(Unavailable):
        faulty.move("b", "c")
    with pytest.raises(Unavailable):
        list(faulty.delete(["a/1"]))
    assert "c" in memory.snapshot()
    assert "a/1" not in memory.snapshot()


def test_a_truncated_read_is_a_beginning(memory: MemoryStorage) -> None:
    assert always(memory, Fault.TRUNCATED).read("a/1") == b"1234"


def test_a_slow_call_sleeps_the_way_it_was_told(memory: MemoryStorage) -> None:
    slept: list[float] = []
    Faulty(memory, 1, 1.0, [Fault.SLOW], sleep=slept.append).read("a/1")
    assert slept == [1.0]


def test_a_listing_hides_only_what_is_young(memory: MemoryStorage) -> None:
    faulty = always(memory, Fault.HIDDEN_YOUNG, young=700.0)
    assert paths_of(faulty.list("a/")) == ["a/0", "a/1", "a/2", "a/3"]


def test_a_delete_fails_or_only_says_so(memory: MemoryStorage) -> None:
    (outcome,) = always(memory, Fault.NOT_DELETED).delete(["a/1"])
    assert outcome.result is Deletion.FAILED
    assert "a/1" in memory.snapshot()
    (outcome,) = always(memory, Fault.DELETED_UNSAID).delete(["a/1"])
    assert outcome.result is Deletion.FAILED
    assert "a/1" not in memory.snapshot()


def test_the_same_seed_fails_in_the_same_places() -> None:
    def run(seed: int) -> list[bool]:
        memory = MemoryStorage()
        memory.put("a", b"")
        faulty = Faulty(memory, seed, 0.3, [Fault.UNAVAILABLE])
        failed = []
        for _ in range(100):
            try:
                faulty.read("a")
            except Unavailable:
                failed.append(True)
            else:
                failed.append(False)
        return failed

    assert run(1) == run(1) != run(2)
    assert 10 < sum(run(1)) < 50
