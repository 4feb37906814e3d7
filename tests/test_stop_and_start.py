"""--stop-command, --start-command and the read-only pair: the registry is brought back, always."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from running import Disk, Result, collect, run, write_config
from servers.service import Service

PROGRAM = """
import os, signal, sys
from registry_gc import sweep
from registry_gc.cli.main import registry_garbage_collect
{hook}
registry_garbage_collect()
"""
# What a hook does right before delete number `at`, counted from 1.
BEFORE_DELETE = """
plain, seen, parent = sweep._delete, 0, os.getppid
def paths_of(send):
    def counting(paths):
        def watched():
            global seen
            for path in paths:
                seen += 1
                if seen == {at}:
                    {then}
                yield path
        return send(watched())
    return counting
sweep._delete = lambda rows, send, interrupted: plain(rows, paths_of(send), interrupted)
"""
KILL_SELF = "os.kill(os.getpid(), signal.SIGKILL)"
# What a hook does right before batch `at`, in the main thread, which is where signals are handled.
BEFORE_BATCH = """
from registry_gc.permission import Permission
from registry_gc.interrupts import Interrupts
made, init, plain, looks, parent = [], Interrupts.__init__, Permission.look, 0, os.getppid
def remember(self): init(self); made.append(self)
Interrupts.__init__ = remember
def look(self):
    global looks
    looks += 1
    if looks == {at}:
        os.kill(parent(), {number})
        while not made[-1](): pass
    return plain(self)
Permission.look = look
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A registry that is up, with garbage in it."""
    with Service(tmp_path / "service").over() as service:
        subprocess.run([service.path("start")], check=True, stdout=subprocess.DEVNULL)
        service.fill(tmp_path / "oci")
        (service.folder / "calls").unlink()
        yield service


def arguments(
    service: Service, *options: str, stop: str = "stop", start: str = "start"
) -> list[str]:
    pair = ["--stop-command", service.path(stop), "--start-command", service.path(start)]
    if stop == "readonly":
        pair = [
            "--readonly-command",
            service.path(stop),
            "--readwrite-command",
            service.path(start),
        ]
    state = ["--state-dir", str(service.folder / "state"), "--output", "json"]
    return [*pair, *state, *options, str(service.registry.config)]


def here() -> dict[str, str]:
    """An environment in which Python finds what this one does."""
    places = os.pathsep.join(place for place in sys.path if place)
    return {**os.environ, "PYTHONPATH": places}


def command(*words: str, hook: str = "", session: bool = False) -> subprocess.Popen[str]:
    """The command as a process of its own, or with *session* as a whole process group."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(hook=hook), *words],
        env=here(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=session,
    )


def finish(process: subprocess.Popen[str]) -> Result:
    """Wait for the command and for all that writes to its output."""
    try:
        text, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        # Its child hears of it, and would else go on for as long as the machine does.
        process.kill()
        raise
    document: dict[str, Any] = json.loads(text) if text else {}
    return Result(process.returncode, document, text, errors)


def collect_away(service: Service, *options: str, hook: str = "", **names: str) -> Result:
    return finish(command(*arguments(service, *options, **names), hook=hook))


def check_serves(service: Service) -> None:
    """The registry is up, takes writes, and has all of what lives."""
    assert service.up
    allowed = service.registry.request("OPTIONS", "a/blobs/uploads/").headers["Allow"]
    assert "POST" in allowed
    assert service.registry.pull_everything() == {"a": ["stays"]}


def codes(result: Result) -> list[str]:
    return [finding["code"] for finding in result.json["guard"]["findings"]]


# --- as it should go


def test_the_registry_is_stopped_for_the_collection_and_started_again(service: Service) -> None:
    result = collect_away(service)
    assert result.exit_code == 0, result.errors
    assert result.json["blobs"]["deleted"] > 0
    assert "stopped-confirmed" in codes(result)
    assert "--registry-stopped" not in json.dumps(result.json["guard"])
    assert service.calls() == ["stop", "start"]
    assert [(ran["name"], ran["code"]) for ran in result.json["commands"]] == [
        ("stop", 0),
        ("start", 0),
    ]
    check_serves(service)


