"""The command where the locale is not UTF-8: to a registry, names of files are."""

from __future__ import annotations

import json
import os

import pytest

from command_line import GROUP, call
from running import Disk, write_config

# Python takes UTF-8 by itself where it sees the bare C locale.
NO_UTF_8 = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("place", ["tag", "repository", "stranger"])
@pytest.mark.parametrize("command", ["", "--dry-run", "report", "verify"])
def test_a_name_that_this_locale_cannot_keep_ends_the_run_in_one_line(
    disk: Disk, command: str, place: str
) -> None:
    if place == "stranger":
        disk.write("docker/registry/v2/blobs/sha256/r\u00e4", b"?")
    else:
        disk.tree.image("r\u00e4" if place == "repository" else "r", "t\u00e4", layers=[b"1"])
    config = write_config(disk.root)
    before = disk.files()
    if command in ("report", "verify"):
        done = call(command, config, env=NO_UTF_8, main=GROUP)
    else:
        state = ("--state-dir", str(disk.folder / "state"))
        done = call(*state, *filter(None, [command]), config, env=NO_UTF_8)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert b"cannot be read in this locale: set PYTHONUTF8=1" in line
    assert disk.files() == before


@pytest.mark.parametrize("by_variable", [False, True])
def test_the_roots_name_is_utf_8_whatever_the_locale(disk: Disk, by_variable: bool) -> None:
    root = disk.root.rename(disk.folder / "r\u00e4\u20ac")
    config = write_config(root)
    given = disk.folder / "elsewhere" if by_variable else root
    text = f"storage: {{filesystem: {{rootdirectory: {given}}}, maintenance: "
    config.write_text(text + "{readonly: {enabled: true}}}", encoding="utf-8")
    variable = {"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(root)} if by_variable else {}
    state = ("--state-dir", str(disk.folder / "state"))
    done = call(*state, "--output", "json", config, env={**NO_UTF_8, **variable})
    assert done.returncode == 0, done.stderr.decode()
    document = json.loads(done.stdout)
    assert (document["blobs"]["total"], document["blobs"]["deleted"]) == (6, 1)
    assert document["storage"]["root"].encode("utf-8", "surrogateescape") == os.fsencode(root)
    done = call(*state, "--dry-run", config, env={**NO_UTF_8, **variable})
    assert (done.returncode, done.stderr) == (0, b"")
