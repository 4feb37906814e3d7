"""What a collection must do, said once more as simply as possible: the naive reference model.

A registry is a dict of path -> :class:`File`; sets of strings and a loop until nothing changes.
Nothing here is shared with the collector, not even how a path or a manifest is read. The rules
are those of DESIGN.md, "What is live"; the layout is that of FACTS.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

V2 = "docker/registry/v2"
HOUR = 3600.0
WEEK = 168 * HOUR

DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_BLOB = re.compile(rf"{V2}/blobs/(\w+)/(\w\w)/(\2\w+)/data")
_IN_REPOSITORY = re.compile(rf"{V2}/repositories/((?:[^_/][^/]*/)+)(_.*)")
_LINKS = {
    "revision": re.compile(r"_manifests/revisions/(?P<digest>\w+/\w+)/link"),
    "signature": re.compile(
        r"_manifests/revisions/(?P<owner>\w+/\w+)/signatures/(?P<digest>\w+/\w+)/link"
    ),
    "current": re.compile(r"_manifests/tags/(?P<owner>[^/]+)/current/link"),
    "entry": re.compile(r"_manifests/tags/(?P<owner>[^/]+)/index/(?P<digest>\w+/\w+)/link"),
    "layer": re.compile(r"_layers/(?P<digest>\w+/\w+)/link"),
}
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_UPLOAD = re.compile(r"_uploads/([^/]+)/.+")

_INDEXES = {
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
}
_IMAGES = {
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
}
_ARTIFACTS = {
    "application/vnd.oci.artifact.manifest.v1+json",
    "application/vnd.cncf.oras.artifact.manifest.v1+json",
}
_SCHEMA1 = {
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
}
_PULLED = {"revision", "layer"}
_MANIFESTS = _INDEXES | _IMAGES | _ARTIFACTS | _SCHEMA1


@dataclass(frozen=True, slots=True)
class File:
    """A file's bytes, and how many seconds before the listing they were written."""

    data: bytes
    age: float = 2 * HOUR


Files = Mapping[str, File]


class Link(NamedTuple):
    """A link file: where it is, the digest its path names, and the one that it holds, if any."""

    kind: str
    path: str
    repository: str
    owner: str  # the tag, or the revision that a signature belongs to
    digest: str
    content: str

    @property
    def names(self) -> set[str]:
        """Every digest that this link is about."""
        alias = self.kind == "current" or not self.digest.startswith("sha256:")
        return {self.digest, self.content if alias else ""} - {""}


class Manifest(NamedTuple):
    """What a manifest says: all it keeps, the manifests among those, and what it describes.

    ``by_link``: the children that only some repository's link tells to be manifests.
    """

    references: frozenset[str] = frozenset()
    children: frozenset[str] = frozenset()
    subject: str = ""
    bad: bool = False
    by_link: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Expected:
    """What must come out: paths to go, and the same by kind.

    ``live``: repository and digest of each live manifest; ``used``: of each digest that a live
    manifest of that repository refers to, or is, under all its names.
    """

    dead: frozenset[str]
    blobs: frozenset[str]
    bytes: int
    revisions: frozenset[tuple[str, str]]
    layer_links: frozenset[tuple[str, str]]
    uploads: frozenset[tuple[str, str]]
    emptied: frozenset[str]
    repositories: frozenset[str]
    held: frozenset[str]
    marked: frozenset[str]
    damaged: frozenset[str]
    live: frozenset[tuple[str, str]]
    used: frozenset[tuple[str, str]]


def is_alias(link: Link) -> bool:
    """Whether a layer link says under which other name its bytes are stored."""
    named = not link.digest.startswith("sha256:") and link.content not in ("", link.digest)
    return link.kind == "layer" and named