def test_the_registry_is_made_read_only_and_writable_again(service: Service) -> None:
    result = collect_away(service, stop="readonly", start="readwrite")
    assert result.exit_code == 0, result.errors
    assert result.json["blobs"]["deleted"] > 0
    assert "readonly-confirmed" in codes(result)
    assert service.calls() == ["readonly", "readwrite"]
    check_serves(service)


def test_what_the_commands_say_is_on_stderr(service: Service) -> None:
    result = collect_away(service)
    assert "said by stop" in result.errors
    assert "said by start" in result.errors
    assert "said by" not in result.text


def test_what_the_commands_say_becomes_objects_among_objects(service: Service) -> None:
    result = collect_away(service, "--log-format", "json", start="fail")
    lines = [json.loads(line) for line in result.errors.splitlines()]
    assert [line["message"] for line in lines if "command: said" in line["message"]] == [
        "stop command: said by stop",
        "start command: said by fail",
    ]
    assert "THE REGISTRY MAY STILL BE DOWN" in lines[-1]["message"]


def test_after_kill_9_the_start_command_is_told_in_objects_too(service: Service) -> None:
    result = collect_away(
        service, "--log-format", "json", hook=BEFORE_DELETE.format(at=1, then=KILL_SELF)
    )
    lines = [json.loads(line)["message"] for line in result.errors.splitlines()]
    assert "start command: said by start" in lines
    check_serves(service)


def test_the_commands_are_the_shells(service: Service) -> None:
    calls = service.folder / "calls"
    words = arguments(service)
    words[1] = f"echo one >{calls}; [ -t 0 ] || cat >>{calls}; {words[1]} && true"
    result = finish(command(*words))
    assert result.exit_code == 0, result.errors
    assert service.calls() == ["one", "stop", "start"]


def test_a_dry_run_runs_neither_and_does_not_hold_the_running_registry_against_it(
    service: Service,
) -> None:
    result = collect_away(service, "--dry-run")
    assert (result.exit_code, result.json["guard"]["verdict"]) == (0, "allowed")
    assert "command-not-run" in codes(result)
    assert service.calls() == []
    assert result.json["blobs"]["eligible"] > 0


def test_after_a_restart_a_cache_in_memory_needs_no_other(service: Service) -> None:
    config = service.registry.config
    config.write_text(
        config.read_text().replace("storage:", "storage:\n  cache: {blobdescriptor: inmemory}")
    )
    result = collect_away(service)
    assert result.exit_code == 0, result.errors
    assert result.json["blobs"]["deleted"] > 0
    assert result.json["blob_cache"]["restart_needed"] is False


# --- when it does not


def test_a_registry_is_not_stopped_for_a_run_that_is_refused_anyway(service: Service) -> None:
    (service.registry.root / "scheduler-state.json").write_text("{}")
    result = collect_away(service)
    assert result.exit_code == 4
    assert "scheduler-state" in codes(result)
    assert service.calls() == []


def test_a_registry_is_not_stopped_for_a_config_that_cannot_be_read(service: Service) -> None:
    service.registry.config.write_text("storage: {}")
    result = collect_away(service)
    assert (result.exit_code, service.calls()) == (2, [])


def test_a_stop_command_that_fails_refuses_the_run_and_the_start_command_is_run(
    service: Service,
) -> None:
    result = collect_away(service, stop="fail")
    assert result.exit_code == 4
    assert codes(result) == ["command-failed"]
    assert service.calls() == ["fail", "start"]


def test_a_registry_that_does_not_stop_refuses_the_run_and_is_started(service: Service) -> None:
    service.script("nothing", "true")
    result = collect_away(service, stop="nothing", start="nothing")
    assert result.exit_code == 4
    assert "registry-writable" in codes(result)
    assert service.calls() == ["nothing", "nothing"]
    check_serves_all(service)


def check_serves_all(service: Service) -> None:
    assert service.registry.pull_everything() == {"a": ["stays"]}


def test_a_registry_that_takes_its_time_to_stop_is_waited_for(service: Service) -> None:
    slow = f"(sleep 0.5; kill $(cat {service.folder}/pid)) >/dev/null 2>&1 &"
    service.script("slow", slow)
    result = collect_away(service, stop="slow")
    assert result.exit_code == 0, result.errors
    check_serves(service)


