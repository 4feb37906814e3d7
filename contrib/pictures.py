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

from click.testing import CliRunner  # noqa: E402  # the path comes first
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

from demo_registry import make  # noqa: E402
from demo_usage import made_up_report  # noqa: E402
from registry_gc.cli.main import registry_gc  # noqa: E402
from registry_gc.report.tables import TableStyle  # noqa: E402
from registry_gc.report.usage_html import write_page  # noqa: E402
from registry_gc.report.usage_text import usage_lines  # noqa: E402
from servers.browser import chromium  # noqa: E402

PICTURES = HERE / "docs" / "pictures"
WIDTH, LINES = 124, 36


def pages() -> None:
    """The page, in both themes."""
    with TemporaryDirectory() as folder, chromium() as browser:
        path = Path(folder) / "usage.html"
        write_page(str(path), made_up_report())
        for scheme in ("light", "dark"):
            size = {"width": 1280, "height": 1200}
            context = browser.new_context(color_scheme=scheme, viewport=size)
            page = context.new_page()
            page.goto(path.as_uri())
            page.screenshot(path=PICTURES / f"report-{scheme}.png")
            context.close()


def collection() -> None:
    """A collection of the demo's registry at work, and what is asked before and after it."""
    config, state = "/etc/docker/registry/config.yml", "/var/lib/registry-gc"
    lines: list[Text] = []
    with TemporaryDirectory() as folder:
        path, _ = make(Path(folder))
        names = {str(path): config, f"{folder}/state": state, f"{folder}/registry": "/srv/registry"}
        for command, shown in (
            ("run -d -m", "registry-garbage-collect --dry-run -m {config} | tail -n 7"),
            ("run -m", "registry-garbage-collect -m {config} | tail -n 16"),
            ("verify", "registry-gc verify {config}"),
            ("runs", "registry-gc runs"),
        ):
            words = command.split()
            words += [] if words[0] == "verify" else ["--state-dir", f"{folder}/state"]
            words += [] if words[0] == "runs" else [str(path)]
            text = CliRunner(env={"COLUMNS": str(WIDTH)}).invoke(registry_gc, words).stdout
            for real, name in names.items():
                text = text.replace(real, name)
            lines.append(Text(f"$ {shown.format(config=config)}", "bold"))
            tail = int(shown.rpartition(" ")[2]) if "tail" in shown else 0
            lines += [Text(line) for line in text.rstrip().splitlines()[-tail:]] + [Text()]
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in lines[:-1]:
        console.print(line, no_wrap=True)
    save(console, "registry-garbage-collect", "collection-terminal")


def terminal() -> None:
    """The text of the same report."""
    look = TableStyle(WIDTH, colour=True)
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in islice(usage_lines(made_up_report(), look), LINES):
        console.print(Text.from_ansi(line), no_wrap=True)
    save(console, "registry-gc report", "report-terminal")


def save(console: Console, title: str, name: str) -> None:
    """Save what *console* has shown."""
    svg = console.export_svg(title=title)
    # rich's picture asks a server for its font; any monospace will do.
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    (PICTURES / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    collection()
    terminal()
    pages()
