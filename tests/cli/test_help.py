"""Help and version: complete, and there without what takes time to load."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from command_line import environment
from registry_gc import __version__
from registry_gc.cli.main import every_command, registry_garbage_collect, registry_gc
from running import Disk, write_config


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_every_option_and_every_exit_code(flag: str) -> None:
    answer = CliRunner().invoke(registry_garbage_collect, [flag])
    assert answer.exit_code == 0
    for parameter in registry_garbage_collect.params:
        assert parameter.name == "config" or any(name in answer.stdout for name in parameter.opts)
    for code in (0, 1, 2, 3, 4, 5, 130):
        assert re.search(rf"^ +{code}  +\w", answer.stdout, re.MULTILINE)
    assert "RGC_<NAME>" in answer.stdout


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version_is_told(flag: str) -> None:
    for command in (registry_garbage_collect, registry_gc):
        answer = CliRunner().invoke(command, [flag])
        assert (answer.exit_code, __version__ in answer.stdout) == (0, True)


def test_every_help_fits_a_terminal_of_80_columns() -> None:
    commands: list[click.Command] = [registry_garbage_collect, registry_gc, *every_command()]
    assert len(commands) > 10
    for command in commands:
        answer = CliRunner().invoke(command, ["--help"], terminal_width=80)
        assert answer.exit_code == 0
        assert [line for line in answer.stdout.splitlines() if len(line) > 80] == []


def test_run_is_the_drop_in_in_the_group(disk: Disk) -> None:
    arguments = ["run", "-d", "--output", "json", "--state-dir", str(disk.folder / "state")]
    answer = CliRunner().invoke(registry_gc, [*arguments, str(write_config(disk.root))])
    assert answer.exit_code == 0
    assert json.loads(answer.stdout)["dry_run"]
    assert "run" in CliRunner().invoke(registry_gc, ["--help"]).stdout


def test_help_loads_nothing_that_takes_time() -> None:
    code = (
        "import sys\n"
        "from registry_gc.cli.main import registry_garbage_collect as main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'numpy', 'yaml', 'msgspec', 'sqlite3', 'boto3', 'obstore', 'urllib3', 'tqdm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_what_works_a_plan_out_again_is_loaded_for_verify_alone() -> None:
    code = (
        "import sys, registry_gc.apply, registry_gc.cli.run\n"
        "names = ('plan_check', 'closure', 'wholeness', 'every_tag', 'library')\n"
        "heavy = {f'registry_gc.verify.{name}' for name in names}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("asked", [["--help"], ["--version"], ["plan", "--help"]])
def test_a_help_that_nobody_can_store_ends_with_a_line(asked: list[str]) -> None:
    command = "registry_garbage_collect" if len(asked) == 1 else "registry_gc"
    code = f"import registry_gc.cli.main as main; main.{command}()"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, *asked],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["error: [Errno 28] No space left on device"]
