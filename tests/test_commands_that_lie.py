"""Commands that do something else than they are there for, and what stands in their way."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from running import Result, run, write_config
from servers.process import free_port
from servers.service import Service

MAIN = "from registry_gc.cli.main import registry_garbage_collect as main; main()"
READONLY = "/readonly/,/enabled/s/enabled: .*/enabled: "


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A registry that is up, with garbage in it."""
    with Service(tmp_path / "service").over() as service:
        subprocess.run([service.path("start")], check=True, stdout=subprocess.DEVNULL)
        service.fill(tmp_path / "oci")
        (service.folder / "calls").unlink()
        yield service


def here(**more: str) -> dict[str, str]:
    """An environment in which Python finds what this one does."""
    places = os.pathsep.join(place for place in sys.path if place)
    return {**os.environ, "PYTHONPATH": places, **more}


def words(service: Service, pair: str, first: str, second: str, *options: str) -> list[str]:
    """What runs the collector with the commands *first* and *second*."""
    names = ("stop", "start") if pair == "stop" else ("readonly", "readwrite")
    commands = [f"--{names[0]}-command", first, f"--{names[1]}-command", second]
    state = ["--state-dir", str(service.folder / "state")]
    config = str(service.registry.config)
    return [sys.executable, "-c", MAIN, *commands, *state, *options, config]


def collect(service: Service, pair: str, first: str, second: str, *options: str) -> Result:
    done = subprocess.run(
        words(service, pair, first, second, "--output", "json", *options),
        env=here(),
        capture_output=True,
        text=True,
        check=False,
    )
    document = json.loads(done.stdout) if done.stdout else {}
    return Result(done.returncode, document, done.stdout, done.stderr)


def codes(result: Result) -> list[str]:
    return [finding["code"] for finding in result.json["guard"]["findings"]]


def blobs(service: Service) -> int:
    return sum(1 for _ in service.registry.root.rglob("blobs/*/*/*/data"))


def elsewhere(service: Service) -> str:
    """Says read-only in the config, and names another port; restarts nothing."""
    port = f"s/127.0.0.1:{service.registry.port}/127.0.0.1:{free_port()}/"
    return f'sed -i "{READONLY}true/; {port}" {service.registry.config}'


def nowhere(service: Service) -> str:
    """Says read-only in a config that names no address; restarts nothing."""
    text = (
        f"{{storage: {{filesystem: {{rootdirectory: {service.registry.root}}},"
        " maintenance: {readonly: {enabled: true}}}}"
    )
    return f"echo '{text}' >{service.registry.config}"


# --- what the config said before


@pytest.mark.parametrize("pair", ["readonly", "stop"])
@pytest.mark.parametrize("edit", [elsewhere, nowhere])
def test_a_registry_that_takes_writes_where_the_config_named_it_before_is_asked(
    service: Service, edit: object, pair: str
) -> None:
    assert callable(edit)
    before = blobs(service)
    result = collect(service, pair, edit(service), "true")
    assert result.exit_code == 4, result.errors
    assert "registry-writable" in codes(result)
    assert "so the config said before the command" in result.errors
    assert blobs(service) == before


def test_a_read_only_registry_may_listen_elsewhere_where_the_one_of_before_has_ended(
    service: Service,
) -> None:
    edit = elsewhere(service)
    first = f"cp {service.registry.config} {service.folder}/was"
    first += f"; {service.path('stop')}; {edit}; {service.path('start')}"
    back = f"cp {service.folder}/was {service.registry.config}"
    result = collect(service, "readonly", first, f"{back}; {service.path('readwrite')}")
    assert result.exit_code == 0, result.errors
    assert result.json["blobs"]["deleted"] > 0
    assert service.up


def test_a_command_that_names_another_storage_in_the_config_refuses_the_run(
    service: Service,
) -> None:
    other = service.folder / "other"
    (other / "docker/registry/v2/blobs/sha256/ab").mkdir(parents=True)
    (other / "docker/registry/v2/repositories/a").mkdir(parents=True)
    config = service.registry.config
    change = f"sed -i 's,/registry$,/other,' {config}; {service.path('readonly')}"
    back = f"sed -i 's,/other$,/registry,' {config}; {service.path('readwrite')}"
    before = blobs(service)
    result = collect(service, "readonly", change, back)
    assert result.exit_code == 4, result.errors
    assert "config-changed" in codes(result)
    assert blobs(service) == before
    assert service.calls() == ["readonly", "readwrite"]
    assert service.up


