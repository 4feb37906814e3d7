"""A registry's life as a state machine: pushed to, tagged, deleted from, collected, interrupted.

Things are set aside, restored and purged; plans are made and carried out later. After each step
the registry holds what the naive model says, what was set aside is nowhere else and whole, and no
tag that was whole has lost anything.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from core_support import NOW
from model import HOUR, Expected, File, expect, leads_somewhere, missed, needed_by, read_links
from registry_drivers.base import Outcome
from registry_drivers.memory import MemoryStorage
from registry_gc.apply import apply, make_plan
from registry_gc.collect import Job, collect
from registry_gc.engine import SerialEngine
from registry_gc.events import Silence
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.policy import Policy
from registry_gc.quarantine.aside import asides
from registry_gc.quarantine.bring_back import Back, BringingBack
from registry_gc.quarantine.clearing import clear_empty
from registry_gc.quarantine.purge import Purge
from registry_gc.quarantine.recall import recall
from registry_gc.quarantine.restore import What, select
from registry_gc.report.model import Report
from registry_gc.survey import NoBlobs, Survey, Surveyor
from registry_gc.verify.every_tag import TrueSizes, verify
from registry_tree import RegistryTree, blob_path, revision_path
from running import OWN_FOLDER, scratch
from strategies import CONFIGS, LAYERS, UNUSUAL, Registry

ASIDE = st.sampled_from((True, True, False))
STEPS = st.sampled_from([step for step in UNUSUAL if step.__name__ != "unlink_layer"])
AGES = st.sampled_from([60.0, 2 * HOUR])
DAY = 24 * HOUR
FOLDER = f"{OWN_FOLDER}/quarantine/"


class PowerCut(BaseException):
    """The process is gone, in the middle of a delete."""


class Storage(MemoryStorage):
    """Ends the process before delete, or move, number *deletes*."""

    deletes: int | None = None

    def _count(self) -> None:
        if self.deletes is not None:
            if self.deletes == 0:
                raise PowerCut
            self.deletes -= 1

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """Count; one path at a time, so that it may end between any two."""
        for path in paths:
            self._count()
            yield from super().delete([path])

    def move(self, source: str, target: str) -> None:
        """Count."""
        self._count()
        super().move(source, target)


@dataclass
class Planned:
    """A plan that was made: what of, when, and what was to go by it."""

    file: str
    policy: Policy
    at: float
    dead: frozenset[str]
    seen: dict[str, tuple[float, int]]


def is_upload(path: str) -> bool:
    """Whether *path* is part of an upload, which is never set aside."""
    return "/_uploads/" in path


class Life(RuleBasedStateMachine):
    """The registry and what was promised about it."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.known: list[tuple[str, str]] = []
        self.own: dict[str, tuple[bytes, float]] = {}
        self.now = NOW
        self.runs = 0
        self.plan: Planned | None = None
        self.stack = contextlib.ExitStack()
        self.folder = self.stack.enter_context(scratch())

    def teardown(self) -> None:
        """Let go of the run files."""
        self.stack.close()

    @initialize()
    def begin(self) -> None:
        """An image, and an upload that stays: a storage with nothing in it is no registry."""
        tree = self.registry.tree
        tree.image("a", "kept", layers=[b"kept"], config=b"{}")
        tree.upload("b", "going-on", "2020-01-01T00:00:00Z", b"half")
        for number in range(2):
            image = tree.image("b", "moved", layers=[LAYERS[number]], config=CONFIGS[number])
            signature = tree.image("b", None, layers=[LAYERS[2]], subject=image)
            self.known += [("b", image), ("b", tree.index("b", "multi", [image])), ("b", signature)]

    # What clients do

    @rule(data=st.data(), steps=st.lists(STEPS, min_size=1, max_size=5), age=AGES)
    def happen(self, data: st.DataObject, steps: list[Any], age: float) -> None:
        """Something that clients do."""
        self._happen(data, steps, age)

    def _happen(self, data: st.DataObject, steps: list[Any], age: float) -> None:
        registry = self.registry
        for step in steps:
            # A manifest that is not stored can be neither tagged nor copied.
            stored = [pair for pair in self.known if blob_path(pair[1]) in self.files]
            registry.manifests[:] = stored
            registry.age = age
            # A blob that is there is not written again; one that was collected is.
            registry.tree = RegistryTree(self._write)
            data.draw(st.composite(lambda draw, step=step: step(draw, registry))())
            self.known += registry.manifests[len(stored) :]

    def _write(self, path: str, data: bytes) -> None:
        if "/blobs/" not in path or path not in self.files:
            self.registry.write(path, data)

    @rule(hours=st.sampled_from((2, 25)))
    def wait(self, hours: float) -> None:
        """Everything becomes older, and what waits in quarantine has waited longer."""
        self._wait(hours)

    def _wait(self, hours: float) -> None:
        self.now += hours * HOUR
        for path, file in self.files.items():
            self.files[path] = File(file.data, file.age + hours * HOUR)

    # What collections do

    @rule(untagged=st.booleans(), grace=st.booleans(), aside=ASIDE, verified=st.booleans())
    def collect(self, untagged: bool, grace: bool, aside: bool, verified: bool) -> None:
        """A collection that comes to its end leaves what the model leaves."""
        policy = self._policy(untagged, grace, aside)
        left = self._left_by(policy)
        report = self._run(policy, collect, verified=verified)
        assert report is not None
        assert report.error is None
        assert set(self.files) == left

    @rule(untagged=st.booleans(), grace=st.booleans(), aside=ASIDE, deletes=st.integers(0, 8))
    def be_interrupted(self, untagged: bool, grace: bool, aside: bool, deletes: int) -> None:
        """One that dies on the way has deleted nothing else, and the next one does the rest."""
        policy = self._policy(untagged, grace, aside)
        before, left = set(self.files), self._left_by(policy)
        self._run(policy, collect, deletes=deletes)
        assert set(self.files) >= left & before
        report = self._run(policy, collect)
        assert report is not None
        assert report.error is None
        assert set(self.files) == left

    # Plans

    @rule(untagged=st.booleans(), grace=st.booleans(), aside=ASIDE)
    def make_a_plan(self, untagged: bool, grace: bool, aside: bool) -> None:
        """It deletes nothing, and forgets the plan before it."""
        self._make_a_plan(self._policy(untagged, grace, aside))

    def _make_a_plan(self, policy: Policy) -> Planned:
        before = dict(self.files)
        report = self._run(policy, make_plan, dry_run=True)
        assert report is not None
        assert report.error is None
        assert self.files == before
        seen = {path: self._stamp(file) for path, file in before.items()}
        file = str(self.folder / str(self.runs))
        dead = self._expected(before, policy).dead
        self.plan = Planned(file, policy, self.now, dead, seen)
        return self.plan

    @rule(
        data=st.data(),
        steps=st.lists(STEPS, max_size=3),
        age=AGES,
        deletes=st.none() | st.integers(0, 8),
    )
    def carry_it_out(
        self, data: st.DataObject, steps: list[Any], age: float, deletes: int | None
    ) -> None:
        """What was dead when it was made and is so now goes, and nothing that was written since."""
        plan = self.plan or self._make_a_plan(self._policy(True, False, deletes is not None))
        self._happen(data, steps, age)
        self.plan = None
        before = set(self.files)
        now, expected = self._recalled(plan.policy, plan)
        same = {path for path, file in now.items() if plan.seen.get(path) == self._stamp(file)}
        left = set(now) - (plan.dead & expected.dead & same)

        def carry_out(job: Job, *others: Any) -> Report:
            return apply(job, *others, max_age=float("inf"))

        if deletes is not None:
            self._run(plan.policy, carry_out, deletes=deletes, run_file=plan.file)
            assert set(self.files) >= left & before
        report = self._run(plan.policy, carry_out, run_file=plan.file)
        assert report is not None
        assert report.error is None
        assert set(self.files) == left

    def _stamp(self, file: File) -> tuple[float, int]:
        return self.now - file.age, len(file.data)

    # Quarantines

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        """All that a name stands for comes back, so far as it is anywhere, and over nothing."""
        if not self._aside():
            self._run(self._policy(True, False, True), collect)
        aside, before = self._aside(), dict(self.files)
        names = self._names(aside)
        if not names:
            return
        what = data.draw(st.sampled_from(sorted(names)), label="what")
        wanted = leads_somewhere({**aside, **before}, self._wanted(what, aside))
        storage = self._storage()
        items = select(storage, None, What.parse(what, [run.run for run in asides(storage)]))
        for result in BringingBack(storage, None, lambda: None).run(items):
            assert result.back is not Back.FAILED, result
        clear_empty(storage, items)
        self._take(storage)
        assert not wanted - self.files.keys()
        assert set(before) <= set(self.files) <= set(before) | set(aside)

    def _names(self, aside: dict[str, File]) -> set[str]:
        """What may be asked for of all that lies *aside*."""
        links = read_links(aside)
        names = {*self._by_run(), *(link.repository for link in links)}
        names |= {f"{x.repository}@{x.digest}" for x in links if x.kind == "revision"}
        return names | {f"{x.repository}:{x.owner}" for x in links if x.kind == "entry"}

    def _wanted(self, what: str, aside: dict[str, File]) -> set[str]:
        """What belongs to it, of all that is stored or set aside."""
        if what in self._by_run():
            return set(self._by_run()[what])
        links, both = read_links(aside), {**aside, **self.files}
        repository, _, tag = what.partition(":")
        if "@" in what:
            repository, _, digest = what.partition("@")
            return needed_by(both, repository, digest)
        own = [link for link in links if link.repository == repository]
        if not tag:
            return {link.path for link in own}
        once = {link.digest for link in own if (link.kind, link.owner) == ("entry", tag)}
        return {path for digest in once for path in needed_by(both, repository, digest)}

    @rule(hours=st.sampled_from((0, 25)))
    def purge(self, hours: float) -> None:
        """What has waited a day goes, but for what is live or belongs to what is held."""
        self._wait(hours)
        before, policy = self._by_run(), Policy(upload_age=None)
        now, expected = self._recalled(policy)
        storage = self._storage()
        due = {run.run for run in asides(storage) if (run.until() or 0.0) <= self.now}
        surveyor = Surveyor(storage, SerialEngine(storage), policy, self.now, Silence())

        def mark() -> Survey:
            return surveyor.plan_blobs(surveyor.catalog(), NoBlobs())

        survey, _, _ = recall(storage, None, mark(), mark, lambda: None, Silence())
        told = list(Purge(storage, None, survey, None, lambda: None).run())
        assert not any(purged.failed for purged in told)
        self._take(storage)
        assert set(self.files) == set(now)
        after = self._by_run()
        held = {x for x in read_links(self._aside()) if x.repository in expected.held}
        stays = {x.path for x in held} | {blob_path(x.digest) for x in held}
        for run, paths in before.items():
            if run not in due:
                came = set(paths) - set(after.get(run, {}))
                assert came <= set(now)
            else:
                assert set(after.get(run, {})) <= stays

    def _by_run(self) -> dict[str, dict[str, File]]:
        """What each run has set aside, by its original path."""
        found: dict[str, dict[str, File]] = {}
        for path, (data, _) in self.own.items():
            run, _, original = path.removeprefix(FOLDER).partition("/")
            if path.startswith(FOLDER) and original.startswith("docker/"):
                found.setdefault(run, {})[original] = File(data, 0.0)
        return found

    def _aside(self) -> dict[str, File]:
        return {path: file for paths in self._by_run().values() for path, file in paths.items()}

    # How it is done

    @property
    def files(self) -> dict[str, File]:
        """What the registry sees."""
        return self.registry.files

    @staticmethod
    def _policy(untagged: bool, grace: bool, aside: bool) -> Policy:
        return Policy(
            delete_untagged=untagged,
            grace=HOUR if grace else 0.0,
            upload_age=None,
            allow_empty=True,
            quarantine=DAY if aside else None,
        )

    @staticmethod
    def _expected(files: dict[str, File], policy: Policy, more: float = 0.0) -> Expected:
        grace = policy.grace + more
        return expect(files, delete_untagged=policy.delete_untagged, grace=grace, upload_age=None)

    def _recalled(
        self, policy: Policy, plan: Planned | None = None
    ) -> tuple[dict[str, File], Expected]:
        """All files after what is live has come back from quarantine, and what goes of them."""
        files, aside = dict(self.files), self._aside()
        while True:
            renewed = files
            if plan is not None:
                renewed = {path: self._renewed(path, file, plan) for path, file in files.items()}
            expected = self._expected(renewed, policy, self.now - plan.at if plan else 0.0)
            back = missed(files, aside, expected)
            back = leads_somewhere({**files, **{path: aside[path] for path in back}}, back)
            if not back:
                return files, expected
            files |= {path: aside[path] for path in back}

    def _renewed(self, path: str, file: File, plan: Planned) -> File:
        """A link that the plan has not seen is young, whatever its time says."""
        is_new = path.endswith("/link") and plan.seen.get(path) != self._stamp(file)
        return File(file.data, -1.0) if is_new else file

    def _left_by(self, policy: Policy) -> set[str]:
        files, expected = self._recalled(policy)
        return set(files) - expected.dead

    def _run(
        self,
        policy: Policy,
        command: Callable[[Job, Silence, Interrupts], Report],
        *,
        dry_run: bool = False,
        verified: bool = False,
        deletes: int | None = None,
        run_file: str | None = None,
    ) -> Report | None:
        """Run *command*; None where it has died on the way."""
        storage = self._storage()
        storage.deletes = deletes
        self.runs += 1
        job = Job(
            storage=storage,
            policy=policy,
            check=lambda: Verdict("allowed", ()),
            run_file=run_file or str(self.folder / str(self.runs)),
            cache=str(self.folder / "cache"),
            dry_run=dry_run,
            verify=verified,
            workers=1,
            # Drawn from by :meth:`restore`: the same life must meet the same names again.
            run=str(uuid.UUID(int=self.runs)),
        )
        before, report = dict(self.files), None
        with contextlib.suppress(PowerCut):
            report = command(job, Silence(), Interrupts())
        self._take(storage)
        gone = {path: file for path, file in before.items() if path not in self.files}
        if policy.quarantine is not None:
            aside = self._aside()
            lost = [path for path in gone if not is_upload(path) and path not in aside]
            assert not lost, "set aside, and not to be found"
            assert all(aside[path].data == gone[path].data for path in gone if path in aside)
        return report

    def _storage(self) -> Storage:
        storage = Storage(lambda: self.now)
        for path, file in self.files.items():
            storage.put(path, file.data, self.now - file.age)
        for path, (data, modified) in self.own.items():
            storage.put(path, data, modified)
        return storage

    def _take(self, storage: Storage) -> None:
        """What is in *storage* is what there is; the lock of a process that died is unlocked."""
        found = storage.snapshot()
        ours = {path for path in found if path.startswith(OWN_FOLDER)}
        kept = {path for path in ours if path.startswith(FOLDER)}
        self.own = {path: (found[path], storage.stat(path).modified) for path in kept}
        for path in self.files.keys() - found.keys():
            del self.files[path]
        for path in found.keys() - ours:
            data, age = found[path], self.now - storage.stat(path).modified
            assert path not in self.files or self.files[path].data == data
            self.files[path] = File(data, age)

    # What is always so

    @invariant()
    def every_fault_was_there_when_it_was_pushed(self) -> None:
        """A tag that could be pulled can be pulled, until a client changes it."""
        reader = TrueSizes(self._storage())
        found = verify(reader, SerialEngine(reader), Silence(), untagged=False, content=True)
        assert not found.changed
        assert "a:kept" not in found.broken or self._was_changed("kept")

    def _was_changed(self, tag: str) -> bool:
        """Whether a client has deleted what the tag, or its image, needs."""
        current = self.files.get(
            f"docker/registry/v2/repositories/a/_manifests/tags/{tag}/current/link"
        )
        digest = current.data.decode() if current else ""
        return revision_path("a", digest) not in self.files


@pytest.mark.timeout(14400)
def test_a_life_of_pushes_and_collections_follows_the_model(long: bool) -> None:
    examples, steps = (420, 12) if long else (50, 12)
    run_machine(
        Life,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
