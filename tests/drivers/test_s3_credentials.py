"""Whose name requests to S3 are signed with: every way in which operators give credentials."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.credentials import RefreshableCredentials

from drivers.conformance import paths_of
from registry_drivers.errors import DriverConfigError, StorageError, Unavailable
from registry_drivers.retry import Retry
from registry_drivers.s3 import S3Storage, open_s3
from registry_drivers.s3_keys import S3Keys
from registry_drivers.withdrawal import unless_withdrawn
from servers.fault_proxy import Answer, FaultProxy, Request, fault_proxy, stub
from servers.moto import REGION, S3Server, moto

KEY, SECRET, TOKEN = "AKIAWAYEXAMPLE", "the secret of this way", "the session of this way"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="module")
def watched(server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.url) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials but those that a test gives."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def used(server: S3Server, watched: FaultProxy, **given: Any) -> set[tuple[str, str]]:
    """Key and session that the requests of a driver are signed with, by whichever library."""
    place = {"region": REGION, "regionendpoint": watched.url, "bucket": server.bucket()}
    watched.reset()
    with closing(open_s3({**place, **given})) as storage:
        storage.write("a/b", b"1")
        assert storage.read("a/b") == b"1"
        assert paths_of(storage.list("")) == ["a/b"]
        assert [outcome.error for outcome in storage.delete(["a/b"])] == [""]
        for secret in (SECRET, TOKEN):
            assert secret not in repr(storage)
    assert len(watched.requests) == 4
    return {signer(request) for request in watched.requests}


def signer(request: Request) -> tuple[str, str]:
    found = re.search(r"Credential=([^/]+)/", request.headers["authorization"])
    assert found
    return found[1], request.headers.get("x-amz-security-token", "")


def test_keys_in_the_config(server: S3Server, watched: FaultProxy) -> None:
    assert used(server, watched, accesskey=KEY, secretkey=SECRET) == {(KEY, "")}


def test_keys_in_the_config_with_a_session(server: S3Server, watched: FaultProxy) -> None:
    found = used(server, watched, accesskey=KEY, secretkey=SECRET, sessiontoken=TOKEN)
    assert found == {(KEY, TOKEN)}


def test_keys_in_the_config_come_before_the_environment(
    server: S3Server, watched: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOTHEREXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "other")
    assert used(server, watched, accesskey=KEY, secretkey=SECRET) == {(KEY, "")}


def test_the_environment(
    server: S3Server, watched: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    assert used(server, watched) == {(KEY, TOKEN)}


@pytest.mark.parametrize("profile", ["default", "registry"])
def test_a_profile(
    server: S3Server,
    watched: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    profile: str,
) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = AKIADEFAULTEXAMPLE\naws_secret_access_key = x\n"
        f"[registry]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
        f"aws_session_token = {TOKEN}\n"
    )
    if profile != "default":
        monkeypatch.setenv("AWS_PROFILE", profile)
    expected = (KEY, TOKEN) if profile == "registry" else ("AKIADEFAULTEXAMPLE", "")
    assert used(server, watched) == {expected}


def passing_keys() -> Mapping[str, str]:
    """As instances and containers are told them."""
    ends = datetime.now(UTC) + timedelta(hours=1)
    return {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "AccessKeyId": KEY,
        "SecretAccessKey": SECRET,
        "Token": TOKEN,
        "Expiration": f"{ends:%Y-%m-%dT%H:%M:%SZ}",
        "LastUpdated": "2024-01-01T00:00:00Z",
    }


def test_a_container(
    server: S3Server, watched: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(request: Request) -> Answer:
        allowed = request.headers["authorization"] == "container's"
        return Answer(200 if allowed else 403, json.dumps(passing_keys()).encode())

    with stub(told) as keeper:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{keeper.url}/keys")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "container's")
        assert used(server, watched) == {(KEY, TOKEN)}


def test_an_instance(
    server: S3Server, watched: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(request: Request) -> Answer:
        if request.path.endswith("/latest/api/token"):
            return Answer(200, b"metadata's")
        if request.headers.get("x-aws-ec2-metadata-token") != "metadata's":
            return Answer(401)
        named = request.path.endswith("/role")
        return Answer(200, json.dumps(passing_keys()).encode() if named else b"role")

    with stub(told) as metadata:
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
        assert used(server, watched) == {(KEY, TOKEN)}


def test_a_workload(
    server: S3Server, watched: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A token of a cluster's service account, for which moto's STS gives keys."""
    (tmp_path / "token").write_text("signed by the cluster")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/registry")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    ((key, session),) = used(server, watched)
    assert key.startswith("ASIA")
    assert session


def test_nobody_is_an_error_that_names_the_parameter(server: S3Server) -> None:
    parameters = {"region": REGION, "regionendpoint": server.url, "bucket": "x"}
    with pytest.raises(DriverConfigError, match=r"storage\.s3\.accesskey: missing, and no AWS"):
        open_s3(parameters)


def test_half_of_a_pair_is_an_error_that_does_not_show_it(server: S3Server) -> None:
    parameters = {"region": REGION, "bucket": "x", "secretkey": SECRET}
    with pytest.raises(DriverConfigError, match=r"storage\.s3\.accesskey") as caught:
        open_s3(parameters)
    assert SECRET not in str(caught.value)


def test_a_profile_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "forgotten")
    with pytest.raises(DriverConfigError, match="forgotten"):
        open_s3({"region": REGION, "bucket": "x"})


