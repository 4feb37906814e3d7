"""What a run is given, and the plan that it shows."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import msgspec

from registry_drivers.base import Reader, Storage
from registry_gc.blob_cache.forgetting import BlobCache, NoCache
from registry_gc.catalog import Catalog
from registry_gc.engine import Engine
from registry_gc.guard import Finding, Verdict
from registry_gc.mark import Marking
from registry_gc.policy import Policy
from registry_gc.references import Manifests
from registry_gc.run_file import RunFile
from registry_gc.sweep import Settled


class Job(msgspec.Struct, frozen=True):
    """What to collect, and how.

    ``check`` is the guard: asked before anything else, and again while deleting.
    ``verify``: work out once more, and in another way, that nothing live goes; and look
    afterwards whether anything has. ``blob_cache``: what the registry itself remembers.
    ``engine``: makes another engine than what suits the storage.
    ``run_file``: where the run file is to be written, or lies. ``listed``: it lies where past runs
    are looked for, so a run that ends before it has found anything leaves one too. ``cache``: where
    what manifests reference is remembered; None to read them all. ``settled``: told of each batch
    of deletes, see :data:`registry_gc.sweep.Settled`. ``seen``: where the size of the registry is
    remembered from run to run; None to forget it. ``config``: the registry's config, for the
    record. ``tags_elsewhere``: why a plan that deletes what is untagged is not to be carried out;
    ``check`` says it of this job's own policy. ``barred``: why another run of this machine keeps
    this one out; empty where none does.
    """

    storage: Storage
    policy: Policy
    check: Callable[[], Verdict]
    run_file: str
    cache: str | None = None
    dry_run: bool = False
    verify: bool = False
    workers: int | None = None
    engine: Callable[[Reader], Engine] | None = None
    settled: tuple[Settled, ...] = ()
    blob_cache: BlobCache = msgspec.field(default_factory=NoCache)
    run: str = msgspec.field(default_factory=lambda: str(uuid.uuid4()))
    seen: str | None = None
    config: str | None = None
    tags_elsewhere: Finding | None = None
    barred: Callable[[], str] = str
    listed: bool = False


class Plan(msgspec.Struct, frozen=True):
    """What was found, for those who show it: everything marked, and the file with what goes."""

    catalog: Catalog
    manifests: Manifests
    marking: Marking
    run_file: RunFile
