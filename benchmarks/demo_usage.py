"""A made-up registry's use of storage, of any size, for pictures and for tests of the page."""

from __future__ import annotations

import random
from collections.abc import Sequence

from msgspec.structs import replace

from registry_gc.report.usage_document import UsageReport
from registry_gc.usage.figures import AGES, AgeClass, Blob, Share, Totals, Usage, group_of
from registry_gc.usage.growth import Freed, Growth, Point
from registry_gc.usage.images import Image

DAY = 86_400.0
NOW = 1_763_800_000.0
MB = 1_000_000
_GROUPS = ("shop", "payments", "platform", "data", "mobile", "research", "search", "mirror",
           "ci", "attic", "design", "support", "billing", "maps", "identity")  # fmt: skip
_PARTS = ("api", "web", "worker", "gateway", "batch", "cache", "auth", "ui", "proxy", "train",
          "base", "tools", "import", "export", "mail", "jobs", "edge", "admin")  # fmt: skip


def made_up_report(
    repositories: int = 180, *, names: Sequence[str] = (), seed: int = 4
) -> UsageReport:
    """A report on so many repositories, and on those that *names* has besides."""
    dice = random.Random(seed)
    all_names = sorted({*(_name(at, dice) for at in range(repositories)), *names})
    shares = tuple(_share(name, dice) for name in all_names)
    groups = _groups(shares)
    totals = _totals(shares, groups)
    usage = Usage(
        made=NOW,
        group_depth=1,
        totals=totals,
        repositories=shares,
        groups=groups,
        ages=_ages(totals),
        largest_images=tuple(_image(share, dice) for share in shares[:10]),
        oldest_images=tuple(_image(share, dice) for share in shares[-10:]),
        largest_blobs=tuple(_blob(share, dice) for share in shares[:10]),
        oldest_blobs=tuple(_blob(share, dice) for share in shares[-10:]),
        holds=(),
    )
    return UsageReport("s3", "s3://images", usage, _growth(totals, dice), 10)


def _name(at: int, dice: random.Random) -> str:
    group = _GROUPS[min(int(dice.expovariate(0.28)), len(_GROUPS) - 1)]
    part = _PARTS[at % len(_PARTS)]
    return f"{group}/{part}" if at < 60 else f"{group}/{dice.choice(_PARTS)}/{part}-{at}"


def _share(name: str, dice: random.Random) -> Share:
    logical = int(dice.lognormvariate(8.2, 1.25) * MB)
    unique = int(logical * dice.betavariate(4, 2))
    waste = dice.betavariate(1.2, 4) if not name.startswith("attic") else 0.9
    untagged = int(unique * waste) if dice.random() < 0.85 else 0
    manifests = 1 + int(logical / (60 * MB))
    newest = NOW - (dice.expovariate(1 / 60) if not name.startswith("attic") else 500) * DAY
    return Share(
        name=name,
        repositories=1,
        tags=1 + int(manifests * (1 - waste) * 0.6),
        manifests=manifests,
        untagged=int(manifests * waste) if untagged else 0,
        blobs=manifests * 5,
        logical=logical,
        unique=unique,
        reclaimable=int(untagged * dice.random() * 0.5),
        reclaimable_untagged=untagged,
        uploads=int(dice.random() < 0.05),
        upload_bytes=0,
        oldest=newest - dice.uniform(20, 900) * DAY,
        newest=newest,
        held=False,
    )


def _groups(shares: Sequence[Share]) -> tuple[Share, ...]:
    inside: dict[str, list[Share]] = {}
    for share in shares:
        inside.setdefault(group_of(share.name, 1), []).append(share)
    return tuple(
        replace(
            some[0],
            name=name,
            repositories=len(some),
            tags=sum(share.tags for share in some),
            manifests=sum(share.manifests for share in some),
            untagged=sum(share.untagged for share in some),
            blobs=sum(share.blobs for share in some),
            logical=int(0.8 * sum(share.logical for share in some)),
            unique=int(0.7 * sum(share.logical for share in some)),
            reclaimable=sum(share.reclaimable for share in some),
            reclaimable_untagged=sum(share.reclaimable_untagged for share in some),
            uploads=sum(share.uploads for share in some),
            oldest=min(share.oldest or NOW for share in some),
            newest=max(share.newest or 0.0 for share in some),
            held=any(share.held for share in some),
        )
        for name, some in sorted(inside.items())
    )


