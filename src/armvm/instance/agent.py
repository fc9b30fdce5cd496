"""The guest agent as the supervisor asks it: one request, its answer, in step with an agent that may not be there.

Source: QEMU, docs/interop/qemu-ga-ref ("guest-sync-delimited"): JSON lines on a serial port. Before anything else the
two get into step, for what was asked of an agent that did not run is still in the line, and so may its answers be; no
command is sent before the agent has shown that it reads.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from armvm.errors import GuestError, MachineError, OutputError, UsageError
from armvm.instance.protocol import MOST_LINE_BYTES
from armvm.instance.running import Request, Running, Step, until
from armvm.printable import printable

_COMMAND = re.compile(r"[a-z][a-z0-9-]{0,63}")
_SEPARATOR = b"\xff"
_MOST_REPLY_BYTES = 64 << 20
"""The agent keeps at most 16 MiB of each of a program's outputs, and says them in base64."""
_MOST_ANSWER_BYTES = MOST_LINE_BYTES // 2
_SYNC_SECONDS = 5.0
_DEFAULT_SECONDS = 30.0
_MOST_SECONDS = 600.0
_READ_BYTES = 1 << 16
_MOST_READS = 64
"""So often at most is read before the machine's console has its turn."""
PART_PREFIX, PART_SUFFIX = ".agent-", ".part"


def agent(running: Running, request: Request) -> Step:
    """Ask the guest agent: ``execute`` with ``arguments``, within ``timeout_seconds``.

    The answer has its ``return``, or the name of a ``file`` that holds it, as JSON, where it is too long for a line:
    that is for the asker to delete. Raises GuestError when no agent answers, or it answers with an error.
    """
    channel = running.session.channels.get("agent")
    if channel is None:
        raise UsageError(
            f"instance {running.instance.name} has no port for a guest agent",
            hint="guest_agent = true in its machine.toml gives it one at its next start",
        )
    command, arguments = str(request.get("execute")), request.get("arguments") or {}
    if not _COMMAND.fullmatch(command) or not isinstance(arguments, dict):
        raise UsageError(f"nothing to ask a guest agent: {printable(command)[:80]!r}")
    line = _Line(channel)
    yield from line.synchronise(min(_SYNC_SECONDS, _seconds(request)))
    reply = yield from line.ask({"execute": command, "arguments": arguments}, _seconds(request))
    error = reply.get("error")
    if error is not None:
        said = error.get("desc") if isinstance(error, dict) else error
        raise GuestError(f"the guest agent does not do {command}: {printable(str(said))[:500]}")
    answer = json.dumps(reply.get("return")).encode()
    if len(answer) <= _MOST_ANSWER_BYTES:
        return {"return": reply.get("return")}
    return {"file": _spool(running, answer)}


class _Line:
    """The serial port to the agent."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._heard = bytearray()

    def synchronise(self, timeout_seconds: float) -> Generator[None, None, None]:
        """Get into step. Raises GuestError when there is no agent that answers."""
        number = secrets.randbelow(1 << 31)
        self._receive()
        self._heard.clear()
        yield from self._send(
            _SEPARATOR + _encode({"execute": "guest-sync-delimited", "arguments": {"id": number}}), timeout_seconds
        )
        synchronised = yield from until(lambda: self._synchronised(number), timeout_seconds)
        if not synchronised:
            raise _nobody(timeout_seconds)

    def ask(self, message: dict[str, Any], timeout_seconds: float) -> Generator[None, None, dict[str, Any]]:
        """Send one message and wait for its answer."""
        yield from self._send(_encode(message), timeout_seconds)
        found: list[dict[str, Any]] = []

        def answered() -> bool:
            self._receive()
            answer = self._next()
            if answer is not None:
                found.append(answer)
            return bool(found)

        answered_in_time = yield from until(answered, timeout_seconds)
        if not answered_in_time:
            raise _nobody(timeout_seconds)
        return found[0]

    def _synchronised(self, number: int) -> bool:
        """Whether the answer with ``number`` has come; whatever came before it belongs to an earlier time."""
        self._receive()
        _, separator, after = self._heard.rpartition(_SEPARATOR)
        line, newline, rest = after.partition(b"\n")
        if not separator or not newline or _decode(line).get("return") != number:
            return False
        self._heard[:] = rest
        return True

    def _next(self) -> dict[str, Any] | None:
        """The next line that is an answer, None when none is complete."""
        while b"\n" in self._heard:
            line, _, rest = self._heard.partition(b"\n")
            self._heard[:] = rest
            answer = _decode(line)
            if answer:
                return answer
        return None

    def _send(self, data: bytes, timeout_seconds: float) -> Generator[None, None, None]:
        rest = memoryview(data)

        def sent() -> bool:
            nonlocal rest
            try:
                while rest:
                    rest = rest[self._channel.send(rest) :]
            except BlockingIOError:
                return False
            except OSError as error:
                raise MachineError(f"the line to the guest agent is broken: {error.strerror}") from error
            return True

        done = yield from until(sent, timeout_seconds)
        if not done:
            raise _nobody(timeout_seconds)

    def _receive(self) -> None:
        for _ in range(_MOST_READS):
            try:
                piece = self._channel.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                raise MachineError(f"the line to the guest agent is broken: {error.strerror}") from error
            if not piece:
                raise MachineError("the line to the guest agent is closed")
            self._heard += piece
            if len(self._heard) > _MOST_REPLY_BYTES:
                raise GuestError(f"the guest agent says more than {_MOST_REPLY_BYTES} bytes at once")


def _decode(line: bytes | bytearray) -> dict[str, Any]:
    """A line as its message; an empty one for what is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _seconds(request: Request) -> float:
    value = request.get("timeout_seconds", _DEFAULT_SECONDS)
    return min(max(float(value), 0.1), _MOST_SECONDS) if isinstance(value, int | float) else _DEFAULT_SECONDS


def _nobody(timeout_seconds: float) -> GuestError:
    return GuestError(
        f"no guest agent answered within {timeout_seconds:g} s",
        hint="is qemu-guest-agent installed in the guest, and running?",
    )


def _spool(running: Running, content: bytes) -> str:
    """Write an answer that is too long for a line into the instance's folder (0600); its name there."""
    try:
        descriptor, path = tempfile.mkstemp(PART_SUFFIX, PART_PREFIX, running.instance.folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        raise OutputError(f"cannot write to {running.instance.folder}: {error.strerror}") from error
    return Path(path).name
