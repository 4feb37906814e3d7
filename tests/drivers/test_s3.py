"""The S3 driver against moto's server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from drivers.conformance import DriverConformance
from registry_drivers.base import Storage
from registry_drivers.s3 import S3Storage, open_s3
from servers.moto import S3Server, moto


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder: Path = tmp_path_factory.mktemp("moto")
    with moto(folder) as server:
        yield server


@pytest.fixture(scope="module")
def whole(server: S3Server) -> Iterator[S3Storage]:
    with closing(open_s3(server.parameters(server.bucket()))) as storage:
        yield storage


@pytest.fixture(scope="module")
def below(server: S3Server) -> Iterator[S3Storage]:
    parameters = server.parameters(server.bucket(), rootdirectory="/some/folder/")
    with closing(open_s3(parameters)) as storage:
        yield storage


class TestS3(DriverConformance):
    tells_gone = False

    @pytest.fixture
    def storage(self, whole: S3Storage) -> Storage:
        return whole


class TestS3BelowAFolder(DriverConformance):
    tells_gone = False
    many = 30

    @pytest.fixture
    def storage(self, below: S3Storage) -> Storage:
        return below
