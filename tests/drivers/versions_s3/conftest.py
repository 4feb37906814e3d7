"""Moto's server, and a versioned bucket behind a proxy that brings faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from drivers.versions_s3.support import opened, versioned_bucket
from registry_drivers.s3 import S3Storage
from servers.fault_proxy import FaultProxy, fault_proxy
from servers.moto import S3Server, moto


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def storage(server: S3Server, proxy: FaultProxy) -> Iterator[S3Storage]:
    """A versioned bucket behind the proxy."""
    with opened(server, versioned_bucket(server), proxy) as storage:
        yield storage
    proxy.reset()
