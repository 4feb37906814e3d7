"""Random registries: the collector does what the naive model says, and may be killed anywhere."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from model import HOUR, Expected, File, expect
from registry_tree import (
    DOCKER_MANIFEST,
    OCI_LAYER,
    RegistryTree,
    descriptor,
    revision_path,
    sha256,
    sha512,
)
from running import (
    Disk,
    Result,
    collect,
    empty_folders,
    files_below,
    fingerprint,
    scratch,
    write_files,
)
from strategies import Registry, damaged, registries, well_formed

# Workers are processes here, and forking them takes longer than what these registries need. That
# they find the same as one is seen by the runs that delete, which have as many as is usual.
ALONE = ("--workers", "1")
QUICK = settings(
    max_examples=40,  # the command line; test_many_registries has ten times as many without it
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
FEW = settings(QUICK, max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])
DELETES = ("os.remove", "os.rmdir", "os.rename", "shutil.rmtree")


def options(delete_untagged: bool, grace: bool) -> list[str]:
    """The options of one example; a registry with no live manifest is no reason to refuse."""
    chosen = ["--allow-empty"]
    return chosen + ["-m"] * delete_untagged + ["--grace", "1h"] * grace


def model_of(registry: Registry, delete_untagged: bool, grace: bool) -> Expected:
    """What the model says about one example."""
    return expect(
        registry.files,
        delete_untagged=delete_untagged,
        grace=HOUR if grace else 0.0,
        now=registry.now,
    )


def assert_says(result: Result, expected: Expected) -> None:
    """The report has the model's counts, and the exit code goes with what it reports."""
    report = result.json
    assert result.held == expected.held
    assert report["blobs"]["eligible"] == len(expected.blobs)
    assert report["blobs"]["eligible_bytes"] == expected.bytes
    assert report["manifests"]["eligible"] == len(expected.revisions)
    assert report["layer_links"]["eligible"] == len(expected.layer_links)
    assert report["uploads"]["eligible"] == len(expected.uploads)
    assert report["repositories"]["total"] == len(expected.repositories)
    assert not report["failed"]
    assert result.exit_code == (3 if report["held"] or report["damaged"] else 0)
    if expected.held or expected.damaged:
        assert result.exit_code == 3


def assert_agrees(registry: Registry, delete_untagged: bool, grace: bool) -> None:
    """A dry run, a run and a second run on *registry* do what the model says."""
    expected = model_of(registry, delete_untagged, grace)
    chosen = options(delete_untagged, grace)
    with scratch() as folder:
        root = folder / "registry"
        write_files(root, registry.files, registry.now)
        before = fingerprint(root)

        dry = collect(root, "--dry-run", *chosen, *ALONE)
        assert fingerprint(root) == before
        assert_says(dry, expected)

        real = collect(root, *chosen)
        assert set(registry.files) - files_below(root) == expected.dead
        assert_says(real, expected)
        assert real.json["blobs"]["deleted"] == len(expected.blobs)
        assert real.json["blobs"]["deleted_bytes"] == expected.bytes
        assert real.json["manifests"]["deleted"] == len(expected.revisions)
        assert real.json["layer_links"]["deleted"] == len(expected.layer_links)
        assert real.json["uploads"]["deleted"] == len(expected.uploads)
        assert real.json["repositories"]["emptied"] == len(expected.emptied)
        assert real.json["marked"] == dry.json["marked"]
        assert not empty_folders(root)

        after = files_below(root)
        second = collect(root, *chosen, *ALONE)
        assert files_below(root) == after
        for kind in ("blobs", "manifests", "layer_links", "uploads"):
            assert second.json[kind]["eligible"] == 0
        assert second.held == expected.held


@QUICK
@given(registries(), st.booleans(), st.booleans())
def test_what_is_deleted_is_what_the_model_says(
    registry: Registry, delete_untagged: bool, grace: bool
) -> None:
    assert_agrees(registry, delete_untagged, grace)


@QUICK
@given(damaged(), st.booleans(), st.booleans())
def test_damaged_registries_are_held_and_collected_as_the_model_says(
    registry: Registry, delete_untagged: bool, grace: bool
) -> None:
    assert_agrees(registry, delete_untagged, grace)


@FEW
@given(registries(), st.booleans())
def test_marked_counts_every_digest_that_is_referenced(
    registry: Registry, delete_untagged: bool
) -> None:
    expected = model_of(registry, delete_untagged, grace=False)
    with scratch() as folder:
        write_files(folder / "registry", registry.files, registry.now)
        result = collect(folder / "registry", "--dry-run", *options(delete_untagged, False), *ALONE)
    assert result.json["marked"] == len(expected.marked)


@FEW
@given(st.lists(registries(longest=8), min_size=2, max_size=3), st.booleans())
def test_a_cache_that_other_registries_filled_changes_nothing(
    stories: list[Registry], delete_untagged: bool
) -> None:
    with scratch() as folder:
        cache = str(folder / "cache")
        for number, registry in enumerate(stories):
            root = folder / f"registry-{number}"
            write_files(root, registry.files, registry.now)
            for _ in range(2):
                chosen = [*options(delete_untagged, False), *ALONE]
                again = collect(root, "--cache", cache, "--dry-run", *chosen)
                assert_says(again, model_of(registry, delete_untagged, grace=False))


def collect_and_be_killed(root: Path, deletes: int, *arguments: str) -> bool:
    """Collect in a process that is killed right before delete number *deletes*; see there."""
    return be_killed(deletes, lambda: collect(root, *arguments))


