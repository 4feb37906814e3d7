"""Runs commands, one at a time, says how long they took on what machine, and records that."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HERE = Path(__file__).resolve().parent
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
# Linux counts what is read from disks in blocks of this many bytes, see getrusage(2).
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Run:
    """One run: seconds by the clock and on the processors, and the largest resident set.

    ``read_bytes``: what had to be fetched from a disk. ``cut`` is true when it was ended at its
    limit; the figures are then lower bounds.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    read_bytes: int
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Median:
    """The median of several runs, each figure for itself."""

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    read_bytes: int
    runs: int
    lowest: float
    highest: float
    cut: bool

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Median:
        """Take the medians of *runs*, of which there is at least one."""
        seconds = [run.seconds for run in runs]
        return cls(
            seconds=statistics.median(seconds),
            cpu_seconds=statistics.median(run.cpu_seconds for run in runs),
            peak_rss_bytes=int(statistics.median(run.peak_rss_bytes for run in runs)),
            read_bytes=int(statistics.median(run.read_bytes for run in runs)),
            runs=len(runs),
            lowest=min(seconds),
            highest=max(seconds),
            cut=any(run.cut for run in runs),
        )


def measure(command: Sequence[str], limit: float) -> Run:
    """Run *command* with its output thrown away, for at most *limit* seconds.

    :raises SystemExit: it failed; with the end of what it said on stderr.
    """
    cut = threading.Event()
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # so that its children end with it
        )

        def stop() -> None:
            cut.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, stop)
        timer.start()
        # wait4 and not wait: it alone tells what this one child used.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0 and not cut.is_set():
            errors.seek(0)
            said = errors.read()[-2000:].decode(errors="replace")
            raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{said}")
    return Run(
        seconds,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
        usage.ru_inblock * _BLOCK,
        cut.is_set(),
    )


def forget_files() -> None:
    """Empty the page, dentry and inode caches, so that the next run reads the disk."""
    os.sync()
    DROP_CACHES.write_text("3\n")


def can_forget_files() -> bool:
    """Whether this machine lets us; posix_fadvise would not do, as it leaves folders cached."""
    return os.access(DROP_CACHES, os.W_OK)


def machine(folder: Path) -> dict[str, str]:
    """What the figures depend on: processors, memory, kernel, the file system of *folder*."""
    cpu = re.search(r"^model name\s*: (.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    kind = subprocess.run(
        ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "processors": f"{os.cpu_count()} x {cpu[1].strip() if cpu else platform.machine()}",
        "memory": f"{int(memory[1]) / 1024**2:.0f} GiB" if memory else "unknown",
        "kernel": platform.release().partition("-")[0],
        # A line for each mount that lies there, the one on top last.
        "file system": (kind.stdout.split() or ["unknown"])[-1],
        "python": platform.python_version(),
    }


def _text(path: str) -> str:
    file = Path(path)
    return file.read_text() if file.exists() else ""


def tool(name: str) -> str:
    """The command *name*: the one installed with this Python, else the first on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise SystemExit(f"{name} is not installed: make run does that")
    return found


def record(
    name: str, mark: str, rows: Sequence[DataclassInstance], about: Mapping[str, str], text: str
) -> None:
    """Put figures where the next reader looks for them: ``<name>.json`` and this folder's README.

    :param mark: *text* replaces what stands there between ``<!-- mark -->`` and ``<!-- /mark -->``.
    """
    figures = {"about": dict(about), "rows": [asdict(row) for row in rows]}
    (HERE / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    readme = HERE / "README.md"
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->\n"
    before, _, rest = readme.read_text(encoding="utf-8").partition(begin)
    readme.write_text(f"{before}{begin}{text}{end}{rest.partition(end)[2]}", encoding="utf-8")