def read_links(files: Files) -> list[Link]:
    """Every link below ``repositories``."""
    links = []
    for path, file in files.items():
        inside = _IN_REPOSITORY.fullmatch(path)
        for kind, pattern in _LINKS.items():
            if inside and (match := pattern.fullmatch(inside[2])):
                parts = {key: value.replace("/", ":") for key, value in match.groupdict().items()}
                text = file.data.decode("latin-1")
                content = text if DIGEST.fullmatch(text) else ""
                digest = parts.get("digest", "")
                if digest and not DIGEST.fullmatch(digest):
                    continue
                links.append(
                    Link(kind, path, inside[1][:-1], parts.get("owner", ""), digest, content)
                )
    return links


def read_blobs(files: Files) -> dict[str, str]:
    """Digest -> path of every blob."""
    matches = filter(None, map(_BLOB.fullmatch, files))
    blobs = {f"{match[1]}:{match[3]}": match[0] for match in matches}
    return {digest: path for digest, path in blobs.items() if DIGEST.fullmatch(digest)}


def read_manifest(digest: str, data: bytes, known: Iterable[str] = ()) -> Manifest:
    """What the manifest *digest* says; *known* are digests known to be manifests."""
    algorithm, _, encoded = digest.partition(":")
    if hashlib.new(algorithm, data).hexdigest() != encoded:
        return Manifest(bad=True)
    try:
        return _parse(json.loads(data), set(known))
    except (ValueError, LookupError, TypeError, AttributeError):
        return Manifest(bad=True)


def _parse(document: dict[str, Any], known: set[str]) -> Manifest:
    kind = document.get("mediaType")
    subject = (document.get("subject") or {}).get("digest", "")
    if kind in _SCHEMA1 or (kind is None and "fsLayers" in document):
        layers = frozenset(layer["blobSum"] for layer in document["fsLayers"])
        return Manifest(layers)
    if kind in _INDEXES or (kind is None and "manifests" in document):
        listed = {item["digest"]: item.get("mediaType") for item in document["manifests"]}
        children = {d for d, media_type in listed.items() if media_type in _MANIFESTS or d in known}
        by_link = {d for d in children if listed[d] not in _MANIFESTS}
        return Manifest(frozenset(listed), frozenset(children), subject, by_link=frozenset(by_link))
    if kind in _IMAGES or kind is None:
        parts = [document["config"], *document["layers"]]
    elif kind in _ARTIFACTS:
        parts = document["blobs"]
    else:
        raise ValueError(kind)
    return Manifest(frozenset(part["digest"] for part in parts), subject=subject)


