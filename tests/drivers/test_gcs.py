"""The driver for Google Cloud Storage against fake-gcs-server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from drivers.conformance import DriverConformance
from registry_drivers.base import Storage
from registry_drivers.gcs import GCSStorage, open_gcs
from servers.fake_gcs import GCSServer, fake_gcs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GCSServer]:
    with fake_gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


def opened(server: GCSServer, **parameters: Any) -> GCSStorage:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)
        return open_gcs({"bucket": server.bucket(), **parameters})


@pytest.fixture(scope="module")
def whole(server: GCSServer) -> Iterator[GCSStorage]:
    with closing(opened(server)) as storage:
        yield storage


@pytest.fixture(scope="module")
def below(server: GCSServer) -> Iterator[GCSStorage]:
    with closing(opened(server, rootdirectory="some/folder/")) as storage:
        yield storage


class TestGCS(DriverConformance):
    @pytest.fixture
    def storage(self, whole: GCSStorage) -> Storage:
        return whole


class TestGCSBelowAFolder(DriverConformance):
    many = 30

    @pytest.fixture
    def storage(self, below: GCSStorage) -> Storage:
        return below
