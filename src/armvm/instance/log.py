"""The console log of an instance: what the guest said, line by line, each with the time at which it began.

    2026-11-25T07:06:08.123Z Debian GNU/Linux 12 web ttyAMA0

Control sequences are gone, and what could mislead a reader is escaped. The current file has 16 MiB at most; the one
before it is kept as ``.log.1``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from armvm.errors import InputError, OutputError
from armvm.machine.console_text import harmless
from armvm.units import MIB

_MOST_BYTES = 16 * MIB
_MOST_LINE_BYTES = 1 << 16
"""A longer line is broken, so that a reader need not hold more."""
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) ")


class ConsoleLog:
    """The log at ``path``, open to be appended to. What cannot be written (a full disk) is counted, and said later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = _open(path)
        self._size = os.fstat(self._descriptor).st_size
        self._line_bytes = 0
        self._lost_bytes = 0
        if self._size and not _ends_a_line(path, self._size):
            self._append("\n")

    @property
    def lost_bytes(self) -> int:
        """How much could not be written since the last that could be."""
        return self._lost_bytes

    def write(self, text: str) -> None:
        """Append what the guest said, as ``ConsoleText`` gives it. Never fails."""
        if not text:
            return
        if self._size > _MOST_BYTES and not self._line_bytes:
            self._rotate()
        if self._lost_bytes and not self._say_loss():
            self._lost_bytes += len(text)
            return
        now = f"{datetime.now(UTC).isoformat(timespec='milliseconds')[:-6]}Z "
        parts = []
        for line in harmless(text).splitlines(keepends=True):
            if not self._line_bytes:
                parts.append(now)
            parts.append(line)
            self._line_bytes += len(line)
            if line.endswith("\n"):
                self._line_bytes = 0
            elif self._line_bytes > _MOST_LINE_BYTES:
                parts.append("\n")
                self._line_bytes = 0
        self._append("".join(parts))

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)

    def _say_loss(self) -> bool:
        """Say how much is missing; whether that could be written."""
        lost, self._lost_bytes = self._lost_bytes, 0
        broken = "\n" if not _ends_a_line(self._path, self._size) else ""
        self._line_bytes = 0
        now = f"{datetime.now(UTC).isoformat(timespec='milliseconds')[:-6]}Z"
        self._append(f"{broken}{now} [{lost} bytes of this log could not be written]\n")
        if self._lost_bytes:
            self._lost_bytes = lost
            return False
        return True

    def _append(self, text: str) -> None:
        data = text.encode(errors="replace")
        written = 0
        with suppress(OSError):
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        self._size += written
        self._lost_bytes += len(data) - written

    def _rotate(self) -> None:
        with suppress(OSError, OutputError):
            os.replace(self._path, self._path.with_suffix(".log.1"))
            descriptor = _open(self._path)
            os.close(self._descriptor)
            self._descriptor, self._size = descriptor, 0


@contextmanager
def logging(path: Path) -> Iterator[ConsoleLog]:
    """The console log at ``path`` within the block. Raises OutputError when it cannot be opened."""
    log = ConsoleLog(path)
    try:
        yield log
    finally:
        log.close()


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log; ``time`` None for one of an older armvm."""

    time: datetime | None
    text: str


def parse_line(line: str) -> LogLine:
    """A line of the log, without its newline, as its value."""
    match = _TIME.match(line)
    if match is None:
        return LogLine(None, line)
    try:
        time = datetime.fromisoformat(match[1])
    except ValueError:
        return LogLine(None, line)
    return LogLine(time, line[match.end() :])


class LogReader:
    """Reads a log from its start, the file before it first, and on from there as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._rest = b""

    def lines(self, *, whole: bool = True) -> Iterator[str]:
        """The lines that have come since the last call; with ``whole`` False also one that has not ended yet.

        Raises InputError when the log cannot be read.
        """
        if self._file is None:
            before = _open_to_read(self._path.with_suffix(".log.1"))
            self._file = before if before is not None else _open_to_read(self._path)
        while self._file is not None:
            yield from self._read()
            following = self._following()
            if following is None:
                break
            yield from self._read()  # what was added before the file was put aside
            os.close(self._file)
            self._file = following
        if not whole and self._rest:
            yield self._rest.decode(errors="replace")
            self._rest = b""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self) -> Iterator[str]:
        assert self._file is not None  # noqa: S101 - the caller has opened it
        while data := os.read(self._file, 1 << 16):
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > 4 * _MOST_LINE_BYTES:
                lines, self._rest = [*lines, self._rest], b""
            for line in lines:
                yield line.decode(errors="replace")

    def _following(self) -> int | None:
        """The file that has taken this one's place."""
        assert self._file is not None  # noqa: S101 - the caller has opened it
        following = _open_to_read(self._path)
        if following is None:
            return None
        if os.path.samestat(os.fstat(following), os.fstat(self._file)):
            os.close(following)
            return None
        return following


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _open_to_read(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(path)) from error


def _ends_a_line(path: Path, size: int) -> bool:
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(size - 1, 0))
        return file.read(1) in {b"\n", b""}
    return True
