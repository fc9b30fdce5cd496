"""A command's end of the control socket of a running instance."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any, Self

from armvm.errors import MachineError
from armvm.instance import lock, protocol, sockets
from armvm.instance.lock import Holder, HolderKind
from armvm.instance.store import Instance

_CREDENTIALS = struct.Struct("3i")
_CONNECT_SECONDS = 5.0
_RENEW_SECONDS = 3.0
_PAUSE_SECONDS = 0.02


class Connection:
    """A request that was granted, and what the connection carries after that. A context, which closes it.

    ``result`` is the answer; ``first`` the bytes that came with it.
    """

    def __init__(self, connection: socket.socket, result: dict[str, Any], first: bytes) -> None:
        self.result = result
        self.first = first
        self._socket = connection
        connection.setblocking(False)

    def fileno(self) -> int:
        """The socket's descriptor, to wait on."""
        return self._socket.fileno()

    def receive(self) -> bytes | None:
        """What has come; None when nothing has, empty when the other end is gone."""
        try:
            return self._socket.recv(65536)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def send(self, data: bytes) -> int:
        """Send as much of ``data`` as there is room for; how much that was. A supervisor that is gone takes all."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def end_input(self) -> None:
        """Say that nothing more will be sent."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(instance: Instance, request: dict[str, Any], *, timeout_seconds: float = 30.0) -> dict[str, Any]:
    """What the supervisor of ``instance`` answers.

    Raises the error that is its answer, MachineError when the instance does not run, or nobody answers in time.
    """
    with open_stream(instance, request, timeout_seconds=timeout_seconds) as connection:
        return connection.result


def open_stream(instance: Instance, request: dict[str, Any], *, timeout_seconds: float = 30.0) -> Connection:
    """The same, with the connection kept for what comes after the answer (``console``, ``follow``)."""
    deadline = time.monotonic() + timeout_seconds
    connection = _connected(instance)
    try:
        connection.sendall(protocol.encode(request))
        line, rest = _line(connection, deadline)
    except OSError as error:  # a time-out is one too
        connection.close()
        raise _unanswered(instance) from error
    except BaseException:
        connection.close()
        raise
    if line is None:
        connection.close()
        raise MachineError(
            f"instance {instance.name} ended before it answered", hint=f"armvm vm log {instance.name} --events"
        )
    try:
        return Connection(connection, protocol.result(protocol.decode(line)), rest)
    except BaseException:
        connection.close()
        raise


def attach(instance: Instance, *, index: int = 0, scrollback: bool = True) -> Connection:
    """The console of that number: what comes is what the guest says, what is sent is typed."""
    return open_stream(instance, {"do": "console", "index": index, "scrollback": scrollback})


def not_running(instance: Instance) -> MachineError:
    """The error that says so."""
    return MachineError(f"instance {instance.name} is not running", hint=f"armvm vm start {instance.name}")


def running_holder(instance: Instance) -> Holder:
    """The process that runs ``instance``. Raises MachineError when it does not run, UsageError when it is not made."""
    instance.require()
    holder, held = instance.holder
    if not held or (holder is not None and holder.kind is not HolderKind.MACHINE):
        raise not_running(instance)
    if holder is None:
        raise MachineError(f"instance {instance.name} is in use, and its lock does not say by whom")
    return holder


def _connected(instance: Instance) -> socket.socket:
    holder = running_holder(instance)
    connection = _connect(instance)
    listens = holder.phase in {lock.Phase.RUNNING, lock.Phase.PAUSED}
    if connection is None and listens and lock.send_signal(instance.lock, holder, lock.RENEW):
        # Somebody has removed the socket: the supervisor makes it anew when it is told to.
        deadline = time.monotonic() + _RENEW_SECONDS
        while connection is None and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
            running_holder(instance)  # it may be ending: then there is no socket either
            connection = _connect(instance)
    if connection is None:
        running_holder(instance)  # it may have ended this moment
        raise _not_supervised(instance, holder)
    return connection


def _connect(instance: Instance) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_CONNECT_SECONDS)
    try:
        connection.connect(os.fspath(sockets.control(instance)))
    except TimeoutError as error:
        connection.close()
        raise _unanswered(instance) from error
    except OSError:
        connection.close()
        return None
    if sys.platform.startswith("linux"):
        content = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        owner = _CREDENTIALS.unpack(content)[1]
        if owner not in {os.getuid(), 0} and os.getuid() != 0:
            connection.close()
            raise MachineError(f"{sockets.control(instance)} is served by user {owner}, not by this one")
    return connection


def _line(connection: socket.socket, deadline: float) -> tuple[bytes | None, bytes]:
    """The line of the answer, None when there is none, and what came after it."""
    received = b""
    while b"\n" not in received:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        data = connection.recv(65536)
        if not data or len(received) > protocol.MOST_LINE_BYTES:
            return None, b""
        received += data
    line, _, rest = received.partition(b"\n")
    return line, rest


def _unanswered(instance: Instance) -> MachineError:
    holder, _ = instance.holder
    return MachineError(
        f"instance {instance.name} does not answer ({holder or 'a process'} runs it)",
        hint=f"armvm vm kill {instance.name} ends it",
    )


def _not_supervised(instance: Instance, holder: Holder) -> MachineError:
    if not holder.here:
        return MachineError(
            f"instance {instance.name} is run by {holder}", hint="go to that host: from here it can only be watched"
        )
    if holder.phase is None:
        return MachineError(
            f"instance {instance.name} is run by {holder}, an `armvm run` that has its console",
            hint=f"Ctrl-] powers it off there; armvm vm kill {instance.name} ends it from here",
        )
    if holder.phase is lock.Phase.STARTING:
        return MachineError(f"instance {instance.name} is being started by {holder}", hint="try again in a moment")
    return MachineError(
        f"the control socket of instance {instance.name} is gone, and {holder}, which runs it, does not answer",
        hint=f"armvm vm kill {instance.name} ends it",
    )