def test_a_command_that_writes_the_storage_in_other_words_does_no_harm(service: Service) -> None:
    (service.folder / "link").symlink_to(service.registry.root)
    config = service.registry.config
    change = f"sed -i 's,/registry$,/link/,' {config}; {service.path('readonly')}"
    result = collect(service, "readonly", change, service.path("readwrite"))
    assert result.exit_code == 0, result.errors
    assert result.json["blobs"]["deleted"] > 0


# --- who does not read on


def dead_blobs(service: Service, count: int) -> None:
    """More than a pipe holds of lines about them."""
    for number in range(count):
        name = hashlib.sha256(b"%d" % number).hexdigest()
        folder = service.registry.root / f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}"
        folder.mkdir(parents=True)
        (folder / "data").write_text(str(number))


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stdout_that_stands_still_does_not_keep_the_registry_down(
    service: Service, terminal: bool
) -> None:
    dead_blobs(service, 1500)
    os.mkfifo(service.folder / "up")
    up = os.open(service.folder / "up", os.O_RDONLY | os.O_NONBLOCK)
    told = f"{service.path('start')} && echo up >{service.folder}/up"
    reading, writing = pty.openpty() if terminal else os.pipe()
    with subprocess.Popen(
        words(service, "stop", service.path("stop"), told),
        env=here(),
        stdout=writing,
        stderr=writing if terminal else subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        os.close(writing)
        poll = select.poll()
        poll.register(up, select.POLLIN)
        try:
            assert poll.poll(60_000), "the registry was not started"
            assert service.up
            # Nor does it keep the next run out.
            again = collect(service, "stop", service.path("stop"), service.path("start"))
            assert again.exit_code == 0, again.errors
            lines = bytearray()
            with suppress(OSError):  # how a terminal ends
                while piece := os.read(reading, 1 << 16):
                    lines += piece
        finally:
            os.close(reading)
            os.close(up)
            process.terminate()
    if not terminal:
        assert lines.count(b"blob eligible for deletion: ") > 1500
        assert b"deleted" in lines.splitlines()[-1] or b"command done" in lines


def filled_pipe() -> tuple[int, int]:
    """A pipe that takes nothing until somebody reads: both ends."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b" " * 4096)
    os.set_blocking(writing, True)
    return reading, writing


def is_let_in(service: Service) -> bool:
    """Whether other runs may begin, see :mod:`registry_gc.service.between`."""
    (place,) = (service.folder / "state" / "away").iterdir()
    with place.open("rb") as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def test_a_signal_while_the_document_waits_for_its_reader_takes_nothing_from_it(
    service: Service,
) -> None:
    os.mkfifo(service.folder / "up")
    up = os.open(service.folder / "up", os.O_RDONLY | os.O_NONBLOCK)
    told = f"{service.path('start')} && echo up >{service.folder}/up"
    reading, writing = filled_pipe()
    with subprocess.Popen(
        words(service, "stop", service.path("stop"), told, "--output", "json"),
        env=here(),
        stdout=writing,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(writing)
        poll = select.poll()
        poll.register(up, select.POLLIN)
        assert poll.poll(60_000), "the registry was not started"
        while not is_let_in(service):
            time.sleep(0.05)
        time.sleep(0.5)
        process.terminate()
        time.sleep(0.5)  # it comes while the document cannot be written
        text = bytearray()
        while piece := os.read(reading, 1 << 16):
            text += piece
        code = process.wait()
    os.close(reading)
    os.close(up)
    document = json.loads(text)
    assert (code, document["exit_code"]) == (0, 0)
    assert document["blobs"]["deleted"] == document["blobs"]["eligible"] > 0


def test_what_is_loud_is_the_last_line_where_all_goes_to_one_place(service: Service) -> None:
    done = subprocess.run(
        words(service, "stop", service.path("stop"), "exit 3"),
        env=here(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert "blobs marked" in done.stdout
    assert [number for number, line in enumerate(lines) if "THE REGISTRY MAY" in line][1:] == [
        len(lines) - 1
    ]


def test_the_lines_of_a_run_whose_reader_is_gone_are_no_failure(service: Service) -> None:
    dead_blobs(service, 1500)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        words(service, "stop", service.path("stop"), service.path("start")),
        env=here(),
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 0
    assert b"nothing more goes to stdout" in done.stderr
    assert service.up


# --- a second command that does nothing


@pytest.mark.parametrize(
    ("pair", "back", "told"),
    [
        ("stop", "true", "THE REGISTRY DOES NOT ANSWER"),
        ("readonly", "true", "THE REGISTRY IS STILL READ-ONLY"),
        ("readonly", "sed -i '{switch}false/' {config}", "THE REGISTRY IS STILL READ-ONLY"),
    ],
)
def test_a_registry_that_is_not_back_is_told_and_still_remembers(
    service: Service, pair: str, back: str, told: str
) -> None:
    config = service.registry.config
    config.write_text(
        config.read_text().replace("storage:", "storage:\n  cache: {blobdescriptor: inmemory}")
    )
    back = back.format(switch=READONLY, config=config)
    result = collect(service, pair, service.path(pair), back)
    assert result.exit_code == 0, result.errors
    last = result.errors.splitlines()[-1]
    assert last.startswith(f"note: {told}: http://127.0.0.1:{service.registry.port} ")
    assert "by hand" in last
    assert result.json["blob_cache"]["restart_needed"] is True


def test_a_registry_that_is_slow_to_start_is_given_time(service: Service) -> None:
    slow = f"(sleep 0.5; {service.path('start')}) >/dev/null 2>&1 &"
    result = collect(service, "stop", service.path("stop"), slow)
    assert result.exit_code == 0, result.errors
    assert "THE REGISTRY" not in result.errors
    assert service.up


def test_a_registry_that_did_not_answer_before_is_not_missed(service: Service) -> None:
    subprocess.run([service.path("stop")], check=True, stdout=subprocess.DEVNULL)
    result = collect(service, "stop", "true", "true")
    assert result.exit_code == 0, result.errors
    assert "THE REGISTRY" not in result.errors


# --- a config that can be read once only


@pytest.mark.parametrize("source", ["fifo", "stdin"])
def test_a_config_from_a_pipe_is_refused_with_commands(tmp_path: Path, source: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    named = str(tmp_path / "fifo") if source == "fifo" else "/dev/stdin"
    calls = tmp_path / "calls"
    pair = ["--stop-command", f"echo >>{calls}", "--start-command", f"echo >>{calls}"]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "--state-dir", str(tmp_path), *pair, named],
        env=here(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.decode() == (
        f"error: {named}: is a pipe, and with commands the config is read more than once:"
        " name a file\n"
    )
    assert not calls.exists()


# --- how a command is spelt


def test_a_start_command_of_several_lines_stays_one_line_at_the_end(service: Service) -> None:
    result = collect(service, "stop", service.path("stop"), "echo \033x\nexit 7\n")
    assert result.exit_code == 1
    last = result.errors.splitlines()[-1]
    assert last.startswith("error: THE REGISTRY MAY STILL BE DOWN: the start command ended with")
    assert last.endswith("code 7: echo \\x1bx\\nexit 7\\n")


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_a_command_that_the_shell_does_not_understand_is_a_usage_error(
    tmp_path: Path, place: int, option: list[str]
) -> None:
    commands = [f"echo run >>{tmp_path}/calls"] * 2
    commands[place] += "; if true; then"
    pair = ["--stop-command", commands[0], "--start-command", commands[1]]
    config = write_config(tmp_path / "registry")
    result = run(*pair, *option, config, state=tmp_path)
    assert result.exit_code == 2
    name = ("--stop-command", "--start-command")[place]
    assert f"error: {name}: the shell does not understand it: " in result.errors
    assert len(result.errors.splitlines()) == 1
    assert not (tmp_path / "calls").exists()


def test_that_is_found_out_where_nobody_is_told_how_a_child_ends(tmp_path: Path) -> None:
    """As under some supervisors, which ignore SIGCHLD, and what they start does too."""
    config = write_config(tmp_path / "registry")
    pair = ["--stop-command", f"touch {tmp_path}/down", "--start-command", "if true; then"]
    ignored = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    done = subprocess.run(
        [sys.executable, "-c", ignored + MAIN, *pair, config],
        env=here(RGC_STATE_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "the shell does not understand it" in done.stderr
    assert not (tmp_path / "down").exists()
