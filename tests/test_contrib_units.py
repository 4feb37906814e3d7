"""``contrib/``: systemd units, logrotate and the image are taken by the programs they are for."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from real import program
from registry_gc.cli.main import registry_garbage_collect
from test_contrib import CRON

ROOT = Path(__file__).resolve().parent.parent
UNITS = ROOT / "contrib" / "systemd"
SERVICE = UNITS / "registry-garbage-collect.service"
TIMER = UNITS / "registry-garbage-collect.timer"
ROTATE = ROOT / "contrib" / "logrotate" / "registry-garbage-collect"
CONTAINERFILE = ROOT / "contrib" / "container" / "Containerfile"


# systemd


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Both units, with a command that is there."""
    for unit in (SERVICE, TIMER):
        text = unit.read_text().replace("/usr/local/bin/registry-garbage-collect", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("unit", [SERVICE, TIMER], ids=lambda unit: str(unit.suffix))
def test_systemd_takes_the_units(unit: Path, units: Path) -> None:
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", units / unit.name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_unit_that_systemd_does_not_take_is_found_out(units: Path) -> None:
    (units / SERVICE.name).write_text("[Service]\nType=oneshot\nExecStart=/no/such/command\n")
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", units / SERVICE.name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "/no/such/command" in done.stderr


def test_the_service_is_confined(units: Path) -> None:
    # The scale goes from 0 (safe) to 10; an unconfined service has 9.6.
    subprocess.run(
        [program("systemd-analyze"), "security", "--offline=yes", "--no-pager",
         "--threshold=25", units / SERVICE.name],
        capture_output=True, check=True,
    )  # fmt: skip


def test_the_timer_is_for_sundays_at_five_past_four_and_catches_up() -> None:
    text = TIMER.read_text()
    when = re.search(r"^OnCalendar=(.*)$", text, re.MULTILINE)
    assert when
    done = subprocess.run(
        [program("systemd-analyze"), "calendar", when[1]],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Normalized form: Sun *-*-* 04:05:00" in done.stdout
    assert "Persistent=true\n" in text


def variables() -> set[str]:
    return {str(parameter.envvar) for parameter in registry_garbage_collect.params}


@pytest.mark.parametrize(
    "path",
    # Of all processes the same, whichever of them is the first to compile a module.
    sorted(
        path
        for path in [*(ROOT / "contrib").glob("*/*"), *(ROOT / "docs").glob("*.md")]
        if path.is_file() and path.parent.name != "__pycache__"
    ),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_variable_that_is_named_is_one_of_ours(path: Path) -> None:
    named = set(re.findall(r"\bRGC_[A-Z_]+", path.read_text())) - {"RGC_"}
    assert named <= variables()


# logrotate

NOBODY = 65534


@pytest.mark.parametrize("audit_bytes", [10, 0])
def test_logrotate_rotates_both_logs(tmp_path: Path, audit_bytes: int) -> None:
    logs = [tmp_path / "registry-garbage-collect.log", tmp_path / "registry-gc" / "audit.jsonl"]
    logs[1].parent.mkdir()
    config = tmp_path / "config"
    text = ROTATE.read_text().replace("/var/log/", f"{tmp_path}/")
    # Who runs the tests owns the first log, and need not be root.
    config.write_text(text.replace("create 0640 root adm", "create 0640"))
    config.chmod(0o644)
    logs[0].write_text("said\n")
    logs[1].write_bytes(b"x" * audit_bytes)
    logs[1].chmod(0o620)
    if os.geteuid() == 0:
        os.chown(logs[1], NOBODY, NOBODY)
    before = logs[1].stat()
    command = [program("logrotate"), "--force", "--state", str(tmp_path / "state"), str(config)]
    subprocess.run(command, check=True)
    assert logs[0].read_text() == ""
    assert (tmp_path / "registry-garbage-collect.log.1").read_text() == "said\n"
    after = logs[1].stat()
    # The next run, as whichever user, goes on with it.
    assert [after.st_mode, after.st_uid] == [before.st_mode, before.st_uid]
    assert after.st_size == 0
    rotated = list(logs[1].parent.glob("audit.jsonl-*"))
    assert [path.stat().st_size for path in rotated] == ([audit_bytes] if audit_bytes else [])


def test_logrotate_takes_the_file_as_it_is() -> None:
    done = subprocess.run(
        [program("logrotate"), "--debug", ROTATE], capture_output=True, text=True, check=False
    )
    assert "error" not in done.stderr.lower()
    assert "Handling 2 logs" in done.stderr


def test_the_logs_that_are_rotated_are_those_that_are_written() -> None:
    rotated = re.findall(r"^(/\S+) \{", ROTATE.read_text(), re.MULTILINE)
    log = re.search(r"^LOG=(.*)$", CRON.read_text(), re.MULTILINE)
    assert log
    assert log[1] == rotated[0]
    assert rotated[1] in (ROOT / "docs" / "monitoring.md").read_text()


# The image


def test_hadolint_finds_nothing_in_the_containerfile() -> None:
    # It comes with the packages that the tests need, beside their Python.
    beside = Path(sys.executable).parent / "hadolint"
    command = str(beside) if beside.exists() else program("hadolint")
    subprocess.run([command, CONTAINERFILE], check=True)


def test_what_the_image_copies_is_there_and_what_it_installs_is_an_extra() -> None:
    import tomllib

    text = CONTAINERFILE.read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.search(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)
    assert named
    assert set(named[1].split(",")) <= set(extras["optional-dependencies"])
    entry = re.search(r'^ENTRYPOINT \["(.*)"\]$', text, re.MULTILINE)
    assert entry
    assert entry[1] in extras["scripts"]


def test_what_the_image_copies_is_enough_to_build_the_package(tmp_path: Path) -> None:
    source, wheels = tmp_path / "src", tmp_path / "wheels"
    for line in re.findall(r"^COPY (?!--from)(.*)$", CONTAINERFILE.read_text(), re.MULTILINE):
        *paths, target = line.split()
        for path in paths:
            inside = source / target / path if target == "./" else source / target
            inside.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / path).is_dir():
                shutil.copytree(ROOT / path, inside, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / path, inside)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "registry_gc/cli/main.py" in names
    assert any(name.endswith("share/man/man1/registry-garbage-collect.1") for name in names)


def test_the_image_runs_as_nobody() -> None:
    users = re.findall(r"^USER (.*)$", CONTAINERFILE.read_text(), re.MULTILINE)
    assert users[-1] == "65534:65534"


def test_the_service_file_is_readable_as_an_ini_file_with_the_usual_sections() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # keys keep their case
    parser.read(SERVICE)
    assert parser.sections() == ["Unit", "Service"]
    assert parser["Service"]["ProtectSystem"] == "strict"
