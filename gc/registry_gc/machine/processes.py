"""Which process is that, and is it still alive? A pid alone does not say: pids are used again."""

from __future__ import annotations

import os
import socket

import msgspec


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A process as another one, on whatever host, may recognise it.

    ``boot`` is the kernel's boot ID, ``namespace`` the pid namespace (a container has its own),
    ``started`` the clock ticks between boot and start; empty and 0 where the system (anything
    but Linux) does not tell.
    """

    host: str
    pid: int
    boot: str = ""
    namespace: str = ""
    started: int = 0

    @classmethod
    def current(cls) -> Process:
        """The process that asks."""
        return cls.here(os.getpid())

    @classmethod
    def here(cls, pid: int) -> Process:
        """The process that has *pid* now, seen from the one that asks."""
        return cls(
            host=socket.gethostname(),
            pid=pid,
            boot=_boot(),
            namespace=_namespace(),
            started=_started(pid) or 0,
        )

    def alive(self) -> bool | None:
        """Whether it still runs; None where that cannot be known from here."""
        here = Process.current()
        if self.boot:
            comparable = (self.boot, self.namespace) == (here.boot, here.namespace)
        else:
            comparable = self.host == here.host
        if not comparable or self.pid <= 0:
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it is there, and somebody else's
        except OverflowError:
            return None
        if not self.started:
            return None  # a process with that pid; perhaps another one
        started = _started(self.pid)
        return None if started is None else started == self.started

    def on_this_machine(self) -> bool:
        """Whether it shares a kernel with the one that asks, or did before a reboot."""
        return self.host == socket.gethostname() or (bool(self.boot) and self.boot == _boot())


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def group_lives(group: int) -> bool:
    """Whether a process of *group* still runs, a zombie aside, which does nothing any more."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and somebody else's
    try:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return True
    found = filter(None, map(_stat, numbers))
    return any(int(fields[2]) == group and fields[0] not in _DEAD for fields in found)


def ancestors() -> set[tuple[int, int]]:
    """Process ID and start of this process, of its parent, and so on."""
    found: set[tuple[int, int]] = set()
    pid = os.getpid()
    while pid > 0 and (fields := _stat(pid)) is not None:
        found.add((pid, int(fields[19])))
        pid = int(fields[1])
    return found


_DEAD = ("Z", "X")


def _started(pid: int) -> int | None:
    """When *pid* began; 0 for a zombie, which does nothing any more."""
    fields = _stat(pid)
    if fields is None:
        return None
    return 0 if fields[0] in _DEAD else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    """``/proc/PID/stat`` (proc(5)) from its third field on; None where it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except (OSError, ValueError):
        return None
    # The second field, a name in parentheses, may hold spaces and parentheses itself.
    fields = text.rpartition(")")[2].split()
    return fields if len(fields) >= 20 and fields[19].isdigit() else None
