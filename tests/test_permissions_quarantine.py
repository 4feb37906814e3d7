"""docs/permissions.md: what quarantines and versions need beside the S3 policy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest

from aside import DAY, Registry
from registry_tree import RegistryTree, blob_path, sha256
from running import OWN_FOLDER, Result
from servers.moto import S3Server, moto
from stores import Place, store
from test_permissions import NEVER, PAGE, Policy, as_user, enforce, policy_of_the_page

Step = Callable[[Registry], Result]
UNTAGGED = blob_path(sha256(b"untagged"))
ROW = re.compile(r"^\| .*? \| `(\w+)` \| `(s3:\w+)` \|$", re.MULTILINE)
# The last word of each row of the page; the others are those of the policy itself.
VERSIONS = ("Look", "s3:ListBucketVersions")
DELETE_VERSIONS = ("Collect", "s3:DeleteObjectVersion")
LIFECYCLE = ("Look", "s3:GetLifecycleConfiguration")
PUT = ("Collect", "s3:PutObject")
READ_VERSIONS = ("Read", "s3:GetObjectVersion")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        enforce(server, NEVER)
        yield server


class Bucket:
    """A registry in a bucket of its own, with one image that no tag reaches."""

    def __init__(self, server: S3Server, folder: Path, *, versions: bool) -> None:
        bucket = server.bucket()
        if versions:
            server.client.put_bucket_versioning(
                Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
            )
        self._server = server
        self._folder = folder
        self.root = Place("s3", server.parameters(bucket))
        files: dict[str, bytes] = {}
        tree = RegistryTree(files.__setitem__)
        tree.image("a", "v1", layers=[b"kept"])
        tree.image("a", None, layers=[b"untagged"])
        store(self.root, files)

    def do(self, step: Step, *more: tuple[str, str], later: float = 0.0) -> Result:
        """Do it as a user who has the policy of the page, and *more*."""
        policy: Policy = deepcopy(policy_of_the_page())
        for statement, action in more:
            (one,) = (one for one in policy["Statement"] if one["Sid"] == statement)
            one["Action"].append(action)
        registry = Registry(self._folder, as_user(self._server, self.root, policy))
        registry.later = later
        enforce(self._server, 0)
        try:
            return step(registry)
        finally:
            enforce(self._server, NEVER)

    @property
    def keys(self) -> set[str]:
        """What is there, ours too."""
        return set(Registry(self._folder, self.root).read())


def quarantine(registry: Registry) -> Result:
    return registry.collect("-m", "--quarantine", "7d")


def restore(registry: Registry) -> Result:
    return registry.command("restore", "a")


def test_the_page_names_what_is_tried_here() -> None:
    assert set(ROW.findall(PAGE.read_text())) == {
        VERSIONS, DELETE_VERSIONS, LIFECYCLE, PUT, READ_VERSIONS
    }  # fmt: skip


def test_a_quarantine_and_its_purge_need_no_more_than_a_collection(
    server: S3Server, tmp_path: Path
) -> None:
    bucket = Bucket(server, tmp_path, versions=False)
    done = bucket.do(quarantine)
    assert (done.exit_code, done.errors) == (0, "")
    assert UNTAGGED not in bucket.keys
    assert any(key.startswith(OWN_FOLDER) and key.endswith(UNTAGGED) for key in bucket.keys)
    purged = bucket.do(lambda registry: registry.purge(), later=8 * DAY)
    assert (purged.exit_code, purged.errors) == (0, "")
    assert not [key for key in bucket.keys if key.startswith(OWN_FOLDER)]


def test_a_restore_writes_where_the_registry_reads(server: S3Server, tmp_path: Path) -> None:
    bucket = Bucket(server, tmp_path, versions=False)
    assert bucket.do(quarantine).exit_code == 0
    assert bucket.do(restore).exit_code == 3
    assert UNTAGGED not in bucket.keys
    assert bucket.do(restore, PUT).exit_code == 0
    assert UNTAGGED in bucket.keys


def test_what_is_live_comes_back_by_itself_with_the_same_right(
    server: S3Server, tmp_path: Path
) -> None:
    bucket = Bucket(server, tmp_path, versions=False)
    assert bucket.do(quarantine).exit_code == 0
    files: dict[str, bytes] = {}
    RegistryTree(files.__setitem__).image("b", "v1", layers=[b"untagged"])
    files.pop(UNTAGGED)
    store(bucket.root, files)
    assert bucket.do(lambda registry: registry.collect("-m")).exit_code == 1
    assert UNTAGGED not in bucket.keys
    assert bucket.do(lambda registry: registry.collect("-m"), PUT).exit_code == 0
    assert UNTAGGED in bucket.keys


def test_a_bucket_with_versions_lists_them(server: S3Server, tmp_path: Path) -> None:
    bucket = Bucket(server, tmp_path, versions=True)
    assert bucket.do(lambda registry: registry.collect("-m")).exit_code == 1
    assert bucket.do(lambda registry: registry.collect("-m"), VERSIONS).exit_code == 0
    # moto asks for the right to delete versions as for that to delete.
    more = (VERSIONS, DELETE_VERSIONS)
    purged = bucket.do(lambda registry: registry.collect("-m", "--purge-versions"), *more)
    assert purged.exit_code == 0
    answer = server.client.list_object_versions(Bucket=bucket.root.parameters["bucket"])
    left = [one["Key"] for one in (*answer.get("Versions", ()), *answer.get("DeleteMarkers", ()))]
    assert UNTAGGED not in left
    assert blob_path(sha256(b"kept")) in left


def test_a_quarantine_is_by_markers_only_where_the_lifecycle_may_be_read(
    server: S3Server, tmp_path: Path
) -> None:
    copied = Bucket(server, tmp_path, versions=True)
    assert copied.do(quarantine, VERSIONS).exit_code == 0
    assert any(key.startswith(OWN_FOLDER) and key.endswith(UNTAGGED) for key in copied.keys)
    marked = Bucket(server, tmp_path, versions=True)
    assert marked.do(quarantine, VERSIONS, LIFECYCLE).exit_code == 0
    assert not any(key.endswith(UNTAGGED) for key in marked.keys)
    more = (VERSIONS, LIFECYCLE, DELETE_VERSIONS)
    # Nobody else can tell whether what is hidden refers to what is live.
    assert marked.do(lambda registry: registry.collect("-m"), *more).exit_code == 1
    looking = (*more, READ_VERSIONS)
    assert marked.do(lambda registry: registry.collect("-m"), *looking).exit_code == 0
    assert marked.do(restore, *more).exit_code == 1
    assert UNTAGGED not in marked.keys
    assert marked.do(restore, *more, READ_VERSIONS).exit_code == 0
    assert UNTAGGED in marked.keys
