"""What manifests reference: every media type, every oddity, and no live reference missed."""

from __future__ import annotations

import contextlib
import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_gc.manifests import ManifestKind, UnreadableManifest, parse
from registry_tree import (
    BUILDKIT_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_ARTIFACT,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    ORAS_ARTIFACT,
    SCHEMA1,
    descriptor,
    sha256,
    sha512,
)

PRETTY = "application/vnd.docker.distribution.manifest.v1+prettyjws"
A, B, C, D, E = (sha256(name) for name in (b"a", b"b", b"c", b"d", b"e"))
Document = dict[str, Any]


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def image(media_type: str | None = OCI_MANIFEST, **more: Any) -> Document:
    document: Document = {
        "schemaVersion": 2,
        "config": descriptor(OCI_CONFIG, A, 1),
        "layers": [descriptor(OCI_LAYER, B, 1), descriptor(OCI_LAYER, C, 1)],
    }
    if media_type is not None:
        document["mediaType"] = media_type
    return {**document, **more}


def index(*children: Document, media_type: str | None = OCI_INDEX, **more: Any) -> Document:
    document: Document = {"schemaVersion": 2, "manifests": list(children), **more}
    return document if media_type is None else {**document, "mediaType": media_type}


def unreadable(document: object) -> str:
    """Why *document* cannot be read."""
    with pytest.raises(UnreadableManifest) as caught:
        parse(document if isinstance(document, bytes) else encoded(document))
    return str(caught.value)


# What there is


@pytest.mark.parametrize(
    "media_type",
    [OCI_MANIFEST, DOCKER_MANIFEST, None, "", "application/vnd.example+json", OCI_MANIFEST.upper()],
)
def test_an_image_references_config_and_layers(media_type: str | None) -> None:
    found = parse(encoded(image(media_type)))
    assert (found.kind, found.blobs) == (ManifestKind.IMAGE, (A, B, C))
    assert (found.children, found.maybe, found.linked, found.subject) == ((), (), (), None)


def test_the_parameters_of_a_media_type_do_not_matter() -> None:
    assert parse(encoded(image(f"{OCI_MANIFEST}; charset=utf-8"))).kind is ManifestKind.IMAGE
    children = index(descriptor(f" {OCI_MANIFEST} ;x=y", A, 1))
    assert parse(encoded(children)).children == (A,)


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, OCI_ARTIFACT, ORAS_ARTIFACT, OCI_INDEX])
def test_the_subject_is_told_apart_from_what_is_kept(media_type: str) -> None:
    base = index(media_type=media_type) if media_type == OCI_INDEX else image(media_type)
    found = parse(encoded({**base, "subject": descriptor(OCI_MANIFEST, D, 1)}))
    assert found.subject == D
    assert D not in found.blobs + found.children + found.maybe + found.linked


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST, None])
def test_an_index_references_its_children(media_type: str | None) -> None:
    children = [descriptor(OCI_MANIFEST, A, 1), descriptor(DOCKER_LIST, B, 1)]
    found = parse(encoded(index(*children, media_type=media_type)))
    assert (found.kind, found.children, found.blobs) == (ManifestKind.INDEX, (A, B), ())


@pytest.mark.parametrize("media_type", [OCI_ARTIFACT, ORAS_ARTIFACT])
@pytest.mark.parametrize("blobs", [[], None, "absent", [descriptor("text/plain", A, 1)]])
def test_an_artifact_references_its_blobs_which_it_need_not_have(
    media_type: str, blobs: Any
) -> None:
    document = {"mediaType": media_type} | ({} if blobs == "absent" else {"blobs": blobs})
    found = parse(encoded(document))
    assert found.kind is ManifestKind.ARTIFACT
    assert found.blobs == ((A,) if isinstance(blobs, list) and blobs else ())


