"""``registry-gc explain``: the answers are what a collection does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from core_support import NOW, YOUNG, Store
from model import HOUR, Expected, Files, expect
from registry_drivers.memory import MemoryStorage
from registry_gc.cli.main import registry_gc
from registry_gc.engine import SerialEngine
from registry_gc.events import Silence
from registry_gc.explain.explainer import AboutDigest, AboutRepository, AboutTag, Explainer
from registry_gc.explain.fates import Fate
from registry_gc.explain.lookup import Unknown
from registry_gc.policy import Policy, Release
from registry_gc.quarantine.aside import Aside
from registry_gc.survey import Surveyor
from registry_gc.usage.freed import Marker
from registry_tree import (
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    blob_path,
    descriptor,
    layer_link_path,
    repository_path,
    revision_path,
    sha256,
    sha512,
    tag_path,
)
from running import Disk, write_config
from strategies import Registry, damaged


def explainer(storage: MemoryStorage, policy: Policy) -> Explainer:
    """An explainer of *storage*, whose clock stands at :data:`NOW`."""
    engine = SerialEngine(storage)
    cutoff = NOW - policy.grace
    surveyor = Surveyor(storage, engine, policy, cutoff, Silence())
    survey = surveyor.mark(surveyor.catalog())
    marker = Marker(storage, engine, survey.manifests, policy, cutoff)
    return Explainer(storage, survey.catalog, survey.manifests, marker, cutoff)


def stored(files: Files) -> MemoryStorage:
    """*files* in memory, with their ages."""
    storage = MemoryStorage(lambda: NOW)
    for path, file in files.items():
        storage.put(path, file.data, NOW - file.age)
    return storage


def digest_of(path: str) -> str:
    """The digest that a blob's path, or a link's, names."""
    return ":".join(path.split("/")[-3:-1]) if path.endswith("link") else _blob(path)


def _blob(path: str) -> str:
    parts = path.split("/")
    return f"{parts[-4]}:{parts[-2]}"


def model(registry: Registry, policy: Policy, files: Files | None = None) -> Expected:
    """What the model says."""
    return expect(
        registry.files if files is None else files,
        delete_untagged=policy.delete_untagged,
        grace=policy.grace,
        upload_age=None,
    )


POLICIES = st.builds(
    lambda untagged, grace: Policy(delete_untagged=untagged, grace=HOUR if grace else 0.0),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=60)
@given(damaged(), POLICIES)
def test_what_is_called_dead_is_what_a_collection_deletes(
    registry: Registry, policy: Policy
) -> None:
    expected = model(registry, policy)
    ask = explainer(stored(registry.files), policy)
    for path in registry.paths("/blobs/sha256/", "/data"):
        digest = digest_of(path)
        if path != blob_path(digest) or len(digest) != 71:
            continue  # a stranger
        about = ask.explain(digest)
        assert isinstance(about, AboutDigest)
        assert (about.fate is Fate.DEAD) == (digest in expected.blobs), digest
        assert {link.path for link in about.links if link.goes} == {
            link.path for link in about.links if link.path in expected.dead
        }


@settings(max_examples=60)
@given(damaged(), POLICIES)
def test_what_a_tag_frees_is_what_goes_once_it_is_deleted(
    registry: Registry, policy: Policy
) -> None:
    policy = Policy(delete_untagged=True, grace=policy.grace)
    before = model(registry, policy)
    ask = explainer(stored(registry.files), policy)
    for path in registry.paths("/_manifests/tags/", "/current/link"):
        folder = path.removesuffix("current/link")
        repository, _, tag = folder[:-1].partition("/_manifests/tags/")
        left = {name: file for name, file in registry.files.items() if not name.startswith(folder)}
        after = model(registry, policy, left)
        about = ask.tag(repository.partition("/repositories/")[2], tag)
        freed = after.blobs - before.blobs
        assert about.frees.blobs == len(freed)
        assert about.frees.manifests == len(set(after.revisions) - set(before.revisions))
        assert about.frees.bytes == sum(
            len(registry.files[blob_path(digest)].data) for digest in freed
        )


@pytest.fixture
def store() -> Store:
    return Store()


def test_a_referrer_that_is_young_itself_is_not_freed_with_its_subject(store: Store) -> None:
    """A backup brought it back: all links to it are old, and another repository needs it."""
    image = store.tree.image("a", "v1", layers=[b"layer"])
    referrer = store.tree.image("a", subject=image, layers=[b"signature"])
    store.tree.index("b", "v1", [referrer])
    path = blob_path(referrer)
    store.storage.put(path, store.storage.read(path), YOUNG)
    about = explainer(store.storage, Policy(delete_untagged=True, grace=HOUR)).explain("a:v1")
    assert isinstance(about, AboutTag)
    # Young, it is a root of its own; and what it describes lives with it.
    assert about.frees.manifests == 1


UNTAGGED_GO = Policy(delete_untagged=True)


def digest(store: Store, what: str, policy: Policy = UNTAGGED_GO) -> AboutDigest:
    """What is said of a digest."""
    about = explainer(store.storage, policy).explain(what)
    assert isinstance(about, AboutDigest)
    return about


def test_a_layer_is_explained_by_the_way_from_its_tag(store: Store) -> None:
    image = store.tree.image("team/app", layers=[b"layer"])
    index = store.tree.index("team/app", "2.0", [image])
    (trail,) = digest(store, sha256(b"layer")).trails
    assert (trail.repository, trail.tag) == ("team/app", "2.0")
    assert [(step.relation, step.kind, step.digest) for step in trail.steps] == [
        ("", "index", index),
        ("lists", "image", image),
        ("names", "blob", sha256(b"layer")),
    ]


def test_every_tag_that_leads_there_is_named_by_its_shortest_way(store: Store) -> None:
    image = store.tree.image("a", "v1", layers=[b"layer"])
    inner = store.tree.index("a", None, [image])
    store.tree.index("a", "multi", [inner, image])
    store.tree.image("b", "v1", layers=[b"layer"], config=b"other")
    trails = digest(store, sha256(b"layer")).trails
    assert [(trail.repository, trail.tag, len(trail.steps)) for trail in trails] == [
        ("a", "multi", 3),
        ("a", "v1", 2),
        ("b", "v1", 2),
    ]


def test_a_signature_is_explained_by_what_it_describes(store: Store) -> None:
    image = store.tree.image("a", "v1")
    signature = store.tree.image("a", layers=[b"signature"], subject=image)
    about = digest(store, sha256(b"signature"))
    (trail,) = about.trails
    assert [step.relation for step in trail.steps] == ["", "is described by", "names"]
    assert digest(store, signature).subject == image
    assert digest(store, image).referrers == [("a", "describes", signature)]


def test_a_subject_in_another_repository_is_the_way(store: Store) -> None:
    image = store.tree.image("a", "v1")
    store.tree.image("b", layers=[b"signature"], subject=image)
    (trail,) = digest(store, sha256(b"signature")).trails
    assert (trail.repository, trail.tag) == ("a", "v1")


def test_without_m_a_linked_manifest_is_the_root(store: Store) -> None:
    store.tree.image("a", layers=[b"layer"])
    about = digest(store, sha256(b"layer"), Policy())
    assert about.fate is Fate.LIVE
    assert [trail.tag for trail in about.trails] == [None]
    assert "without -m" in about.trails[0].root
    about = digest(store, sha256(b"layer"))
    assert (about.fate, about.reasons) == (
        Fate.DEAD,
        ["no tag leads to it, and it is old enough"],
    )


def test_what_is_young_says_so(store: Store) -> None:
    store.tree.image("a", layers=[b"layer"])
    store.touch(layer_link_path("a", sha256(b"layer")), YOUNG)
    policy = Policy(delete_untagged=True, grace=HOUR)
    about = digest(store, sha256(b"layer"), policy)
    assert about.fate is Fate.YOUNG
    assert "younger than the grace period" in " ".join(about.reasons)


def test_what_is_young_without_grace_has_a_wrong_clock(store: Store) -> None:
    store.tree.image("a", layers=[b"layer"])
    store.touch(layer_link_path("a", sha256(b"layer")), NOW + HOUR)
    about = digest(store, sha256(b"layer"), UNTAGGED_GO)
    assert about.fate is Fate.YOUNG
    assert "dated in the future" in " ".join(about.reasons)


def test_what_is_held_says_why(store: Store) -> None:
    store.tree.image("a", layers=[b"layer"])
    store.tree.manifest("a", b"{no manifest")
    about = digest(store, sha256(b"layer"))
    assert about.fate is Fate.HELD
    assert about.reasons[0].startswith("a is held: not a manifest")
    released = Policy(delete_untagged=True, releases=(Release("a"),))
    assert digest(store, sha256(b"layer"), released).fate is Fate.DEAD


def test_what_is_needed_and_gone_is_absent_and_still_explained(store: Store) -> None:
    store.tree.image("a", "v1", layers=[b"layer"])
    store.remove(blob_path(sha256(b"layer")))
    about = digest(store, sha256(b"layer"))
    assert about.fate is Fate.ABSENT
    assert about.size is None
    assert about.reasons == ["it is needed, and not in the store"]
    assert about.trails


def test_the_same_digest_is_live_in_one_repository_and_goes_from_another(store: Store) -> None:
    image = store.tree.image("a", "v1")
    store.tree.image("b")
    fates = {link.repository: bool(link.goes) for link in digest(store, image).links}
    assert fates == {"a": False, "b": True}
    assert digest(store, f"b@{image}").trails == []
    assert digest(store, f"a@{image}").trails


def test_a_blob_by_another_name_is_found_by_both(store: Store) -> None:
    target = store.tree.blob(b"data")
    store.tree.link_layer("a", sha512(b"data"), target)
    layer = descriptor(OCI_LAYER, sha512(b"data"), 4)
    store.tree.image("a", "v1", layers=[], extra={"layers": [layer]})
    assert digest(store, target).fate is Fate.LIVE
    assert [trail.tag for trail in digest(store, target).trails] == ["v1"]
    assert digest(store, sha512(b"data")).fate is Fate.LIVE


CUTS = [lambda d: d[7:13], lambda d: d[:20], lambda d: d[7:], str, str.upper]


@pytest.mark.parametrize("cut", CUTS)
def test_a_digest_may_be_cut_short_or_in_capitals(store: Store, cut: Callable[[str], str]) -> None:
    store.tree.image("a", "v1", layers=[b"layer"])
    assert digest(store, cut(sha256(b"layer"))).digest == sha256(b"layer")
    assert digest(store, f"a@{cut(sha256(b'layer'))}").digest == sha256(b"layer")


def test_what_nobody_knows_is_absent_and_what_waits_in_quarantine_says_where(
    store: Store,
) -> None:
    store.tree.image("a", "v1")
    unknown = sha256(b"unknown")
    about = digest(store, unknown)
    assert about.fate is Fate.ABSENT
    assert about.reasons == ["neither linked nor referenced"]
    store.write(f"{Aside('some-run').home}{blob_path(unknown)}", b"unknown")
    waits = "the run some-run has set it aside; `registry-gc restore` brings it back"
    assert digest(store, unknown).reasons[1] == waits
    with pytest.raises(Unknown, match=waits):
        digest(store, f"a@{unknown}")


def test_a_short_digest_of_several_names_some_of_them(store: Store) -> None:
    for end in "01":
        store.write(blob_path(f"sha256:abcdef{end * 58}"), b"x")
    ask = explainer(store.storage, UNTAGGED_GO)
    with pytest.raises(Unknown, match="2 digests begin so, such as sha256:abcdef0"):
        ask.explain("abcdef")
    assert isinstance(ask.explain("abcdef1"), AboutDigest)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nowhere", "neither a repository nor a digest"),
        ("nowhere:v1", "no such repository"),
        ("a:v2", "no such tag; the repository has: v1"),
        ("sha256:00", "6 hex digits at least"),
        ("abcdef", "begins so"),
        ("a@sha256:" + "ab" * 32, "neither linked nor referenced in a"),
    ],
)
def test_what_is_not_there_is_said(store: Store, what: str, said: str) -> None:
    store.tree.image("a", "v1")
    with pytest.raises(Unknown, match=said):
        explainer(store.storage, UNTAGGED_GO).explain(what)


def test_a_repository_is_counted(store: Store) -> None:
    store.tree.image("a", "v1", layers=[b"live"])
    store.tree.image("a", layers=[b"dead"])
    for name in ("one", "two"):
        store.tree.upload("a", name, "2020-01-01T00:00:00Z", b"half")
    about = explainer(store.storage, UNTAGGED_GO).explain("a")
    assert isinstance(about, AboutRepository)
    assert (about.fate, about.tags, about.manifests) == (Fate.LIVE, ["v1"], 2)
    assert about.goes == {"revision": 1, "layer-link": 1, "upload": 2}
    assert about.uploads == 2
    assert about.frees.blobs == 3
    store.write(tag_path("a", "bad"), b"")
    held = explainer(store.storage, UNTAGGED_GO).explain("a")
    assert held.fate is Fate.HELD  # type: ignore[union-attr]  # a repository, as above
    spoilt = explainer(store.storage, UNTAGGED_GO).explain("a:bad")
    assert isinstance(spoilt, AboutTag)
    assert spoilt.target is None


def repository(storage: MemoryStorage, name: str, policy: Policy) -> AboutRepository:
    """What is said of a repository."""
    about = explainer(storage, policy).explain(name)
    assert isinstance(about, AboutRepository)
    return about


def test_a_link_that_alone_tells_what_is_listed_is_reached_from_the_index(store: Store) -> None:
    image = store.tree.image("b", layers=[b"one"])
    listed = [descriptor(OCI_LAYER, image, 9)]
    store.tree.manifest("a", {"mediaType": OCI_INDEX, "manifests": listed}, "v1")
    about = explainer(store.storage, UNTAGGED_GO).explain(f"b@{image}")
    assert isinstance(about, AboutDigest)
    assert (about.fate, {link.goes for link in about.links}) == (Fate.LIVE, {""})
    (trail,) = about.trails
    assert (trail.repository, trail.tag) == ("a", "v1")
    assert [step.relation for step in trail.steps] == ["", "lists"]


def test_what_describes_a_layer_is_reached_from_what_has_that(store: Store) -> None:
    image = store.tree.image("a", layers=[b"one"])
    signature = store.tree.image("a", layers=[b"two"], subject=image)
    store.remove(revision_path("a", image))
    carries = {"mediaType": OCI_INDEX, "manifests": [], "blobs": [descriptor(OCI_LAYER, image, 1)]}
    store.tree.manifest("b", carries, "v1")
    about = explainer(store.storage, UNTAGGED_GO).explain(f"a@{signature}")
    assert isinstance(about, AboutDigest)
    assert about.fate is Fate.LIVE
    (trail,) = about.trails
    assert (trail.repository, trail.tag) == ("b", "v1")
    assert [step.relation for step in trail.steps] == ["", "names the subject of"]


def test_what_describes_the_layer_of_a_held_repository_is_kept_for_that(store: Store) -> None:
    image = store.tree.image("a", layers=[b"one"])
    signature = store.tree.image("a", layers=[b"two"], subject=image)
    store.remove(revision_path("a", image))
    store.tree.image("a", "v1", layers=[b"three"])
    store.tree.link_layer("b", image)
    store.tree.manifest("b", {}, "damaged")
    about = explainer(store.storage, UNTAGGED_GO).explain(f"a@{signature}")
    assert isinstance(about, AboutDigest)
    assert about.fate is Fate.LIVE
    (trail,) = about.trails
    assert (trail.repository, trail.tag) == ("a", None)
    assert trail.root == "what it describes is kept"


def test_a_repository_is_dead_only_when_nothing_of_it_stays(store: Store) -> None:
    patient = Policy(delete_untagged=True, grace=HOUR)
    store.tree.image("a", "v1")
    store.tree.layer("b", b"old")
    assert repository(store.storage, "b", patient).fate is Fate.DEAD
    store.age = YOUNG
    store.tree.layer("b", b"young")
    about = repository(store.storage, "b", patient)
    assert (about.fate, about.goes) == (Fate.YOUNG, {"layer-link": 1})
    assert about.reasons == ["links in it, or what they name, are younger than the grace period"]
    assert repository(store.storage, "b", UNTAGGED_GO).fate is Fate.DEAD


@pytest.mark.parametrize(
    ("started", "fate"),
    [("2000-01-01T00:00:00Z", Fate.DEAD), ("2199-01-01T00:00:00Z", Fate.YOUNG), (None, Fate.LIVE)],
)
def test_a_repository_of_uploads_is_as_dead_as_they_are(
    store: Store, started: str | None, fate: Fate
) -> None:
    store.tree.upload("b", "u-1", started)
    about = repository(store.storage, "b", UNTAGGED_GO)
    assert about.fate is fate
    assert bool(about.reasons) is (fate is not Fate.DEAD)


def test_a_repository_whose_links_say_where_live_bytes_are_is_live(store: Store) -> None:
    store.tree.link_layer("b", sha512(b"x"), store.tree.blob(b"x"))
    named = descriptor(OCI_LAYER, sha512(b"x"), 1)
    store.tree.image("a", "v1", layers=[], extra={"layers": [named]})
    about = repository(store.storage, "b", UNTAGGED_GO)
    assert (about.fate, about.goes) == (Fate.LIVE, {})
    assert about.reasons == ["links in it say under which names blobs are stored that stay"]


def test_another_name_of_live_bytes_is_not_dead(store: Store) -> None:
    store.tree.image("a", "v1", layers=[b"x"])
    store.tree.link_layer("b", sha512(b"x"), sha256(b"x"))
    about = digest(store, sha512(b"x"))
    assert about.fate is Fate.LIVE
    assert [bool(link.goes) for link in about.links] == [True]


def test_what_an_index_lists_and_nobody_links_is_not_freed(store: Store) -> None:
    child = store.tree.image("a", layers=[b"one"])
    lost = [descriptor(OCI_MANIFEST, sha256(b"%d" % at), 9) for at in range(9)]
    listed = [descriptor(OCI_MANIFEST, child, 9), *lost]
    store.tree.manifest("a", {"mediaType": OCI_INDEX, "manifests": listed}, "v")
    store.tree.tag("a", "lost", sha256(b"nothing"))
    frees = [explainer(store.storage, UNTAGGED_GO).tag("a", tag).frees for tag in ("v", "lost")]
    assert [freed.manifests for freed in frees] == [2, 0]


def test_docker_s_own_form_of_a_reference_is_understood(store: Store) -> None:
    image = store.tree.image("a/b", "v1")
    about = explainer(store.storage, UNTAGGED_GO).explain(f"a/b:v1@{image}")
    assert isinstance(about, AboutDigest)
    assert (about.digest, about.repository) == (image, "a/b")


def shown(config: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    answer = CliRunner().invoke(
        registry_gc, ["explain", *arguments[:-1], str(config), arguments[-1]]
    )
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    return answer.exit_code, answer.stdout, answer.stderr


def test_the_command_answers_in_words_and_as_json(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    image = disk.tree.image("a/b", "v1", layers=[b"layer"])
    disk.tree.image("a/b", layers=[b"dead"])
    config = write_config(disk.root, readonly=False)
    code, text, _ = shown(config, "-m", "a/b:v1")
    assert code == 0
    assert "deleting it, then collecting with -m, would free" in text
    assert f"a/b:v1 -> image {image}" in text
    _, text, _ = shown(config, "-m", sha256(b"dead"))
    assert f"{sha256(b'dead')}: dead" in text
    assert "would go, no live manifest of this repository references it" in text
    _, text, _ = shown(config, "-m", "a/b")
    assert "would go: 1 of kind revision" in text
    code, text, _ = shown(config, "--output", "json", sha256(b"layer"))
    document: dict[str, Any] = json.loads(text)
    assert (document["about"], document["fate"]) == ("digest", "live")
    assert document["trails"][0]["tag"] == "v1"
    code, text, errors = shown(config, "nowhere")
    assert (code, text) == (1, "")
    assert errors.startswith("error: nowhere")
    assert not (disk.root / repository_path("nowhere")).exists()


def test_a_long_way_is_cut_in_its_middle(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    first = last = disk.tree.image("a", layers=[b"layer"])
    for _ in range(29):
        last = disk.tree.index("a", None, [last])
    disk.tree.tag("a", "v1", last)
    config = write_config(disk.root, readonly=False)
    _, text, _ = shown(config, "-m", sha256(b"layer"))
    (line,) = [line for line in text.splitlines() if "a:v1 -> " in line]
    assert line.count("sha256:") == 12
    assert f"a:v1 -> index {last}" in line
    assert f"image {first} -> names blob {sha256(b'layer')}" in line
    assert "… 19 more (--output json has all) …" in line
    _, text, _ = shown(config, "-m", "--output", "json", sha256(b"layer"))
    assert len(json.loads(text)["trails"][0]["steps"]) == 31


def test_names_and_reasons_cannot_speak_to_a_terminal(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.tree.manifest("a", {"mediaType": "x\nall is well\x1b[2K"}, "v1")
    code, text, _ = shown(write_config(disk.root, readonly=False), "a:v1")
    assert (code, "x\\nall is well\\x1b[2k" in text) == (0, True)
    assert all(line.isprintable() for line in text.split("\n"))


def test_a_root_without_a_registry_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, errors = shown(write_config(tmp_path / "empty"), "a")
    assert code == 1
    assert "no registry there" in errors
