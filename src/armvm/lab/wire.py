r"""What armvm and its agent inside a nested host say to each other, over one virtio serial port: frames.

A frame is a line and a body: ``@L1 KIND LENGTH CRC32\n`` and LENGTH bytes, CRC-32 of the body in eight hex digits.
What stands between frames is passed over (a port may say what was left in it when the host was frozen); a frame that
is damaged ends the conversation.

To the agent: ``task`` (JSON), ``end``, ``wake`` (nothing, see ``outer``). From it: ``ready`` (JSON, once it listens),
``started``, ``said`` (standard output), ``note`` (a line of standard error), ``alive`` (every few seconds while a task
runs), ``file`` (JSON head line, then content), ``done`` (JSON). Silence between ``started`` and ``done`` for longer
than ``SILENCE_SECONDS`` is a failure: nothing here is taken for success because nothing came.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

MOST_BODY_BYTES = 1 << 20
ALIVE_SECONDS = 2.0
SILENCE_SECONDS = 300.0
PORT = "armvm.lab"
"""The name of the port."""
MOST_FILE_BYTES = 16 << 20
PIECE_BYTES = 65536

_MAGIC = b"@L1 "
_MOST_HEAD_BYTES = 64


class WireError(ValueError):
    """A frame is damaged, or of a kind or size that neither side sends."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    kind: str
    body: bytes = b""


def serialise(frame: Frame) -> bytes:
    """The frame as bytes. Raises WireError for a body that is too large."""
    if len(frame.body) > MOST_BODY_BYTES:
        raise WireError(f"a body of {len(frame.body)} bytes")
    return b"@L1 %s %d %08x\n" % (frame.kind.encode("ascii"), len(frame.body), zlib.crc32(frame.body)) + frame.body


class Reader:
    """Turns bytes, as they come, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with ``data``. Raises WireError at one that is damaged."""
        self._buffer += data
        while True:
            start = self._buffer.find(_MAGIC)
            if start < 0:
                del self._buffer[: max(len(self._buffer) - len(_MAGIC) + 1, 0)]
                return
            del self._buffer[:start]
            end = self._buffer.find(b"\n", 0, _MOST_HEAD_BYTES)
            if end < 0:
                if len(self._buffer) >= _MOST_HEAD_BYTES:
                    raise WireError("a frame's first line without an end")
                return
            kind, length, checksum = _head(bytes(self._buffer[len(_MAGIC) : end]))
            if len(self._buffer) < end + 1 + length:
                return
            body = bytes(self._buffer[end + 1 : end + 1 + length])
            del self._buffer[: end + 1 + length]
            if zlib.crc32(body) != checksum:
                raise WireError(f"a {kind} frame whose checksum is wrong")
            yield Frame(kind, body)


def _head(line: bytes) -> tuple[str, int, int]:
    try:
        kind, length, checksum = line.decode("ascii").split(" ")
        size, check = int(length), int(checksum, 16)
    except ValueError:
        raise WireError(f"a frame that begins with {line!r}") from None
    if not kind.isalpha() or not 0 <= size <= MOST_BODY_BYTES or len(checksum) != 8:
        raise WireError(f"a frame that begins with {line!r}")
    return kind, size, check
