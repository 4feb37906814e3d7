"""Puts what ``registry-garbage-collect --help`` says into README.md: ``make readme``.

A test holds that the two agree.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
BEGIN = "<!-- help -->\n"
END = "<!-- /help -->\n"
CALL = (
    "from registry_gc.cli.main import registry_garbage_collect as run; "
    "run(prog_name='registry-garbage-collect')"
)


def help_text() -> str:
    """What ``registry-garbage-collect --help`` prints on a terminal of 80 columns."""
    environment = {
        **os.environ,
        "COLUMNS": "80",
        "PYTHONPATH": os.pathsep.join([str(HERE / "gc"), str(HERE / "drivers")]),
    }
    line = [sys.executable, "-c", CALL, "--help"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def split(readme: str) -> tuple[str, str, str]:
    """*readme* up to the block, the block, and what follows it."""
    before, begin, rest = readme.partition(BEGIN)
    block, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md has no {BEGIN.strip()} with an {END.strip()} after it")
    return before, block, after


def block(text: str) -> str:
    """*text* as it stands in the README."""
    return f"```text\n{text.rstrip()}\n```\n"


def main() -> None:
    """Write the README anew."""
    readme = HERE / "README.md"
    before, _, after = split(readme.read_text(encoding="utf-8"))
    readme.write_text(f"{before}{BEGIN}{block(help_text())}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