def test_a_start_command_that_fails_is_loud_and_exit_code_1(service: Service) -> None:
    result = collect_away(service, start="fail")
    assert result.exit_code == result.json["exit_code"] == 1
    last = result.errors.splitlines()[-1]
    assert last.startswith("error: THE REGISTRY MAY STILL BE DOWN: the start command ended with")
    assert last.endswith(service.path("fail"))
    assert result.errors.count("THE REGISTRY") == 1
    assert result.json["commands"][1] == {
        "name": "start",
        "code": 3,
        "seconds": result.json["commands"][1]["seconds"],
        "error": "the start command ended with code 3",
    }
    assert result.json["blobs"]["deleted"] > 0


def test_a_registry_that_stays_down_after_a_refusal_comes_first_in_the_document(
    service: Service,
) -> None:
    result = collect_away(service, "--max-delete", "0", start="fail")
    assert result.exit_code == 1
    down, _, rest = result.json["error"].partition("; ")
    assert down.startswith("THE REGISTRY MAY STILL BE DOWN: the start command ended with code 3")
    assert rest.startswith("refused, nothing was deleted: ")
    refused, last = result.errors.splitlines()[-2:]
    assert (refused, last) == (f"error: {rest}", f"error: {down}")


def test_a_command_that_takes_too_long_is_ended_with_all_it_has_started(service: Service) -> None:
    service.script("hang", f"sleep 600 & echo $! >{service.folder}/sleeper; wait")
    result = collect_away(service, "--command-timeout", "1s", stop="hang")
    assert result.exit_code == 4
    assert "took more than 1 s" in result.json["guard"]["findings"][0]["message"]
    assert service.calls() == ["hang", "start"]
    sleeper = (service.folder / "sleeper").read_text().strip()
    assert not os.path.exists(f"/proc/{sleeper}/exe") or not os.readlink(f"/proc/{sleeper}/exe")


def test_a_storage_error_on_the_way_starts_the_registry(service: Service) -> None:
    hook = BEFORE_DELETE.format(at=1, then="raise RuntimeError('a bug')")
    result = collect_away(service, hook=hook)
    assert result.exit_code == 1
    assert "a bug" in result.errors
    assert service.calls() == ["stop", "start"]
    check_serves(service)


# --- interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_deleting_starts_the_registry(
    service: Service, number: signal.Signals
) -> None:
    hook = BEFORE_BATCH.format(at=2, number=int(number))
    result = collect_away(service, hook=hook)
    asked = signal.SIGTERM if number == signal.SIGHUP else number
    assert result.exit_code == result.json["exit_code"] == 128 + asked
    assert result.json["error"] == f"interrupted by {number.name}"
    assert service.calls() == ["stop", "start"]
    check_serves(service)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_stop_command_lets_it_end_and_starts_the_registry(
    service: Service, number: signal.Signals
) -> None:
    service.script("held", f"echo $$ >{service.folder}/held; read x <{fifo(service, 'go')}; stop")
    process = command(*arguments(service, stop="held"))
    release = open_fifo(service, "go")
    process.send_signal(number)
    release()
    result = finish(process)
    assert result.exit_code == (143 if number == signal.SIGHUP else 128 + number)
    assert result.json["error"] == f"interrupted by {number.name}"
    assert result.json["blobs"]["deleted"] == 0
    assert service.calls() == ["held", "start"]
    check_serves(service)


# What a hook does where the collection waits for the registry, or runs the stop command.
IN_AWAY = """
from registry_gc.cli import away
plain = away.{name}
def signalled(*words):
    os.kill(os.getpid(), {number})
    return plain(*words)
away.{name} = signalled
"""
ASKED = [(signal.SIGTERM, 143), (signal.SIGALRM, 5)]


