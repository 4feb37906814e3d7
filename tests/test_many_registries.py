"""Very many random registries against the naive model: within this process, in memory.

What :mod:`test_against_model` shows of some through the command line, this shows of many. Half of
them are collected with windows so small that every loop over a window runs many times.
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from core_support import NOW
from model import HOUR, File, expect
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_gc.collect import Job, collect
from registry_gc.events import Silence
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.policy import Policy
from registry_gc.report.model import Report
from running import OWN_FOLDER, empty_folders, files_below, scratch, write_files
from strategies import OLD, YOUNG, Registry, damaged, registries
from windows import TINY, windows

ORDINARY, LONG = 500, 20_000
"""How many registries in all, with windows of both kinds."""


def policy_of(untagged: bool, grace: bool) -> Policy:
    """What is asked for in one example."""
    return Policy(
        delete_untagged=untagged, grace=HOUR if grace else 0.0, upload_age=None, allow_empty=True
    )


def collected(
    registry: Registry, policy: Policy, page_size: int, *, remembering: bool
) -> tuple[set[str], Report]:
    """Collect *registry*, twice with *remembering*; what is gone, and the first report."""
    storage = MemoryStorage(lambda: NOW, page_size=page_size, delete_batch=5)
    for path, file in registry.files.items():
        storage.put(path, file.data, NOW - file.age)
    with scratch() as folder:
        reports = [
            collect(
                Job(
                    storage=storage,
                    policy=policy,
                    check=lambda: Verdict("allowed", ()),
                    run_file=str(folder / f"run-{number}"),
                    cache=str(folder / "cache") if remembering else None,
                    workers=1,
                ),
                Silence(),
                Interrupts(),
            )
            for number in range(1 + remembering)
        ]
    left = {path for path in storage.snapshot() if not path.startswith(OWN_FOLDER)}
    if remembering and left:
        again = reports[1]
        assert again.error is None
        deleted = (again.blobs, again.manifests, again.layer_links, again.uploads)
        assert not any(counts.eligible for counts in deleted)
    return registry.files.keys() - left, reports[0]


def assert_agrees(
    registry: Registry, untagged: bool, grace: bool, page_size: int, remembering: bool
) -> None:
    """What goes, and what is said of it, is what the model says."""
    policy = policy_of(untagged, grace)
    expected = expect(registry.files, delete_untagged=untagged, grace=policy.grace, upload_age=None)
    gone, report = collected(registry, policy, page_size, remembering=remembering)
    assert report.error is None
    assert gone == expected.dead
    assert report.blobs.deleted == len(expected.blobs)
    assert report.manifests.deleted == len(expected.revisions)
    assert report.layer_links.deleted == len(expected.layer_links)
    assert {hold.repository for hold in report.held} == expected.held


@pytest.mark.timeout(14400)
@pytest.mark.parametrize("sizes", [{}, TINY], ids=["windows as they are", "tiny windows"])
def test_what_goes_is_what_the_model_says(sizes: dict[str, int], long: bool) -> None:
    registry = st.one_of(registries(), damaged())

    @settings(
        max_examples=(LONG if long else ORDINARY) // 2,
        deadline=None,
        derandomize=bool(os.environ.get("CI")),
        suppress_health_check=list(HealthCheck),
    )
    @given(registry, st.booleans(), st.booleans(), st.sampled_from((2, 7, 1000)), st.booleans())
    def agrees(
        registry: Registry, untagged: bool, grace: bool, page_size: int, remembering: bool
    ) -> None:
        assume(registry.files)  # of nothing at all nobody would say that it is a registry
        with windows(sizes):
            assert_agrees(registry, untagged, grace, page_size, remembering)

    agrees()


@pytest.mark.timeout(14400)
def test_what_goes_is_the_same_where_links_are_told_by_name(long: bool) -> None:
    @settings(
        max_examples=LONG // 4 if long else ORDINARY // 4,
        deadline=None,
        derandomize=bool(os.environ.get("CI")),
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.one_of(registries(), damaged()),
        st.booleans(),
        st.booleans(),
        st.randoms(use_true_random=False),
    )
    def agrees(registry: Registry, untagged: bool, grace: bool, dice: random.Random) -> None:
        assume(registry.files)
        # Each link has an age of its own, of which most change nothing.
        for path, file in registry.files.items():
            if path.endswith("/link") and dice.random() < 0.1:
                registry.files[path] = File(file.data, dice.choice((YOUNG, OLD)))
        with scratch() as folder, windows(TINY):
            root = folder / "registry"
            write_files(root, registry.files, registry.now)
            policy = policy_of(untagged, grace)
            expected = expect(
                registry.files,
                delete_untagged=untagged,
                grace=policy.grace,
                upload_age=None,
                now=registry.now,
            )
            report = collect(
                Job(
                    storage=FilesystemStorage(str(root)),
                    policy=policy,
                    check=lambda: Verdict("allowed", ()),
                    run_file=str(folder / "run"),
                    workers=1,
                ),
                Silence(),
                Interrupts(),
            )
            assert report.error is None
            assert registry.files.keys() - files_below(root) == expected.dead
            assert report.blobs.deleted == len(expected.blobs)
            assert report.layer_links.deleted == len(expected.layer_links)
            assert {hold.repository for hold in report.held} == expected.held
            assert not empty_folders(root)

    agrees()


def test_tiny_windows_are_smaller_than_what_a_small_registry_fills() -> None:
    """Else the test above would show nothing that others do not."""
    with windows(TINY):
        from registry_gc import references
        from registry_gc.compact import spool
        from registry_gc.listing import link_store
        from registry_gc.marking import dead_layers

        sizes = (
            spool.IN_MEMORY, dead_layers._WORDS_AT_ONCE, link_store.AT_ONCE,
            references._EDGES_AT_ONCE,
        )  # fmt: skip
        assert max(sizes) <= 64
