"""docs/permissions.md: the S3 policy is enough, and nothing in it may be left out.

moto enforces IAM policies for whoever is no root; the registry itself is written before.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import boto3
import pytest

from registry_tree import RegistryTree
from running import Result
from servers.moto import ACCESS_KEY, REGION, SECRET_KEY, S3Server
from servers.process import free_port, running
from stores import Place, collect, store

PAGE = Path(__file__).resolve().parent.parent / "docs" / "permissions.md"
NEVER = 10**9
_users = itertools.count(1)

Policy = dict[str, Any]


def policy_of_the_page() -> Policy:
    (block,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    policy: Policy = json.loads(block)
    return policy


# moto asks for ListBucket in the place of the first, and once for all deletes in that of the other.
UNTOLD = {("Look", "s3:GetBucketObjectLockConfiguration"), ("Lock", "s3:DeleteObject")}


def rights() -> list[tuple[str, str]]:
    return [
        (statement["Sid"], action)
        for statement in policy_of_the_page()["Statement"]
        for action in statement["Action"]
        if (statement["Sid"], action) not in UNTOLD
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    folder = tmp_path_factory.mktemp("moto")
    with running(command, [port], folder=folder):
        yield S3Server(port)


def enforce(server: S3Server, after: int) -> None:
    """Let *after* requests pass, then ask for rights."""
    headers = {"Content-Type": "text/plain"}  # a form would not be read as it is
    request = Request(f"{server.url}/moto-api/reset-auth", str(after).encode(), headers)
    build_opener(ProxyHandler({})).open(request).close()


def with_rights(
    server: S3Server, policy: Policy, folder: Path, *arguments: str
) -> tuple[Result, Place]:
    """Collect a new registry as a user who has only *policy*."""
    enforce(server, NEVER)
    bucket = server.bucket()
    root = Place("s3", server.parameters(bucket))
    files: dict[str, bytes] = {}
    tree = RegistryTree(files.__setitem__)
    tree.image("a", "v1", layers=[b"kept"])
    tree.image("a", None, layers=[b"untagged"])
    store(root, files)
    key = "docker/registry/v2/repositories/a/_uploads/x/data"
    server.client.create_multipart_upload(Bucket=bucket, Key=key)
    place = as_user(server, root, policy)
    enforce(server, 0)
    try:
        return collect(place, folder, "-m", *arguments), root
    finally:
        enforce(server, NEVER)


def as_user(server: S3Server, root: Place, policy: Policy) -> Place:
    """*root* with the keys of a new user who has only *policy*."""
    bucket, name = root.parameters["bucket"], f"user-{next(_users)}"
    iam = boto3.client(
        "iam",
        endpoint_url=server.url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    iam.create_user(UserName=name)
    granted = deepcopy(policy)
    for statement in granted["Statement"]:
        # moto asks for the right to delete many objects once, for the bucket; Amazon for each key.
        if "s3:DeleteObject" in statement["Action"] and statement["Sid"] == "Collect":
            statement["Resource"] = [statement["Resource"], "arn:aws:s3:::BUCKET"]
    document = json.dumps(granted).replace("BUCKET", bucket)
    iam.put_user_policy(UserName=name, PolicyName="collector", PolicyDocument=document)
    made = iam.create_access_key(UserName=name)["AccessKey"]
    iam.close()
    return root.with_parameters(accesskey=made["AccessKeyId"], secretkey=made["SecretAccessKey"])


def test_the_policy_is_enough(server: S3Server, tmp_path: Path) -> None:
    result, place = with_rights(server, policy_of_the_page(), tmp_path)
    assert (result.exit_code, result.errors) == (0, "")
    with place.opened() as storage:
        left = [
            path for page in storage.list("docker/registry/registry-gc/") for path in page.paths
        ]
    assert left == []
    assert result.json["blobs"]["deleted"] == result.json["blobs"]["eligible"] > 0
    assert result.json["multipart_uploads"]["deleted"] == 1


def test_a_dry_run_needs_no_right_to_change_anything(server: S3Server, tmp_path: Path) -> None:
    policy = policy_of_the_page()
    policy["Statement"] = [one for one in policy["Statement"] if one["Sid"] in ("Look", "Read")]
    result, _ = with_rights(server, policy, tmp_path, "--dry-run")
    assert (result.exit_code, result.errors) == (0, "")
    assert result.json["multipart_uploads"]["eligible"] == 1


@pytest.mark.parametrize(("statement", "action"), rights(), ids=str)
def test_no_right_of_the_policy_may_be_left_out(
    server: S3Server, tmp_path: Path, statement: str, action: str
) -> None:
    policy = deepcopy(policy_of_the_page())
    for one in policy["Statement"]:
        if one["Sid"] == statement:
            one["Action"].remove(action)
    policy["Statement"] = [one for one in policy["Statement"] if one["Action"]]
    result, _ = with_rights(server, policy, tmp_path)
    assert result.exit_code != 0 or result.errors
