"""Work units of a listing: from pages of paths to columns of digests.

They run in a worker, need nothing but a reader, and return values that are cheap to send.
What a path means is decided here, and only here, for every kind of storage.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import UNKNOWN_MD5, Entry, Page, Reader, stat_many
from registry_drivers.errors import NotFound, TooLarge
from registry_gc.digest import (
    LINK_SIZE,
    InvalidDigest,
    Keys,
    Names,
    check_digest,
    empty_keys,
    pack,
    stored_digest,
)
from registry_gc.layout import BLOBS, REPOSITORIES, Run, Single, blob_paths, split
from registry_gc.listing.ranges import Range, Walk
from registry_gc.listing.tags import Tag, stamp_of

_BUCKET = re.compile(re.escape(BLOBS) + "sha256/([0-9a-f]{2})/")


class Links(msgspec.Struct, frozen=True):
    """Links of one kind, as columns: whose, naming what, of which age.

    ``owner``: int32, the number of a repository or of a tag. ``keys``: ``V32``. ``modified``:
    seconds since the epoch.
    """

    owner: NDArray[np.int32]
    keys: Keys
    modified: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def empty(cls) -> Links:
        """No links."""
        return cls(np.empty(0, np.int32), empty_keys(), np.empty(0, np.float64))


class _LinkList(msgspec.Struct):
    """Collects links run by run, without an object for each."""

    owners: list[int] = msgspec.field(default_factory=list)
    keys: list[Keys] = msgspec.field(default_factory=list)
    modified: list[NDArray[np.float64]] = msgspec.field(default_factory=list)

    def add(self, owner: int, keys: Keys, modified: NDArray[np.float64]) -> None:
        self.owners.append(owner)
        self.keys.append(keys)
        self.modified.append(modified)

    def packed(self) -> Links:
        if not self.keys:
            return Links.empty()
        lengths = [len(keys) for keys in self.keys]
        return Links(
            np.repeat(np.array(self.owners, dtype=np.int32), lengths),
            np.concatenate(self.keys),
            np.concatenate(self.modified),
        )


class OddLink(msgspec.Struct, frozen=True):
    """A link that has to be read: its size, or its algorithm, is not the ordinary one."""

    path: str
    named: str


class Upload(msgspec.Struct):
    """An upload under way: all files below ``_uploads/<uuid>/``."""

    repository: int
    uuid: str
    files: list[str] = msgspec.field(default_factory=list)
    sizes: list[int] = msgspec.field(default_factory=list)
    youngest: float = 0.0
    started_at: str | None = None


class Signature(msgspec.Struct, frozen=True):
    """A link to a schema 1 signature, kept by the revision that it belongs to."""

    repository: int
    revision: str
    digest: str
    path: str
    modified: float


class RepositoryBatch(msgspec.Struct):
    """What one range of ``repositories/`` holds. Owners count within this batch."""

    repositories: list[str]
    revisions: Links
    layers: Links
    tag_folders: list[tuple[int, str]]
    tag_index: Links
    tags: list[Tag]
    uploads: list[Upload]
    signatures: list[Signature]
    odd: list[OddLink]
    others: dict[bytes, str]
    strangers: int
    with_strangers: set[int]
    hollow: list[str]
    rest: Range | None


class BlobBatch(msgspec.Struct, frozen=True):
    """What one range of ``blobs/`` holds.

    ``sizes`` are the bytes that deleting frees: 0 where the file has another hard link.
    ``live``: how many live blobs there are beside these, where those were left out, of together
    ``live_bytes``; None where nobody asked for their sizes.
    """

    keys: Keys
    sizes: NDArray[np.int64]
    modified: NDArray[np.float64]
    others: dict[bytes, str]
    strangers: int
    hollow: list[str]
    rest: Range | None
    live: int = 0
    live_bytes: int | None = None


def repository_of(path: str) -> str | None:
    """The repository that a path lies in; None for a stranger. No component begins with ``_``."""
    name, mark, _ = path[len(REPOSITORIES) :].partition("/_")
    return name if mark and name and not name.startswith("_") else None


def list_repositories(reader: Reader, unit: Range) -> RepositoryBatch:
    """List one range of ``repositories/``."""
    builder = _RepositoryBuilder()
    walk = Walk(reader, unit)
    for page in walk.pages():
        builder.page(page)
    return builder.batch(walk.rest)


def list_blobs(reader: Reader, unit: Range) -> BlobBatch:
    """List one range of ``blobs/``."""
    names = Names()
    keys: list[Keys] = []
    sizes: list[NDArray[np.int64]] = []
    modified: list[NDArray[np.float64]] = []
    hollow: list[str] = []
    strangers = 0
    walk = Walk(reader, unit)
    for page in walk.pages():
        hollow += page.hollow
        freed = page.sizes if page.shared is None else np.where(page.shared, 0, page.sizes)
        for piece in split(page):
            if isinstance(piece, Run):
                right = _in_their_place(piece)
                found = piece.keys[right]
                rows = np.arange(piece.start, piece.stop)[right]
                strangers += len(right) - len(found)
            else:
                found = _odd_blob_key(piece.path, names)
                rows = np.arange(piece.row, piece.row + len(found))
                strangers += 1 - len(found)
            keys.append(found)
            sizes.append(freed[rows])
            modified.append(page.modified[rows])
    return BlobBatch(
        keys=np.concatenate(keys) if keys else empty_keys(),
        sizes=np.concatenate(sizes) if sizes else np.empty(0, np.int64),
        modified=np.concatenate(modified) if modified else np.empty(0, np.float64),
        others=names.others,
        strangers=strangers,
        hollow=hollow,
        rest=walk.rest,
    )


def _in_their_place(run: Run) -> NDArray[np.bool_]:
    """Tell which rows of a run are ``blobs/sha256/<2 hex>/<64 hex>/data``.

    Other algorithms that registries store under have longer digests.
    """
    match = _BUCKET.fullmatch(run.head) if run.leaf == "data" else None
    if match is None:
        return np.zeros(len(run.keys), dtype=np.bool_)
    first = np.ascontiguousarray(run.keys).view(np.uint8).reshape(-1, 32)[:, 0]
    right: NDArray[np.bool_] = first == int(match[1], 16)
    return right


def _odd_blob_key(path: str, names: Names) -> Keys:
    """The key of a blob that is stored by another algorithm; none for a stranger."""
    parts = path[len(BLOBS) :].split("/")
    if not path.startswith(BLOBS) or len(parts) != 4 or parts[3] != "data":
        return empty_keys()
    algorithm, bucket, encoded, _ = parts
    if algorithm == "sha256" or bucket != encoded[:2]:
        return empty_keys()
    try:
        digest = stored_digest(algorithm, encoded)
    except InvalidDigest:
        return empty_keys()
    return _one_key(digest, names)


def _one_key(digest: str, names: Names) -> Keys:
    return np.frombuffer(names.key(digest), dtype=empty_keys().dtype)


def name_blobs(reader: Reader, folders: tuple[str, ...]) -> tuple[Keys, tuple[str, ...]]:
    """The digests that have a folder below some ``blobs/sha256/<2 hex>/``; one look into each.

    Also returns the folders that hold something else too, and have to be listed whole.
    """
    names: list[str] = []
    odd: list[str] = []
    for folder in folders:
        below = reader.children(folder)
        bucket = folder[-3:-1]
        if (
            below.files
            or not below.folders
            or not all(len(name) == 64 and name.startswith(bucket) for name in below.folders)
        ):
            odd.append(folder)
        else:
            names += below.folders
    encoded = "".join(names)
    try:
        keys = bytes.fromhex(encoded)
    except ValueError:
        return empty_keys(), folders
    # fromhex takes capitals and blanks; a digest has neither.
    if keys.hex() != encoded:
        return empty_keys(), folders
    return np.frombuffer(keys, dtype=empty_keys().dtype), tuple(odd)


def stat_blobs(reader: Reader, keys: bytes) -> BlobBatch:
    """Size and age of some sha256 blobs; a folder without its file is none."""
    found: list[bytes] = []
    entries: list[Entry] = []
    lone: list[str] = []
    encoded = keys.hex()
    paths = blob_paths("sha256:" + encoded[at : at + 64] for at in range(0, len(encoded), 64))
    for number, (path, entry) in enumerate(zip(paths, stat_many(reader, paths), strict=True)):
        if entry is None:
            lone.append(path.removesuffix("data"))
        else:
            entries.append(entry)
            found.append(keys[number * 32 : number * 32 + 32])
    others = list_blobs(reader, Range(tuple(lone)))
    return BlobBatch(
        keys=pack(found),
        sizes=np.array([0 if entry.shared else entry.size for entry in entries], np.int64),
        modified=np.array([entry.modified for entry in entries], np.float64),
        others={},
        strangers=others.strangers,
        hollow=others.hollow,
        rest=None,
    )


class _RepositoryBuilder:
    """Sorts the rows of pages into columns, by what their paths mean."""

    def __init__(self) -> None:
        self.names = Names()
        self.repositories: dict[str, int] = {}
        self.tag_numbers: dict[tuple[int, str], int] = {}
        self.revisions = _LinkList()
        self.layers = _LinkList()
        self.tag_index = _LinkList()
        self.candidates: dict[int, list[str]] = {}
        # With the MD5, ETag and size that the listing has for its link.
        self.tags: list[tuple[Tag, bytes, bytes, int]] = []
        self.uploads: dict[tuple[int, str], Upload] = {}
        self.signatures: list[Signature] = []
        self.odd: list[OddLink] = []
        self.strangers = 0
        self.with_strangers: set[int] = set()
        self.hollow: list[str] = []

    def page(self, page: Page) -> None:
        for folder in page.hollow:
            self.hollow.append(folder)
            self.owner(folder + "/")
        # Once for the whole page: most of its runs are the one or two entries of a tag's history.
        odd = np.flatnonzero(page.sizes != LINK_SIZE).tolist()
        for piece in split(page):
            if isinstance(piece, Run):
                self.run(page, piece, odd)
            else:
                self.single(page, piece)

    def owner(self, path: str) -> tuple[int, list[str]] | None:
        """The repository that *path* lies in, and the parts below it; None for a stranger."""
        name = repository_of(path)
        if name is None:
            return None
        below = path[len(REPOSITORIES) + len(name) + 2 :]
        number = self.repositories.setdefault(name, len(self.repositories))
        return number, ("_" + below).split("/")

    def run(self, page: Page, run: Run, odd: list[int]) -> None:
        """Sort one run in; *odd* are the rows of the page that have not the size of a link."""
        owned = self.owner(run.head) if run.leaf == "link" else None
        parts = owned[1] if owned else []
        rows = slice(run.start, run.stop)
        match parts:
            case ["_layers", algorithm, ""]:
                links, number = self.layers, owned[0] if owned else 0
            case ["_manifests", "revisions", algorithm, ""]:
                links, number = self.revisions, owned[0] if owned else 0
            case ["_manifests", "tags", tag, "index", algorithm, ""]:
                links = self.tag_index
                number = self.tag_number(owned[0] if owned else 0, tag)
            case ["_manifests", "revisions", revised, encoded, "signatures", algorithm, ""]:
                self.signature(page, run, f"{revised}:{encoded}", algorithm)
                return
            case _:
                self.stranger(run.head, run.stop - run.start)
                return
        if algorithm != "sha256":
            # Other algorithms that registries store under have longer digests.
            self.stranger(run.head, run.stop - run.start)
            return
        keys = run.keys
        links.add(number, keys, page.modified[rows])
        if links is self.tag_index and page.md5s is not None:
            self.candidates.setdefault(number, []).extend(self.names.texts(keys))
        for row in odd[bisect_left(odd, run.start) : bisect_left(odd, run.stop)]:
            named = self.names.text(keys[row - run.start].tobytes())
            self.odd.append(OddLink(page.paths[row], named))

    def tag_number(self, repository: int, tag: str) -> int:
        return self.tag_numbers.setdefault((repository, tag), len(self.tag_numbers))

    def signature(self, page: Page, run: Run, revision: str, algorithm: str) -> None:
        owned = self.owner(run.head)
        try:
            check_digest(revision)
            for row, key in zip(range(run.start, run.stop), run.keys, strict=True):
                digest = check_digest(f"{algorithm}:{key.tobytes().hex()}")
                if owned:
                    modified = float(page.modified[row])
                    found = Signature(owned[0], revision, digest, page.paths[row], modified)
                    self.signatures.append(found)
        except InvalidDigest:
            self.stranger(run.head, run.stop - run.start)

    def stranger(self, path: str, count: int) -> None:
        self.strangers += count
        owned = self.owner(path)
        if owned:
            self.with_strangers.add(owned[0])

    def single(self, page: Page, single: Single) -> None:
        owned = self.owner(single.path)
        if owned is None:
            self.strangers += 1
            return
        number, parts = owned
        match parts:
            case ["_manifests", "tags", tag, "current", "link"]:
                modified = float(page.modified[single.row])
                md5 = UNKNOWN_MD5 if page.md5s is None else page.md5s[single.row].tobytes()
                etag = b"" if page.etags is None else page.etags[single.row]
                self.tag_number(number, tag)
                content = page.contents.get(single.row)
                # What is wrong with one that holds no digest is said by those who read it again.
                target = None if content is None else link_target(content)[0]
                listed = Tag(number, tag, single.path, modified, target)
                self.tags.append((listed, md5, etag, int(page.sizes[single.row])))
            case ["_uploads", uuid, _, *_]:
                upload = self.uploads.setdefault((number, uuid), Upload(number, uuid))
                upload.files.append(single.path)
                shared = page.shared is not None and bool(page.shared[single.row])
                upload.sizes.append(0 if shared else int(page.sizes[single.row]))
                upload.youngest = max(upload.youngest, float(page.modified[single.row]))
            case ["_layers", algorithm, encoded, "link"]:
                self.odd_link(page, single, self.layers, number, algorithm, encoded)
            case ["_manifests", "revisions", algorithm, encoded, "link"]:
                self.odd_link(page, single, self.revisions, number, algorithm, encoded)
            case ["_manifests", "tags", tag, "index", algorithm, encoded, "link"]:
                tagged = self.tag_number(number, tag)
                self.odd_link(page, single, self.tag_index, tagged, algorithm, encoded)
            case ["_manifests", "revisions", a, b, "signatures", c, d, "link"]:
                self.odd_signature(page, single, number, f"{a}:{b}", f"{c}:{d}")
            case _:
                self.stranger(single.path, 1)

    def odd_link(
        self, page: Page, single: Single, links: _LinkList, owner: int, algorithm: str, encoded: str
    ) -> None:
        """A link whose digest is not of the ordinary form, such as one of sha512."""
        try:
            digest = stored_digest(algorithm, encoded)
        except InvalidDigest:
            self.stranger(single.path, 1)
            return
        rows = slice(single.row, single.row + 1)
        links.add(owner, _one_key(digest, self.names), page.modified[rows])
        if links is self.tag_index:
            self.candidates.setdefault(owner, []).append(digest)
        self.odd.append(OddLink(single.path, digest))

    def odd_signature(
        self, page: Page, single: Single, owner: int, revision: str, digest: str
    ) -> None:
        modified = float(page.modified[single.row])
        try:
            found = Signature(
                owner, check_digest(revision), check_digest(digest), single.path, modified
            )
        except InvalidDigest:
            self.stranger(single.path, 1)
            return
        self.signatures.append(found)

    def batch(self, rest: Range | None) -> RepositoryBatch:
        return RepositoryBatch(
            repositories=list(self.repositories),
            revisions=self.revisions.packed(),
            layers=self.layers.packed(),
            tag_folders=list(self.tag_numbers),
            tag_index=self.tag_index.packed(),
            tags=[self.resolved(*listed) for listed in self.tags],
            uploads=list(self.uploads.values()),
            signatures=self.signatures,
            odd=self.odd,
            others=self.names.others,
            strangers=self.strangers,
            with_strangers=self.with_strangers,
            hollow=self.hollow,
            rest=rest,
        )

    def resolved(self, tag: Tag, md5: bytes, etag: bytes, size: int) -> Tag:
        """The tag with its target, where the listed MD5 is that of one of its own candidates.

        ``current/link`` always holds one of the digests under ``index/``, and an MD5 that is
        equal to that of a candidate's text is no coincidence: nobody who can write links needs
        to collide one.
        """
        if tag.target is not None:
            return tag
        if md5 != UNKNOWN_MD5:
            for digest in self.candidates.get(self.tag_number(tag.repository, tag.name), ()):
                if hashlib.md5(digest.encode(), usedforsecurity=False).digest() == md5:
                    return Tag(tag.repository, tag.name, tag.path, tag.modified, digest)
            etag = etag or md5
        stamp = stamp_of(etag, size, tag.modified)
        return Tag(tag.repository, tag.name, tag.path, tag.modified, None, stamp)


def read_links(reader: Reader, paths: tuple[str, ...]) -> list[tuple[str, str | None, str]]:
    """Read link files: path, the digest in it or None, and what is wrong then.

    A link that has vanished since it was listed is not in the answer.
    """
    found: list[tuple[str, str | None, str]] = []
    for path in paths:
        try:
            data = reader.read(path, limit=1024)
        except NotFound:
            continue
        except TooLarge:
            found.append((path, None, "a link of over 1024 bytes"))
            continue
        found.append((path, *link_target(data)))
    return found


def link_target(data: bytes) -> tuple[str | None, str]:
    """The digest that a link file holds, or None and what is wrong with it."""
    text = data.decode("utf-8", "replace").strip()
    try:
        return check_digest(text), ""
    except InvalidDigest:
        return None, "empty link" if not text else "holds no digest"
