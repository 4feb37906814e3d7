"""Man pages and shell completions: current, readable, and they work in each shell."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import environment
from real import program
from registry_gc.cli.main import registry_garbage_collect

CONTRIB = Path(__file__).resolve().parent.parent / "contrib"
SHARE = CONTRIB / "share"
PAGES = sorted((SHARE / "man" / "man1").iterdir())
COMMANDS = ("registry-garbage-collect", "registry-gc")


def below(folder: Path) -> dict[Path, str]:
    return {
        path.relative_to(folder): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


def test_what_is_shared_is_what_the_commands_say_now(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, runpy\n"
        f"made = runpy.run_path({str(CONTRIB / 'build_share.py')!r})['files']()\n"
        "for path, text in made.items():\n"
        f"    file = pathlib.Path({str(tmp_path)!r}, path)\n"
        "    file.parent.mkdir(parents=True, exist_ok=True)\n"
        "    file.write_text(text, encoding='utf-8')\n"
    )
    subprocess.run([sys.executable, "-c", script], env=environment({"COLUMNS": "40"}), check=True)
    assert below(tmp_path) == below(SHARE), "make readme"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_a_man_page_has_no_errors(page: Path) -> None:
    done = subprocess.run(
        [program("mandoc"), "-T", "lint", "-W", "error", page],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert not re.search(r"\.nf\n\s*\.fi", page.read_text()), "a heading with nothing below it"


def test_a_page_has_one_word_as_its_title_and_cuts_no_sentence() -> None:
    for page in PAGES:
        text = page.read_text()
        assert text.startswith(f'.TH "{page.stem.upper()}" "1" ')
        assert "..." not in text.partition(".SH COMMANDS\n")[2]


def test_every_command_says_what_its_exit_codes_mean() -> None:
    pages = {page.name: page.read_text() for page in PAGES}
    del pages["registry-gc.1"]  # the group; nothing else is without any
    assert [name for name, text in pages.items() if ".SH EXIT STATUS\n" not in text] == []


def test_the_man_page_has_every_option_and_exit_code() -> None:
    page = SHARE / "man" / "man1" / "registry-garbage-collect.1"
    text = subprocess.run(
        [program("mandoc"), "-T", "utf8", "-O", "width=200", page], capture_output=True, check=True
    ).stdout.decode()
    plain = re.sub(r".\x08", "", text)
    for parameter in registry_garbage_collect.params:
        for name in parameter.opts:
            assert name in plain or name == "config"
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "NOTES"):
        assert f"\n{heading}\n" in plain
    for code in ("0", "1", "2", "3", "4", "5", "130"):
        assert re.search(rf"^ +{code} +\w", plain, re.MULTILINE)


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """Both commands, as an installation has them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in COMMANDS:
        command = folder / name
        command.write_text(
            f"#!{sys.executable}\n"
            f"from registry_gc.cli.main import {name.replace('-', '_')} as main\nmain()\n"
        )
        command.chmod(0o755)
    return folder


def complete(shell: list[str], script: str, folder: Path) -> list[str]:
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*shell, script],
        env=environment({"PATH": path, "HOME": str(folder.parent), "TERM": "dumb"}),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


CASES = pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("registry-garbage-collect --log-f", ["--log-format"]),
        ("registry-garbage-collect --log-format j", ["json"]),
        ("registry-gc unl", ["unlock"]),
        ("registry-gc run --delete-u", ["--delete-untagged"]),
        ("registry-gc run --output=json --log-f", ["--log-format"]),
        ("registry-gc plan s", ["show"]),
        ("registry-gc plan --workers 1 s", []),
    ],
)


@CASES
def test_bash_completes(line: str, expected: list[str], bin_folder: Path) -> None:
    name = line.partition(" ")[0]
    words = line.split()
    script = (
        f"source {SHARE}/bash-completion/completions/{name}\n"
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        f"_{name.replace('-', '_')}_completion {name}\n"
        'echo "${COMPREPLY[@]}"'
    )
    assert complete(["bash", "--norc", "-c"], script, bin_folder) == expected


@CASES
def test_fish_completes(line: str, expected: list[str], bin_folder: Path) -> None:
    name = line.partition(" ")[0]
    script = f"source {SHARE}/fish/vendor_completions.d/{name}.fish; complete -C '{line}'"
    found = complete([program("fish"), "--no-config", "-c"], script, bin_folder)
    assert found[: len(expected)] == expected


