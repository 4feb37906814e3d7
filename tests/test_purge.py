"""What a purge deletes, what it keeps, and what it refuses to do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aside import DAY, Registry
from registry_drivers.base import Deletion, Outcome
from registry_drivers.errors import StorageError, Unavailable
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.retry import Retry
from registry_gc.cli import purge
from registry_gc.guard import Finding, Guard, Verdict
from registry_gc.guard.watch import GuardWatch
from registry_gc.lock import Lock
from registry_gc.survey import Survey, Surveyor
from registry_tree import blob_path, layer_link_path, revision_path, sha256, tag_path
from running import OWN_FOLDER
from servers.process import free_port


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """On disk, with one image that is tagged and one that is not."""
    made = Registry(tmp_path, None)
    tree = made.tree()
    tree.image("app", "v1", layers=[b"base", b"one"], config=b'"one"')
    tree.image("app", layers=[b"base", b"two"], config=b'"two"')
    return made


def note_of(registry: Registry, run: str) -> Path:
    return registry.root / OWN_FOLDER / "quarantine" / run / "run.json"


def test_each_run_waits_as_long_as_it_was_told(registry: Registry) -> None:
    first = registry.collect("-m", "--quarantine", "3d").json["run"]
    registry.tree().image("app", layers=[b"three"], config=b'"three"')
    registry.later = DAY
    second = registry.collect("-m", "--quarantine", "30d").json["run"]
    registry.later = 4 * DAY
    rows = {row["run"]: row for row in registry.purge().json["runs"]}
    assert (rows[first]["due"], rows[second]["due"]) == (True, False)
    left = registry.quarantined()
    assert {blob_path(sha256(data)) for data in (b"three", b'"three"')} < left
    assert blob_path(sha256(b"two")) not in left
    assert not note_of(registry, first).parent.exists()
    assert note_of(registry, second).exists()


def test_older_than_stands_above_what_a_run_was_told(registry: Registry) -> None:
    registry.quarantine()
    registry.later = DAY
    assert not registry.purge("--older-than", "2d").json["runs"][0]["due"]
    assert registry.purge("--older-than", "12h").json["runs"][0]["due"]
    assert registry.own() == set()


@pytest.mark.parametrize("flag", ["--dry-run", "-d=true", None])
def test_a_dry_run_deletes_nothing(
    registry: Registry, flag: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.quarantine()
    before = registry.read()
    if flag is None:
        monkeypatch.setenv("RGC_DRY_RUN", "true")
    looked = registry.purge("--older-than", "0s", *([flag] if flag else []))
    monkeypatch.delenv("RGC_DRY_RUN", raising=False)
    assert looked.json["runs"][0]["due"]
    assert registry.read() == before
    registry.purge("--older-than", "0s", "-d=false")
    assert registry.own() == set()


DAMAGED = (
    "{cut sho",
    '{"run": "x", "began": 1, "moved": 1, "seconds": -604800}',
    '{"run": "x", "began": 1, "moved": -1e300, "seconds": 1}',
    '{"run": "x", "began": 1, "moved": 1, "seconds": 1e999}',
)


@pytest.mark.parametrize("note", DAMAGED)
def test_what_nobody_knows_the_age_of_goes_on_the_operators_word_only(
    registry: Registry, note: str
) -> None:
    run = registry.quarantine().json["run"]
    note_of(registry, run).write_text(note)
    registry.later = 1000 * DAY
    row = registry.purge().json["runs"][0]
    assert (row["due"], row["since"], row["until"]) == (False, None, None)
    assert registry.quarantined()
    assert registry.purge("--older-than", "30d").json["runs"][0]["due"]
    assert registry.own() == set()


def test_a_clock_that_was_ahead_makes_it_wait_longer(registry: Registry) -> None:
    registry.later = 400 * DAY
    registry.quarantine()
    registry.later = 8 * DAY
    assert not registry.purge().json["runs"][0]["due"]
    assert registry.quarantined()


def test_a_writable_registry_is_not_purged(registry: Registry) -> None:
    registry.quarantine()
    text = registry.config.read_text().replace("enabled: true", "enabled: false")
    config = registry.folder / "writable.yml"
    config.write_text(text)
    registry.later = 8 * DAY
    before = registry.read()
    done = registry.command_on(config, "purge", "--state-dir", str(registry.folder / "state"))
    assert (done.exit_code, done.json["exit_code"], done.json["runs"]) == (4, 4, [])
    assert "readonly" in done.errors
    assert registry.read() == before


def test_a_registry_that_takes_writes_while_a_purge_marks_is_not_purged(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.quarantine()
    registry.later = 8 * DAY
    opened, asked = threading.Event(), threading.Event()

    def check(_: Guard) -> Verdict:
        if not opened.is_set():
            return Verdict("allowed", ())
        asked.set()
        return Verdict("refused", (Finding("registry-writable", "it takes writes"),))

    mark = Surveyor.plan_blobs

    def open_for_a_while(*arguments: Any) -> Survey:
        opened.set()
        assert asked.wait(30)
        opened.clear()
        return mark(*arguments)

    monkeypatch.setattr(Guard, "check", check)
    monkeypatch.setattr(Surveyor, "plan_blobs", open_for_a_while)
    monkeypatch.setattr(purge, "GuardWatch", partial(GuardWatch, seconds=0.01))
    before = registry.quarantined()
    done = registry.purge()
    assert (done.exit_code, "it takes writes" in done.errors) == (5, True)
    assert registry.quarantined() == before


def test_a_purge_beside_another_run_is_refused(registry: Registry) -> None:
    registry.quarantine()
    registry.later = 8 * DAY
    with Lock.acquire(FilesystemStorage(str(registry.root)), "another", refresh_seconds=None):
        assert registry.purge().exit_code == 4
    assert registry.quarantined()


def test_half_a_tree_purges_nothing(registry: Registry) -> None:
    registry.quarantine()
    registry.later = 8 * DAY
    repositories = registry.root / "docker/registry/v2/repositories"
    repositories.rename(registry.folder / "unmounted")
    repositories.mkdir()
    before = registry.quarantined()
    done = registry.purge()
    assert done.exit_code == 4
    assert "not one live manifest" in done.errors
    assert registry.quarantined() == before


def test_a_purge_that_stops_half_way_tells_what_it_has_deleted(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.quarantine()
    registry.later = 8 * DAY
    before = registry.quarantined()
    delete = FilesystemStorage.delete

    def but_no_blobs(storage: FilesystemStorage, paths: Iterable[str]) -> Iterator[Outcome]:
        for path in paths:
            if "/v2/blobs/" in path:
                raise StorageError("input/output error", path=path, driver=storage.driver)
            yield from delete(storage, [path])

    monkeypatch.setattr(FilesystemStorage, "delete", but_no_blobs)
    done = registry.purge()
    gone = before - registry.quarantined()
    assert (done.exit_code, "input/output error" in done.json["error"]) == (1, True)
    assert done.json["runs"][0]["deleted"] == len(gone) > 0
    assert done.json["runs"][0]["deleted_bytes"] > 0


@pytest.mark.parametrize("answer", ["none", "each"])
@pytest.mark.parametrize(("what", "code"), [("signal", 143), ("lock", 5)])
def test_a_purge_that_may_not_try_again_says_why(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, answer: str, what: str, code: int
) -> None:
    """Whether the storage answers for each file, or not at all."""
    registry.quarantine()
    registry.later = 8 * DAY
    before = registry.quarantined()
    delete = FilesystemStorage.delete

    def busy(storage: FilesystemStorage, paths: Iterable[str]) -> Iterator[Outcome]:
        def fail() -> None:
            if what == "signal":
                signal.raise_signal(signal.SIGTERM)
            else:
                (registry.root / OWN_FOLDER / "lock").unlink(missing_ok=True)
            raise Unavailable("busy", path=path, driver=storage.driver)

        for path in paths:
            if f"{OWN_FOLDER}/quarantine/" not in path:
                yield from delete(storage, [path])
                continue
            try:
                Retry(times=3, sleep=lambda _: None).call(fail, storage.requests)
            except Unavailable:
                if answer == "none":
                    raise
                yield Outcome(path, Deletion.FAILED, "busy")

    monkeypatch.setattr(FilesystemStorage, "delete", busy)
    done = registry.purge()
    assert done.exit_code == code
    assert registry.quarantined() == before


def test_a_purge_whose_lock_is_not_its_own_at_the_end_says_so(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.quarantine()
    registry.later = 8 * DAY
    release = Lock.release

    def too_late(lock: Lock, *words: Callable[[], bool]) -> None:
        (registry.root / OWN_FOLDER / "lock").write_bytes(b"another's")
        release(lock, *words)

    monkeypatch.setattr(Lock, "release", too_late)
    done = registry.purge()
    assert (done.exit_code, "lock is lost" in done.json["error"]) == (5, True)
    assert done.json["runs"][0]["deleted"] > 0


def test_what_stops_a_purge_is_told_without_what_only_reassures(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.quarantine()
    registry.later = 8 * DAY
    delete = FilesystemStorage.delete

    def and_a_database(storage: FilesystemStorage, paths: Iterable[str]) -> Iterator[Outcome]:
        for path in paths:
            yield from delete(storage, [path])
            in_use = registry.root / "docker/registry/lockfiles/database-in-use"
            in_use.parent.mkdir(exist_ok=True)
            in_use.touch()

    monkeypatch.setattr(FilesystemStorage, "delete", and_a_database)
    done = registry.purge()
    assert done.exit_code == 5
    assert "database-in-use" in done.json["error"]
    assert "read-only" not in done.json["error"]


def test_what_a_held_repository_may_need_stays(registry: Registry) -> None:
    tree = registry.tree()
    digest = tree.image("broken", layers=[b"who knows"], config=b'"held"')
    registry.quarantine()
    registry.write({tag_path("broken", "bad"): b"sha256:cut"})
    registry.later = 8 * DAY
    done = registry.purge()
    assert (done.exit_code, done.json["held"]) == (3, ["broken"])
    assert done.json["runs"][0]["kept"] == 6
    assert registry.quarantined() == {
        revision_path("broken", digest),
        *(blob_path(d) for d in (digest, sha256(b"who knows"), sha256(b'"held"'))),
        *(layer_link_path("broken", sha256(d)) for d in (b"who knows", b'"held"')),
    }


def test_a_push_that_was_told_that_a_blob_is_there_gets_it_back(registry: Registry) -> None:
    """The manifest came after the mark; every part of it was set aside."""
    tree = registry.tree()
    children = [tree.image("app", layers=[arch], config=arch) for arch in (b"arm", b"x86")]
    index = tree.index("app", None, children)
    registry.quarantine()
    gone = registry.quarantined()
    registry.write({tag_path("app", "multi"): index.encode()})
    done = registry.collect("-m", "--quarantine", "7d")
    assert done.exit_code == 0
    assert done.json["quarantine"]["recalled"] > 8
    assert registry.can_pull("app", index)
    assert registry.quarantined() < gone
    assert registry.collect("-m").json["blobs"]["eligible"] == 0


def test_what_refers_to_an_image_that_is_pushed_again_comes_back(registry: Registry) -> None:
    tree = registry.tree()
    image = tree.image("signed", layers=[b"signed"])
    signature = tree.image("signed", layers=[b"signature"], subject=image)
    statement = tree.image("signed", layers=[b"of the signature"], subject=signature)
    elsewhere = tree.image("apart", layers=[b"elsewhere"], subject=image)
    dead = tree.image("signed", layers=[b"of another"], subject=sha256(b"gone"))
    tree.image("stays", "v1", layers=[b"signed"])
    tree.image("stays", layers=[b"signed"], config=b'"dead there"')
    registry.quarantine()
    assert not registry.can_pull("signed", image)
    tree.image("signed", "v2", layers=[b"signed"])
    registry.later = 8 * DAY
    looked = registry.purge("--dry-run")
    assert looked.json["missed"]
    assert looked.json["runs"][0]["kept"]
    assert registry.purge().json["recalled"]
    for repository, digest in (
        ("signed", image),
        ("signed", signature),
        ("signed", statement),
        ("apart", elsewhere),
    ):
        assert registry.can_pull(repository, digest)
    assert not registry.can_pull("signed", dead)
    assert not registry.quarantined()
    assert registry.collect("-m").json["blobs"]["deleted"] == 0


def test_what_refers_to_an_image_that_is_dead_there_stays_in_quarantine(
    registry: Registry,
) -> None:
    """It lives elsewhere, and both have it: so it does not live for the sake of the other."""
    tree = registry.tree()
    image = tree.image("one", layers=[b"two have it"])
    tree.image("two", layers=[b"two have it"])
    signature = tree.image("two", layers=[b"signature"], subject=image)
    registry.quarantine()
    tree.image("one", "v1", layers=[b"two have it"])
    tree.image("two", layers=[b"two have it"])
    again = registry.collect("-m", "--quarantine", "7d")
    assert (again.exit_code, again.json["manifests"]["eligible"]) == (0, 1)
    assert registry.can_pull("one", image)
    assert not registry.can_pull("two", signature)


def test_what_refers_to_a_live_image_comes_back_where_its_own_link_alone_was_set_aside(
    registry: Registry,
) -> None:
    """A run that was killed after its first link, and a tag since."""
    tree = registry.tree()
    image = tree.image("signed", layers=[b"signed"])
    signature = tree.image("signed", layers=[b"signature"], subject=image)
    apart = tree.image("apart", layers=[b"elsewhere"], subject=image)
    before = registry.files()
    run = registry.quarantine().json["run"]
    kept = {revision_path("signed", signature), revision_path("apart", apart)}
    back = {path: data for path, data in before.items() if path not in kept}
    registry.remove(
        *(f"{OWN_FOLDER}/quarantine/{run}/{path}" for path in back.keys() - registry.files().keys())
    )
    registry.write(back)
    tree.tag("signed", "v1", image)
    looked = registry.collect("-m", "--dry-run")
    assert looked.json["quarantine"]["missed"] == 2
    done = registry.collect("-m")
    assert (done.exit_code, done.json["quarantine"]["recalled"]) == (0, 2)
    for repository, digest in (("signed", image), ("signed", signature), ("apart", apart)):
        assert registry.can_pull(repository, digest)
    assert not registry.quarantined()


def signed_by_schema_1(registry: Registry) -> tuple[str, str, str]:
    """Push an image of schema 1 with its signature; returns its digest, the link and the blob."""
    tree = registry.tree()
    digest = tree.manifest(
        "old", {"schemaVersion": 1, "fsLayers": [{"blobSum": tree.layer("old", b"layer")}]}
    )
    signature = tree.blob(b"a signature")
    folder = revision_path("old", digest).removesuffix("link") + "signatures"
    link = f"{folder}/{signature.replace(':', '/')}/link"
    registry.write({link: signature.encode()})
    return digest, link, blob_path(signature)


def test_the_signatures_of_a_schema_1_image_that_is_pushed_again_come_back(
    registry: Registry,
) -> None:
    digest, link, blob = signed_by_schema_1(registry)
    before = registry.files()
    registry.quarantine()
    assert {link, blob} <= registry.quarantined()
    # A registry of today does not write them.
    registry.write({path: d for path, d in before.items() if path not in (link, blob)})
    registry.tree().tag("old", "v1", digest)
    done = registry.collect("-m")
    assert (done.exit_code, done.json["quarantine"]["recalled"]) == (0, 2)
    assert {link, blob} <= registry.files().keys()
    assert registry.purge("--older-than", "0s").exit_code == 0
    assert {link, blob} <= registry.files().keys()


def test_a_run_tells_what_is_live_and_lost_in_quarantine(registry: Registry) -> None:
    digest, link, blob = signed_by_schema_1(registry)
    before = registry.files()
    run = registry.quarantine().json["run"]
    registry.remove(f"{OWN_FOLDER}/quarantine/{run}/{blob}")
    registry.write({path: d for path, d in before.items() if path not in (link, blob)})
    registry.tree().tag("old", "v1", digest)
    done = registry.collect("-m")
    assert (done.exit_code, done.json["quarantine"]["recalled"]) == (0, 0)
    assert "could not be brought back from quarantine; the first of them is" in done.errors
    assert link in done.errors


def test_a_layer_link_that_a_live_manifest_needs_comes_back(registry: Registry) -> None:
    tree = registry.tree()
    tree.layer("app", b"mounted")
    registry.quarantine()
    # Its manifest came later, and the registry's cache said that the layer is there.
    other = Registry(registry.folder / "other", None)
    other.root.mkdir(parents=True)
    digest = other.tree().image("app", "new", layers=[b"mounted"], config=b'"one"')
    mounted = sha256(b"mounted")
    registry.write({p: d for p, d in other.files().items() if mounted[7:] not in p})
    assert not registry.can_pull("app", digest)
    assert registry.collect().json["quarantine"]["recalled"] == 2
    assert registry.can_pull("app", digest)


def test_what_is_lost_in_quarantine_fails_no_run(registry: Registry) -> None:
    """A live link whose blob is nowhere cannot come back, today or ever."""
    digest = registry.tree().image("a", layers=[b"layer"], config=b'"a"')
    run = registry.quarantine().json["run"]
    registry.remove(f"{OWN_FOLDER}/quarantine/{run}/{blob_path(sha256(b'layer'))}")
    registry.write({tag_path("a", "v1"): digest.encode()})
    done = registry.collect("-m")
    assert done.exit_code in (0, 3)
    assert done.json["error"] is None
    assert layer_link_path("a", sha256(b"layer")) in registry.quarantined()


# --- a registry that takes writes ---------------------------------------------------------------


WRITABLE = ("-m", "--allow-writable", "--quarantine", "24h")


@pytest.mark.parametrize(
    "options",
    [
        ("--allow-writable",),
        ("--allow-writable", "--quarantine", "23h59m"),
        ("--quarantine", "7d", "--purge-versions"),
    ],
)
def test_what_cannot_go_together_is_a_usage_error(
    registry: Registry, options: tuple[str, ...]
) -> None:
    before = registry.read()
    assert registry.collect(*options).exit_code == 2
    assert registry.read() == before


def test_a_writable_registry_is_collected_into_a_quarantine_only(registry: Registry) -> None:
    before = registry.read()
    text = registry.config.read_text().replace("enabled: true", "enabled: false")
    config = registry.folder / "writable.yml"
    config.write_text(text)
    assert registry.collect_on(config, "-m", "--quarantine", "24h").exit_code == 4
    done = registry.collect_on(config, *WRITABLE)
    assert done.exit_code == 0
    codes = {finding["code"] for finding in done.json["guard"]["findings"]}
    assert codes == {"allow-writable", "writable-config"}
    assert done.json["guard"]["verdict"] == "allowed"
    assert (done.json["quarantine"]["blobs"], done.json["blobs"]["deleted"]) == (3, 0)
    gone = before.keys() - registry.files().keys()
    assert registry.quarantined() == gone


def test_storage_that_is_not_to_be_collected_stays_refused(registry: Registry) -> None:
    registry.write({"scheduler-state.json": b"{}"})
    done = registry.collect(*WRITABLE)
    assert done.exit_code == 4
    assert not registry.quarantined()


def test_a_registry_that_nobody_can_ask_may_be_collected_into_a_quarantine(
    registry: Registry,
) -> None:
    config = registry.folder / "asking.yml"
    address = f"http://127.0.0.1:{free_port()}/elsewhere"
    config.write_text(
        registry.config.read_text().replace("enabled: true", "enabled: false")
        + "http: {addr: 'not an address'}\n"
    )
    done = registry.collect_on(config, *WRITABLE, "--registry-url", address)
    assert done.exit_code == 0, done
    assert done.json["quarantine"]["blobs"] == 3


def test_nothing_younger_than_a_day_goes_from_a_registry_in_use(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aside.LATER", 3600.0)
    registry.tree().image("app", layers=[b"pushed an hour ago"], config=b'"young"')
    registry.collect(*WRITABLE)
    assert sha256(b"pushed an hour ago")[7:] not in "".join(registry.quarantined())


def test_what_is_pushed_while_it_is_set_aside_is_back_when_the_run_ends(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.tree().image("late", layers=[b"layer"], config=b'"late"')
    move = FilesystemStorage.move
    moved = []

    def and_tagged(storage: FilesystemStorage, source: str, target: str) -> None:
        move(storage, source, target)
        moved.append(source)
        # The registry had seen the manifest, and now writes the tag.
        registry.write({tag_path("late", "v1"): digest.encode()})

    monkeypatch.setattr(FilesystemStorage, "move", and_tagged)
    done = registry.collect(*WRITABLE)
    assert done.exit_code == 0
    assert revision_path("late", digest) in moved
    assert done.json["quarantine"]["recalled"] == 6
    assert registry.can_pull("late", digest)


def test_a_cache_that_remembers_blobs_is_cautioned_of(registry: Registry) -> None:
    config = registry.folder / "cached.yml"
    config.write_text(
        registry.config.read_text().replace(
            "storage:\n", "storage:\n  cache: {blobdescriptor: inmemory}\n"
        )
    )
    assert "blobdescriptor" in registry.collect_on(config, *WRITABLE).errors
    assert "blobdescriptor" not in registry.collect_on(config, "-m").errors


def test_half_of_the_repositories_is_too_few_to_purge_by(registry: Registry) -> None:
    for number in range(9):
        registry.tree().image(f"team/{number}", "v1", layers=[b"of team %d" % number])
    registry.quarantine()
    registry.later = 8 * DAY
    team = registry.root / "docker/registry/v2/repositories/team"
    team.rename(registry.folder / "unmounted")
    team.mkdir()
    before = registry.quarantined()
    done = registry.purge("--state-dir", str(registry.folder / "state"))
    assert done.exit_code == 4
    assert "have become 1 since the last run" in done.errors
    assert registry.quarantined() == before
    looked = registry.purge("--dry-run")
    assert looked.exit_code == 0
    assert "would be refused: 10 repositories have become 1" in looked.errors
    lifted = registry.purge("--state-dir", str(registry.folder / "state"), "--accept-shrink")
    assert lifted.exit_code == 0
    assert not registry.quarantined()


def test_a_live_link_that_cannot_come_back_is_not_purged(registry: Registry) -> None:
    for number in range(9):
        registry.tree().image(f"team/{number}", "v1", layers=[b"of team %d" % number])
    layer = registry.tree().layer("team/0", b"needed again")
    registry.quarantine()
    registry.tree().image("team/0", "v2", layers=[b"needed again"], config=b'"v2"')
    link = layer_link_path("team/0", layer)
    registry.remove(link, blob_path(layer))
    # Its blob is on a disk that is away.
    (lost,) = (path for path in registry.own() if path.endswith(blob_path(layer)))
    data = (registry.root / lost).read_bytes()
    registry.remove(lost)
    registry.later = 8 * DAY
    done = registry.purge()
    assert done.json["runs"][0]["kept"] == 1
    assert link in registry.quarantined()
    registry.write({blob_path(layer): data})
    assert registry.purge().json["recalled"] == 1
    assert link in registry.files()


def test_what_is_gone_already_was_not_deleted_by_the_purge(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's hand, or another machine's, between the listing and the delete."""
    registry.quarantine()
    plain = FilesystemStorage.delete
    taken: list[str] = []

    def delete(storage: FilesystemStorage, paths: Iterable[str]) -> Iterator[Outcome]:
        paths = list(paths)
        if not taken:
            taken.append(paths[0])
            (registry.root / paths[0]).unlink()
        return plain(storage, paths)

    planned = registry.purge("--older-than", "0s", "--dry-run").json["runs"][0]
    monkeypatch.setattr(FilesystemStorage, "delete", delete)
    row = registry.purge("--older-than", "0s").json["runs"][0]
    assert (row["already_gone"], row["deleted"]) == (1, planned["deleted"] - 1)
    assert row["deleted_bytes"] < planned["deleted_bytes"]
