"""SIGINT and SIGTERM: at once where that is safe, remembered where it is not."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from registry_gc.cli.main import registry_garbage_collect, registry_gc
from registry_gc.interrupts import Interrupted, Interrupts
from running import collect

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def send(number: int) -> None:
    """Send a signal to this process; it is handled before this returns."""
    os.kill(os.getpid(), number)
    signal.sigpending()


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


def test_a_run_that_is_ended_before_it_has_a_job_still_has_a_document_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*ignored: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("registry_gc.cli.run._job", ended)
    metrics = tmp_path / "metrics.prom"
    result = collect(tmp_path / "registry", "--metrics-file", str(metrics))
    assert result.exit_code == result.json["exit_code"] == 143
    assert result.json["error"] == "interrupted by SIGTERM"
    assert result.json["storage"] == {"driver": "filesystem", "root": str(tmp_path / "registry")}
    assert " 143.0" in metrics.read_text()
