"""The QEMU Machine Protocol over a connected socket: commands, replies and events, a deadline on every wait.

Source: QEMU, docs/interop/qmp-spec.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from armvm.errors import MachineError
from armvm.printable import printable

_MOST_LINE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class QmpEvent:
    """Something that QEMU reports without being asked, such as SHUTDOWN."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)


class Qmp:
    """One side of a QMP conversation. ``closed`` once QEMU has hung up."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.closed = False
        self._connection = connection
        self._received = bytearray()
        self._events: deque[QmpEvent] = deque()
        self._replies: dict[int, dict[str, Any]] = {}
        self._abandoned: set[int] = set()
        self._greeted = False
        self._last_id = 0

    def fileno(self) -> int:
        """The socket's descriptor, to wait on."""
        return self._connection.fileno()

    @property
    def waiting(self) -> bool:
        """Whether events have come, while a reply was due, that ``receive`` has not given out."""
        return bool(self._events)

    def greet(self, timeout_seconds: float) -> None:
        """Wait for QEMU's greeting and enter command mode. Raises MachineError when it does not come."""
        self._wait_until(lambda: self._greeted, timeout_seconds, "QEMU's greeting")
        self.execute("qmp_capabilities", timeout_seconds=timeout_seconds)

    def execute(self, command: str, arguments: dict[str, Any] | None = None, *, timeout_seconds: float = 10.0) -> Any:
        """Run a command and return what it returns. Raises MachineError when it fails or takes too long."""
        number = self._send(command, arguments)
        try:
            self._wait_until(lambda: number in self._replies, timeout_seconds, f"the answer to {command}")
        except MachineError:
            self._abandoned.add(number)
            raise
        reply = self._replies.pop(number)
        if "error" in reply:
            said = printable(str(reply["error"].get("desc", "no reason given")))
            raise MachineError(f"QEMU refuses {command}: {said}")
        return reply.get("return")

    def give(self, name: str, descriptor: int, *, timeout_seconds: float = 10.0) -> None:
        """Give QEMU a descriptor of ours, known there as ``name``. Raises MachineError when it does not take it."""
        # QEMU takes a descriptor that comes with a byte for that of the next getfd: a space does nothing else.
        try:
            socket.send_fds(self._connection, [b" "], [descriptor])
        except OSError as error:
            raise MachineError(f"cannot give QEMU a descriptor: {error.strerror or error}") from error
        self.execute("getfd", {"fdname": name}, timeout_seconds=timeout_seconds)

    def tell(self, command: str) -> None:
        """Send a command without waiting for its answer."""
        self._abandoned.add(self._send(command, None))

    def receive(self) -> list[QmpEvent]:
        """Take in what has arrived, without waiting; the events among it and those that came while a reply was due."""
        self._read()
        events = list(self._events)
        self._events.clear()
        return events

    def close(self) -> None:
        """Hang up."""
        self.closed = True
        self._connection.close()

    def _send(self, command: str, arguments: dict[str, Any] | None) -> int:
        self._last_id += 1
        message = {"execute": command, "id": self._last_id, **({"arguments": arguments} if arguments else {})}
        try:
            # A command is short and QEMU reads them as they come: a socket buffer that is full means that it hangs.
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise MachineError(f"cannot tell QEMU to {command}: {error.strerror or error}") from error
        return self._last_id

    def _wait_until(self, reached: Callable[[], bool], timeout_seconds: float, what: str) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not reached():
            if self.closed:
                raise MachineError(f"QEMU hung up before {what}")
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise MachineError(f"{what} did not come within {timeout_seconds:g} s")
            select.select([self._connection], [], [], remaining)
            self._read()

    def _read(self) -> None:
        while not self.closed:
            try:
                data = self._connection.recv(65536)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            if not data:
                self.closed = True
            self._received += data
            if len(self._received) > _MOST_LINE_BYTES:
                raise MachineError("QEMU sends a message without end on its control channel")
            *lines, rest = self._received.split(b"\n")
            self._received = bytearray(rest)
            for line in lines:
                if line.strip():
                    self._take(bytes(line))

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MachineError(f"QEMU sends no JSON on its control channel: {printable(repr(line[:80]))}") from error
        if not isinstance(message, dict):
            raise MachineError(f"QEMU sends no object on its control channel: {printable(repr(line[:80]))}")
        if "QMP" in message:
            self._greeted = True
        elif "event" in message:
            data = message.get("data")
            self._events.append(QmpEvent(str(message["event"]), data if isinstance(data, dict) else {}))
        elif "return" in message or "error" in message:
            number = message.get("id")
            if number in self._abandoned:
                self._abandoned.discard(number)
            elif isinstance(number, int):
                self._replies[number] = message