def _totals(shares: Sequence[Share], groups: Sequence[Share]) -> Totals:
    logical = sum(share.logical for share in shares)
    reclaimable = sum(share.reclaimable for share in shares)
    untagged = sum(share.reclaimable_untagged for share in shares)
    return Totals(
        repositories=len(shares),
        groups=len(groups),
        tags=sum(share.tags for share in shares),
        manifests=sum(share.manifests for share in shares),
        untagged=sum(share.untagged for share in shares),
        blobs=sum(share.blobs for share in shares) // 2,
        stored=int(logical * 0.72),
        logical=logical,
        shared=int(logical * 0.2),
        unused_blobs=41,
        unused=3_200 * MB,
        uploads=sum(share.uploads for share in shares),
        upload_bytes=0,
        reclaimable_blobs=4_310,
        reclaimable=reclaimable,
        reclaimable_untagged_blobs=19_250,
        reclaimable_untagged=untagged,
        held=0,
        damaged=0,
        strangers=0,
    )


def _ages(totals: Totals) -> tuple[AgeClass, ...]:
    parts = (0.01, 0.04, 0.09, 0.17, 0.2, 0.24, 0.16, 0.09)
    goes = (0.0, 0.0, 0.03, 0.06, 0.1, 0.14, 0.17, 0.2)
    untagged = (0.0, 0.05, 0.1, 0.18, 0.26, 0.3, 0.35, 0.3)
    labels = [*AGES, ("older", None)]
    return tuple(
        AgeClass(
            label=label,
            below=below,
            blobs=int(totals.blobs * part),
            bytes=int(totals.stored * part),
            goes=int(totals.stored * part * now),
            goes_untagged=int(totals.stored * part * later),
        )
        for (label, below), part, now, later in zip(labels, parts, goes, untagged, strict=True)
    )


def _image(share: Share, dice: random.Random) -> Image:
    digest = f"sha256:{dice.randbytes(32).hex()}"
    size = dice.randrange(80 * MB, 4_000 * MB)
    return Image(share.name, digest, (f"1.{dice.randrange(20)}",), size, share.oldest or NOW)


def _blob(share: Share, dice: random.Random) -> Blob:
    digest = f"sha256:{dice.randbytes(32).hex()}"
    fate = dice.choice(("kept", "kept", "goes with -m", "goes"))
    size = dice.randrange(50 * MB, 2_000 * MB)
    return Blob(digest, size, share.oldest or NOW, dice.randrange(1, 9), share.name, fate)


def _growth(totals: Totals, dice: random.Random) -> Growth:
    """Half a year of weekly reports, and four collections in it."""
    points, freed = [], []
    stored = totals.stored * 0.8
    for week in range(27):
        moment = NOW - (26 - week) * 7 * DAY
        stored += totals.stored * dice.uniform(0.012, 0.03)
        if week in (6, 12, 18, 23):
            went = totals.stored * dice.uniform(0.05, 0.12)
            stored -= went
            freed.append(Freed(moment + DAY, int(went), f"run-{week}"))
        points.append(Point(moment, int(stored), totals.blobs, totals.repositories, 0, 0))
    scale = totals.stored / max(1, points[-1].stored)
    points = [replace(point, stored=int(point.stored * scale)) for point in points]
    points[-1] = replace(
        points[-1],
        reclaimable=totals.reclaimable,
        reclaimable_untagged=totals.reclaimable_untagged,
    )
    return Growth(tuple(points), tuple(freed))
