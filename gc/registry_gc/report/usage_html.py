"""Who uses the storage, as one HTML page that holds all it needs and asks no network.

The page's script draws everything from data; names come into it as JSON and leave it as text
nodes, never as markup. A content security policy that knows the script by its hash forbids any
other, and every request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

import humanize

from registry_gc.report.usage_document import UsageReport, usage_document
from registry_gc.report.whole_file import replace_file
from registry_gc.wording.moments import rfc3339
from registry_gc.wording.shown import shown

# In the order in which they need each other; unmodified, see page/README.md.
_D3 = (
    "d3-hierarchy",
    "d3-array",
    "d3-color",
    "d3-interpolate",
    "d3-format",
    "d3-time",
    "d3-time-format",
    "d3-scale",
)
_OURS = ("format.js", "charts.js", "table.js", "page.js")

_REPOSITORY = (
    "name", "logical_bytes", "unique_bytes", "shared_bytes", "reclaimable_bytes",
    "reclaimable_untagged_bytes", "tags", "manifests", "untagged", "blobs", "uploads",
    "upload_bytes", "oldest_push", "newest_push", "held",
)  # fmt: skip


def write_page(path: str, report: UsageReport) -> None:
    """Write the page to *path*, whole or not at all; to a pipe or a device as it comes.

    :raises OSError: it cannot be written; a file that was at *path* is there still.
    """
    text = page(report)
    if os.path.exists(path) and not os.path.isfile(path):
        # A file in its place would be the end of /dev/null.
        with open(path, "w", encoding="utf-8") as device:
            device.write(text)
        return
    # It is to be shown: its mode is what any new file has.
    replace_file(path, text.encode(), 0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def page(report: UsageReport) -> str:
    """The page, as text that UTF-8 can hold."""
    style = _file("page.css")
    script = "\n".join(
        [f"/*\n{_file('LICENSE.d3')}*/"]
        + [_file(f"{name}.min.js") for name in _D3]
        + [_file(name) for name in _OURS]
    )
    totals = report.usage.totals
    return Template(_file("page.html")).substitute(
        policy=html.escape(
            "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
            f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
        ),
        style=style,
        script=script,
        data=_data(report),
        root=html.escape(shown(report.root)),
        driver=html.escape(report.driver),
        made=html.escape(rfc3339(report.usage.made) or ""),
        summary=html.escape(
            f"{humanize.naturalsize(totals.stored)} in {totals.blobs:,} blobs, used by "
            f"{totals.repositories:,} repositories. A collection would free "
            f"{humanize.naturalsize(totals.reclaimable)}, with -m "
            f"{humanize.naturalsize(totals.reclaimable_untagged)}."
        ),
    )


def _file(name: str) -> str:
    text = files(__package__).joinpath("page", name).read_text("utf-8")
    return text if text.endswith("\n") else text + "\n"


def _hash(text: str) -> str:
    """A source expression for inline *text* (Content Security Policy Level 3, 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(report: UsageReport) -> str:
    """What is drawn, as JSON that no HTML parser can take for the end of its element."""
    document = _shown(usage_document(report))
    depth = report.usage.group_depth
    data = {
        **{name: document[name] for name in _WHOLE},
        "group_depth": depth,
        "columns": _REPOSITORY,
        "repositories": _rows(document["repositories"]),
        "groups": _rows(document["groups"]),
        **{
            what: {order: document[order][what] for order in ("largest", "oldest")}
            for what in ("images", "blobs")
        },
    }
    text = json.dumps(data, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


_WHOLE = ("version", "made", "storage", "totals", "ages", "held", "quarantine", "growth")


def _rows(shares: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Ten thousand repositories take half the room without the names of their fields."""
    return [[share[name] for name in _REPOSITORY] for share in shares]


def _shown(value: Any) -> Any:
    """All texts in *value* fit to be shown."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {name: _shown(below) for name, below in value.items()}
    if isinstance(value, list):
        return [_shown(below) for below in value]
    return value