def expect(
    files: Files,
    *,
    delete_untagged: bool,
    grace: float = 0.0,
    upload_age: float | None = WEEK,
    now: float = 0.0,
) -> Expected:
    """What a collection of *files* must delete, hold and report.

    *grace* and *upload_age* in seconds; None keeps all uploads. *now* (seconds since the epoch)
    is what the ages in ``startedat`` are counted from.
    """
    links, blobs = read_links(files), read_blobs(files)
    repositories = {m[1][:-1] for m in map(_IN_REPOSITORY.fullmatch, files) if m}
    revisions = {(link.repository, link.digest) for link in links if link.kind == "revision"}
    linked = {digest for _, digest in revisions}
    young = {digest for digest, path in blobs.items() if files[path].age < grace}
    young |= {name for link in links if files[link.path].age < grace for name in link.names}

    aliases: dict[str, set[str]] = {}
    for link in links:
        if is_alias(link):
            aliases.setdefault(link.digest, set()).add(link.content)

    # Something young by another name of it: what it is stored as stays too, whoever's link says so.
    young |= {stored for digest in young for stored in aliases.get(digest, ())}

    def named(digests: Iterable[str]) -> set[str]:
        return {name for digest in digests for name in (digest, *aliases.get(digest, ()))}

    manifests: dict[str, Manifest] = {}

    def manifest(digest: str) -> Manifest:
        if digest not in manifests:
            stored = blobs.get(digest)
            manifests[digest] = (
                read_manifest(digest, files[stored].data, linked) if stored else Manifest()
            )
        return manifests[digest]

    def reach(roots: set[str]) -> set[str]:
        reached: set[str] = set()
        todo = named(roots)
        while todo:
            digest = todo.pop()
            reached.add(digest)
            todo |= named(manifest(digest).children) - reached
        return reached

    def used(repository: str) -> set[str]:
        """All that the live manifests of *repository* refer to."""
        return {d for m in live[repository] for d in manifest(m).references}

    def is_root(link: Link) -> bool:
        if link.kind == "revision":
            return not delete_untagged or link.repository in held or bool(link.names & young)
        if link.kind == "entry":
            # A tag was set to it within the grace period: to all of it, not to its bytes alone.
            fresh = files[link.path].age < grace
            return fresh or (link.repository, link.owner) in bad_tags
        return link.kind == "current"

    def is_live_referrer(repository: str, digest: str, anywhere: set[str]) -> bool:
        subject = manifest(digest).subject
        away = (repository, subject) not in revisions and subject in anywhere
        return subject != "" and (subject in live[repository] or away)

    def must_hold(repository: str) -> bool:
        own = {digest for name, digest in revisions if name == repository}
        lost = {
            digest
            for digest in used(repository)
            if not digest.startswith("sha256:") and not named([digest]) & blobs.keys()
        }
        return bool(lost) or any(manifest(digest).bad for digest in own | live[repository])

    def live_anywhere() -> set[str]:
        found = {name for r in repositories for name in named(live[r] | used(r))}
        for link in links:
            signs = link.kind == "signature" and link.owner in live[link.repository]
            if link.repository in held or signs:
                found |= named(link.names)
        return found

    entries = {(t.repository, t.owner, t.digest) for t in links if t.kind == "entry"}
    bad_tags = {
        (t.repository, t.owner)
        for t in links
        if t.kind == "current"
        # A tag points to what is in its index; what is neither there nor stored was never pushed.
        and (t.repository, t.owner, t.content) not in entries
        and not named([t.content]) & blobs.keys()
    }
    held = {repository for repository, _ in bad_tags}
    live: dict[str, set[str]] = {repository: set() for repository in repositories}
    before: object = None
    while before != (before := (held.copy(), {r: set(live[r]) for r in live})):
        # A subject may be a layer of an artifact as well, or be kept by a hold or its age.
        anywhere = live_anywhere() | young
        by_link = {d for r in repositories for m in live[r] for d in manifest(m).by_link}
        for repository in repositories:
            own = [link for link in links if link.repository == repository]
            roots = {name for link in own if is_root(link) for name in link.names}
            roots |= {
                digest
                for name, digest in revisions
                if name == repository
                # Without such a link the next run would not know that it is a manifest.
                and (digest in by_link or is_live_referrer(name, digest, anywhere))
            }
            live[repository] |= reach(roots)
            if must_hold(repository):
                held.add(repository)

    anywhere = live_anywhere()

    def is_dead(link: Link) -> bool:
        if link.repository in held or link.names & young or link.kind == "current":
            return False
        alive = live[link.repository]
        if is_alias(link) and link.digest in anywhere:
            # Where only this link resolves another repository's reference, the next run would
            # find "neither" and delete the target: so what resolves a live reference stays.
            return False
        if link.kind == "layer":
            return not named(link.names) & named(alive | used(link.repository))
        return (link.owner if link.kind == "signature" else link.digest) not in alive

    dead_links = [link for link in links if is_dead(link)]
    dead_blobs = {d: path for d, path in blobs.items() if d not in anywhere and d not in young}
    uploads = _dead_uploads(files, upload_age, grace, now)
    dead = {link.path for link in dead_links} | set(dead_blobs.values())
    dead |= {path for paths in uploads.values() for path in paths}
    left = {m[1][:-1] for m in map(_IN_REPOSITORY.fullmatch, set(files) - dead) if m}
    unread = {t.path for t in links if not t.content and t.kind in ("revision", "layer")}
    gone = {t.path for t in links if t.kind == "revision" and not named(t.names) & blobs.keys()}
    return Expected(
        dead=frozenset(dead),
        blobs=frozenset(dead_blobs),
        bytes=sum(len(files[path].data) for path in dead_blobs.values()),
        revisions=frozenset((t.repository, t.digest) for t in dead_links if t.kind == "revision"),
        layer_links=frozenset((t.repository, t.digest) for t in dead_links if t.kind == "layer"),
        uploads=frozenset(uploads),
        emptied=frozenset(repositories - left),
        repositories=frozenset(repositories),
        held=frozenset(held),
        marked=frozenset(anywhere),
        damaged=frozenset(unread | gone),
        live=frozenset((r, digest) for r in repositories for digest in live[r]),
        used=frozenset((r, d) for r in repositories for d in named(live[r] | used(r))),
    )