@pytest.mark.parametrize(("number", "code"), ASKED)
@pytest.mark.parametrize("name", ["settled", "Service.leave"])
def test_a_run_that_is_ended_before_it_collects_says_so(
    service: Service, number: signal.Signals, code: int, name: str
) -> None:
    metrics = service.folder / "metrics.prom"
    result = collect_away(
        service,
        *("--deadline", "1h", "--metrics-file", str(metrics)),
        hook=IN_AWAY.format(name=name, number=int(number)),
        # That it fails as well is less than that somebody asked.
        stop="fail" if name == "Service.leave" else "stop",
    )
    assert result.exit_code == result.json["exit_code"] == code
    assert [ran["name"] for ran in result.json["commands"]] == ["stop", "start"]
    assert f" {code}.0" in metrics.read_text()
    assert service.up


def fifo(service: Service, name: str) -> Path:
    path = service.folder / name
    os.mkfifo(path)
    return path


def open_fifo(service: Service, name: str) -> Any:
    """Wait until somebody reads from the FIFO; returns what lets them go on."""
    handle = os.open(service.folder / name, os.O_WRONLY)

    def release() -> None:
        os.write(handle, b"\n")
        os.close(handle)

    return release


# --- killed


@pytest.mark.parametrize("at", [1, 3])
def test_kill_9_of_the_collection_starts_the_registry(service: Service, at: int) -> None:
    metrics = service.folder / "metrics.prom"
    result = collect_away(
        service,
        *("--metrics-file", str(metrics)),
        hook=BEFORE_DELETE.format(at=at, then=KILL_SELF),
    )
    assert result.exit_code == result.json["exit_code"] == 1
    assert result.json["error"] in result.errors
    assert result.json["storage"]["root"] == str(service.registry.root)
    assert "registry_gc_exit_code" in metrics.read_text()
    assert "the collection was killed by SIGKILL" in result.errors
    assert result.errors.splitlines()[-1] == "note: the start command was run"
    assert service.calls() == ["stop", "start"]
    check_serves(service)
    # The next run takes over the dead one's lock, and finishes.
    again = collect_away(service)
    assert again.exit_code == 0, again.errors


def test_kill_9_starts_the_registry_also_where_the_caller_ignores_the_end_of_children(
    service: Service,
) -> None:
    ignored = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    result = collect_away(service, hook=ignored + BEFORE_DELETE.format(at=1, then=KILL_SELF))
    assert result.exit_code == 1
    assert "the collection was killed by SIGKILL" in result.errors
    assert "Traceback" not in result.errors
    assert service.calls() == ["stop", "start"]
    check_serves(service)


def test_kill_9_of_the_collection_and_a_start_that_fails_is_loud(service: Service) -> None:
    hook = BEFORE_DELETE.format(at=1, then=KILL_SELF)
    result = collect_away(service, hook=hook, start="fail")
    assert result.exit_code == 1
    assert "THE REGISTRY MAY STILL BE DOWN" in result.errors.splitlines()[-1]


@pytest.mark.parametrize("at", [1, 2])
def test_kill_9_of_the_parent_stops_the_deleting_and_starts_the_registry(
    service: Service, at: int
) -> None:
    hook = BEFORE_BATCH.format(at=at, number=int(signal.SIGKILL))
    # The child has both pipes too: their end is the child's.
    result = collect_away(service, hook=hook)
    assert result.exit_code == -signal.SIGKILL
    assert result.json["exit_code"] == 143
    assert result.json["layer_links"]["deleted"] == (0 if at == 1 else 2)
    assert result.json["blobs"]["deleted"] == 0 < result.json["blobs"]["eligible"]
    assert service.calls() == ["stop", "start"]
    check_serves(service)


def test_kill_9_of_the_parent_during_the_stop_command_starts_the_registry_after_it(
    service: Service,
) -> None:
    service.script("held", f"read x <{fifo(service, 'go')}; stop")
    process = command(*arguments(service, stop="held"))
    release = open_fifo(service, "go")
    process.kill()
    process.wait()
    assert service.up
    release()
    result = finish(process)
    assert result.json["exit_code"] == 143
    assert service.calls() == ["held", "start"]
    check_serves(service)


def child_of(process: subprocess.Popen[str]) -> int:
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


