"""Collections from object stores that throttle, refuse or break: the same end, or nothing lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote

import pytest

from registry_gc.locking import contest
from registry_tree import blob_path
from running import Result
from servers.fault_proxy import Answer, Broken, Cut, Fault, FaultProxy, Lost, Request
from stores import (
    Place,
    Servers,
    a_bit_of_everything,
    collect,
    is_delete,
    is_listing,
    keys_of,
    own_keys,
    proxied,
    store,
    without_pauses,
)

SLOW_DOWN = Answer(503, b"<Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>")
FAULTS: tuple[Fault, ...] = (SLOW_DOWN, Answer(500), Answer(429), Broken(), Cut(), Lost())
NOT_IMPLEMENTED = Answer(
    501,
    b"<Error><Code>NotImplemented</Code><Message>A header you provided implies functionality that"
    b" is not implemented</Message></Error>",
)
DENIED = b"<Error><Code>AccessDenied</Code><Message>Not yours.</Message></Error>"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp)


@pytest.fixture(params=["s3", "gcs", "azure"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try as often as ever, without a pause."""
    without_pauses(monkeypatch)


@pytest.fixture
def direct(servers: Servers, kind: str) -> Place:
    place = servers.place(kind)
    store(place, a_bit_of_everything())
    return place


def one_in_ten(seed: int) -> Callable[[Request], Fault | None]:
    """A rule by which a tenth of all requests fails, each kind of failure as often."""
    chance, guard = random.Random(seed), threading.Lock()

    def rule(_: Request) -> Fault | None:
        with guard:
            return chance.choice(FAULTS) if chance.random() < 0.1 else None

    return rule


def run(
    place: Place, folder: Path, rule: Callable[[Request], Fault | None], *arguments: str
) -> tuple[Result, FaultProxy]:
    """Collect through a proxy with *rule*."""
    with proxied(place) as (behind, proxy):
        proxy.rule = rule
        return collect(behind, folder, *arguments), proxy


def test_a_store_that_fails_now_and_then_ends_as_one_that_does_not(
    servers: Servers, kind: str, direct: Place, tmp_path: Path
) -> None:
    calm = servers.place(kind)
    store(calm, a_bit_of_everything())
    (tmp_path / "calm").mkdir()
    expected = collect(calm, tmp_path / "calm", "-m")
    result, proxy = run(direct, tmp_path, one_in_ten(1), "-m")
    assert keys_of(direct) == keys_of(calm)
    assert result.exit_code == expected.exit_code == 3
    for name in ("held", "damaged", "failed", "marked", "strangers"):
        assert result.json[name] == expected.json[name]
    for name in ("blobs", "manifests", "layer_links", "uploads"):
        assert result.json[name]["eligible"] == expected.json[name]["eligible"]
    # Tries again are requests, too.
    assert sum(result.json["requests"].values()) == len(proxy.requests)
    assert len(proxy.requests) > sum(expected.json["requests"].values())


