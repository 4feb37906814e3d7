"""Every command line of ours in README.md and docs/ is one that our commands take."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from registry_gc.cli.main import registry_garbage_collect, registry_gc

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^ *```(?:bash|sh|console)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(registry-(?:gc|garbage-collect) [^`]*)`")


def lines_of(page: Path) -> Iterator[str]:
    """The lines of *page* that call one of our commands; those cut in two are put together."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^|\s)(registry-(?:gc|garbage-collect)\s.*)", line)
            if found and not line.lstrip().startswith("#"):
                yield found[1]
    yield from (" ".join(line.split()) for line in INLINE.findall(text))


LINES = sorted({(page.name, line) for page in PAGES for line in lines_of(page)})


def words_of(line: str) -> list[str]:
    """The words of our command: without what is piped or sent elsewhere, and what is left out."""
    words = shlex.split(line, comments=True)
    end = next((at for at, word in enumerate(words) if word in ("|", ">", ">>", "&&", ";")), None)
    return [word.strip("[]") for word in words[:end] if word != "…"]


def test_there_are_many_lines_and_all_commands_are_among_them() -> None:
    assert len(LINES) > 40
    named = {words_of(line)[1] for _, line in LINES if line.startswith("registry-gc ")}
    context = click.Context(registry_gc)
    assert set(registry_gc.list_commands(context)) - named == set()


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_line_is_one_that_the_command_takes(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("weekly.plan", "RUN_FILE", "FILE"):
        (tmp_path / name).touch()
    name, *words = words_of(line)
    command: click.Command = registry_garbage_collect
    if name == "registry-gc":
        context = click.Context(registry_gc)
        found = registry_gc.get_command(context, words[0])
        assert found is not None, f"{page}: no command {words[0]}"
        command, words = found, words[1:]
    # In running text a command is often named without all of its arguments.
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    if not words and any(one.required for one in command.params):
        return
    options = [one for one in command.params if one.name in ("run_file",) and one.required]
    if options and "-o" not in words and words[0] != "show":
        words += ["-o", "FILE"]
    if any(one.required for one in arguments) and words[-1].startswith("-"):
        words += ["FILE"] * len(arguments)
    command.make_context(command.name, words)
