"""Work units that list ``repositories/``: from pages of paths to columns of digests.

They run in a worker, need nothing but a reader, and return values that are cheap to send.
What a path means is decided here, and only here, for every kind of storage.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator

import msgspec
import numpy as np

from registry_drivers.base import (
    UNASKED,
    UNKNOWN_MD5,
    Named,
    Page,
    Reader,
    list_among,
    list_unasked,
)
from registry_drivers.paths import temporaries
from registry_gc.digest import (
    KEY,
    LINK_SIZE,
    InvalidDigest,
    Names,
    check_digest,
    stored_digest,
)
from registry_gc.layout import REPOSITORIES, Run, Single, split
from registry_gc.listing.links import LinkList, Links, OddLink, link_target
from registry_gc.listing.ranges import Range, Walk
from registry_gc.listing.tags import TagColumns, TagFolders, TagList


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
    """What one range of ``repositories/`` holds. Owners count within this batch.

    ``unfinished``: strangers that are ours, see :func:`registry_drivers.paths.is_temporary`.
    """

    repositories: list[str]
    revisions: Links
    layers: Links
    tag_folders: TagFolders
    tag_index: Links
    tags: TagColumns
    uploads: list[Upload]
    signatures: list[Signature]
    odd: list[OddLink]
    others: dict[bytes, str]
    strangers: int
    with_strangers: set[int]
    misplaced: dict[int, str]
    hollow: list[str]
    rest: Range | None
    unfinished: list[str] = []


# Where a folder is to be, below a repository's name: what is there instead hides all that it held.
_FOLDER = re.compile(
    r"_manifests(?:/revisions(?:/sha\d+(?:/[0-9a-f]{32,})?)?|/tags(?:/\w[\w.-]*(?:/current)?)?)?",
    re.A,
)


def repository_of(path: str) -> str | None:
    """The repository that a path lies in; None for a stranger. No component begins with ``_``."""
    name, mark, _ = path[len(REPOSITORIES) :].partition("/_")
    return name if mark and name and not name.startswith("_") else None


def hides_folder(path: str) -> bool:
    """Whether a file at *path* is in the place of a folder of manifests or tags.

    Only where there are folders: in an object store both are there.
    """
    name = repository_of(path)
    return name is not None and bool(_FOLDER.fullmatch(path, len(REPOSITORIES) + len(name) + 1))


def list_repositories(reader: Reader, unit: Range) -> RepositoryBatch:
    """List one range of ``repositories/``."""
    builder = _RepositoryBuilder(reader.capabilities.folders)
    walk = Walk(reader, unit)
    for page in walk.pages():
        builder.page(page)
    return builder.batch(walk.rest)


def name_repositories(reader: Reader, folders: tuple[str, ...]) -> RepositoryBatch:
    """List what is below some folders; layer links may be of an age that nobody has asked for."""
    builder = _RepositoryBuilder(reader.capabilities.folders)
    for page in list_unasked(reader, *folders):
        builder.page(page)
    return builder.batch(None)


def list_layer_links(reader: Reader, links: tuple[tuple[str, bytes], ...]) -> RepositoryBatch:
    """Some layer links: of each repository those to the keys that follow one another after it.

    A folder without its link is no link; what is there instead is in the batch too. Where the
    folder is gone by now, nobody knows who took it, or whether its disk is still there: such a
    link comes as one that is younger than any other.
    """
    named: list[Named] = []
    for repository, keys in links:
        encoded = keys.hex()
        names = sorted(encoded[at : at + 64] for at in range(0, len(encoded), 64))
        named.append((f"{REPOSITORIES}{repository}/_layers/sha256/", names))
    builder = _RepositoryBuilder(reader.capabilities.folders)
    for page in list_among(reader, named):
        builder.page(page)
    batch = builder.batch(None)
    if len(batch.layers) == sum(len(keys) for _, keys in links) // 32:
        return batch
    for repository, gone in _vanished(reader, links, batch):
        builder.vanished(repository, gone)
    return builder.batch(None)


def _vanished(
    reader: Reader, links: tuple[tuple[str, bytes], ...], batch: RepositoryBatch
) -> Iterator[tuple[str, bytes]]:
    """Those of *links* of which not even the folder is there, by their repositories."""
    owners = [batch.repositories[owner] for owner in batch.layers.owner.tolist()]
    found = set(zip(owners, (key.tobytes() for key in batch.layers.keys), strict=True))
    hollow = set(batch.hollow)
    for repository, keys in links:
        for key in (keys[at : at + 32] for at in range(0, len(keys), 32)):
            folder = f"{REPOSITORIES}{repository}/_layers/sha256/{key.hex()}"
            if (repository, key) in found or folder in hollow:
                continue
            below = reader.children(folder + "/")
            if not below.folders and not below.files:
                yield repository, key


class _RepositoryBuilder:
    """Sorts the rows of pages into columns, by what their paths mean."""

    def __init__(self, folders: bool) -> None:
        self.folders = folders
        self.names = Names()
        self.repositories: dict[str, int] = {}
        self.tags = TagList(self.names)
        self.revisions = LinkList()
        self.layers = LinkList()
        self.tag_index = LinkList()
        self.uploads: dict[tuple[int, str], Upload] = {}
        self.signatures: list[Signature] = []
        self.odd: list[OddLink] = []
        self.strangers = 0
        self.with_strangers: set[int] = set()
        # By repository: one file that is where a folder is to be.
        self.misplaced: dict[int, str] = {}
        self.hollow: list[str] = []
        self.unfinished: list[str] = []

    def page(self, page: Page) -> None:
        before = self.strangers
        for folder in page.hollow:
            self.hollow.append(folder)
            self.owner(folder + "/")
        # Once for the whole page: most of its runs are the one or two entries of a tag's history.
        odd = np.flatnonzero((page.sizes != LINK_SIZE) & (page.sizes != UNASKED)).tolist()
        for piece in split(page):
            if isinstance(piece, Run):
                self.run(page, piece, odd)
            else:
                self.single(page, piece)
        if self.strangers > before:
            self.unfinished += temporaries(page.paths)

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
                number = self.tags.number(owned[0] if owned else 0, tag)
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
            self.tags.suggest(self.names.texts(keys))
        for row in odd[bisect_left(odd, run.start) : bisect_left(odd, run.stop)]:
            named = self.names.text(keys[row - run.start].tobytes())
            self.odd.append(OddLink(page.paths[row], named, int(page.sizes[row])))

    def vanished(self, repository: str, keys: bytes) -> None:
        """Links that were there a moment ago."""
        number = self.repositories.setdefault(repository, len(self.repositories))
        found = np.frombuffer(keys, dtype=KEY)
        self.layers.add(number, found, np.full(len(found), np.inf))

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
                folder = self.tags.number(number, tag)
                content = page.contents.get(single.row)
                # What is wrong with one that holds no digest is said by those who read it again.
                target = None if content is None else link_target(content)[0]
                size = int(page.sizes[single.row])
                self.tags.add(folder, modified, target, md5, etag, size)
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
                tagged = self.tags.number(number, tag)
                self.odd_link(page, single, self.tag_index, tagged, algorithm, encoded)
            case ["_manifests", "revisions", a, b, "signatures", c, d, "link"]:
                self.odd_signature(page, single, number, f"{a}:{b}", f"{c}:{d}")
            case _:
                self.stranger(single.path, 1)
                if self.folders and hides_folder(single.path):
                    self.misplaced.setdefault(number, single.path)

    def odd_link(
        self, page: Page, single: Single, links: LinkList, owner: int, algorithm: str, encoded: str
    ) -> None:
        """A link whose digest is not of the ordinary form, such as one of sha512."""
        try:
            digest = stored_digest(algorithm, encoded)
        except InvalidDigest:
            self.stranger(single.path, 1)
            return
        rows = slice(single.row, single.row + 1)
        links.add(owner, np.frombuffer(self.names.key(digest), dtype=KEY), page.modified[rows])
        if links is self.tag_index:
            self.tags.suggest([digest])
        self.odd.append(OddLink(single.path, digest, int(page.sizes[single.row])))

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
            tag_folders=self.tags.folders(),
            tag_index=self.tag_index.packed(),
            tags=self.tags.columns(),
            uploads=list(self.uploads.values()),
            signatures=self.signatures,
            odd=self.odd,
            others=self.names.others,
            strangers=self.strangers,
            with_strangers=self.with_strangers,
            misplaced=self.misplaced,
            hollow=self.hollow,
            rest=rest,
            unfinished=self.unfinished,
        )
