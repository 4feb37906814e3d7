"""``contrib/``: the weekly jobs with each of their pairs of commands, run on a real registry.

``systemctl``, ``gitlab-ctl`` and ``docker`` are ours; they stop and start a real registry. Paths
are replaced by those of the test.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from real import program
from servers.service import Service
from test_contrib import CRON, read
from test_contrib_units import SERVICE

PAIRS = (
    ["systemctl stop docker-registry", "systemctl start docker-registry"],
    ["gitlab-ctl stop registry", "gitlab-ctl start registry"],
    ["docker stop registry", "docker start registry"],
    ["docker compose -f compose.yaml stop registry",
     "docker compose -f compose.yaml start registry"],
    ["systemctl restart docker-registry", "systemctl restart docker-registry"],
)  # fmt: skip
NAMES = ("docker-registry", "GitLab", "docker", "compose", "read-only")
PLACES = ("/etc/docker/registry", "/srv/registry")
WHICH = pytest.mark.parametrize("which", range(len(PAIRS)), ids=NAMES)


def with_pair(text: str, which: int) -> str:
    """*text* with another pair of commands than its first, as its comments say."""
    lines = text.splitlines()
    pair = re.compile(r"(?:# )?(?:Environment=\")?RGC_(?:STOP|START|READONLY|READWRITE)_COMMAND=")
    at = [number for number, line in enumerate(lines) if pair.match(line)]
    assert len(at) == 2 * len(PAIRS)
    assert [number for number in at if not lines[number].startswith("#")] == at[:2]
    for number in at:
        chosen = number in at[2 * which : 2 * which + 2]
        plain = lines[number].removeprefix("# ")
        lines[number] = plain if chosen else f"# {plain}"
    return "\n".join(lines) + "\n"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "service").over() as service:
        subprocess.run([service.path("start")], check=True, stdout=subprocess.DEVNULL)
        service.fill(tmp_path / "oci")
        service.tools("gitlab-ctl", "systemctl", "docker")
        yield service


def at(service: Service, text: str) -> str:
    """*text* with the paths of *service*."""
    for place in PLACES:
        text = text.replace(place, str(service.folder))
    return text


def environment(service: Service, settings: Mapping[str, str]) -> dict[str, str]:
    """What a job gets from cron or systemd, and what finds our code."""
    path = f"{service.folder}/bin:{settings.get('PATH', os.environ['PATH'])}"
    return {
        **settings,
        "HOME": str(service.folder),
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(place for place in sys.path if place),
    }


def is_collected_and_in_use(service: Service) -> bool:
    """Whether what was to go is gone, what was to stay is there, and pushes are taken again."""
    allowed = service.registry.request("OPTIONS", "a/blobs/uploads/").headers["Allow"]
    return "POST" in allowed and service.registry.pull_everything() == {"a": ["stays"]}


# cron


@WHICH
def test_cron_itself_takes_the_file(which: int, tmp_path: Path) -> None:
    text = with_pair(CRON.read_text(), which)
    own = tmp_path / "crontab"
    # crontab(1) takes a user's own table, which names no user.
    own.write_text(re.sub(r"^(5 4 \* \* 0) +root +", r"\1 ", text, flags=re.MULTILINE))
    subprocess.run([program("crontab"), "-n", own], check=True, capture_output=True)


def test_what_cron_does_not_take_is_found_out(tmp_path: Path) -> None:
    own = tmp_path / "crontab"
    own.write_text("5 44 * * 0 true\n")
    done = subprocess.run(
        [program("crontab"), "-n", own], check=False, capture_output=True, text=True
    )
    assert "bad hour" in done.stderr


def run_line(service: Service, which: int, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the job's line as cron does."""
    settings, (job,) = read(at(service, with_pair(CRON.read_text(), which)))
    settings |= {
        "CONFIG": str(service.registry.config),
        "LOG": str(service.folder / "job.log"),
        "LOCK": str(service.folder / "job.lock"),
        "RGC_STATE_DIR": str(service.folder / "state"),
        **more,
    }
    return subprocess.run(
        [settings["SHELL"], "-c", job.line],
        env=environment(service, settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@WHICH
def test_the_line_of_cron_collects_and_mails_nothing(service: Service, which: int) -> None:
    done = run_line(service, which, OPTIONS="-m")
    log = (service.folder / "job.log").read_text()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), log
    assert "blob eligible for deletion" in log
    assert service.asked() == PAIRS[which]
    assert is_collected_and_in_use(service)


def test_a_stop_that_fails_deletes_nothing_starts_the_registry_and_mails(service: Service) -> None:
    done = run_line(service, 0, OPTIONS="-m", RGC_STOP_COMMAND="systemctl fail docker-registry")
    assert "ended with code 4" in done.stdout
    assert service.up
    assert service.asked()[-1] == PAIRS[0][1]
    assert "the stop command ended with code" in (service.folder / "job.log").read_text()


def test_a_start_that_fails_is_in_the_mail(service: Service) -> None:
    done = run_line(service, 0, RGC_START_COMMAND="false")
    assert "ended with code 1" in done.stdout
    assert "THE REGISTRY MAY STILL BE DOWN" in done.stdout


def test_without_a_pair_a_writable_registry_is_left_alone_and_that_is_mailed(
    service: Service,
) -> None:
    done = run_line(service, 0, OPTIONS="-m", RGC_STOP_COMMAND="", RGC_START_COMMAND="")
    assert "ended with code 4" in done.stdout
    assert not (service.folder / "asked").exists()
    assert service.up


# systemd


def unit(text: str) -> tuple[dict[str, str], list[str]]:
    """The environment and the command of a service."""
    settings: dict[str, str] = {}
    for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE):
        for word in [line.strip('"')] if line.startswith('"') else shlex.split(line):
            name, _, value = word.partition("=")
            settings[name] = value
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    words = [re.sub(r"\$\{(\w+)\}", lambda match: settings[match[1]], word)
             for word in shlex.split(command)]  # fmt: skip
    return settings, words


@WHICH
def test_the_service_collects_without_a_word(service: Service, which: int) -> None:
    settings, command = unit(at(service, with_pair(SERVICE.read_text(), which)))
    settings |= {"RGC_STATE_DIR": str(service.folder / "state"), "RGC_DELETE_UNTAGGED": "true"}
    done = subprocess.run(
        [Path(command[0]).name, *command[1:]],
        env=environment(service, settings),
        executable=str(service.folder / "bin" / Path(command[0]).name),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert service.asked() == PAIRS[which]
    assert is_collected_and_in_use(service)


@WHICH
def test_systemd_takes_the_service_with_each_pair(which: int, tmp_path: Path) -> None:
    text = with_pair(SERVICE.read_text(), which)
    if NAMES[which] == "read-only":
        text = text.replace("# ReadWritePaths=/etc/docker", "ReadWritePaths=/etc/docker")
    file = tmp_path / SERVICE.name
    file.write_text(text.replace("/usr/local/bin/registry-garbage-collect", "/bin/true"))
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_only_the_run_is_told_to_stop_and_the_registry_has_time_to_start() -> None:
    text = SERVICE.read_text()
    assert "KillMode=mixed\n" in text
    assert "TimeoutStopSec=15min\n" in text
