"""SIGINT and SIGTERM: at once where that is safe, remembered where it is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from core_support import Store
from registry_gc.cli.main import registry_garbage_collect, registry_gc
from registry_gc.collect import Job, collect
from registry_gc.events import Silence
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupted, Interrupts, signals_held
from registry_gc.lock import Lock, blocker
from registry_gc.policy import Policy
from running import Disk
from running import collect as collect_disk

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def send(number: int) -> None:
    """Send a signal to this process; it is handled before this returns."""
    os.kill(os.getpid(), number)
    signal.sigpending()


@contextmanager
def handled(number: int, how: signal.Handlers) -> Iterator[None]:
    """As whoever started this process has said."""
    before = signal.signal(number, how)
    try:
        yield
    finally:
        signal.signal(number, before)


class Late(Interrupts):
    """A signal comes the moment that none is only remembered any more; when one is waiting."""

    waiting = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        with super().deferred():
            yield
        if self.waiting:
            self.waiting = False
            send(signal.SIGINT)


@BOTH
def test_a_signal_is_raised_at_once(number: signal.Signals) -> None:
    interrupts = Interrupts()
    with interrupts.installed(), pytest.raises(Interrupted) as caught:
        send(number)
    assert caught.value.number == number
    assert str(caught.value) == number.name
    assert interrupts()


@BOTH
def test_a_signal_is_only_remembered_where_that_is_wanted(number: signal.Signals) -> None:
    interrupts = Interrupts()
    with interrupts.installed():
        with interrupts.deferred():
            assert not interrupts()
            send(number)
            assert interrupts()
        with pytest.raises(Interrupted) as caught:
            interrupts.check()
    assert caught.value.number == number


def test_a_lost_connection_is_as_a_request_to_end() -> None:
    interrupts = Interrupts()
    with (
        handled(signal.SIGHUP, signal.SIG_DFL),
        interrupts.installed(),
        pytest.raises(Interrupted) as caught,
    ):
        send(signal.SIGHUP)
    assert caught.value.exit_code == 143
    assert caught.value.reason == "interrupted by SIGHUP"


def test_a_lost_connection_is_nothing_to_a_run_that_was_told_so() -> None:
    interrupts = Interrupts()
    with handled(signal.SIGHUP, signal.SIG_IGN), interrupts.installed():
        send(signal.SIGHUP)
    assert not interrupts()


@BOTH
def test_a_signal_that_meets_a_finalizer_is_raised_all_the_same(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    class Thing:
        def __del__(self) -> None:
            send(number)

    def finalize() -> None:
        things = [Thing()]
        things.clear()
        threading.Event().wait(30)

    interrupts = Interrupts()
    with interrupts.installed(), pytest.raises(Interrupted) as caught:
        finalize()
    assert caught.value.number == number
    assert capfd.readouterr().err == ""


def test_a_signal_right_after_the_lock_was_taken_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was remembered while the lock was taken; and the next moment nobody remembers."""
    store = Store()
    store.tree.image("a", "v1")
    interrupts = Late()
    acquire = Lock.acquire

    def acquired(*arguments: Any, **more: Any) -> Lock:
        interrupts.waiting = True
        return acquire(*arguments, **more)

    monkeypatch.setattr(Lock, "acquire", acquired)
    job = Job(
        storage=store.storage,
        policy=Policy(),
        check=lambda: Verdict("allowed", ()),
        run_file=str(tmp_path / "run.sqlite"),
        workers=1,
    )
    with interrupts.installed():
        assert collect(job, Silence(), interrupts).exit_code == 130
    assert blocker(store.storage) is None


def test_without_a_signal_there_is_nothing_to_raise() -> None:
    interrupts = Interrupts()
    interrupts.check()
    assert not interrupts()


def test_the_first_signal_is_the_one_that_counts() -> None:
    interrupts = Interrupts()
    with interrupts.installed(), interrupts.deferred():
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert interrupts.number == signal.SIGTERM


def test_deferring_inside_deferring_lasts_to_the_outer_end() -> None:
    interrupts = Interrupts()
    with interrupts.installed():
        with interrupts.deferred():
            with interrupts.deferred():
                send(signal.SIGINT)
            send(signal.SIGINT)
        with pytest.raises(Interrupted):
            send(signal.SIGINT)


def test_an_error_ends_the_deferring_too() -> None:
    interrupts = Interrupts()
    with interrupts.installed():
        with pytest.raises(ValueError, match="x"), interrupts.deferred():
            raise ValueError("x")
        with pytest.raises(Interrupted):
            send(signal.SIGINT)


