"""The driver for Azure Blob Storage against Azurite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from drivers.conformance import ODD_NAMES, DriverConformance, Put, paths_of
from registry_drivers.azure import AzureStorage
from registry_drivers.base import Storage
from servers.azurite import AzureServer, azurite


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    with azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="module")
def whole(server: AzureServer) -> Iterator[AzureStorage]:
    with closing(server.open()) as storage:
        yield storage


@pytest.fixture(scope="module")
def legacy(server: AzureServer) -> Iterator[AzureStorage]:
    with closing(server.open(legacyrootprefix=True, rootdirectory="some/folder")) as storage:
        yield storage


class AzureConformance(DriverConformance):
    def test_a_listing_is_in_the_order_of_the_paths_utf8_bytes(
        self, storage: Storage, put: Put
    ) -> None:
        # Azurite orders as JavaScript does, by UTF-16.
        put.many([*ODD_NAMES, "a/b", "a-b", "a0"])
        found = paths_of(storage.list(""))
        assert found == sorted(found, key=lambda path: path.encode("utf-16-be"))
        assert len(found) == len(ODD_NAMES) + 3


class TestAzure(AzureConformance):
    @pytest.fixture
    def storage(self, whole: AzureStorage) -> Storage:
        return whole


class TestAzureWithALeadingSlash(AzureConformance):
    many = 30

    @pytest.fixture
    def storage(self, legacy: AzureStorage) -> Storage:
        return legacy
