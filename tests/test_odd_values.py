"""Every option with odd values: one of the exit codes, a word of why, no traceback, no harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from model import V2
from registry_gc.cli.main import registry_garbage_collect, registry_gc
from running import Disk, fingerprint, write_config

VALUES = (
    "", "0", "-1", "1e400", "nan", "inf", "-inf", "9" * 30, "9" * 5000, "0s", "1ns", "106751d",
    "106752d", "24:00", "9999-12-31T23:59:59+00:00", "0001-01-01", "..", "/dev/null", "/dev/full",
    "\u00e9", "\udcff", "%s", "{}", "a=b", "10%", "101%", "7.5",
)  # fmt: skip
# They run what they are given, or ask a host of that name.
NOT_HERE = {
    "--stop-command", "--start-command", "--readonly-command", "--readwrite-command",
    "--registry-url", "--pushgateway", "--dask",
}  # fmt: skip
CODES = range(6)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Each command that takes a config, by its name below ``registry-gc``."""
    yield "", registry_garbage_collect
    with click.Context(registry_gc) as context:
        for name in registry_gc.list_commands(context):
            command = registry_gc.get_command(context, name)
            assert command is not None
            if any(parameter.name == "config" for parameter in command.params):
                yield name, command


def options() -> Iterator[tuple[str, bool, str]]:
    """Each option once, of the first command that has it: the command, whether it can be dry."""
    seen: set[str] = set()
    for name, command in commands():
        dry = any(parameter.name == "dry_run" for parameter in command.params)
        for parameter in command.params:
            option = max(parameter.opts, key=len)
            if not isinstance(parameter, click.Option) or parameter.is_flag or parameter.count:
                continue
            if option not in NOT_HERE | seen:
                seen.add(option)
                yield name, dry, option


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path)
    disk.tree.image("a", "1", layers=[b"layer"])
    disk.tree.blob(b"orphan")
    disk.age()
    # Some values are names of files.
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("RGC_STATE_DIR", str(tmp_path / "state"))
    return disk


def test_all_options_are_there() -> None:
    found = {option for _, _, option in options()}
    assert {"--grace", "--quarantine", "--run-file", "--cache", "--html", "--deadline"} <= found
    assert len(found) > 25


@pytest.mark.parametrize(("command", "dry", "option"), [*options()], ids=lambda value: str(value))
def test_an_odd_value_is_taken_or_told(disk: Disk, command: str, dry: bool, option: str) -> None:
    config = write_config(disk.root)
    before = fingerprint(disk.root), config.read_bytes()
    program = registry_gc if command else registry_garbage_collect
    for value in VALUES:
        given = f"{option}={value}" if option.startswith("--") else f"{option}{value}"
        line = [*[command][: bool(command)], given, *["--dry-run"][:dry], str(config)]
        answer = CliRunner().invoke(program, line)
        if not isinstance(answer.exception, SystemExit | None):
            raise AssertionError(given[:50]) from answer.exception
        assert answer.exit_code in CODES, given[:50]
        assert not answer.exit_code or answer.stderr, given[:50]
        assert (fingerprint(disk.root), config.read_bytes()) == before, given[:50]


OUTPUTS = [
    ("", "--cache"), ("", "--run-file"), ("", "--metrics-file"), ("", "--audit-log"),
    ("report", "--html"), ("report", "--cache"), ("plan", "-o"), ("purge", "--metrics-file"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "option"), OUTPUTS)
def test_nothing_is_written_over_the_config(disk: Disk, command: str, option: str) -> None:
    """``--cache`` looks like a flag: what follows it is its value."""
    config = write_config(disk.root)
    before = config.read_bytes()
    beside = {*config.parent.iterdir()}
    # By another way to the same file.
    link = config.with_name("link.yml")
    link.symlink_to(config)
    program: Any = registry_gc if command else registry_garbage_collect
    line = [*[command][: bool(command)], option, str(link), str(config)]
    answer = CliRunner().invoke(program, line)
    assert answer.exit_code == 2
    assert "names the config itself" in answer.stderr
    assert config.read_bytes() == before
    assert {*config.parent.iterdir()} - {disk.folder / "state"} == beside | {link}


@pytest.mark.parametrize("option", ["--state-dir", "--metrics-file", "--run-file", "--cache"])
def test_an_empty_path_is_none(disk: Disk, option: str) -> None:
    """A script's variable that is not set."""
    line = ["--dry-run", option, "", str(write_config(disk.root))]
    answer = CliRunner().invoke(registry_garbage_collect, line)
    assert answer.exit_code == 2
    assert f"Invalid value for '{option}': is empty" in answer.stderr


INSIDE = [*OUTPUTS, ("", "--state-dir"), ("report", "--state-dir")]


@pytest.mark.parametrize(("command", "option"), INSIDE)
@pytest.mark.parametrize("link", [False, True])
def test_nothing_is_written_among_what_is_collected(
    disk: Disk, command: str, option: str, *, link: bool
) -> None:
    content = disk.root / V2
    if link:
        (disk.folder / "way").symlink_to(content)
        content = disk.folder / "way"
    before = disk.files()
    program: Any = registry_gc if command else registry_garbage_collect
    config = write_config(disk.root)
    line = [*[command][: bool(command)], option, str(content / "ours"), str(config)]
    answer = CliRunner().invoke(program, line)
    assert answer.exit_code == 2
    assert "choose a place elsewhere" in answer.stderr
    assert disk.files() == before
    # Beside it is no harm.
    beside = str(disk.root / "docker/registry/ours")
    answer = CliRunner().invoke(program, [*line[:-2], beside, str(config)])
    assert "choose a place elsewhere" not in answer.stderr
