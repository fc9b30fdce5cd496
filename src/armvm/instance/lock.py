"""The lock of an instance: one process at a time, known by name, and noticed when it died with the lock in its hands.

It is a flock(2) on the file ``lock``, whose content names the holder. Who lets go in order empties the file: content in
a file that nobody holds is a crash to be cleaned up after. On NFS, Linux makes flock a lock at the server, so two hosts
see each other's too.
"""

from __future__ import annotations

import enum
import fcntl
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from armvm.errors import BusyError, OutputError
from armvm.printable import printable

_MOST_BYTES = 1024
_CONTENT_BYTES = 512
"""What is written is padded to this: a later phase needs no new room on a disk that is full."""
_SHORTEST_WAIT_SECONDS = 0.005
_LONGEST_WAIT_SECONDS = 0.1


RENEW = signal.SIGHUP
"""Makes a supervisor listen anew at its control socket."""


class Phase(enum.Enum):
    """How far a machine is that runs in the background."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"


class HolderKind(enum.Enum):
    """What holds an instance."""

    COMMAND = "command"
    """A command that is over soon: it is waited for."""
    MACHINE = "machine"
    """The process that runs the machine: until that is over."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds an instance, or held it last and died.

    ``started`` is when that process was started, in the kernel's ticks since the boot, 0 where that is not to be had:
    together with ``pid`` and ``host`` (its name and the id of its boot) it tells the process from any later one.
    ``phase`` is that of a machine with a supervisor; None for a command, and for `armvm run`.
    """

    kind: HolderKind
    pid: int
    started: int
    host: str
    phase: Phase | None = None

    @property
    def here(self) -> bool:
        """Whether it runs, or ran, on this host since its last boot."""
        return self.host == _host()

    @property
    def alive(self) -> bool | None:
        """Whether that very process lives; None when it is another host's and nothing can be said."""
        if not self.here:
            return None
        return _started(self.pid) == self.started if self.started else _exists(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid}" + ("" if self.here else f" of host {printable(self.host.partition(' ')[0])}")


@dataclass(frozen=True, slots=True)
class Lock:
    """The lock, held. ``descriptor`` is for the hypervisor to hold too. ``crashed`` is who died with it before."""

    descriptor: int
    crashed: Holder | None


@contextmanager
def locked(
    path: Path,
    *,
    what: str,
    kind: HolderKind = HolderKind.COMMAND,
    wait_seconds: float = 60.0,
    recover: Callable[[Holder], None] | None = None,
) -> Iterator[Lock]:
    """Hold the lock at ``path`` within the block. ``what`` is what it protects, in words, for messages.

    Another command is waited for; a running machine is not. ``recover`` is called with who died holding it, whose name
    stays in the file until that is done. Raises BusyError, which names the process that holds it, OutputError when the
    file cannot be made.
    """
    descriptor = _taken(path, what, wait_seconds)
    try:
        crashed = _read(descriptor)
        if crashed is not None and recover is not None:
            recover(crashed)
        _write(descriptor, this_process(kind))
        try:
            yield Lock(descriptor, crashed)
        finally:  # an error within the block has tidied up after itself
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def mark(descriptor: int, phase: Phase) -> None:
    """Write how far the machine is into the lock that this process holds. Raises OutputError."""
    _write(descriptor, replace(this_process(HolderKind.MACHINE), phase=phase))


def this_process(kind: HolderKind) -> Holder:
    """This process as a holder."""
    return Holder(kind, os.getpid(), _started(os.getpid()), _host())


