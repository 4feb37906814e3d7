"""Makes the pictures of docs/pictures anew, from a registry that is made up.

    .venv/bin/python contrib/pictures.py

Wants Chromium, as the tests do.
"""

from __future__ import annotations

import io
import re
import sys
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HERE / folder) for folder in ("gc", "drivers", "benchmarks", "tests")]

from rich.console import Console  # noqa: E402  # the path comes first
from rich.text import Text  # noqa: E402

from demo_usage import made_up_report  # noqa: E402
from registry_gc.report.tables import Look  # noqa: E402
from registry_gc.report.usage_html import write_page  # noqa: E402
from registry_gc.report.usage_text import usage_lines  # noqa: E402
from servers.browser import chromium  # noqa: E402

PICTURES = HERE / "docs" / "pictures"
WIDTH, LINES = 124, 36


def pages() -> None:
    """The page, in both themes, on a desk; and on a phone."""
    with TemporaryDirectory() as folder, chromium() as browser:
        path = Path(folder) / "usage.html"
        write_page(str(path), made_up_report())
        for name, scheme, width, height in (
            ("report-light", "light", 1280, 1200),
            ("report-dark", "dark", 1280, 1200),
            ("report-phone", "light", 400, 860),
        ):
            size = {"width": width, "height": height}
            context = browser.new_context(color_scheme=scheme, viewport=size)
            page = context.new_page()
            page.goto(path.as_uri())
            page.screenshot(path=PICTURES / f"{name}.png")
            context.close()


def terminal() -> None:
    """The text of the same report."""
    look = Look(WIDTH, colour=True)
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in islice(usage_lines(made_up_report(), look), LINES):
        console.print(Text.from_ansi(line), no_wrap=True)
    svg = console.export_svg(title="registry-gc report")
    # rich's picture asks a server for its font; any monospace will do.
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    (PICTURES / "report-terminal.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    terminal()
    pages()
