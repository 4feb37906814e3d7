"""Man pages and shell completions: current, readable, and they work in each shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from real import program
from registry_gc.cli.main import registry_garbage_collect
from test_cli import environment

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


@pytest.mark.parametrize("name", COMMANDS)
def test_zsh_takes_the_completions(name: str) -> None:
    file = SHARE / "zsh" / "site-functions" / f"_{name}"
    assert file.read_text().startswith(f"#compdef {name}\n")
    subprocess.run([program("zsh"), "-n", file], check=True)