def holder(path: Path) -> tuple[Holder | None, bool]:
    """Who the lock at ``path`` names, and whether it is held now. Named and not held: that process has crashed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None, False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _read(descriptor), True
        return _read(descriptor), False
    finally:
        os.close(descriptor)


def send_signal(path: Path, who: Holder, number: signal.Signals) -> bool:
    """Send a signal to the process that holds the lock at ``path`` as ``who``, and to no other; whether it was sent."""
    return _with_process(path, who, lambda descriptor: _signal(who.pid, descriptor, number))


def end_process(path: Path, who: Holder, number: signal.Signals, *, timeout_seconds: float) -> bool:
    """Send ``who`` a signal that is to end it, and wait for its end; whether it is over, or has let go of the lock."""
    deadline = time.monotonic() + timeout_seconds

    def end(descriptor: int | None) -> bool:
        if not _signal(who.pid, descriptor, number):
            return False
        if descriptor is not None:
            return bool(select.select([descriptor], [], [], timeout_seconds)[0])
        while who.alive:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_SHORTEST_WAIT_SECONDS)
        return True

    return _with_process(path, who, end) or who.alive is False or (who.here and not _has_open(who.pid, path))


def _with_process(path: Path, who: Holder, act: Callable[[int | None], bool]) -> bool:
    """``act`` on a descriptor of the process ``who`` (pidfd_open(2), Linux), once that is certain to be it.

    It is when it was started at the time that the lock says, and has the lock's file open. False when it is not.
    """
    if not who.here:
        return False
    descriptor = None
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(who.pid)
        except OSError:
            return False
    try:
        return bool(who.alive) and _has_open(who.pid, path) and act(descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _signal(pid: int, descriptor: int | None, number: signal.Signals) -> bool:
    with suppress(OSError):
        if descriptor is not None:
            signal.pidfd_send_signal(descriptor, number)
        else:
            os.kill(pid, number)
        return True
    return False


def _has_open(pid: int, path: Path) -> bool:
    """Whether a process has the file at ``path`` open (proc(5), /proc/PID/fd); true where that cannot be known."""
    folder = f"/proc/{pid}/fd"
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112 - a plain string
        return True
    with suppress(OSError):
        wanted = path.stat()
        for name in os.listdir(folder):  # noqa: PTH208 - a plain string
            with suppress(OSError):
                if os.path.samestat(os.stat(f"{folder}/{name}"), wanted):  # noqa: PTH116 - a plain string
                    return True
    return False


def _taken(path: Path, what: str, wait_seconds: float) -> int:
    """The file at ``path``, held: that which is there now, should another have taken its place while it was waited for.

    (An instance was renamed, and one of its old name made.)
    """
    while True:
        descriptor = _open(path)
        try:
            _take(descriptor, what, wait_seconds)
        except BaseException:
            os.close(descriptor)
            raise
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            return descriptor  # deleted: that is for whoever asked to see
        os.close(descriptor)


def _take(descriptor: int, what: str, wait_seconds: float) -> None:
    """Wait for the lock: by asking again, for a wait in the kernel could not see a machine start meanwhile."""
    deadline, pause = time.monotonic() + wait_seconds, _SHORTEST_WAIT_SECONDS
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        now = _read(descriptor)
        if now is not None and now.kind is HolderKind.MACHINE and now.alive is not False:
            hint = f"stop it first: armvm vm stop {what.rpartition(' ')[2]}"
            raise BusyError(f"{what} is running, in use by {now}", hint=hint)
        if time.monotonic() >= deadline:
            raise BusyError(f"{what} is in use by {now or 'another process'}")
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_WAIT_SECONDS)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _read(descriptor: int) -> Holder | None:
    """Who the file names; None when it names nobody, or is being written this moment."""
    try:
        fields = json.loads(os.pread(descriptor, _MOST_BYTES, 0))
        return Holder(
            HolderKind(fields["kind"]),
            int(fields["pid"]),
            int(fields["started"]),
            str(fields["host"]),
            Phase(fields["phase"]) if fields.get("phase") else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _write(descriptor: int, holder: Holder) -> None:
    fields = {"kind": holder.kind.value, "pid": holder.pid, "started": holder.started, "host": holder.host}
    content = json.dumps({**fields, "phase": holder.phase.value if holder.phase else None}).encode()
    try:
        os.pwrite(descriptor, content.ljust(_CONTENT_BYTES), 0)
    except OSError as error:
        raise OutputError(f"cannot write the lock: {error.strerror}") from error


def _host() -> str:
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{socket.gethostname()} {file.read().strip()}"
    return socket.gethostname()


def _started(pid: int) -> int:
    """When a process was started (proc(5), /proc/PID/stat, field 22); 0 when that cannot be read, or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        return 0 if fields[0] == b"Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
