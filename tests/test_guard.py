"""The guard: what allows a run, what refuses it, and what the storage says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guarding import PROBE, READ_ONLY, WRITABLE, Reply, check, closed, codes, config, serving
from registry_drivers.errors import Unavailable
from registry_drivers.memory import MemoryStorage
from registry_gc.config import HttpConfig, load_config
from registry_gc.guard import Guard, GuardOptions

LOCKFILES = "docker/registry/lockfiles"


# --- the two ways to be allowed


def test_a_readonly_config_and_a_readonly_answer_allow() -> None:
    with serving(READ_ONLY) as server:
        verdict = check(config(server.addr))
    assert verdict.allowed
    assert codes(verdict) == ["readonly-confirmed"]
    assert [(seen.method, seen.path) for seen in server.seen] == [("OPTIONS", PROBE)]


def test_a_readonly_config_and_a_refused_connection_allow() -> None:
    address = closed()
    verdict = check(config(address))
    assert verdict.allowed
    assert codes(verdict) == ["nobody-answered"]
    (said,) = verdict.notes
    assert f"config.yml says read-only, and nobody answers at http://{address}; " in said
    assert "--registry-url" in said
    assert "--registry-stopped" in said


def test_one_address_that_answers_read_only_is_a_confirmation() -> None:
    with serving(READ_ONLY) as server:
        verdict = check(config(closed()), urls=(server.url,))
    assert verdict.allowed
    assert codes(verdict) == ["readonly-confirmed"]
    assert "refuses the connection" in verdict.findings[0].message
    assert verdict.notes == []


def test_that_nobody_answers_lifts_nothing_else() -> None:
    verdict = check(replace(config(closed()), database="on"))
    assert (verdict.verdict, codes(verdict)) == ("refused", ["database-in-use", "nobody-answered"])
    assert codes(check(config(closed()), assume=True)) == ["assume-readonly", "nobody-answered"]
    assert codes(check(config(closed()), stopped=True)) == ["stopped-confirmed"]


def test_a_stopped_registry_that_refuses_the_connection_allows() -> None:
    verdict = check(config(closed(), readonly=False), stopped=True)
    assert verdict.allowed
    assert codes(verdict) == ["stopped-confirmed"]


@pytest.mark.parametrize(("readonly", "stopped"), [(True, False), (False, True)])
def test_without_any_address_the_word_is_enough(readonly: bool, stopped: bool) -> None:
    verdict = check(config(readonly=readonly), stopped=stopped)
    assert verdict.allowed
    assert codes(verdict) == ["nothing-to-probe"]


def test_a_stopped_registry_that_answers_read_only_by_config_too_is_allowed() -> None:
    with serving(READ_ONLY) as server:
        assert check(config(server.addr), stopped=True).allowed


@pytest.mark.parametrize(
    ("timeout", "drains"),
    [
        ("60s", True),
        ("1", True),
        ("0.5s", True),
        ("0", False),
        ("0s", False),
        ("-3s", False),
        ("", False),
        ("later", False),
    ],
)
def test_a_stopped_registry_that_may_drain_is_allowed_and_told_of(
    tmp_path: Path, timeout: str, drains: bool
) -> None:
    file = tmp_path / "config.yml"
    file.write_text(
        "version: 0.1\nstorage: {inmemory: {}}\n"
        f"http: {{addr: '{closed()}', draintimeout: {timeout}}}\n"
    )
    for made in (load_config(str(file), {}), replace(config(), http=HttpConfig(drains=drains))):
        verdict = check(made, stopped=True)
        assert verdict.allowed
        assert ("http.draintimeout" in verdict.findings[0].message) is drains
        assert "http.draintimeout" not in str(check(replace(made, readonly=True)))


# --- what refuses


def test_a_writable_config_refuses_whatever_answers() -> None:
    verdict = check(config(readonly=False))
    assert (verdict.verdict, codes(verdict)) == ("refused", ["writable-config"])
    with serving(READ_ONLY) as server:
        verdict = check(config(server.addr, readonly=False))
    assert (verdict.verdict, codes(verdict)) == ("refused", ["writable-config"])


def test_a_registry_that_takes_writes_refuses() -> None:
    with serving(WRITABLE) as server:
        verdict = check(config(server.addr))
    assert (verdict.verdict, codes(verdict)) == ("refused", ["registry-writable"])


@pytest.mark.parametrize("method", ["POST", "put", "PATCH", "DELETE"])
def test_one_writing_method_is_enough_in_any_of_several_headers(method: str) -> None:
    with serving((204, [("Allow", "GET, HEAD"), ("allow", f"OPTIONS,{method}")])) as server:
        assert codes(check(config(server.addr))) == ["registry-writable"]


def test_every_address_counts() -> None:
    with serving(READ_ONLY) as one, serving(WRITABLE) as two:
        verdict = check(config(one.addr), urls=(one.url, two.url))
        assert codes(verdict) == ["registry-writable"]
        assert two.addr in verdict.findings[0].message
        assert check(config(one.addr), urls=(one.url, f"http://{closed()}")).allowed


@pytest.mark.parametrize("reply", [READ_ONLY, (401, []), (502, []), (404, [])])
def test_a_registry_that_is_said_to_be_stopped_and_answers_refuses(reply: Reply) -> None:
    with serving(reply) as server:
        verdict = check(config(server.addr, readonly=False), stopped=True)
    assert (verdict.verdict, codes(verdict)) == ("refused", ["registry-answers"])


def test_a_stopped_registry_must_refuse_at_every_address() -> None:
    with serving(READ_ONLY) as server:
        verdict = check(config(closed(), readonly=False), urls=(server.url,), stopped=True)
    assert codes(verdict) == ["registry-answers"]


# --- what the storage says


def storage(*paths: str) -> MemoryStorage:
    made = MemoryStorage()
    for path in paths:
        made.put(path, b"")
    return made


def test_a_pull_through_cache_refuses_and_nothing_lifts_it() -> None:
    proxy = replace(config(), proxy_remote_url="https://mirror.example.com")
    verdict = check(proxy, stopped=True, assume=True)
    assert verdict.verdict == "refused"
    assert codes(verdict)[0] == "pull-through-cache"
    verdict = check(config(), storage=storage("scheduler-state.json"), stopped=True, assume=True)
    assert verdict.verdict == "refused"
    assert codes(verdict)[0] == "scheduler-state"


@pytest.mark.parametrize(
    ("database", "locks", "code"),
    [
        ("off", (), None),
        ("off", ("filesystem-in-use",), None),
        ("off", ("database-in-use",), "database-in-use"),
        ("on", (), "database-in-use"),
        ("on", ("filesystem-in-use",), "database-in-use"),
        ("prefer", ("filesystem-in-use",), None),
        ("prefer", (), "filesystem-not-in-use"),
        ("prefer", ("database-in-use",), "database-in-use"),
        ("prefer", ("database-in-use", "filesystem-in-use"), "database-in-use"),
    ],
)
def test_gitlabs_metadata_database_refuses_where_it_is_in_use(
    database: Any, locks: tuple[str, ...], code: str | None
) -> None:
    verdict = check(
        replace(config(), database=database),
        storage=storage(*(f"{LOCKFILES}/{lock}" for lock in locks)),
        assume=True,
    )
    assert verdict.verdict == ("refused" if code else "allowed")
    if code:
        assert codes(verdict)[0] == code


def test_a_storage_that_cannot_be_asked_fails() -> None:
    class Broken(MemoryStorage):
        def stat(self, path: str) -> Any:
            raise Unavailable("down", path=path)

    with pytest.raises(Unavailable):
        check(config(), storage=Broken())


def test_a_check_costs_the_storage_two_requests() -> None:
    made = MemoryStorage()
    check(config(), storage=made)
    assert sum(made.requests.totals().values()) == 2


# --- --assume-readonly


def test_assume_readonly_lifts_what_is_unknown_and_is_recorded() -> None:
    with serving((401, [])) as server:
        verdict = check(config(server.addr, readonly=False), assume=True)
    assert verdict.allowed
    assert codes(verdict) == ["assume-readonly", "writable-config", "probe-unauthorized"]
    assert "in spite of writable-config, probe-unauthorized" in verdict.findings[0].message


def test_assume_readonly_does_not_lift_what_is_known_to_take_writes() -> None:
    with serving(WRITABLE) as server:
        verdict = check(config(server.addr), assume=True)
    assert (verdict.verdict, codes(verdict)) == (
        "refused",
        ["registry-writable", "assume-readonly"],
    )


def test_assume_readonly_is_recorded_where_it_was_not_needed() -> None:
    verdict = check(config(), assume=True)
    assert verdict.allowed
    assert codes(verdict) == ["assume-readonly", "nothing-to-probe"]


# --- again and again


def test_a_later_check_sees_what_has_changed() -> None:
    replies: list[Reply] = [READ_ONLY, WRITABLE, READ_ONLY]
    with serving(lambda _: replies.pop(0)) as server:
        guard = Guard(config(server.addr), MemoryStorage(), GuardOptions())
        assert [guard.check().verdict for _ in range(3)] == ["allowed", "refused", "allowed"]
    assert guard.check().allowed  # stopped since


def test_importing_the_guard_reads_nothing_of_a_proxy_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{closed()}")
    with serving(READ_ONLY) as server:
        assert check(config(server.addr)).allowed


def test_an_address_of_before_that_cannot_be_asked_is_unknown_and_one_that_answers_counts() -> None:
    with serving(WRITABLE) as old, serving(READ_ONLY) as new:
        for http, code in (
            (HttpConfig(addr=old.addr), "registry-writable"),
            (HttpConfig(addr="registry.sock", net="unix"), "probe-bad-address"),
        ):
            options = GuardOptions(before=http)
            verdict = Guard(config(new.addr, readonly=True), MemoryStorage(), options).check()
            assert codes(verdict) == [code]
            assert not verdict.allowed
