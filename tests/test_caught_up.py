"""A run whose registry's Redis comes back before the registry does ends as it would have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from registry_drivers.filesystem import FilesystemStorage
from registry_gc.blob_cache.forgetting import Forgotten, NoCache
from registry_gc.cli.away import _with_commands
from registry_gc.collect import Job, collect
from registry_gc.events import Silence
from registry_gc.guard import Finding, Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.policy import Policy
from registry_gc.service.away import Commands, Service
from registry_gc.service.commands import Shared
from running import Disk


class LostRedis(NoCache):
    """It has something left of this run, and nobody reaches it."""

    def state(self, storage: tuple[str, str] | None = None) -> Forgotten:
        """Three, none of them from earlier runs."""
        return Forgotten("redis", left=3, run_file="/somewhere/run.sqlite")


def refuse() -> Verdict:
    return Verdict("refused", (Finding("registry-writable", "it takes writes"),))


@pytest.mark.parametrize(
    ("check", "code", "error"),
    [
        (lambda: Verdict("allowed", ()), 0, None),
        (refuse, 4, "refused, nothing was deleted: it takes writes"),
    ],
)
def test_a_redis_that_is_back_in_time_leaves_a_run_its_own_exit_code(
    check: Callable[[], Verdict], code: int, error: str | None, tmp_path: Path
) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.tree.layer("a", b"orphan")
    disk.age()
    job = Job(
        storage=FilesystemStorage(str(disk.root)),
        policy=Policy(),
        check=check,
        run_file=str(tmp_path / "run.sqlite"),
        workers=1,
        blob_cache=LostRedis(),
    )
    report = collect(job, Silence(), Interrupts())
    assert report.exit_code == 1
    assert "may still be in the registry's Redis" in (report.error or "")
    service = Service(Commands("true", "true", stops=True, timeout=60.0), Shared())
    told = _with_commands(report, service)
    assert (told.exit_code, told.error, told.forgotten.left) == (code, error, 0)