@pytest.mark.parametrize("options", [["-m"], ["-m", "--quarantine", "7d"]], ids=" ".join)
def test_a_store_that_takes_no_writes_with_a_condition_is_collected(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(contest, "SETTLE_SECONDS", 0.05)
    place, calm = servers.place("s3"), servers.place("s3")
    for one in (place, calm):
        store(one, a_bit_of_everything())
    (tmp_path / "calm").mkdir()
    expected = collect(calm, tmp_path / "calm", *options)
    refused: list[Request] = []

    def rule(request: Request) -> Fault | None:
        if request.method != "PUT" or not {"if-none-match", "if-match"} & request.headers.keys():
            return None
        refused.append(request)
        return NOT_IMPLEMENTED

    result, _ = run(place, tmp_path, rule, *options)
    assert len(refused) == 1
    assert result.exit_code == expected.exit_code == 3
    assert result.json["blobs"] == expected.json["blobs"]
    assert result.json["blobs"]["eligible"] > 0
    assert "the claims of runs are listed instead" in result.errors
    if len(options) == 1:
        assert keys_of(place) == keys_of(calm)


@pytest.mark.parametrize("fault", [SLOW_DOWN, Answer(403, DENIED), Broken()])
def test_a_listing_that_fails_for_good_deletes_nothing(
    direct: Place, tmp_path: Path, fault: Fault
) -> None:
    before = keys_of(direct)

    def rule(request: Request) -> Fault | None:
        return fault if is_listing(request) and "blobs/" in unquote(request.path) else None

    result, proxy = run(direct, tmp_path, rule, "-m")
    assert result.exit_code == 1
    (line,) = result.errors.splitlines()
    assert line.startswith("error: ")
    # Only the lock is removed.
    assert sum(map(is_delete, proxy.requests)) == 1
    assert keys_of(direct) == before
    assert not own_keys(keys_of(direct))


OTHER_REGION = Answer(301, b"", {"x-amz-bucket-region": "eu-north-1"})


@pytest.mark.parametrize("kind", ["s3"], indirect=True)
@pytest.mark.parametrize("arguments", [("-m",), ("-m", "--dry-run")])
def test_a_region_that_the_first_answer_says_is_wrong_is_a_config_error(
    direct: Place, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    result, _ = run(direct, tmp_path, lambda _: OTHER_REGION, *arguments)
    assert result.exit_code == 2
    assert result.json == {}
    (line,) = result.errors.splitlines()
    assert "storage.s3.region: the bucket is in eu-north-1" in line


@pytest.mark.parametrize("kind", ["s3"], indirect=True)
def test_a_region_that_is_said_to_be_wrong_later_ends_a_run_that_has_begun(
    direct: Place, tmp_path: Path
) -> None:
    def rule(request: Request) -> Fault | None:
        return OTHER_REGION if is_listing(request) and "blobs/" in unquote(request.path) else None

    result, _ = run(direct, tmp_path, rule, "-m")
    assert result.exit_code == result.json["exit_code"] == 1


def test_a_manifest_that_cannot_be_read_deletes_nothing(direct: Place, tmp_path: Path) -> None:
    before = keys_of(direct)

    def rule(request: Request) -> Fault | None:
        path = unquote(request.path)
        return Answer(403, DENIED) if "/blobs/" in path and not is_listing(request) else None

    result, _ = run(direct, tmp_path, rule, "-m")
    assert result.exit_code == 1
    assert keys_of(direct) == before


def test_a_delete_that_is_denied_is_told_with_the_stores_reason(
    servers: Servers, tmp_path: Path
) -> None:
    place = servers.place("s3")
    store(place, a_bit_of_everything())
    dead = blob_path("sha256:" + "0" * 64)

    def rule(request: Request) -> Fault | None:
        nonlocal dead
        if not is_delete(request) or b"/blobs/" not in request.body:
            return None
        keys = [part.partition(b"</Key>")[0] for part in request.body.split(b"<Key>")[1:]]
        dead = keys[0].decode()
        deleted = b"".join(b"<Deleted><Key>%s</Key></Deleted>" % key for key in keys[1:])
        told = b"<Code>AccessDenied</Code><Message>a policy says no</Message>"
        error = b"<Error><Key>%s</Key>%s</Error>" % (keys[0], told)
        return Answer(200, b"<DeleteResult>%s%s</DeleteResult>" % (deleted, error))

    result, _ = run(place, tmp_path, rule, "-m")
    assert result.exit_code == 3
    assert result.json["failed"] == [{"path": dead, "error": "AccessDenied: a policy says no"}]
    blobs = result.json["blobs"]
    assert blobs["deleted"] == blobs["eligible"] - 1


def test_deletes_that_are_all_denied_leave_everything_and_say_so(
    kind: str, direct: Place, tmp_path: Path
) -> None:
    before = keys_of(direct)
    result, _ = run(
        direct, tmp_path, lambda seen: Answer(403, DENIED) if is_delete(seen) else None, "-m"
    )
    assert result.exit_code == 3
    assert result.json["failed"]
    assert all("403" in row["error"] for row in result.json["failed"])
    if kind == "s3":
        said = "DeleteObjects: AccessDenied: Not yours. (HTTP 403); it needs s3:DeleteObject"
        assert said in {row["error"] for row in result.json["failed"]}
    assert keys_of(direct) - own_keys(keys_of(direct)) == before
