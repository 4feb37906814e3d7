"""Who uses the storage, as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import humanize
from rich.table import Table
from rich.text import Text

from registry_gc.report.counts import counted
from registry_gc.report.tables import Column, TableStyle, lines_of, table
from registry_gc.report.usage_document import UsageReport, by_age, by_size
from registry_gc.usage.figures import DAY, Blob, Share, Usage
from registry_gc.usage.images import Image
from registry_gc.usage.waiting import Waiting
from registry_gc.wording.moments import utc_minute
from registry_gc.wording.shown import shown

_DIGEST = 19  # characters of one that are shown: "sha256:" and twelve more


def usage_lines(report: UsageReport, style: TableStyle) -> Iterator[str]:
    """The whole report, *style* wide."""
    usage, top = report.usage, report.top
    drawn: list[Table | Text] = [
        _heading(report),
        _totals(report, style),
        Text(),
        _shares(_title("Groups", usage.groups, top), by_size(usage.groups, top), usage.made, style),
        _shares(
            _title("Repositories", usage.repositories, top),
            by_size(usage.repositories, top),
            usage.made,
            style,
        ),
        _shares(
            "Repositories longest without a push",
            by_age(usage.repositories, top),
            usage.made,
            style,
        ),
        _images("Largest images", usage.largest_images, usage.made, style),
        _images("Oldest images", usage.oldest_images, usage.made, style),
        _blobs("Largest blobs", usage.largest_blobs, usage.made, style),
        _blobs("Oldest blobs", usage.oldest_blobs, usage.made, style),
        _ages(usage, style),
    ]
    for hold in usage.holds[:top]:
        what = f"{hold.repository}@{hold.digest}" if hold.digest else hold.repository
        drawn.append(Text(shown(f"held: {what}: {hold.reason}")))
    return lines_of(style, *drawn)


def _title(what: str, shares: Sequence[Share], top: int) -> str:
    if len(shares) <= top:
        return f"{what} ({len(shares):,})"
    return f"{what}, the largest {top} of {len(shares):,}"


def _heading(report: UsageReport) -> Text:
    heading = Text()
    heading.append(shown(report.root), style="bold")
    heading.append(f" ({report.driver})\n", style="dim")
    return heading


def _totals(report: UsageReport, style: TableStyle) -> Table:
    usage = report.usage
    totals = usage.totals
    size = humanize.naturalsize
    rows = [
        ("stored", size(totals.stored), f"in {counted(totals.blobs, 'blob')}"),
        ("without sharing", size(totals.logical), _sharing(usage)),
        (
            "reclaimable",
            size(totals.reclaimable),
            f"in {counted(totals.reclaimable_blobs, 'blob')}",
        ),
        (
            "reclaimable with -m",
            size(totals.reclaimable_untagged),
            f"in {counted(totals.reclaimable_untagged_blobs, 'blob')}; "
            f"{totals.untagged:,} of {totals.manifests:,} manifests are untagged",
        ),
        ("used by nobody", size(totals.unused), f"in {counted(totals.unused_blobs, 'blob')}"),
        ("uploads under way", size(totals.upload_bytes), f"in {counted(totals.uploads, 'upload')}"),
        (
            "repositories",
            f"{totals.repositories:,}",
            f"in {counted(totals.groups, 'group')}, with {counted(totals.tags, 'tag')}",
        ),
    ]
    if report.waiting:
        size_waiting = sum(waiting.bytes for waiting in report.waiting)
        rows.append(("in quarantine", size(size_waiting), _waiting(report.waiting, usage.made)))
    if totals.held or totals.damaged or totals.strangers:
        text = f"repositories; {totals.damaged:,} objects damaged, {totals.strangers:,} strangers"
        rows.append(("held", f"{totals.held:,}", text))
    columns = (
        Column("", number=False, style="dim"),
        Column("", style="bold"),
        Column("", number=False, fold=True),
    )
    drawn = table(style, "", columns, rows)
    drawn.title, drawn.show_header, drawn.box = None, False, None
    drawn.caption = ""
    return drawn


def _sharing(usage: Usage) -> str:
    totals = usage.totals
    return f"sharing saves {size_of(totals.logical - (totals.stored - totals.unused))}"


def _waiting(runs: Sequence[Waiting], now: float) -> str:
    objects = sum(run.objects for run in runs)
    text = f"in {counted(objects, 'object')} of {counted(len(runs), 'run')}"
    if hidden := sum(run.hidden for run in runs):
        text += f", and the versions of {hidden:,} more"
    moments = [run.until for run in runs if run.until is not None]
    if not moments:
        return text
    due = min(moments)
    when = "now" if due <= now else f"from {utc_minute(due)} on"
    return f"{text}; registry-gc purge frees {when}"


def size_of(count: int) -> str:
    """Bytes in human units; a dash where there are none."""
    return humanize.naturalsize(count) if count > 0 else "-"


def age_of(moment: float | None, now: float) -> str:
    """How long ago *moment* is, in the largest unit that fits."""
    if moment is None:
        return "-"
    days = max(0.0, now - moment) / DAY
    for unit, length in (("y", 365.0), ("mo", 30.0), ("d", 1.0)):
        if days >= length * (2 if unit != "d" else 1):
            return f"{days / length:.0f} {unit}"
    return "today"


def _shares(title: str, shares: Sequence[Share], now: float, style: TableStyle) -> Table:
    columns = (
        Column("name", number=False, fold=True, style="bold"),
        Column("logical"),
        Column("unique"),
        Column("shared", wide=True),
        Column("goes", style="yellow"),
        Column("with -m", style="yellow"),
        Column("tags"),
        Column("manifests", wide=True),
        Column("untagged"),
        Column("first push", wide=True),
        Column("last push"),
    )
    rows = (
        (
            share.name + (" (held)" if share.held else ""),
            size_of(share.logical),
            size_of(share.unique),
            size_of(share.shared),
            size_of(share.reclaimable),
            size_of(share.reclaimable_untagged),
            f"{share.tags:,}",
            f"{share.manifests:,}",
            f"{share.untagged:,}",
            age_of(share.oldest, now),
            age_of(share.newest, now),
        )
        for share in shares
    )
    return table(style, title, columns, rows)


def _images(title: str, images: Sequence[Image], now: float, style: TableStyle) -> Table:
    columns = (
        Column("repository", number=False, fold=True, style="bold"),
        Column("tags", number=False, fold=True),
        Column("digest", number=False, style="dim"),
        Column("size"),
        Column("pushed"),
    )
    rows = (
        (
            image.repository,
            ", ".join(image.tags[:3])
            + (f" and {len(image.tags) - 3} more" * (len(image.tags) > 3)),
            image.digest[:_DIGEST],
            size_of(image.bytes),
            age_of(image.pushed, now),
        )
        for image in images
    )
    return table(style, title, columns, rows)


def _tags(tags: Sequence[str]) -> str:
    text = ", ".join(tags[:3])
    return f"{text} and {len(tags) - 3} more" if len(tags) > 3 else text


def _blobs(title: str, blobs: Sequence[Blob], now: float, style: TableStyle) -> Table:
    columns = (
        Column("digest", number=False, style="dim"),
        Column("used by", number=False, fold=True),
        Column("size"),
        Column("stored"),
        Column("fate", number=False),
    )
    rows = (
        (
            blob.digest[:_DIGEST],
            (blob.repository or "nobody")
            + (f" and {blob.repositories - 1:,} more" if blob.repositories > 1 else ""),
            size_of(blob.bytes),
            age_of(blob.modified, now),
            blob.fate,
        )
        for blob in blobs
    )
    return table(style, title, columns, rows)


def _ages(usage: Usage, style: TableStyle) -> Table:
    columns = (
        Column("younger than", number=False),
        Column("blobs"),
        Column("bytes"),
        Column("goes", style="yellow"),
        Column("with -m", style="yellow"),
    )
    rows = (
        (
            age.label,
            f"{age.blobs:,}",
            size_of(age.bytes),
            size_of(age.goes),
            size_of(age.goes + age.goes_untagged),
        )
        for age in usage.ages
    )
    return table(style, "Age of blobs", columns, rows)