def test_the_handlers_from_before_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupts = Interrupts()
    with pytest.raises(Interrupted), interrupts.installed():
        send(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_installed_and_nothing_fails() -> None:
    seen: list[object] = []

    def elsewhere() -> None:
        with Interrupts().installed():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_no_handler_for_errors_swallows_an_interrupt_that_is_named_as_one() -> None:
    """It is no StorageError, no OSError and no RuntimeError, which are caught on the way."""
    assert Interrupted.__mro__[1] is Exception


def test_a_deadline_is_an_interruption_with_an_exit_code_of_its_own() -> None:
    interrupts = Interrupts()
    with interrupts.installed(), interrupts.deferred(), interrupts.until(0):
        while not interrupts():
            pass
    with pytest.raises(Interrupted) as caught:
        interrupts.check()
    assert caught.value.exit_code == 5
    assert "deadline" in caught.value.reason


@pytest.mark.parametrize("seconds", [None, 1000])
def test_a_deadline_that_is_not_reached_leaves_all_as_it_was(seconds: float | None) -> None:
    """The tests' own timer too, which ends those that hang."""
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    with Interrupts().until(seconds):
        if seconds is not None:
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
    assert signal.getsignal(signal.SIGALRM) == handler
    assert bool(signal.getitimer(signal.ITIMER_REAL)[0]) == bool(timer[0])


@BOTH
def test_a_signal_is_an_interruption_as_shells_count_them(number: signal.Signals) -> None:
    interrupt = Interrupted(number)
    assert interrupt.exit_code == 128 + number
    assert interrupt.reason == f"interrupted by {number.name}"


@pytest.mark.parametrize("words", [[], ["run"], ["report"]])
def test_ctrl_c_while_a_command_is_imported_is_no_failure(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*ignored: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("registry_gc.cli.run.run_collection", interrupted)
    monkeypatch.setattr("registry_gc.cli.report.run_report", interrupted)
    config = tmp_path / "config.yml"
    config.write_text("version: 0.1\n")
    command = registry_gc if words else registry_garbage_collect
    answer = CliRunner().invoke(command, [*words, str(config)])
    assert answer.exit_code == 130
    assert answer.stderr == "error: interrupted by SIGINT\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_before_it_has_a_job_still_has_a_document_and_metrics(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*ignored: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("registry_gc.cli.run._job", ended)
    metrics = tmp_path / "metrics.prom"
    result = collect_disk(tmp_path / "registry", "--metrics-file", str(metrics))
    assert result.exit_code == result.json["exit_code"] == 143
    assert result.json["error"] == f"interrupted by {number.name}"
    assert result.json["storage"] == {"driver": "filesystem", "root": str(tmp_path / "registry")}
    assert " 143.0" in metrics.read_text()


@pytest.mark.parametrize("command", ["registry_garbage_collect", "registry_gc"])
def test_an_interrupt_while_python_imports_is_no_traceback(command: str) -> None:
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        f"from registry_gc.cli.entry import {command} as run\n"
        "print(*sorted(set(sys.modules) - before))\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'click':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.exit(run())\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (130, "error: interrupted by SIGINT\n")
    # Whatever else it imported would come before it can say so.
    own = {"registry_gc", "registry_gc.cli", "registry_gc.cli.entry", "__future__"}
    assert set(found.stdout.split()) <= own


def test_a_signal_held_back_is_handled_at_the_end_of_what_must_not_be_left() -> None:
    interrupts = Interrupts()
    done: list[str] = []

    def work() -> None:
        with signals_held():
            send(signal.SIGTERM)
            done.append("held")
        done.append("never")

    with interrupts.installed(), pytest.raises(Interrupted):
        work()
    assert done == ["held"]
    assert interrupts.number == signal.SIGTERM


def test_signals_are_held_back_in_the_main_thread_only() -> None:
    def hold() -> None:
        with signals_held():
            pass

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()


def test_an_end_that_is_asked_for_when_all_is_deleted_is_a_run_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("a", "1", layers=[b"layer"])
    digest = disk.tree.blob(b"orphan")
    disk.age()

    def tidied(*_: object, **__: object) -> None:
        send(signal.SIGTERM)

    monkeypatch.setattr("registry_gc.session.tidy", tidied)
    result = collect_disk(disk.root)
    assert (result.exit_code, result.json["error"]) == (0, None)
    assert not disk.has_blob(digest)


def test_ctrl_c_when_the_work_is_done_ends_the_process_as_the_signal_does(tmp_path: Path) -> None:
    # Python's own handler would raise in whatever is left, and click say "Aborted!" with code 1.
    script = (
        "import os, signal, sys\n"
        "from registry_gc.cli import entry, run\n"
        "def done(*ignored):\n"
        "    return 0\n"
        "run._run = done\n"
        "close = run.Output.close\n"
        "def closed(self):\n"
        "    close(self)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "run.Output.close = closed\n"
        "sys.argv = ['registry-garbage-collect', sys.argv[1]]\n"
        "entry.registry_garbage_collect()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