def missed(files: Files, aside: Files, expected: Expected) -> set[str]:
    """The paths of what is live and lies *aside*, where a quarantine has put it.

    *aside*: by original path. *expected* is what is said of *files*.
    """
    away = {path: file for path, file in aside.items() if path not in files}
    back = {path for digest, path in read_blobs(away).items() if digest in expected.marked}
    for link in read_links(away):
        if link.repository not in expected.repositories and link.kind != "layer":
            continue
        if link.kind == "layer":
            # By another name it may be the only one to tell what is stored.
            other = not link.digest.startswith("sha256:") and link.digest in expected.marked
            needed = other or (link.repository, link.digest) in expected.used
        elif link.kind in ("revision", "signature"):
            needed = (link.repository, link.owner or link.digest) in expected.live
        else:
            needed = False
        if needed:
            back.add(link.path)
    return back


def _dead_uploads(
    files: Files, upload_age: float | None, grace: float, now: float
) -> dict[tuple[str, str], list[str]]:
    """(repository, uuid) -> its files, of every upload that is old and known to be."""
    folders: dict[tuple[str, str], list[str]] = {}
    for path in files:
        inside = _IN_REPOSITORY.fullmatch(path)
        if inside and (match := _UPLOAD.fullmatch(inside[2])):
            folders.setdefault((inside[1][:-1], match[1]), []).append(path)
    dead = {}
    for (repository, uuid), paths in folders.items():
        started = f"{V2}/repositories/{repository}/_uploads/{uuid}/startedat"
        told = files[started].data.decode() if started in paths else ""
        if upload_age is None or not _RFC3339.fullmatch(told):
            continue
        began = datetime.fromisoformat(told)
        youngest = min([now - began.timestamp(), *(files[path].age for path in paths)])
        if youngest >= max(upload_age, grace):
            dead[repository, uuid] = paths
    return dead


def leads_somewhere(files: Files, paths: Iterable[str]) -> set[str]:
    """Those of *paths* that are no links to a blob that is not among *files*."""
    blobs = read_blobs(files)
    nowhere = {
        link.path
        for link in read_links({path: files[path] for path in paths})
        if link.digest.startswith("sha256:") and link.digest not in blobs
    }
    return set(paths) - nowhere


def needed_by(files: Files, repository: str, digest: str) -> set[str]:
    """The paths of *files* that a pull of the manifest *digest* from *repository* needs."""
    links = [link for link in read_links(files) if link.repository == repository]
    own = {link.digest for link in links if link.kind == "revision"}
    blobs = read_blobs(files)
    digests, done, todo = {digest}, set[str](), {digest}
    while todo:
        name = todo.pop()
        done.add(name)
        stored = blobs.get(name)
        manifest = read_manifest(name, files[stored].data, own) if stored else Manifest()
        digests |= manifest.references
        todo |= manifest.children - done
    digests |= {link.content for link in links if is_alias(link) and link.digest in digests}
    pulled = {link.path for link in links if link.digest in digests and link.kind in _PULLED}
    return pulled | {blobs[name] for name in digests & blobs.keys()}