@pytest.mark.parametrize(
    "head",
    [{"schemaVersion": 1}, {"schemaVersion": 1, "mediaType": SCHEMA1}, {"mediaType": PRETTY}],
)
def test_a_schema_1_manifest_references_its_layers_each_once(head: Document) -> None:
    layers = [{"blobSum": A}, {"blobSum": B}, {"blobSum": A}]
    found = parse(encoded({**head, "fsLayers": layers, "history": [{"v1Compatibility": "{}"}]}))
    assert (found.kind, found.blobs) == (ManifestKind.SCHEMA_1, (A, B))


def test_a_buildkit_cache_references_layers_and_a_config_that_are_no_manifests() -> None:
    found = parse(
        encoded(
            index(
                descriptor(OCI_LAYER, A, 1),
                descriptor(DOCKER_LAYER, B, 1),
                descriptor(BUILDKIT_CONFIG, C, 1),
                descriptor("application/vnd.docker.image.rootfs.diff.tar.zstd", D, 1),
            )
        )
    )
    assert found.kind is ManifestKind.INDEX
    assert found.blobs == found.linked == (A, B, C, D)
    assert found.children == found.maybe == ()


@pytest.mark.parametrize("media_type", [None, "", "text/plain", "application/vnd.unknown+json"])
def test_an_entry_of_an_unknown_type_may_be_a_manifest(media_type: str | None) -> None:
    found = parse(encoded(index({"digest": A, "mediaType": media_type, "size": 1}, {"digest": B})))
    assert found.maybe == (A, B)
    assert found.children == ()


def test_a_layer_that_lies_elsewhere_is_referenced_like_any_other() -> None:
    foreign = {**descriptor(OCI_LAYER, D, 1), "urls": ["https://example.com/layer"]}
    assert D in parse(encoded(image(layers=[foreign]))).blobs


def test_digests_of_other_algorithms_are_references() -> None:
    found = parse(encoded(image(layers=[descriptor(OCI_LAYER, sha512(b"x"), 1)])))
    assert found.blobs == (A, sha512(b"x"))


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, OCI_ARTIFACT])
def test_a_manifest_that_lies_about_its_type_keeps_all_that_it_names(media_type: str) -> None:
    document = image(media_type)
    document |= {
        "manifests": [descriptor(OCI_MANIFEST, D, 1)],
        "blobs": [descriptor(OCI_LAYER, E, 1)],
    }
    found = parse(encoded(document))
    assert set(found.blobs + found.children) == {A, B, C, D, E}


# Null, empty and missing


def test_lists_that_are_null_are_empty_lists() -> None:
    """Programs in Go write them so."""
    assert parse(encoded(image(layers=None))).blobs == (A,)
    assert parse(encoded({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": None})).kind is (
        ManifestKind.INDEX
    )
    assert parse(encoded(image(subject=None, blobs=None, manifests=None, fsLayers=None))).blobs == (
        A,
        B,
        C,
    )


def test_an_index_of_nothing_is_an_index() -> None:
    assert parse(encoded(index())).kind is ManifestKind.INDEX
    assert parse(encoded({"schemaVersion": 2, "manifests": []})).kind is ManifestKind.INDEX


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"schemaVersion": 2},
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST},
        {"schemaVersion": 2, "mediaType": OCI_INDEX},
        {"schemaVersion": 2, "mediaType": DOCKER_LIST, "config": {}, "layers": []},
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "config": {"digest": A}, "layers": []},
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {"digest": A}},
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []},
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": [{"digest": A}]},
        {"schemaVersion": 2, "config": None, "layers": []},
        {"schemaVersion": 2, "fsLayers": [{"blobSum": A}]},
        {"schemaVersion": 1},
        {"schemaVersion": 1, "fsLayers": None},
        {"mediaType": SCHEMA1},
        {"architecture": "amd64", "rootfs": {}},
    ],
    ids=str,
)
def test_what_lacks_what_it_must_have_is_no_manifest(document: Document) -> None:
    assert "neither an image" in unreadable(document) or "digest" in unreadable(document)


