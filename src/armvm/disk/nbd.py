"""A small strict NBD client over a connected socket: one export, reads, writes, block status, a deadline on every step.

Source: doc/proto.md of the NBD project; section names in quotes below are its own. It asks for structured replies and
the ``base:allocation`` context, which every qemu-nbd since 2.12 has, and takes no server without them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

_OPTION_MAGIC = b"IHAVEOPT"
_GREETING = struct.Struct(">8s8sH")
_CLIENT_FLAGS = struct.Struct(">I")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_CHUNK = struct.Struct(">IHHQI")

_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_OPT_GO, _OPT_STRUCTURED_REPLY, _OPT_SET_META_CONTEXT = 7, 8, 10
_REP_ACK, _REP_INFO, _REP_META_CONTEXT, _REP_ERROR = 1, 3, 4, 1 << 31
_INFO_EXPORT = 0
_ALLOCATION = b"base:allocation"

_SIMPLE = struct.Struct(">IIQ")

_REQUEST_MAGIC, _CHUNK_MAGIC, _SIMPLE_MAGIC = 0x25609513, 0x668E33EF, 0x67446698
_CMD_READ, _CMD_WRITE, _CMD_DISC, _CMD_FLUSH, _CMD_BLOCK_STATUS = 0, 1, 2, 3, 7
_DONE = 1
_NONE, _OFFSET_DATA, _OFFSET_HOLE, _BLOCK_STATUS, _CHUNK_ERROR = 0, 1, 2, 5, 1 << 15
_STATE_ZERO = 2

_MAX_OPTION_REPLIES = 32
_MAX_REPLY_BYTES = 64 << 10
_MAX_READ_BYTES = 8 << 20
_MAX_STATUS_BYTES = 1 << 30
_MAX_STATUS_PAYLOAD = 4 + 8 * (128 << 10)


class NbdError(Exception):
    """The server broke the protocol, refused, or could not read."""


class NbdClient:
    """The default export of the server behind ``connection``, which it owns.

    Every wait ends after ``timeout_seconds``. Its methods raise NbdError, or OSError when the connection breaks.
    """

    def __init__(self, connection: socket.socket, *, timeout_seconds: float) -> None:
        self._socket = connection
        self._socket.settimeout(timeout_seconds)
        self._cookie = 0
        self._negotiate()

    def _negotiate(self) -> None:
        """The handshake up to the transmission phase ("Fixed newstyle negotiation")."""
        magic, option_magic, flags = _GREETING.unpack(self._receive(_GREETING.size))
        if magic != b"NBDMAGIC" or option_magic != _OPTION_MAGIC or not flags & _FIXED_NEWSTYLE:
            raise NbdError("is no NBD server of today")
        self._socket.sendall(_CLIENT_FLAGS.pack(flags & (_FIXED_NEWSTYLE | _NO_ZEROES)))
        for _ in self._option(_OPT_STRUCTURED_REPLY, b""):
            raise NbdError("answered something else than yes")
        query = struct.pack(">III", 0, 1, len(_ALLOCATION)) + _ALLOCATION
        contexts = [data for kind, data in self._option(_OPT_SET_META_CONTEXT, query) if kind == _REP_META_CONTEXT]
        if len(contexts) != 1 or len(contexts[0]) < 4 or contexts[0][4:] != _ALLOCATION:
            raise NbdError("does not tell what is allocated")
        self._context = contexts[0][:4]
        size_bytes = None
        for kind, data in self._option(_OPT_GO, struct.pack(">IH", 0, 0)):
            if kind == _REP_INFO and data[:2] == struct.pack(">H", _INFO_EXPORT) and len(data) == 12:
                (size_bytes,) = struct.unpack_from(">Q", data, 2)
        if size_bytes is None or size_bytes >= 1 << 63:
            raise NbdError("does not tell a sound size")
        self.size_bytes: int = size_bytes

    def _option(self, option: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Send an option; its replies before the acknowledgement, as (type, data)."""
        self._socket.sendall(_OPTION.pack(_OPTION_MAGIC, option, len(data)) + data)
        for _ in range(_MAX_OPTION_REPLIES):
            magic, answered, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            if magic != _OPTION_REPLY_MAGIC or answered != option or length > _MAX_REPLY_BYTES:
                raise NbdError("answered out of order")
            reply = self._receive(length)
            if kind & _REP_ERROR:
                raise NbdError(f"refused option {option}: {reply.decode(errors='replace')}")
            if kind == _REP_ACK:
                return
            yield kind, reply
        raise NbdError("does not stop answering")

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``, which the caller keeps inside the export."""
        result = bytearray(length)
        for start in range(0, length, _MAX_READ_BYTES):
            self._read_piece(memoryview(result)[start : start + _MAX_READ_BYTES], offset + start)
        return bytes(result)

    def _read_piece(self, target: memoryview, offset: int) -> None:
        missing = len(target)
        for kind, data in self._request(_CMD_READ, offset, len(target), max_payload=8 + len(target)):
            if kind == _OFFSET_DATA and len(data) > 8:
                size = len(data) - 8
            elif kind == _OFFSET_HOLE and len(data) == 12:
                (size,) = struct.unpack_from(">I", data, 8)
            else:
                raise NbdError(f"sent chunk {kind} of {len(data)} bytes for a read")
            start = struct.unpack_from(">Q", data)[0] - offset
            if start < 0 or start + size > len(target) or size > missing:
                raise NbdError("sent bytes that nobody asked for")
            if kind == _OFFSET_DATA:
                target[start : start + size] = data[8:]
            missing -= size
        if missing:
            raise NbdError(f"left out {missing} bytes")

    def allocation(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """The export from ``offset`` on, for at most ``length`` bytes, as (length, whether it is more than zeros).

        May end before ``length``, but tells something.
        """
        length = min(length, _MAX_STATUS_BYTES)
        left = length
        for kind, data in self._request(_CMD_BLOCK_STATUS, offset, length, max_payload=_MAX_STATUS_PAYLOAD):
            if kind != _BLOCK_STATUS or len(data) % 8 != 4 or data[:4] != self._context:
                raise NbdError(f"sent chunk {kind} of {len(data)} bytes for a block status")
            for run_length, state in struct.iter_unpack(">II", data[4:]):
                run = min(run_length, left)  # the last run may reach further than was asked
                left -= run
                if run:
                    yield run, not state & _STATE_ZERO
        if left == length:
            raise NbdError("told nothing about what is allocated")

    def write(self, offset: int, content: bytes) -> None:
        """Put ``content`` at ``offset``, which the caller keeps inside the export; ``flush`` makes it last."""
        for start in range(0, len(content), _MAX_READ_BYTES):
            piece = content[start : start + _MAX_READ_BYTES]
            self._command(_CMD_WRITE, offset + start, len(piece), piece)

    def flush(self) -> None:
        """Have everything that was written on the disk before this returns."""
        self._command(_CMD_FLUSH, 0, 0, b"")

    def _command(self, command: int, offset: int, length: int, payload: bytes) -> None:
        """A request that is answered by yes or no: as a simple reply, or a chunk, as the server likes."""
        self._cookie += 1
        self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, command, self._cookie, offset, length) + payload)
        head = self._receive(_SIMPLE.size)
        magic, error, cookie = _SIMPLE.unpack(head)
        if magic == _SIMPLE_MAGIC and cookie == self._cookie:
            if error:
                raise NbdError(f"cannot write: error {error}")
            return
        magic, flags, kind, cookie, size = _CHUNK.unpack(head + self._receive(_CHUNK.size - _SIMPLE.size))
        if magic != _CHUNK_MAGIC or cookie != self._cookie or size > _MAX_REPLY_BYTES or not flags & _DONE:
            raise NbdError("answered out of order")
        said = self._receive(size)
        if kind & _CHUNK_ERROR:
            raise NbdError(f"cannot write: {said[6:].decode(errors='replace') or 'no reason given'}")

    def _request(self, command: int, offset: int, length: int, *, max_payload: int) -> Iterator[tuple[int, bytes]]:
        """Send a request; the chunks of its reply, as (type, payload) ("Structured reply chunk message")."""
        self._cookie += 1
        self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, command, self._cookie, offset, length))
        while True:
            magic, flags, kind, cookie, size = _CHUNK.unpack(self._receive(_CHUNK.size))
            if magic != _CHUNK_MAGIC or cookie != self._cookie or size > max(max_payload, _MAX_REPLY_BYTES):
                raise NbdError("answered out of order")
            payload = self._receive(size)
            if kind & _CHUNK_ERROR:
                raise NbdError(f"cannot read: {payload[6:].decode(errors='replace') or 'no reason given'}")
            if kind != _NONE:
                yield kind, payload
            if flags & _DONE:
                return

    def _receive(self, length: int) -> bytes:
        received = bytearray()
        while len(received) < length:
            piece = self._socket.recv(min(length - len(received), 1 << 20))
            if not piece:
                raise NbdError("ended the connection")
            received += piece
        return bytes(received)

    def close(self) -> None:
        """Tell the server that we leave, if it still listens, and close the connection."""
        try:
            self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _CMD_DISC, self._cookie + 1, 0, 0))
        except OSError:
            pass
        finally:
            self._socket.close()
