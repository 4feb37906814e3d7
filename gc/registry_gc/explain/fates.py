"""What a collection does with a thing, in a word; and with a whole repository. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import among, within
from registry_gc.digest import Keys, empty_keys, pack
from registry_gc.mark import Marking
from registry_gc.marking.pairs import repositories_of
from registry_gc.plan import abandoned_uploads
from registry_gc.policy import Policy
from registry_gc.runs.rows import Row, RowKind


class Fate(enum.StrEnum):
    """What a collection would do: keep what is live, held or young, and delete what is dead.

    What is absent is not stored, whether or not somebody needs it.
    """

    LIVE = "live"
    HELD = "held"
    YOUNG = "young"
    DEAD = "dead"
    ABSENT = "absent"


def how_young(policy: Policy) -> str:
    """What is said of what only its age keeps; without grace, a clock is wrong."""
    return "younger than the grace period" if policy.grace else "dated in the future"


def fate_of_repository(
    catalog: Catalog,
    marking: Marking,
    going: Sequence[Row],
    number: int,
    policy: Policy,
    cutoff: float,
) -> tuple[Fate, list[str]]:
    """What becomes of the repository *number*, and why; dead only if all links and uploads go.

    :param going: the rows of that repository.
    """
    name = catalog.repositories[number]
    if number in marking.held:
        holds = [hold for hold in marking.holds if hold.repository == name]
        return Fate.HELD, [
            hold.reason + (f" ({hold.digest})" if hold.digest else "") for hold in holds
        ]
    live = among(repositories_of(marking.live), [number]).any()
    if live or among(catalog.tags.owner, [number]).any():
        return Fate.LIVE, []
    keys = _linked(catalog, number)
    links = len(keys) - sum(row.kind is not RowKind.UPLOAD for row in going)
    gone = {row.digest for row in going if row.kind is RowKind.UPLOAD}
    uploads = [it for it in catalog.uploads if it.repository == number and it.uuid not in gone]
    if not links and not uploads:
        return Fate.DEAD, []
    reasons: list[str] = []
    young = bool(within(marking.young, keys).any())
    if young:
        reasons.append(f"links in it, or what they name, are {how_young(policy)}")
    elif links:
        reasons.append("links in it say under which names blobs are stored that stay")
    # Their age is told by a file of their own; one that has lost it is never old enough.
    any_age = replace(policy, upload_without_start=True)
    ageless = {it.uuid for it in abandoned_uploads(catalog, any_age, cutoff)}
    if any(it.uuid not in ageless for it in uploads):
        young = True
        reasons.append("uploads in it are not old enough")
    elif uploads:
        reasons.append("uploads in it do not say when they began")
    return (Fate.YOUNG if young else Fate.LIVE), reasons


def _linked(catalog: Catalog, number: int) -> Keys:
    """The key of each link of a repository that a collection may delete."""
    index, revisions = catalog.tag_index, catalog.revisions
    signed = [link.digest for link in catalog.signatures if link.repository == number]
    return np.concatenate(
        [
            empty_keys(),
            *(links.keys for links in catalog.layers.of([number])),
            revisions.part(revisions.owner == number).keys,
            index.keys[among(catalog.tag_folders.owner[index.owner], [number])],
            pack(map(catalog.names.key, signed)),
        ]
    )
