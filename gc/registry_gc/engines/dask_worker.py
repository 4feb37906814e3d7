"""What runs in a Dask worker: a unit, on storage that each of its threads opens by itself."""

from __future__ import annotations

import hashlib
import pickle
import platform
import threading
import uuid
from typing import Any, NamedTuple

from distributed import WorkerPlugin

from registry_drivers.base import Reader
from registry_gc import __version__
from registry_gc.engine import WorkerLost
from registry_gc.layout import BLOBS, REPOSITORIES
from registry_gc.manifests import RULES_VERSION

_PROCESS = uuid.uuid4().hex
_local = threading.local()
_openings: dict[str, bytes] = {}


class ClusterError(WorkerLost):
    """The cluster cannot be used, or is gone."""


def versions() -> dict[str, str]:
    """What has to be the same in the client and in each worker."""
    import distributed
    import numpy

    return {
        "registry-garbage-collect": f"{__version__} (rules {RULES_VERSION})",
        "distributed": str(distributed.__version__),
        "numpy": numpy.__version__.partition(".")[0],
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def look(reader: Reader) -> str:
    """What tells two storages apart: the first pages of both halves of a registry."""
    digest = hashlib.sha256()
    for prefix in (REPOSITORIES, BLOBS):
        for page in reader.list(prefix):
            digest.update("\n".join(page.paths).encode("utf-8", "surrogateescape"))
            break
    return digest.hexdigest()


class Doubt(NamedTuple):
    """What a worker's thread sees while that is not what the client has seen."""

    thread: str
    seen: str


Answer = tuple[Any, dict[str, int], Doubt | None]
"""The result of a unit, what it asked of the storage, and whether that may be another one."""


class Opening(WorkerPlugin):
    """How each worker opens the storage, under a name that tells nothing of it."""

    def __init__(self, pickled: bytes) -> None:
        self.name = f"registry-gc-{uuid.uuid4().hex}"
        self._pickled = pickled

    def setup(self, worker: Any) -> None:
        """On a worker: keep it."""
        _openings[self.name] = self._pickled

    def teardown(self, worker: Any) -> None:
        """On a worker: forget it, as the run is over."""
        _openings.pop(self.name, None)


def look_from_worker(opening: str) -> str:
    """What a worker sees; see :func:`look`."""
    return look(_reader(opening))


def _reader(opening: str) -> Reader:
    """This thread's own reader: what it counts is what its unit asked for."""
    readers: dict[str, Reader] = _local.__dict__.setdefault("readers", {})
    if opening not in readers:
        for name in readers.keys() - _openings.keys():
            readers.pop(name).close()
        if opening not in _openings:
            raise ClusterError(
                "a Dask worker was not told how to open the storage; its log may say why"
            )
        # The client's own pickle, by way of a cluster that runs whatever the client sends.
        readers[opening] = pickle.loads(_openings[opening])()  # noqa: S301  # see above
    return readers[opening]


def _doubt(opening: str, reader: Reader, client_saw: str) -> Doubt | None:
    """None once this thread has seen what the client saw; it is not looked again then."""
    agreed: set[str] = _local.__dict__.setdefault("agreed", set())
    if opening in agreed:
        return None
    seen = look(reader)
    if seen != client_saw:
        return Doubt(f"{_PROCESS}-{threading.get_ident()}", seen)
    agreed &= _openings.keys()
    agreed.add(opening)
    return None


def run_task(task: bytes) -> Answer:
    """One unit, in a worker, which looks first whether it sees the client's storage."""
    opening, client_saw, work, unit = pickle.loads(task)  # noqa: S301  # see _reader
    reader = _reader(opening)
    before = reader.requests.totals()
    doubt = _doubt(opening, reader, client_saw)
    result = work(reader, unit)
    after = reader.requests.totals()
    return result, {name: after[name] - before[name] for name in after}, doubt