class Keeper:
    """Gives keys to containers, each time with another session, or as often as not the same."""

    def __init__(self, *, sessions: int = 1000, lasting: timedelta = timedelta(hours=1)) -> None:
        self.given = 0
        self.away = False
        self._sessions, self._lasting = sessions, lasting

    def __call__(self, _: Request) -> Answer:
        if self.away:
            return Answer(500)
        self.given += 1
        ends = datetime.now(UTC) + self._lasting
        keys = {**passing_keys(), "Token": f"session-{min(self.given, self._sessions)}"}
        return Answer(
            200, json.dumps({**keys, "Expiration": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}).encode()
        )


EXPIRED = Answer(400, b"<Error><Code>ExpiredToken</Code><Message>has expired</Message></Error>")


def refusing(session: str) -> Callable[[Request], Answer | None]:
    def rule(request: Request) -> Answer | None:
        if request.headers.get("x-amz-security-token") != session:
            return None
        return Answer(400) if request.method == "HEAD" else EXPIRED

    return rule


USES: dict[str, Callable[[S3Storage], object]] = {
    "list": lambda storage: list(storage.list("")),
    "read": lambda storage: storage.read("a"),
    "stat": lambda storage: storage.stat("a"),
    "write": lambda storage: storage.write("b", b"1"),
    "move": lambda storage: storage.move("a", "c"),
    "delete": lambda storage: list(storage.delete(["a"])),
}


@pytest.fixture
def in_container(
    server: S3Server, watched: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Keeper], S3Storage]]:
    with ExitStack() as stack:

        def opened(keeper: Keeper) -> S3Storage:
            url = stack.enter_context(stub(keeper)).url
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/keys")
            monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")
            monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
            place = {"region": REGION, "regionendpoint": watched.url, "bucket": server.bucket()}
            storage = stack.enter_context(closing(open_s3(place)))
            storage.retry = Retry(times=2, sleep=lambda _: None)
            storage.write("a", b"1")
            assert paths_of(storage.list("")) == ["a"]
            return storage

        watched.reset()
        yield opened
        watched.reset()


@pytest.mark.parametrize("use", USES)
def test_a_session_that_the_storage_takes_no_more_is_renewed_once(
    in_container: Callable[[Keeper], S3Storage], watched: FaultProxy, use: str
) -> None:
    keeper = Keeper()
    storage = in_container(keeper)
    watched.rule = refusing("session-1")
    USES[use](storage)
    assert keeper.given == 2
    assert storage.requests.retries == 1


@pytest.mark.parametrize("use", USES)
def test_a_session_that_cannot_be_renewed_is_an_error(
    in_container: Callable[[Keeper], S3Storage], watched: FaultProxy, use: str
) -> None:
    keeper = Keeper(sessions=1)
    storage = in_container(keeper)
    watched.rule = refusing("session-1")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"ExpiredToken: has|are the credentials still good"):
            USES[use](storage)
    # The source is not asked for each request that fails.
    assert keeper.given == 2
    assert storage.requests.retries == 0


def test_a_source_that_is_away_is_asked_once_for_all_who_want_new_keys() -> None:
    asked: list[float] = []
    now = [0.0]

    def refresh() -> dict[str, str]:
        asked.append(now[0])
        raise OSError("no route")

    ends = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    given = RefreshableCredentials.create_from_metadata(
        {"access_key": "a", "secret_key": "b", "token": "c", "expiry_time": ends}, refresh, "test"
    )
    keys = S3Keys(given, "s3", lambda: now[0])
    for _ in range(8):
        with pytest.raises(Exception, match=r"no route|redential"):
            keys.renew()
    once = len(asked)
    assert once >= 1
    now[0] += 1000.0
    with pytest.raises(Exception, match=r"no route|redential"):
        keys.renew()
    assert len(asked) == 2 * once


def test_a_storage_that_takes_no_session_at_all_is_asked_no_more_than_another(
    in_container: Callable[[Keeper], S3Storage], watched: FaultProxy
) -> None:
    keeper = Keeper()
    storage = in_container(keeper)
    watched.always(EXPIRED)
    with pytest.raises(Unavailable, match="ExpiredToken"):
        storage.read("a")
    assert storage.requests.retries == 2
    assert keeper.given == 2


@pytest.mark.parametrize("use", USES)
def test_without_keys_nothing_is_sent_and_none_are_asked_for_where_nobody_wants_them(
    in_container: Callable[[Keeper], S3Storage], watched: FaultProxy, use: str
) -> None:
    keeper = Keeper(lasting=timedelta(minutes=5))
    storage = in_container(keeper)
    watched.requests.clear()
    keeper.away = True
    with pytest.raises(Unavailable, match="retrieving credentials"):
        USES[use](storage)
    given = keeper.given
    keeper.away = False
    with unless_withdrawn(lambda: False), pytest.raises(Unavailable, match="not wanted any more"):
        USES[use](storage)
    assert keeper.given == given
    assert watched.requests == []
    USES[use](storage)


def test_keys_that_cannot_be_had_are_no_answer_of_the_storage(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stub(lambda _: Answer(500)) as keeper:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{keeper.url}/keys")
        monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")
        with pytest.raises(DriverConfigError, match="retrieving credentials"):
            open_s3({"region": REGION, "regionendpoint": server.url, "bucket": "x"})
