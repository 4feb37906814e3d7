"""The S3 driver against SeaweedFS, which lists folder by folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from drivers.conformance import DriverConformance, Put, paths_of
from registry_drivers.base import Storage
from registry_drivers.s3 import open_s3
from servers.moto import S3Server
from servers.seaweedfs import seaweedfs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    return server.bucket()


class TestSeaweedFS(DriverConformance):
    tells_gone = False
    leaves_folders = True

    @pytest.fixture
    def storage(self, server: S3Server, bucket: str, tmp_path: Path) -> Iterator[Storage]:
        # A folder that one test leaves is in the way of an object that another writes.
        parameters = server.parameters(bucket, rootdirectory=tmp_path.name)
        with closing(open_s3(parameters)) as storage:
            yield storage

    @pytest.mark.parametrize(
        "ask", [lambda storage: paths_of(storage.list("")), lambda storage: storage.children("")]
    )
    def test_its_first_answer_says_that_it_cannot_seek(
        self,
        server: S3Server,
        storage: Storage,
        put: Put,
        ask: Callable[[Storage], object],
    ) -> None:
        put.many(["a/b/1", "a-b/1"])
        with closing(open_s3(server.parameters(server.bucket()))) as fresh:
            seekable = [fresh.capabilities.seekable]
            ask(fresh)
            seekable.append(fresh.capabilities.seekable)
        assert seekable == [True, False]
        # It lists "a/…" before "a-b/…", which comes before it in the order of bytes.
        assert paths_of(storage.list("")) == ["a/b/1", "a-b/1"]
