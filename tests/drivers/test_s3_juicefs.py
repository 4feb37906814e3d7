"""The S3 driver against JuiceFS' gateway, which is MinIO's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from drivers.conformance import DriverConformance, Put, paths_of
from registry_drivers.base import Storage
from registry_drivers.s3 import open_s3
from registry_gc.lock import Lock, LockHeld
from servers.juicefs import juicefs
from servers.moto import S3Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with juicefs(tmp_path_factory.mktemp("juicefs")) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    return server.bucket()


class TestJuiceFS(DriverConformance):
    tells_gone = False
    leaves_folders = True

    @pytest.fixture
    def storage(self, server: S3Server, bucket: str, tmp_path: Path) -> Iterator[Storage]:
        # A folder that one test leaves is in the way of an object that another writes.
        parameters = server.parameters(bucket, rootdirectory=tmp_path.name)
        with closing(open_s3(parameters)) as storage:
            yield storage

    def test_a_conditional_write_replaces_nothing(self, storage: Storage, put: Put) -> None:
        # It does not look at If-None-Match; nobody may take its answer for a lock.
        put("a/b", b"first", if_absent=True)
        put("a/b", b"second", if_absent=True)
        assert storage.read("a/b") == b"second"

    def test_of_racing_conditional_writes_exactly_one_wins(
        self, storage: Storage, put: Put
    ) -> None:
        """So a run is kept out by another one's claim, which listings show."""
        with Lock.acquire(storage, "first", refresh_seconds=None) as lock:
            assert "proves nothing" in lock.notices[0]
            with pytest.raises(LockHeld, match="run first"):
                Lock.acquire(storage, "second", refresh_seconds=None)
            lock.verify()
        assert paths_of(storage.list("")) == []
