"""Ages, limits and exceptions as the operator writes them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_gc.policy import Limit, Policy, Release


@pytest.mark.parametrize("text", ["0", "1", "1000000", "0%", "30%", "33.3%", "100%", "1e1%"])
def test_a_limit_is_a_count_or_a_percentage(text: str) -> None:
    assert Limit.parse(text).percent is text.endswith("%")


@pytest.mark.parametrize(
    "text",
    ["", "%", "-1", "-1%", "1.5", "101%", "x", "1 %%", "nan%", "inf%", "inf", "1e3", "0x10", "½"],
)
def test_what_is_neither_is_refused_and_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"neither a count nor a percentage such as 30%"):
        Limit.parse(text)


def test_as_much_as_the_limit_may_go_and_no_more() -> None:
    assert Limit.parse("3").allows(3, 10)
    assert not Limit.parse("3").allows(4, 10)
    assert Limit.parse("30%").allows(3, 10)
    assert not Limit.parse("30%").allows(4, 10)
    assert Limit.parse("0").allows(0, 0)
    assert not Limit.parse("0").allows(1, 1)
    assert Limit.parse("0%").allows(0, 10)
    assert Limit.parse("100%").allows(10, 10)


@given(st.integers(0, 100), st.integers(0, 10**9))
def test_whole_percentages_are_exact(percent: int, total: int) -> None:
    limit = Limit.parse(f"{percent}%")
    most = percent * total // 100
    assert limit.allows(most, total)
    assert not limit.allows(most + 1, total)


@pytest.mark.parametrize("text", ["0", "7", "1234567", "30%", "33.3%"])
def test_a_limit_is_shown_as_it_was_written(text: str) -> None:
    assert str(Limit.parse(text)) == text


def test_a_release_covers_what_it_names() -> None:
    whole = Policy(releases=(Release("a"),))
    one = Policy(releases=frozenset({Release("a", "sha256:x")}))
    assert whole.released("a", None)
    assert whole.released("a", "sha256:x")
    assert not whole.released("a/b", None)
    assert one.released("a", "sha256:x")
    assert not one.released("a", "sha256:y")
    assert not one.released("a", None)
    assert not one.released("b", "sha256:x")


def test_by_default_nothing_is_released_and_nothing_is_risked() -> None:
    policy = Policy()
    assert not policy.released("a", None)
    assert not policy.delete_untagged
    assert not policy.allow_empty
    assert policy.upload_age == 7 * 24 * 3600
    assert Policy(releases=(Release("b"), Release("a", "x"))).released("a", "x")


@pytest.mark.parametrize("text", ["", "@", "@sha256:" + "0" * 64, "a@", "a@b", "a b@sha256:00"])
def test_a_release_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"names no repository|no digest"):
        Release.parse(text)


def test_a_release_is_of_a_repository_or_of_one_digest_in_it() -> None:
    digest = "sha256:" + "0" * 64
    assert Release.parse("a/b") == Release("a/b")
    assert Release.parse(f"a/b@{digest}") == Release("a/b", digest)


@pytest.mark.parametrize("name", ["grace", "upload_age", "quarantine"])
@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), -float("inf")])
def test_with_no_duration_nothing_would_be_young(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=name):
        _with(name, seconds)
    assert getattr(_with(name, 0.0), name) == 0.0


def _with(name: str, seconds: float) -> Policy:
    given: dict[str, Any] = {name: seconds}
    return Policy(**given)
