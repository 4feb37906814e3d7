"""A store that is overloaded says for how long it wants to be left alone, and is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from drivers.conformance import paths_of
from drivers.test_object_store_listings import PAGES, opened
from registry_drivers.base import Requests
from registry_drivers.errors import Unavailable
from registry_drivers.retry import Retry
from registry_drivers.web import Answer as Heard
from servers.fault_proxy import Answer, FaultProxy, stub

NOON = "Tue, 02 Jan 2024 12:00:00 GMT"


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (503, {"retry-after": "7"}, 7.0),
        (429, {"retry-after": " 7 "}, 7.0),
        (503, {"retry-after": "Tue, 02 Jan 2024 12:01:30 GMT", "date": NOON}, 90.0),
        (503, {"retry-after": "Tue, 02 Jan 2024 11:00:00 GMT", "date": NOON}, 0.0),
        (503, {"retry-after": NOON}, 0.0),
        (503, {"retry-after": "-7"}, 0.0),
        (503, {"retry-after": "soon"}, 0.0),
        (503, {"retry-after": "9" * 400}, 0.0),
        (503, {}, 0.0),
        (200, {"retry-after": "7"}, 0.0),
        (500, {"retry-after": "7"}, 0.0),
    ],
)
def test_what_a_server_asks_for(status: int, headers: dict[str, str], seconds: float) -> None:
    assert Heard(status, headers, b"").wait == seconds


@pytest.fixture
def server() -> Iterator[FaultProxy]:
    with stub(lambda _: Answer(404)) as server:
        yield server


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("kind", list(PAGES))
def test_a_store_is_left_alone_for_as_long_as_it_asks(
    kind: str, status: int, server: FaultProxy
) -> None:
    busy = Answer(status, headers={"Retry-After": "3600"})
    answers = iter([busy, PAGES[kind]([b"a/1"])])
    pauses: list[float] = []
    with closing(opened(kind, server)) as storage:
        storage.retry = Retry(times=2, first=0.001, longest=1000.0, sleep=pauses.append)
        server.rule = lambda _: next(answers)
        assert paths_of(storage.list("a/")) == ["a/1"]
    # Up to the longest of all pauses, but for what has passed since.
    (pause,) = pauses
    assert 500 < pause <= 1000.1


def test_a_pause_that_is_longer_anyway_stays_as_it_is() -> None:
    pauses: list[float] = []
    answers = iter([False, False, True])

    def work() -> None:
        if not next(answers):
            raise Unavailable("busy")

    Retry(first=1000.0, longest=1000.0, sleep=pauses.append).call(work, Requests(), lambda: -5.0)
    assert len(pauses) == 2
    assert max(pauses) <= 1000.0
