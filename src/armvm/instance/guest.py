"""What is done in a running guest by its agent: programs run, files fetched and brought."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from armvm.errors import GuestError, InputError, UsageError
from armvm.instance import client
from armvm.instance.agent import PART_PREFIX, PART_SUFFIX
from armvm.instance.store import Instance

MOST_INPUT_BYTES = 512 << 10
"""The most standard input that a program can be given: it travels in one request."""
_ASK_SECONDS = 30.0
_MORE_SECONDS = 15.0
"""What the way to the supervisor and its other work may take beside."""
_PIECE_BYTES = 256 << 10
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 0.5
_MOST_ANSWER_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that has ended in the guest. ``signal`` is what killed it, if anything did.

    ``truncated`` says that the agent did not keep all of what it said (16 MiB of each).
    """

    exit_code: int
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool


class Agent:
    """The guest agent of a running instance.

    Every method raises GuestError when no agent answers or it refuses, MachineError when the instance does not run.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    def ask(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout_seconds: float = _ASK_SECONDS
    ) -> Any:
        """What the agent returns for one of its commands (QEMU, docs/interop/qemu-ga-ref)."""
        request = {"do": "agent", "execute": command, "arguments": arguments or {}, "timeout_seconds": timeout_seconds}
        answer = client.ask(self._instance, request, timeout_seconds=timeout_seconds + _MORE_SECONDS)
        return answer.get("return") if "file" not in answer else self._spooled(str(answer["file"]))

    def ping(self, *, timeout_seconds: float = 5.0) -> None:
        """Return when it answers."""
        self.ask("guest-ping", timeout_seconds=timeout_seconds)

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float | None = None) -> Finished:
        """Run a program to its end.

        Past ``timeout_seconds`` GuestError is raised, and the program goes on. Raises UsageError for too much input.
        """
        if len(stdin) > MOST_INPUT_BYTES:
            raise UsageError(
                f"{len(stdin)} bytes of standard input are too many for the guest agent",
                hint=f"at most {MOST_INPUT_BYTES}; bring a file first: armvm vm copy",
            )
        program, *arguments = argv
        wanted = {"path": program, "arg": arguments, "capture-output": True}
        if stdin:
            wanted["input-data"] = base64.b64encode(stdin).decode()
        started = self.ask("guest-exec", wanted)
        pid = _number(started, "pid")
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        pause = _SHORTEST_PAUSE_SECONDS
        while True:
            status = self.ask("guest-exec-status", {"pid": pid})
            if isinstance(status, dict) and status.get("exited"):
                return _finished(status)
            if deadline is not None and time.monotonic() >= deadline:
                raise GuestError(f"{program} (process {pid} in the guest) has not ended within {timeout_seconds:g} s")
            time.sleep(pause)  # the agent tells nothing by itself
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)

    def fetch(self, path: str, file: BinaryIO, *, progress: Callable[[int], None] | None = None) -> None:
        """Write what the guest's file ``path`` holds into ``file``; ``progress`` is told how many bytes are done."""
        done = 0
        with self._open(path, "r") as handle:
            while True:
                answer = self.ask("guest-file-read", {"handle": handle, "count": _PIECE_BYTES})
                content = _bytes(answer, "buf-b64")
                file.write(content)
                done += len(content)
                if progress is not None:
                    progress(done)
                if answer.get("eof") or not content:
                    return

    def bring(self, file: BinaryIO, path: str, *, progress: Callable[[int], None] | None = None) -> None:
        """Write what ``file`` holds into the guest's file ``path``, which is replaced."""
        done = 0
        with self._open(path, "w") as handle:
            while content := file.read(_PIECE_BYTES):
                while content:
                    text = base64.b64encode(content).decode()
                    written = _number(self.ask("guest-file-write", {"handle": handle, "buf-b64": text}), "count")
                    if not 0 < written <= len(content):
                        raise GuestError(f"the guest agent wrote {written} of {len(content)} bytes to {path}")
                    content = content[written:]
                    done += written
                if progress is not None:
                    progress(done)
            self.ask("guest-file-flush", {"handle": handle})

    @contextmanager
    def _open(self, path: str, mode: str) -> Iterator[int]:
        handle = self.ask("guest-file-open", {"path": path, "mode": mode})
        if not isinstance(handle, int):
            raise GuestError("the guest agent answers in a way that armvm does not understand")
        try:
            yield handle
        except BaseException:
            with suppress(GuestError):
                self.ask("guest-file-close", {"handle": handle})
            raise
        self.ask("guest-file-close", {"handle": handle})

    def _spooled(self, name: str) -> Any:
        """An answer that was too long for a line, out of the file that holds it, which is deleted."""
        if not name.startswith(PART_PREFIX) or not name.endswith(PART_SUFFIX) or "/" in name:
            raise InputError("no name of an answer on a control socket")
        path = self._instance.folder / name
        try:
            with path.open("rb") as file:
                return json.loads(file.read(_MOST_ANSWER_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"the answer cannot be read: {error}", subject=str(path)) from error
        finally:
            path.unlink(missing_ok=True)


def _finished(status: dict[str, Any]) -> Finished:
    signal = status.get("signal")
    code = status.get("exitcode")
    if isinstance(signal, int):
        code = 128 + signal  # as shells say it
    return Finished(
        code if isinstance(code, int) and 0 <= code < 256 else 1,
        signal if isinstance(signal, int) else None,
        _bytes(status, "out-data"),
        _bytes(status, "err-data"),
        bool(status.get("out-truncated") or status.get("err-truncated")),
    )


def _number(answer: Any, key: str) -> int:
    value = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(value, int):
        raise GuestError("the guest agent answers in a way that armvm does not understand")
    return value


def _bytes(answer: Any, key: str) -> bytes:
    try:
        return base64.b64decode(answer.get(key, ""), validate=True)
    except (binascii.Error, ValueError, TypeError, AttributeError) as error:
        raise GuestError("the guest agent answers in a way that armvm does not understand") from error