# Damage


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"\0" * 100,
        b"\xff\xfe",
        b"\xef\xbb\xbf" + encoded(image()),
        encoded(image())[:-1],
        encoded(image()) + b"{}",
        encoded(image()).decode().encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"annotations":' + b"[" * 200_000 + b"]" * 200_000 + b"," + encoded(image())[1:],
        b'{"layers":[' * 100_000,
        b'{"mediaType":"\xff"}',
        b'{"mediaType":"\\ud800"}',
        b'{"config":{"digest":"\\ud800"},"layers":[]}',
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_cannot_be_read_says_so_and_nothing_else_happens(data: bytes) -> None:
    assert unreadable(data).encode("utf-8", "replace")


@pytest.mark.parametrize(
    "document",
    [
        image(schemaVersion="2"),
        image(mediaType=7),
        image(layers={}),
        image(layers=[None]),
        image(layers=["x"]),
        image(layers=[{}]),
        image(layers=[{"digest": None}]),
        image(layers=[{"digest": 7}]),
        image(config=[]),
        image(config={}),
        image(subject={}),
        image(subject="x"),
        index({"mediaType": OCI_MANIFEST}),
        index(cast(Document, None)),
        {"schemaVersion": 1, "fsLayers": [{}]},
        {"schemaVersion": 1, "fsLayers": [{"blobSum": None}]},
        {"mediaType": OCI_ARTIFACT, "blobs": [{}]},
        {"mediaType": OCI_ARTIFACT, "blobs": "x"},
    ],
    ids=str,
)
def test_a_field_of_another_type_is_not_guessed_at(document: Document) -> None:
    assert unreadable(document)


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256:",
        "sha256:12",
        A[:-1],
        A.upper(),
        A + "\n",
        " " + A,
        "sha512:" + A[7:],
        "../../x",
    ],
)
@pytest.mark.parametrize("field", ["config", "layers", "manifests", "blobs", "subject", "fsLayers"])
def test_one_text_that_is_no_digest_makes_all_unreadable(field: str, digest: str) -> None:
    document = image(None, schemaVersion=1, fsLayers=[])
    one = {"digest": digest, "blobSum": digest}
    document[field] = one if field in ("config", "subject") else [one]
    assert unreadable(document)


# Case


@pytest.mark.parametrize(
    ("key", "document"),
    [
        ("Layers", image()),
        ("CONFIG", image()),
        ("Manifests", index(descriptor(OCI_MANIFEST, A, 1))),
        ("FsLayers", {"schemaVersion": 1, "fsLayers": [{"blobSum": A}]}),
        ("fslayers", {"schemaVersion": 1, "fsLayers": [{"blobSum": A}]}),
        ("MediaType", {"mediaType": OCI_ARTIFACT, "blobs": [descriptor(OCI_LAYER, A, 1)]}),
        ("SCHEMAVERSION", {"schemaVersion": 1, "fsLayers": [{"blobSum": A}]}),
    ],
)
def test_keys_are_taken_in_any_case_as_the_registry_takes_them(
    key: str, document: Document
) -> None:
    (plain,) = (name for name in document if name.lower() == key.lower())
    renamed = {key if name == plain else name: value for name, value in document.items()}
    assert parse(encoded(renamed)) == parse(encoded(document))


@pytest.mark.parametrize(
    "document",
    [
        image(layers=[], Layers=[descriptor(OCI_LAYER, D, 1)]),
        image(layers=None, LAYERS=[descriptor(OCI_LAYER, D, 1)]),
        image(Blobs=[descriptor(OCI_LAYER, D, 1)]),
        image(Manifests=[descriptor(OCI_MANIFEST, D, 1)]),
        image(layers=[{"digest": E, "Digest": D}]),
        index(Manifests=[descriptor(OCI_MANIFEST, D, 1)]),
        {"schemaVersion": 1, "fsLayers": [{"blobSum": E, "BlobSum": D}]},
        {"mediaType": OCI_ARTIFACT, "Blobs": [descriptor(OCI_LAYER, D, 1)]},
    ],
    ids=str,
)
def test_of_a_key_that_is_there_twice_in_two_cases_no_reference_is_lost(document: Document) -> None:
    """The registry takes the last one, whichever it is; here a doubt must not cost anything."""
    try:
        found = parse(encoded(document))
    except UnreadableManifest:
        return  # held: nothing is lost
    assert D in found.blobs + found.children + found.maybe


