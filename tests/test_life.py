"""A registry's life as a state machine: pushed to, tagged, deleted from, collected, interrupted.

After each step the registry holds what the naive model says, and no tag that was whole has lost
anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from core_support import NOW
from model import HOUR, File, expect
from registry_drivers.base import Outcome
from registry_drivers.memory import MemoryStorage
from registry_gc.collect import Job, collect
from registry_gc.engine import SerialEngine
from registry_gc.events import Silence
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.policy import Policy
from registry_gc.report.model import Report
from registry_gc.verify import TrueSizes, verify
from registry_tree import RegistryTree, blob_path, revision_path
from running import scratch
from strategies import UNUSUAL, Registry

STEPS = st.sampled_from([step for step in UNUSUAL if step.__name__ != "unlink_layer"])
AGES = st.sampled_from([60.0, 2 * HOUR])


class PowerCut(BaseException):
    """The process is gone, in the middle of a delete."""


class Storage(MemoryStorage):
    """Ends the process before delete number *deletes*."""

    deletes: int | None = None

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """Count; one path at a time, so that it may end between any two."""
        for path in paths:
            if self.deletes is not None:
                if self.deletes == 0:
                    raise PowerCut
                self.deletes -= 1
            yield from super().delete([path])


class Life(RuleBasedStateMachine):
    """The registry and what was promised about it."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()

    @initialize()
    def begin(self) -> None:
        """An image, and an upload that stays: a storage with nothing in it is no registry."""
        self.registry.tree.image("a", "kept", layers=[b"kept"], config=b"{}")
        self.registry.tree.upload("b", "going-on", "2020-01-01T00:00:00Z", b"half")

    @rule(data=st.data(), step=STEPS, age=AGES)
    def happen(self, data: st.DataObject, step: Any, age: float) -> None:
        """Something that clients do."""
        self.registry.age = age
        # A blob that is there is not written again; one that was collected is.
        self.registry.tree = RegistryTree(self._write)
        data.draw(st.composite(lambda draw: step(draw, self.registry))())
        # A manifest that is not stored any more can be neither tagged nor copied.
        stored = [
            (name, digest)
            for name, digest in self.registry.manifests
            if blob_path(digest) in self.registry.files
        ]
        self.registry.manifests[:] = stored

    def _write(self, path: str, data: bytes) -> None:
        if "/blobs/" not in path or path not in self.registry.files:
            self.registry.write(path, data)

    @rule(age=st.just(2 * HOUR))
    def wait(self, age: float) -> None:
        """Everything becomes old."""
        for path, file in self.registry.files.items():
            self.registry.files[path] = File(file.data, max(age, file.age))

    @rule(untagged=st.booleans(), grace=st.booleans(), verified=st.booleans())
    def collect(self, untagged: bool, grace: bool, verified: bool) -> None:
        """A collection that comes to its end leaves what the model leaves."""
        expected = self._expect(untagged, grace)
        gone, report = self._collect(untagged, grace, verified, None)
        assert report is not None
        assert report.error is None
        assert gone == expected

    @rule(untagged=st.booleans(), grace=st.booleans(), deletes=st.integers(0, 8))
    def be_interrupted(self, untagged: bool, grace: bool, deletes: int) -> None:
        """One that dies on the way has deleted nothing else, and the next one does the rest."""
        expected = self._expect(untagged, grace)
        gone, _ = self._collect(untagged, grace, False, deletes)
        assert gone <= expected
        rest, report = self._collect(untagged, grace, False, None)
        assert report is not None
        assert report.error is None
        assert gone | rest == expected

    def _expect(self, untagged: bool, grace: bool) -> set[str]:
        files = self.registry.files
        found = expect(
            files,
            delete_untagged=untagged,
            grace=HOUR if grace else 0.0,
            upload_age=None,
        )
        return set(found.dead)

    def _collect(
        self, untagged: bool, grace: bool, verified: bool, deletes: int | None
    ) -> tuple[set[str], Report | None]:
        storage = self._storage()
        storage.deletes = deletes
        report = None
        with scratch() as folder:
            job = Job(
                storage=storage,
                policy=Policy(
                    delete_untagged=untagged,
                    grace=HOUR if grace else 0.0,
                    upload_age=None,
                    allow_empty=True,
                ),
                check=lambda: Verdict("allowed", ()),
                run_file=str(folder / "run.sqlite"),
                verify=verified,
                workers=1,
            )
            with contextlib.suppress(PowerCut):
                report = collect(job, Silence(), Interrupts())
        gone = self.registry.files.keys() - storage.snapshot().keys()
        for path in gone:
            del self.registry.files[path]
        return set(gone), report

    def _storage(self) -> Storage:
        storage = Storage(lambda: NOW)
        for path, file in self.registry.files.items():
            storage.put(path, file.data, NOW - file.age)
        return storage

    @invariant()
    def every_fault_was_there_when_it_was_pushed(self) -> None:
        """A tag that could be pulled can be pulled, until a client changes it."""
        reader = TrueSizes(self._storage())
        found = verify(reader, SerialEngine(reader), Silence(), untagged=False, content=True)
        assert not found.changed
        assert "a:kept" not in found.broken or self._was_changed("kept")

    def _was_changed(self, tag: str) -> bool:
        """Whether a client has deleted what the tag, or its image, needs."""
        current = self.registry.files.get(
            f"docker/registry/v2/repositories/a/_manifests/tags/{tag}/current/link"
        )
        digest = current.data.decode() if current else ""
        return revision_path("a", digest) not in self.registry.files


@pytest.mark.timeout(14400)
def test_a_life_of_pushes_and_collections_follows_the_model(long: bool) -> None:
    examples, steps = (20_000, 15) if long else (60, 8)
    run_machine(
        Life,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
