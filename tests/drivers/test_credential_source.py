"""A source of credentials that is slow or gone: asked once for all, and not for nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from registry_drivers.credential_source import CredentialSource
from registry_drivers.errors import Unavailable
from registry_drivers.withdrawal import unless_withdrawn


class Gone(Exception):
    """What a library raises."""


class Slow:
    """Fails, or answers, when it is told to; counts how often it is asked."""

    def __init__(self, answer: Callable[[], str]) -> None:
        self.asked = 0
        self.begun, self.over = threading.Event(), threading.Event()
        self._answer = answer

    def __call__(self) -> str:
        self.asked += 1
        self.begun.set()
        self.over.wait()
        return self._answer()


def fail() -> str:
    raise Gone


def ask_in_threads(source: CredentialSource, slow: Slow, count: int) -> list[str]:
    """What each of *count* threads is told, one of which asks while the others wait."""
    told: list[str] = []
    waiting = threading.Semaphore(0)

    class Turn:
        """The source's own, which tells that somebody is about to wait for it."""

        def __init__(self, lock: threading.Lock) -> None:
            self._lock = lock

        def __enter__(self) -> None:
            waiting.release()
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    source._turn = Turn(source._turn)  # type: ignore[assignment]  # as far as it is used

    def ask() -> None:
        try:
            told.append(source.ask(slow))
        except Gone:
            told.append("gone")

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for _ in threads:
        waiting.acquire()
    slow.over.set()
    for thread in threads:
        thread.join()
    return told


def test_a_failure_is_that_of_all_who_have_waited_for_it() -> None:
    source, slow = CredentialSource("s3"), Slow(fail)
    assert ask_in_threads(source, slow, 8) == ["gone"] * 8
    assert slow.asked == 1
    # Who comes later asks anew.
    assert source.ask(lambda: "keys") == "keys"


def test_what_is_found_is_kept_by_whoever_finds_it() -> None:
    slow = Slow(lambda: "keys")
    assert ask_in_threads(CredentialSource("s3"), slow, 3) == ["keys"] * 3
    assert slow.asked == 3


def test_a_failure_of_this_moment_is_that_of_those_who_wait_elsewhere() -> None:
    now = [100.0]
    source = CredentialSource("s3", lambda: now[0])
    with pytest.raises(Gone):
        source.ask(fail)
    with pytest.raises(Gone):
        source.ask(lambda: "keys", in_line=True)
    now[0] += 10.0
    assert source.ask(lambda: "keys", in_line=True) == "keys"
    with pytest.raises(Gone):
        source.ask(fail)
    assert source.ask(lambda: "keys") == "keys"
    assert source.ask(lambda: "keys", in_line=True) == "keys"


def test_a_source_is_not_asked_for_nobody() -> None:
    slow = Slow(lambda: "keys")
    with unless_withdrawn(lambda: False), pytest.raises(Unavailable, match="not wanted any more"):
        CredentialSource("s3").ask(slow)
    assert slow.asked == 0


def test_whoever_says_whether_it_is_wanted_may_sign_in_for_it() -> None:
    source = CredentialSource("s3")
    with unless_withdrawn(lambda: source.ask(lambda: "keys") == "keys"):
        assert source.ask(lambda: "keys") == "keys"