def is_delete(event: str, _: object) -> bool:
    """Whether an audit event is a delete, or a move."""
    return event in DELETES


def be_killed(
    number: int, work: Callable[[], object], counts: Callable[[str, object], bool] = is_delete
) -> bool:
    """Do *work* in a process that is killed right before the event *number* that *counts*.

    Returns whether it came to that; otherwise the run has ended by itself.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, arguments: object) -> None:
            nonlocal seen
            if counts(event, arguments):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            work()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(99)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@FEW
@given(damaged(), st.booleans(), st.integers(1, 15), st.booleans())
def test_killed_before_any_delete_and_run_again_the_end_is_the_same(
    registry: Registry, delete_untagged: bool, deletes: int, forget: bool
) -> None:
    expected = model_of(registry, delete_untagged, grace=False)
    with scratch() as folder:
        root = folder / "registry"
        write_files(root, registry.files, registry.now)
        collect_and_be_killed(root, deletes, *options(delete_untagged, False))
        left = set(registry.files) - files_below(root)
        assert left <= expected.dead
        if forget and (folder / "registry.state").exists():
            (folder / "registry.state").rename(folder / "lost.state")
        again = collect(root, *options(delete_untagged, False), *ALONE)
        assert again.exit_code in (0, 3)
        assert set(registry.files) - files_below(root) == expected.dead


def rich_registry(tree: RegistryTree) -> None:
    """One of everything whose order of deletion matters."""
    image = tree.image("a", "v1", layers=[b"one"], config=b"1")
    tree.image("a", "v1", layers=[b"two"], config=b"2")
    # Untagged in b, so dead there with all that describes it, but live in c.
    subject = tree.image("b", None, layers=[b"three"], config=b"3")
    tree.image("c", "v1", layers=[b"three"], config=b"3")
    signature = tree.image("b", None, layers=[b"signature"], subject=subject)
    tree.image("b", None, layers=[b"signature of the signature"], subject=signature)
    tree.index("b", None, [subject, image])
    tree.image("b", "kept", layers=[b"four"], config=b"4")
    tree.layer("d", b"orphan")
    tree.upload("d", "one", "2020-01-01T00:00:00Z", b"half")
    layer = b"by another name"
    tree.blob(layer)
    tree.link_layer("e", sha512(layer), sha256(layer))
    config = descriptor(OCI_LAYER, tree.layer("f", b"5"), 1)
    named = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": config,
        "layers": [descriptor(OCI_LAYER, sha512(layer), 1)],
    }
    tree.manifest("f", named, "v1")


@pytest.mark.parametrize("delete_untagged", [False, True])
def test_killed_before_every_single_delete_the_end_is_the_same(
    tmp_path: Path, delete_untagged: bool
) -> None:
    files: dict[str, File] = {}
    rich_registry(RegistryTree(lambda path, data: files.update({path: File(data, 30 * 24 * HOUR)})))
    now = time.time()
    expected = expect(files, delete_untagged=delete_untagged, now=now)
    chosen = ["-m"] * delete_untagged
    deletes, killed = 0, True
    while killed:
        deletes += 1
        with scratch() as folder:
            root = folder / "registry"
            write_files(root, files, now)
            killed = collect_and_be_killed(root, deletes, *chosen)
            assert set(files) - files_below(root) <= expected.dead
            again = collect(root, *chosen, *ALONE)
            assert again.exit_code == 0
            assert set(files) - files_below(root) == expected.dead, f"killed before {deletes}"
            assert not empty_folders(root)
    assert deletes > len(expected.dead)


def test_a_referrer_goes_before_its_subject_so_that_a_stop_between_them_changes_nothing() -> None:
    """With the subject's link gone first, the referrer's subject would be "live elsewhere"."""
    files: dict[str, File] = {}
    tree = RegistryTree(lambda path, data: files.update({path: File(data)}))
    subject = tree.image("a", None, layers=[b"x"])
    tree.image("b", "v1", layers=[b"x"])
    referrer = tree.image("a", None, layers=[b"signature"], subject=subject)
    whole = expect(files, delete_untagged=True)
    assert revision_path("a", referrer) in whole.dead
    del files[revision_path("a", subject)]
    assert revision_path("a", referrer) not in expect(files, delete_untagged=True).dead


@settings(QUICK, max_examples=300)
@given(damaged(), st.booleans())
def test_the_model_itself_finds_nothing_more_the_second_time(
    registry: Registry, delete_untagged: bool
) -> None:
    expected = model_of(registry, delete_untagged, grace=False)
    left = {path: file for path, file in registry.files.items() if path not in expected.dead}
    assert not expect(left, delete_untagged=delete_untagged, now=registry.now).dead


@settings(QUICK, max_examples=100)
@given(well_formed())
def test_the_model_holds_nothing_in_a_well_formed_registry(registry: Registry) -> None:
    for delete_untagged in (False, True):
        expected = model_of(registry, delete_untagged, grace=False)
        assert not expected.held
        assert not expected.damaged


def test_with_delete_untagged_more_goes_and_nothing_less(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    rich_registry(disk.tree)
    without, with_m = disk.collect("--dry-run"), disk.collect("--dry-run", "-m")
    for kind in ("blobs", "manifests", "layer_links"):
        assert without.json[kind]["eligible"] < with_m.json[kind]["eligible"]