def again(document: Document, key: str, value: object) -> bytes:
    """*document* with *key* there once more."""
    return encoded(document)[:-1] + f', "{key}": {json.dumps(value)}}}'.encode()


@pytest.mark.parametrize(
    "data",
    [
        again(image(), "layers", [descriptor(OCI_LAYER, E, 1)]),
        again(image(), "layers", []),
        again(image(), "config", descriptor(OCI_CONFIG, E, 1)),
        again(image(subject=descriptor(OCI_MANIFEST, D, 1)), "subject", None),
        again(index(descriptor(OCI_MANIFEST, A, 1)), "manifests", []),
        again({"mediaType": OCI_ARTIFACT, "blobs": [{"digest": A}]}, "blobs", None),
        again({"schemaVersion": 1, "fsLayers": [{"blobSum": A}]}, "fsLayers", []),
        encoded(image()).replace(b'"digest"', b'"digest": "%s", "digest"' % D.encode(), 1),
        encoded(index(descriptor(OCI_MANIFEST, A, 1))).replace(
            b'"digest"', b'"mediaType": "%s", "digest"' % OCI_LAYER.encode()
        ),
    ],
    ids=repr,
)
def test_a_key_that_is_there_twice_is_not_decided_upon(data: bytes) -> None:
    with pytest.raises(UnreadableManifest, match="a key that is there twice"):
        parse(data)


@pytest.mark.parametrize("more", ["", ', "config": "sha256:x"', ', "digest": "x"'])
def test_keys_that_mean_nothing_may_be_there_twice(more: str) -> None:
    named = f', "annotations": {{"base": "{D}", "base": "{E}", "digest": "{D}"{more}}}}}'
    found = parse(encoded(image())[:-1] + named.encode())
    assert found == parse(encoded(image()))
    huge = f', "annotations": {{"base": "{D}", "digest": "", "size": {"9" * 5000}}}}}'
    assert parse(encoded(image())[:-1] + huge.encode()) == found


def test_a_key_in_escapes_is_the_key_that_it_spells() -> None:
    document = encoded(image()).replace(b'"layers"', b'"\\u006cayers"')
    assert parse(document).blobs == (A, B, C)


# Anything


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from([A])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["layers", "config", "manifests", "digest", "mediaType", "subject", "x", "Layers"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@given(st.one_of(json_values.map(encoded), st.binary(max_size=200)))
def test_anything_is_read_or_is_unreadable(data: bytes) -> None:
    try:
        found = parse(data)
    except UnreadableManifest:
        return
    assert isinstance(found.kind, ManifestKind)


@given(st.binary(min_size=0, max_size=3), st.integers(0, 500), st.integers(0, 8))
def test_a_manifest_with_a_few_bytes_changed_never_crashes(patch: bytes, at: int, cut: int) -> None:
    data = encoded(index(descriptor(OCI_MANIFEST, A, 1), subject=descriptor(OCI_INDEX, B, 1)))
    with contextlib.suppress(UnreadableManifest):
        parse(data[:at] + patch + data[at + cut :])


@pytest.mark.parametrize("key", ["Layers", "LAYERS"])
def test_keys_in_any_case_are_seen_where_digests_are_spelled_with_escapes(key: str) -> None:
    data = encoded(image(layers=[])).decode()
    escaped = A.replace("sha", "\\u0073ha")
    more = f', "{key}": [{{"digest": "{escaped}", "size": 1}}]}}'
    twice = (data.rstrip().removesuffix("}") + more).encode()
    with pytest.raises(UnreadableManifest, match="twice"):
        parse(twice)
    subject = f', "Subject": {{"digest": "{escaped}"}}}}'
    found = parse((data.rstrip().removesuffix("}") + subject).encode())
    assert found.subject == A
