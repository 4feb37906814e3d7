"""What a store will not delete is told with its own reason, and goes once nothing keeps it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest

from registry_drivers.azure import AzureStorage
from registry_tree import RegistryTree, blob_path, sha256
from running import Result
from servers.fault_proxy import Answer, Request
from servers.moto import S3Server
from stores import (
    Place,
    Servers,
    collect,
    is_delete,
    keys_of,
    proxied,
    store,
    without_pauses,
)

KEPT = b"nobody needs it, and yet it stays"
PATH = blob_path(sha256(KEPT))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp)


def a_registry() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    tree = RegistryTree(files.__setitem__)
    tree.image("app", "latest", layers=[b"live"])
    tree.image("app", layers=[b"dead"])
    tree.blob(KEPT)
    return files


def fails_alone(result: Result, reason: str) -> None:
    assert result.exit_code == 3
    (failed,) = result.json["failed"]
    assert failed["path"] == PATH
    assert re.search(reason, failed["error"])
    assert result.json["blobs"]["deleted"] == result.json["blobs"]["eligible"] - 1 > 0


def goes_afterwards(place: Place, folder: Path) -> None:
    result = collect(place, folder, "-m")
    assert result.exit_code == 0
    assert result.json["failed"] == []
    assert result.json["blobs"]["eligible"] == result.json["blobs"]["deleted"] == 1
    assert PATH not in keys_of(place)


def test_what_a_bucket_policy_denies_stays_until_the_policy_goes(
    servers: Servers, tmp_path: Path
) -> None:
    place = servers.place("s3")
    store(place, a_registry())
    bucket = place.parameters["bucket"]
    server = S3Server(int(place.parameters["regionendpoint"].rpartition(":")[2]))
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:DeleteObject",
        "Resource": f"arn:aws:s3:::{bucket}/{PATH}",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    server.client.put_bucket_policy(Bucket=bucket, Policy=policy)
    fails_alone(collect(place, tmp_path, "-m"), "AccessDenied")
    assert PATH in keys_of(place)
    server.client.delete_bucket_policy(Bucket=bucket)
    server.client.close()
    goes_afterwards(place, tmp_path)


@contextmanager
def leased(place: Place) -> Iterator[None]:
    """While somebody has a lease of the blob, as some backup tools take one."""
    with place.opened() as storage:
        assert isinstance(storage, AzureStorage)
        lease = {"comp": "lease"}
        taken = {"x-ms-lease-action": "acquire", "x-ms-lease-duration": "-1"}
        storage._request("PUT", PATH, lease, taken, b"")
        yield
        ended = {"x-ms-lease-action": "break", "x-ms-lease-break-period": "0"}
        storage._request("PUT", PATH, lease, ended, b"")


def test_what_is_leased_stays_until_the_lease_ends(servers: Servers, tmp_path: Path) -> None:
    place = servers.place("azure")
    store(place, a_registry())
    with leased(place):
        fails_alone(collect(place, tmp_path, "-m"), "LeaseIdMissing.*lease")
        assert PATH in keys_of(place)
    goes_afterwards(place, tmp_path)


# --- what the servers do not enforce: a proxy answers as the stores do


HOLD = "Object 'bucket/x' is under active Temporary hold and cannot be deleted"
RETENTION = "Object 'bucket/x' is subject to bucket's retention policy and cannot be deleted"
IMMUTABLE = "This operation is not permitted as the blob is immutable due to a policy."


def google(keys: list[str], reason: str, message: str) -> Answer:
    """An answer to a batch: all gone but one."""
    parts = []
    for number, key in enumerate(keys):
        said = "HTTP/1.1 204 No Content\r\n\r\n"
        if key == PATH:
            error = {"code": 403, "message": message, "errors": [{"reason": reason}]}
            said = f"HTTP/1.1 403 Forbidden\r\n\r\n{json.dumps({'error': error})}"
        head = f"Content-Type: application/http\r\nContent-ID: <response-b+{number}>"
        parts.append(f"--b\r\n{head}\r\n\r\n{said}\r\n")
    body = "".join(parts) + "--b--\r\n"
    return Answer(200, body.encode(), {"Content-Type": "multipart/mixed; boundary=b"})


def azure(keys: list[str], reason: str, message: str) -> Answer:
    parts = []
    for number, key in enumerate(keys):
        said = "HTTP/1.1 202 Accepted\r\n\r\n"
        if key == PATH:
            error = f"<Error><Code>{reason}</Code><Message>{message}\nRequestId:1</Message></Error>"
            said = f"HTTP/1.1 409 Conflict\r\nx-ms-error-code: {reason}\r\n\r\n{error}"
        parts.append(f"--b\r\nContent-ID: {number}\r\n\r\n{said}\r\n")
    body = "".join(parts) + "--b--\r\n"
    return Answer(202, body.encode(), {"Content-Type": "multipart/mixed; boundary=b"})


def amazon(keys: list[str], reason: str, message: str) -> Answer:
    rows = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys if key != PATH)
    rows += f"<Error><Key>{PATH}</Key><Code>{reason}</Code><Message>{message}</Message></Error>"
    return Answer(200, f"<DeleteResult>{rows}</DeleteResult>".encode())


@pytest.mark.parametrize(
    ("kind", "answer", "reason", "message"),
    [
        ("gcs", google, "forbidden", HOLD),
        ("gcs", google, "retentionPolicyNotMet", RETENTION),
        ("azure", azure, "BlobImmutableDueToPolicy", IMMUTABLE),
        ("s3", amazon, "AccessDenied", "because object protected by object lock"),
        # Throttled each time, until patience is at its end.
        ("s3", amazon, "SlowDown", "Please reduce your request rate."),
    ],
)
def test_what_is_held_retained_or_immutable_is_a_failure(
    servers: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    answer: Callable[[list[str], str, str], Answer],
    reason: str,
    message: str,
) -> None:
    without_pauses(monkeypatch)

    def rule(request: Request) -> Answer | None:
        body = unquote(request.body.decode())
        if not is_delete(request) or PATH not in body:
            return None
        keys = re.findall(r"docker/registry/v2/[^ <]+/(?:data|link)", body)
        return answer(keys, reason, message)

    direct = servers.place(kind)
    store(direct, a_registry())
    with proxied(direct) as (place, proxy):
        proxy.rule = rule
        result = collect(place, tmp_path, "-m")
        seen = list(proxy.requests)
    fails_alone(result, f"{reason}: {message[:30]}")
    # Only what may pass is worth another try.
    tries = sum(is_delete(request) and PATH.encode() in request.body for request in seen)
    assert kind != "s3" or tries == (11 if reason == "SlowDown" else 1)


# --- encrypted buckets


def of_no_content(body: bytes) -> bytes:
    """A listing of a bucket under SSE-KMS: ETags have the form of an MD5 and are none."""

    def other(match: re.Match[bytes]) -> bytes:
        etag = hashlib.md5(b"kms" + match[1], usedforsecurity=False).hexdigest()
        return b"<ETag>&quot;%s&quot;</ETag>" % etag.encode()

    return re.sub(rb"<ETag>(?:&quot;|\")?([0-9a-f]{32})(?:&quot;|\")?</ETag>", other, body)


@pytest.mark.parametrize("said", [{}, {"encrypt": True, "keyid": "alias/registry"}])
def test_where_etags_are_no_md5s_each_tag_is_read_and_nothing_else_changes(
    servers: Servers, tmp_path: Path, said: dict[str, object]
) -> None:
    files = a_registry()
    tree = RegistryTree(files.__setitem__)
    for push in range(4):
        tree.image("app", "moved", layers=[b"%d" % push])
    plain, direct = servers.place("s3"), servers.place("s3")
    (tmp_path / "plain").mkdir()
    for place in (plain, direct):
        store(place, files)
    expected = collect(plain, tmp_path / "plain", "-m")
    with proxied(direct.with_parameters(**said)) as (place, proxy):
        proxy.rewrite = of_no_content
        result = collect(place, tmp_path, "-m")
        paths = [unquote(r.path) for r in proxy.requests if r.method == "GET"]
    read = sorted(path for path in paths if path.endswith("/current/link"))
    bucket = direct.parameters["bucket"]
    tags = sorted(f"/{bucket}/{path}" for path in files if path.endswith("/current/link"))
    assert read == tags
    assert (result.exit_code, expected.exit_code) == (0, 0)
    assert keys_of(direct) == keys_of(plain)
    for name in ("blobs", "manifests", "layer_links", "marked", "damaged", "held"):
        assert result.json[name] == expected.json[name]
