"""What is to be deleted, and why: rows, their order, and all that must not be among them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from core_support import (
    DAY,
    HOUR,
    NOW,
    OLD,
    UNTAGGED_GO,
    UNTAGGED_GO_WITH_GRACE,
    YOUNG,
    Marked,
    Store,
    blob_rows,
    link_rows,
    marked,
    planned_paths,
    rows_of,
)
from registry_gc.plan import dead_links
from registry_gc.policy import Policy, Release
from registry_gc.runs.rows import Row, RowKind
from registry_tree import (
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    SCHEMA1,
    blob_path,
    descriptor,
    layer_link_path,
    repository_path,
    revision_path,
    sha256,
    sha512,
    tag_index_path,
    tag_path,
)


@pytest.fixture
def store() -> Store:
    return Store()


def plan(store: Store, policy: Policy = UNTAGGED_GO) -> list[Row]:
    """All rows of a collection, links first as they are deleted."""
    found = marked(store.storage, policy)
    blobs, _ = blob_rows(store.storage, found)
    return sorted([*link_rows(store.storage, found), *blobs], key=lambda row: row.kind.phase)


def paths(rows: list[Row]) -> list[str]:
    return [row.path for row in rows]


def emptied(store: Store, policy: Policy = UNTAGGED_GO) -> set[str]:
    found = marked(store.storage, policy)
    cutoff = store.storage.now() - policy.grace
    links = dead_links(found.catalog, found.manifests, found.marking, policy, cutoff)
    return set(links.emptied)


def test_each_row_says_what_where_how_large_how_old_and_why(store: Store) -> None:
    image = store.tree.image("a", "v1", layers=[b"old layer"], config=b"old config")
    store.tree.image("a", "v1", layers=[b"new"])
    store.tree.upload("a", "u1", "2020-01-01T00:00:00Z", b"half")
    signed = store.tree.manifest(
        "a", {"schemaVersion": 1, "mediaType": SCHEMA1, "fsLayers": [{"blobSum": image}]}
    )
    signature = store.tree.blob(b"signature")
    signing = revision_path("a", signed).removesuffix("link")
    signing += f"signatures/{signature.replace(':', '/')}/link"
    store.write(signing, signature.encode())
    rows = plan(store)
    by_kind = {kind: rows_of(rows, kind) for kind in RowKind}
    layer, config = sha256(b"old layer"), sha256(b"old config")
    assert by_kind[RowKind.TAG_INDEX] == [
        Row(
            RowKind.TAG_INDEX,
            "a",
            image,
            tag_index_path("a", "v1", image),
            0,
            OLD,
            "the tag v1 pointed to it once",
        )
    ]
    assert by_kind[RowKind.SIGNATURE] == [
        Row(
            RowKind.SIGNATURE,
            "a",
            signature,
            signing,
            0,
            OLD,
            f"it signs the dead manifest {signed}",
        )
    ]
    why = "no tag of this repository leads to it"
    assert sorted(by_kind[RowKind.REVISION], key=lambda row: row.path) == [
        Row(RowKind.REVISION, "a", digest, revision_path("a", digest), 0, OLD, why)
        for digest in sorted([image, signed])
    ]
    why = "no live manifest of this repository references it"
    assert by_kind[RowKind.LAYER_LINK] == [
        Row(RowKind.LAYER_LINK, "a", digest, layer_link_path("a", digest), 0, OLD, why)
        for digest in sorted([layer, config])
    ]
    why = "no live manifest references it"
    gone = [image, signed, layer, config, signature]
    assert sorted(by_kind[RowKind.BLOB], key=lambda row: row.path) == sorted(
        [
            Row(RowKind.BLOB, None, digest, blob_path(digest), store.tree.size(digest), OLD, why)
            for digest in gone
        ],
        key=lambda row: row.path,
    )
    folder = f"{repository_path('a')}/_uploads/u1"
    why = "upload begun 2020-01-01T00:00:00Z and not finished"
    assert by_kind[RowKind.UPLOAD] == [
        Row(RowKind.UPLOAD, "a", "u1", f"{folder}/data", 4, OLD, why),
        Row(RowKind.UPLOAD, "a", "u1", f"{folder}/startedat", 20, OLD, why),
    ]


def test_every_planned_path_is_one_that_was_listed(store: Store) -> None:
    for number in range(20):
        image = store.tree.image(f"r{number % 4}", f"v{number % 3}", layers=[b"%d" % number])
        store.tree.image(f"r{number % 5}", None, layers=[b"x%d" % number], subject=image)
        store.tree.blob(b"o%d" % number, sha512(b"o%d" % number))
    rows = plan(store)
    assert len(rows) > 40
    assert set(paths(rows)) < set(store.storage.snapshot())
    assert len(set(paths(rows))) == len(rows)


def test_a_healthy_registry_has_nothing_to_delete(store: Store) -> None:
    child = store.tree.image("a", "v1")
    store.tree.index("a", "v2", [child])
    store.tree.image("b", "v1")
    assert plan(store) == []


def test_after_all_planned_deletes_nothing_is_left_to_delete(store: Store) -> None:
    for number in range(20):
        image = store.tree.image(f"r{number % 4}", f"v{number % 3}", layers=[b"%d" % number])
        store.tree.image(f"r{number % 5}", None, layers=[b"x%d" % number], subject=image)
    for path in paths(plan(store)):
        store.remove(path)
    assert plan(store) == []


# Layer links


def test_an_image_keeps_its_links_where_it_is_tagged_and_loses_them_where_it_is_not(
    store: Store,
) -> None:
    image = store.tree.image("a", "v1", layers=[b"x"])
    store.tree.image("b", None, layers=[b"x"])
    rows = plan(store)
    assert set(paths(rows)) == {
        revision_path("b", image),
        layer_link_path("b", sha256(b"x")),
        layer_link_path("b", sha256(b"{}")),
    }


def test_links_stay_that_a_child_needs_which_lives_here_by_content_only(store: Store) -> None:
    """The index is pulled from ``a``, and so are the layers of its children."""
    child = store.tree.image("b", None, layers=[b"x"])
    store.tree.index("a", "v1", [child])
    store.tree.layer("a", b"x")
    assert layer_link_path("a", sha256(b"x")) not in paths(plan(store))


def test_a_layer_link_that_names_a_live_revision_is_live(store: Store) -> None:
    image = store.tree.image("a", "v1")
    dead = store.tree.image("a", None, layers=[b"x"])
    store.tree.link_layer("a", image)
    store.tree.link_layer("a", dead)
    gone = paths(rows_of(plan(store), RowKind.LAYER_LINK))
    assert layer_link_path("a", image) not in gone
    assert layer_link_path("a", dead) in gone


def by_sha512(store: Store, repository: str, tag: str | None, data: bytes) -> str:
    layers = [descriptor(OCI_LAYER, sha512(data), len(data))]
    return store.tree.image(repository, tag, layers=[], extra={"layers": layers})


def test_both_names_of_a_layer_are_needed_where_one_is(store: Store) -> None:
    store.tree.layer("a", b"x")
    store.tree.link_layer("a", sha512(b"x"), sha256(b"x"))
    by_sha512(store, "a", "v1", b"x")
    assert plan(store) == []
    other = Store()
    other.tree.image("a", "v1", layers=[b"x"])
    other.tree.link_layer("a", sha512(b"x"), sha256(b"x"))
    assert plan(other) == []


def test_the_link_that_resolves_a_live_reference_stays_in_whatever_repository(
    store: Store,
) -> None:
    store.tree.blob(b"x")
    store.tree.link_layer("elsewhere", sha512(b"x"), sha256(b"x"))
    by_sha512(store, "a", "v1", b"x")
    assert plan(store) == []


@pytest.mark.parametrize("where", ["revision", "tag index"])
def test_so_does_a_revision_or_an_entry_that_resolves_one(store: Store, where: str) -> None:
    """Deleting it, the next run would find no manifest by that name."""
    image = store.tree.image("elsewhere", None, layers=[b"x"])
    alias = sha512(store.storage.snapshot()[blob_path(image)])
    if where == "revision":
        path = revision_path("elsewhere", alias)
    else:
        path = tag_index_path("elsewhere", "v1", alias)
    store.write(path, image.encode())
    store.tree.index("a", "v1", [alias])
    before = marked(store.storage)
    assert {image, sha256(b"x")} < before.digests
    for gone in paths(plan(store)):
        store.remove(gone)
    after = marked(store.storage)
    assert {image, sha256(b"x")} < after.digests
    assert not after.held
    assert plan(store) == []


def test_a_link_of_that_name_that_says_nothing_about_another_does_not_stay(store: Store) -> None:
    """Stored under its own name as well, and linked so where nobody needs it."""
    store.tree.blob(b"x")
    store.tree.link_layer("a", sha512(b"x"), sha256(b"x"))
    store.tree.blob(b"x", sha512(b"x"))
    store.tree.link_layer("b", sha512(b"x"))
    by_sha512(store, "a", "v1", b"x")
    assert paths(plan(store)) == [layer_link_path("b", sha512(b"x"))]


def test_a_name_that_nobody_needs_goes_with_what_it_stands_for(store: Store) -> None:
    store.tree.blob(b"x")
    store.tree.link_layer("a", sha512(b"x"), sha256(b"x"))
    assert set(paths(plan(store))) == {
        layer_link_path("a", sha512(b"x")),
        blob_path(sha256(b"x")),
    }


def test_blobs_that_are_stored_by_another_name_go_by_that_name(store: Store) -> None:
    store.tree.blob(b"x", sha512(b"x"))
    assert paths(plan(store)) == [blob_path(sha512(b"x"))]


# Held and released


def test_nothing_of_a_held_repository_goes_nor_any_blob_that_it_links(store: Store) -> None:
    bad = store.tree.image("a", "v1", layers=[b"1"])
    store.tree.image("a", "v1", layers=[b"2"])
    store.tree.layer("a", b"orphan")
    store.tree.blob(b"nobody's")
    store.write(blob_path(bad), b"{")
    assert paths(plan(store)) == [blob_path(sha256(b"nobody's"))]
    lifted = replace(UNTAGGED_GO, releases=(Release("a"),))
    assert {revision_path("a", bad), blob_path(sha256(b"1"))} < set(paths(plan(store, lifted)))


def test_a_revision_of_a_manifest_that_is_gone_goes_with_m_when_it_is_untagged(
    store: Store,
) -> None:
    lost, tagged = (store.tree.image("a", None, layers=[data]) for data in (b"1", b"2"))
    store.tree.tag("a", "v1", tagged)
    for digest in (lost, tagged):
        store.remove(blob_path(digest))
    assert revision_path("a", lost) in paths(plan(store))
    assert revision_path("a", tagged) not in paths(plan(store))
    assert not rows_of(plan(store, Policy()), RowKind.REVISION)


# Tags


def test_a_tags_current_link_never_goes_whatever_it_points_to(store: Store) -> None:
    store.tree.tag("a", "lost", sha256(b"never pushed"))
    store.tree.image("a", "v1")
    store.write(tag_path("a", "v1"), b"")
    store.tree.image("a", "moved", layers=[b"1"])
    store.tree.image("a", "moved", layers=[b"2"])
    for policy in (Policy(), UNTAGGED_GO, replace(UNTAGGED_GO, releases=(Release("a"),))):
        assert not any(path.endswith("/current/link") for path in paths(plan(store, policy)))


def test_the_entry_of_what_a_tag_points_to_now_stays_though_the_manifest_is_gone(
    store: Store,
) -> None:
    store.tree.tag("a", "v1", sha256(b"never pushed"))
    assert plan(store) == []


def test_without_m_only_entries_of_manifests_that_were_deleted_go(store: Store) -> None:
    old = store.tree.image("a", "v1", layers=[b"1"])
    deleted = store.tree.image("a", "v1", layers=[b"2"])
    store.tree.image("a", "v1", layers=[b"3"])
    store.remove(revision_path("a", deleted))
    gone = paths(plan(store, Policy()))
    assert tag_index_path("a", "v1", deleted) in gone
    assert tag_index_path("a", "v1", old) not in gone


def test_a_referrer_goes_before_its_subject_in_chains_too(store: Store) -> None:
    chain = [store.tree.image("a", None, layers=[b"0"])]
    for number in range(1, 6):
        chain.append(store.tree.image("a", None, layers=[b"%d" % number], subject=chain[-1]))
    order = [row.digest for row in rows_of(plan(store), RowKind.REVISION)]
    assert order == chain[::-1]


# Grace


def test_nothing_young_goes_nor_what_it_names(store: Store) -> None:
    image = store.tree.image("a", None, layers=[b"1"])
    store.age = YOUNG
    young = store.tree.image("a", None, layers=[b"2"])
    store.tree.blob(b"young orphan")
    store.tree.link_layer("b", sha256(b"1"))
    gone = set(paths(plan(store, UNTAGGED_GO_WITH_GRACE)))
    assert gone == {revision_path("a", image), blob_path(image)}
    assert revision_path("a", young) in paths(plan(store))


def test_a_young_blob_that_is_an_old_linked_manifest_brings_its_parts_back(store: Store) -> None:
    image = store.tree.image("a", None, layers=[b"x"])
    store.touch(blob_path(image))
    assert planned_paths(store.storage, UNTAGGED_GO_WITH_GRACE) == set()


def test_what_is_from_the_future_is_young(store: Store) -> None:
    store.age = NOW + 1
    store.tree.image("a", None)
    assert planned_paths(store.storage) == set()


def test_the_keys_of_young_blobs_are_told(store: Store) -> None:
    store.tree.blob(b"old")
    store.age = YOUNG
    young = store.tree.blob(b"young")
    found = marked(store.storage, UNTAGGED_GO_WITH_GRACE)
    rows, keys = blob_rows(store.storage, found)
    assert [row.digest for row in rows] == [sha256(b"old")]
    assert found.catalog.names.texts(keys) == [young]


def test_an_old_link_by_another_name_to_something_young_stays(store: Store) -> None:
    store.tree.blob(b"x")
    store.tree.link_layer("a", sha512(b"x"), sha256(b"x"))
    store.tree.link_layer("b", sha256(b"x"))
    store.touch(layer_link_path("b", sha256(b"x")))
    assert plan(store, UNTAGGED_GO_WITH_GRACE) == []


# Uploads


@pytest.mark.parametrize(
    ("started", "age", "goes"),
    [
        ("2020-01-01T00:00:00Z", 8 * DAY, True),
        ("2020-01-01T00:00:00.123456789Z", 8 * DAY, True),
        ("2020-01-01T00:00:00.123456789+05:30", 8 * DAY, True),
        ("2020-01-01T00:00:00Z", 7 * DAY, True),
        ("2020-01-01T00:00:00Z", 7 * DAY - 1, False),
        ("2023-11-14T22:13:19Z", 8 * DAY, False),  # a second before now
        ("2033-01-01T00:00:00Z", 8 * DAY, False),
        ("9999-12-31T23:59:59-23:59", 8 * DAY, False),
        ("0001-01-01T00:00:00+23:59", 8 * DAY, True),
        ("2020-01-01T00:00:00", 8 * DAY, False),  # of which zone?
        ("2020-01-01 00:00:00Z", 8 * DAY, False),  # as no registry writes it
        ("20200101T000000Z", 8 * DAY, False),
        ("2020-01-01T00:00:00.123456789+01:00", 8 * DAY, True),
        ("yesterday", 8 * DAY, False),
        ("", 8 * DAY, False),
        (None, 8 * DAY, False),
    ],
)
def test_an_upload_goes_when_all_of_it_is_older_than_the_upload_age(
    store: Store, started: str | None, age: float, goes: bool
) -> None:
    store.age = NOW - age
    store.tree.upload("a", "u", started, b"half")
    rows = plan(store)
    assert len(rows) == (2 if goes else 0)
    assert sum(row.size for row in rows) == (4 + len(started or "") if goes else 0)


def test_one_young_file_keeps_an_upload(store: Store) -> None:
    store.tree.upload("a", "u", "2020-01-01T00:00:00Z", b"half")
    store.age = YOUNG
    store.write(f"{repository_path('a')}/_uploads/u/hashstates/sha256/4", b"")
    assert plan(store) == []


def test_an_upload_that_lost_its_start_goes_only_when_asked(store: Store) -> None:
    store.tree.upload("a", "u", None, b"half")
    asked = replace(UNTAGGED_GO, upload_without_start=True)
    assert plan(store) == []
    assert [row.reason for row in plan(store, asked)] == [
        "upload begun at an unknown time and not finished"
    ]


def test_no_upload_age_keeps_all_uploads(store: Store) -> None:
    store.tree.upload("a", "u", "2020-01-01T00:00:00Z", b"half")
    never = replace(UNTAGGED_GO, upload_age=None, upload_without_start=True)
    assert plan(store, never) == []


@pytest.mark.parametrize(
    ("grace", "upload_age", "age", "goes"),
    [
        (HOUR, DAY, DAY + 1, True),
        (HOUR, DAY, DAY - 1, False),
        (DAY, HOUR, DAY + 1, True),
        (DAY, HOUR, 2 * HOUR, False),  # nothing younger than the grace period goes
    ],
)
def test_an_upload_is_older_than_both_ages(
    store: Store, grace: float, upload_age: float, age: float, goes: bool
) -> None:
    store.age = NOW - age
    store.tree.upload("a", "u", "2020-01-01T00:00:00Z", b"half")
    policy = Policy(grace=grace, upload_age=upload_age)
    assert bool(plan(store, policy)) is goes


def test_what_says_how_old_an_upload_is_goes_last(store: Store) -> None:
    """Without it, the rest of a half deleted upload would be of unknown age, and stay."""
    store.tree.upload("a", "u", "2020-01-01T00:00:00Z", b"half")
    store.write(f"{repository_path('a')}/_uploads/u/zzz", b"")
    assert paths(plan(store))[-1].endswith("/startedat")


# Emptied repositories


def test_a_repository_is_emptied_when_no_file_stays(store: Store) -> None:
    store.tree.image("untagged", None)
    store.tree.layer("layers", b"orphan")
    store.tree.upload("uploads", "u", "2020-01-01T00:00:00Z")
    store.tree.image("kept", "v1")
    assert emptied(store) == {"untagged", "layers", "uploads"}
    assert emptied(store, Policy()) == {"layers", "uploads"}


@pytest.mark.parametrize(
    "path",
    ["_stray", "_layers/stray", "_manifests/tags/v1/current/link", "_uploads/u/data"],
)
def test_one_file_that_stays_keeps_a_repository(store: Store, path: str) -> None:
    store.tree.image("a", None)
    store.write(f"{repository_path('a')}/{path}", b"")
    assert emptied(store) == set()


def test_a_repository_inside_another_is_another(store: Store) -> None:
    store.tree.image("a", None, layers=[b"1"])
    store.tree.image("a/b", "v1", layers=[b"2"])
    assert emptied(store) == {"a"}


# Signatures of schema 1


def signed(store: Store, tag: str | None, *, link: bool = True) -> str:
    document = {
        "schemaVersion": 1,
        "fsLayers": [{"blobSum": store.tree.layer("a", b"signed")}],
        "tag": tag,
    }
    image = store.tree.manifest("a", document, tag)
    path = revision_path("a", image)
    signature = sha256(b"signature")
    store.write(path.removesuffix("link") + f"signatures/{signature.replace(':', '/')}/link", b"x")
    if not link:
        store.remove(path)
    return image


@pytest.mark.parametrize("link", [True, False])
def test_signature_links_go_with_their_revision_or_without_one(store: Store, link: bool) -> None:
    signed(store, "v1")
    signed(store, None, link=link)
    assert len(rows_of(plan(store), RowKind.SIGNATURE)) == 1
    assert len(rows_of(plan(store, Policy()), RowKind.SIGNATURE)) == (0 if link else 1)


def test_a_live_key_is_never_among_the_rows_of_blobs(store: Store) -> None:
    """The opposite direction: whatever a live manifest names is no row."""
    for number in range(30):
        entries = [
            descriptor(OCI_MANIFEST, store.tree.image("a", None, layers=[b"%d" % number]), 1),
            descriptor(OCI_LAYER, store.tree.layer("b", b"l%d" % number), 1),
        ]
        store.tree.manifest(
            "a", {"mediaType": OCI_INDEX, "manifests": entries}, "v" if number % 2 else None
        )
    found: Marked = marked(store.storage)
    rows, _ = blob_rows(store.storage, found)
    assert not {row.digest for row in rows} & found.digests
    assert len(rows) + len(found.digests) == sum(
        path.endswith("/data") for path in store.storage.snapshot()
    )