@pytest.mark.parametrize("breaks", [True, False], ids=["parted", "whole"])
@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("registry-gc run --output=j", "json"),
        ("registry-gc run --output=", "text json"),
        ("registry-gc run --output=json --log-format=t", "text"),
        ("registry-garbage-collect --output=js", "json"),
    ],
)
def test_bash_completes_what_follows_an_equals_sign(
    line: str, value: str, breaks: bool, bin_folder: Path
) -> None:
    name = line.partition(" ")[0]
    words = (line.replace("=", " = ") if breaks else line).split()
    option = "" if breaks else line.rpartition(" ")[2].partition("=")[0] + "="
    script = (
        f"source {SHARE}/bash-completion/completions/{name}\n"
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        f"_{name.replace('-', '_')}_completion {name}\n"
        'echo "${COMPREPLY[@]}"'
    )
    found = complete(["bash", "--norc", "-c"], script, bin_folder)
    assert found == [option + word for word in value.split()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--output=j", "--output=json"),
        ("--output=json --log-format=j", "--log-format=json"),
        ("--audit-log=a", "--audit-log=a.file"),
        ("--audit-log a", "a.file"),
        ("--state-dir=b", "--state-dir=b.folder/"),
    ],
)
def test_fish_completes_what_follows_an_equals_sign(
    words: str, expected: str, bin_folder: Path
) -> None:
    (bin_folder / "a.file").touch()
    (bin_folder / "b.folder").mkdir()
    script = (
        f"source {SHARE}/fish/vendor_completions.d/registry-gc.fish\n"
        f"complete -C 'registry-gc run {words}'"
    )
    found = complete([program("fish"), "--no-config", "-c"], script, bin_folder)
    assert found[0] == expected


def zsh_line(typed: str, folder: Path) -> str:
    """What stands on zsh's command line when *typed* was typed there, in *folder*."""
    rc, ready, out = (folder.parent / name for name in (".zshrc", "ready", "line"))
    rc.write_text(
        f"fpath=({SHARE}/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -D\n"
        f'dump() {{ print -rn -- "$BUFFER" >{out}.new; mv {out}.new {out} }}\n'
        'zle -N dump; bindkey "^G" dump\n'
        f"ready() {{ : >{ready} }}; zle -N zle-line-init ready\n"
    )
    parent, child = pty.openpty()
    shell = subprocess.Popen(
        [program("zsh"), "-i", "-d"],
        stdin=child, stdout=child, stderr=child, cwd=folder, start_new_session=True,
        env=environment({
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "ZDOTDIR": str(folder.parent), "TERM": "xterm",
        }),
    )  # fmt: skip
    try:
        os.close(child)
        read_until(ready, parent)
        os.write(parent, f"{typed}\t\a".encode())
        read_until(out, parent)
        return out.read_text()
    finally:
        shell.kill()
        shell.wait()
        os.close(parent)


def read_until(file: Path, terminal: int) -> None:
    """Read what a shell shows, so that it goes on, until *file* is there."""
    end = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 65536)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("registry-gc run --output=j", "registry-gc run --output=json"),
        ("registry-gc run --output=json --log-format=j", None),
        ("registry-gc run --audit-log=a", "registry-gc run --audit-log=a.file"),
        ("registry-gc run --audit-log a", "registry-gc run --audit-log a.file"),
        ("registry-gc run --state-dir=b", "registry-gc run --state-dir=b.folder/"),
        ("registry-gc plan s", "registry-gc plan show"),
    ],
)
def test_zsh_completes_what_follows_an_equals_sign(
    typed: str, line: str | None, bin_folder: Path
) -> None:
    (bin_folder / "a.file").touch()
    (bin_folder / "b.folder").mkdir()
    assert zsh_line(typed, bin_folder).rstrip() == (line or f"{typed}son")


@pytest.mark.parametrize("name", COMMANDS)
def test_zsh_takes_the_completions(name: str) -> None:
    file = SHARE / "zsh" / "site-functions" / f"_{name}"
    assert file.read_text().startswith(f"#compdef {name}\n")
    subprocess.run([program("zsh"), "-n", file], check=True)