@pytest.mark.parametrize("held", ["stop", "start"])
def test_kill_9_of_the_collection_during_a_command_starts_the_registry_after_it(
    service: Service, held: str
) -> None:
    service.script(
        "held", f"if mkdir {service.folder}/first; then read x <{fifo(service, 'go')}; fi; {held}"
    )
    names = {"stop": "stop", "start": "start", held: "held"}
    process = command(*arguments(service, **names))
    release = open_fifo(service, "go")
    os.kill(child_of(process), signal.SIGKILL)
    # Nothing is started while the stop command, or the first start, is under way.
    assert service.calls()[-1] == "held"
    assert process.poll() is None
    release()
    result = finish(process)
    assert result.exit_code == 1
    assert service.calls() == (["held", "start"] if held == "stop" else ["stop", "held", "held"])
    assert service.up


def test_kill_9_of_the_whole_process_group_starts_the_registry(service: Service) -> None:
    service.script("held", f"read x <{fifo(service, 'go')}; stop")
    process = command(*arguments(service, stop="held"), session=True)
    release = open_fifo(service, "go")
    os.killpg(process.pid, signal.SIGKILL)
    release()
    finish(process)
    assert service.calls() == ["held", "start"]
    check_serves(service)


def test_after_kill_9_requests_to_a_server_are_given_time_before_the_registry_is_started(
    tmp_path: Path,
) -> None:
    calls = tmp_path / "calls"
    program = (
        "import os, signal, sys, types\n"
        "from registry_gc.service import supervisor\n"
        "from registry_gc.service.commands import Shared\n"
        "from registry_gc.service.away import Commands, Service\n"
        "def pause(seconds): open(sys.argv[1], 'a').write(f'{seconds:g}\\n')\n"
        "supervisor.time = types.SimpleNamespace(sleep=pause)\n"
        "def undo(): open(sys.argv[1], 'a').write('undo\\n')\n"
        "def work():\n"
        "    shared.away = shared.remote = True\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "shared = Shared()\n"
        "commands = Commands('', 'echo start >>' + sys.argv[1], True, 60.0)\n"
        "service = Service(commands, shared)\n"
        "sys.exit(supervisor.supervise(service, work, undo, print, print).code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(calls)], env=here(), check=False)
    assert done.returncode == 1
    assert calls.read_text().split() == ["10", "undo", "start"]


def test_a_terminal_that_asks_the_parent_to_pause_does_not_leave_the_registry_down(
    service: Service,
) -> None:
    service.script("held", f"read x <{fifo(service, 'go')}; stop")
    process = command(*arguments(service, stop="held"))
    release = open_fifo(service, "go")
    process.send_signal(signal.SIGTSTP)
    release()
    result = finish(process)
    assert result.exit_code == 0, result.errors
    check_serves(service)


# --- usage


@pytest.mark.parametrize(
    "options",
    [
        ["--stop-command", "true"],
        ["--start-command", "true"],
        ["--readonly-command", "true"],
        ["--stop-command", "true", "--readwrite-command", "true"],
        ["--stop-command", "true", "--start-command", "true", "--readonly-command", "true"],
        ["--stop-command", "true", "--start-command", ""],
        ["--stop-command", " ", "--start-command", "true"],
        ["--stop-command", "true", "--start-command", "\t\n"],
    ],
)
def test_half_of_a_pair_and_two_pairs_are_refused(tmp_path: Path, options: list[str]) -> None:
    result = run(*options, write_config(tmp_path / "registry"), state=tmp_path)
    assert result.exit_code == 2
    assert "command" in result.errors


def test_commands_that_are_given_no_time_are_refused(tmp_path: Path) -> None:
    pair = ["--stop-command", "true", "--start-command", "true"]
    for least in ("0", "1ms"):
        result = run(
            *pair, "--command-timeout", least, write_config(tmp_path / "r"), state=tmp_path
        )
        assert result.exit_code == 2
        assert "is less than 1 s" in result.errors


def test_empty_variables_are_no_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RGC_STOP_COMMAND", "")
    monkeypatch.setenv("RGC_START_COMMAND", "")
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"kept"])
    result = collect(disk.root)
    assert result.exit_code == 0, result.errors
    assert result.json["commands"] == []
