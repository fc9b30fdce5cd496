"""The NBD client against servers that lie, stall and leave."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from armvm.disk.nbd import NbdClient, NbdError

_GREETING = b"NBDMAGICIHAVEOPT\0\3"
_CONTEXT = 7
_SIZE = 1 << 20


def _reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


_STRUCTURED = _reply(8, 1)
_META = _reply(10, 4, struct.pack(">I", _CONTEXT) + b"base:allocation") + _reply(10, 1)
_GO = _reply(7, 3, struct.pack(">HQH", 0, _SIZE, 3)) + _reply(7, 1)
_HANDSHAKE = _GREETING + _STRUCTURED + _META + _GO


def _chunk(kind: int, payload: bytes, *, done: bool = True, cookie: int = 1) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, int(done), kind, cookie, len(payload)) + payload


def _data(offset: int, content: bytes, *, done: bool = True) -> bytes:
    return _chunk(1, struct.pack(">Q", offset) + content, done=done)


def _hole(offset: int, length: int, *, done: bool = True) -> bytes:
    return _chunk(2, struct.pack(">QI", offset, length), done=done)


def _status(*runs: tuple[int, int], context: int = _CONTEXT) -> bytes:
    return _chunk(5, struct.pack(">I", context) + b"".join(struct.pack(">II", *run) for run in runs))


@contextmanager
def _served(said: bytes, *, hold: bool = False, timeout_seconds: float = 5) -> Iterator[Callable[[], NbdClient]]:
    """A server that says all it ever says at once, and then leaves or, with ``hold``, stalls."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with suppress(OSError):  # the client may leave first
            theirs.sendall(said)
            if not hold:
                theirs.shutdown(socket.SHUT_WR)
            while theirs.recv(65536):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield lambda: NbdClient(ours, timeout_seconds=timeout_seconds)
    finally:
        ours.close()
        thread.join()
        theirs.close()


def test_reads_data_and_holes_in_any_order() -> None:
    said = _hole(104, 4, done=False) + _chunk(0, b"", done=False) + _data(100, b"abcd")
    with _served(_HANDSHAKE + said) as connect:
        client = connect()
        assert client.size_bytes == _SIZE
        assert client.read(100, 8) == b"abcd\0\0\0\0"
        client.close()


def test_long_reads_are_split() -> None:
    first = 8 << 20
    said = _hole(0, first) + _chunk(1, struct.pack(">Q", first) + b"xyz", cookie=2)
    with _served(_HANDSHAKE + said) as connect:
        assert connect().read(0, first + 3) == bytes(first) + b"xyz"


def test_allocation() -> None:
    with _served(_HANDSHAKE + _status((10, 0), (20, 3), (30, 1), (1 << 31, 2))) as connect:
        assert list(connect().allocation(0, 100)) == [(10, True), (20, False), (30, True), (40, False)]


@pytest.mark.parametrize("length", range(0, len(_HANDSHAKE), 5))
def test_handshakes_cut_short(length: int) -> None:
    with _served(_HANDSHAKE[:length]) as connect, pytest.raises(NbdError, match="ended the connection"):
        connect()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"NBDMAGIC" + b"x" * 10, "no NBD server"),
        (b"x" * 18, "no NBD server"),
        (b"NBDMAGICIHAVEOPT\0\0", "no NBD server"),
        (_GREETING + _reply(8, 1 << 31 | 1, b"never"), "refused option 8: never"),
        (_GREETING + _reply(8, 3), "something else than yes"),
        (_GREETING + b"\0" * 20, "out of order"),
        (_GREETING + _reply(7, 1), "out of order"),
        (_GREETING + struct.pack(">QIII", 0x3E889045565A9, 8, 1, 1 << 31), "out of order"),
        (_GREETING + _STRUCTURED + _reply(10, 1), "does not tell what is allocated"),
        (_GREETING + _STRUCTURED + _reply(10, 4, b"\0\0\0\1other") + _reply(10, 1), "does not tell what is allocated"),
        (_GREETING + _STRUCTURED + _META + _reply(7, 1), "sound size"),
        (_GREETING + _STRUCTURED + _META + _reply(7, 3, b"\0\0") + _reply(7, 1), "sound size"),
        (_GREETING + _STRUCTURED + _META + _reply(7, 3, b"\0\0" + b"\xff" * 10) + _reply(7, 1), "sound size"),
        (_GREETING + _STRUCTURED + _META + _reply(7, 3, b"\0\1") * 100, "does not stop"),
    ],
)
def test_hostile_handshakes(said: bytes, message: str) -> None:
    with _served(said) as connect, pytest.raises(NbdError, match=message):
        connect()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"", "ended the connection"),
        (_data(100, b"abcd")[:-1], "ended the connection"),
        (_data(100, b"abc"), "left out 1"),
        (_data(100, b"abcde"), "nobody asked for"),
        (_data(99, b"abcd"), "nobody asked for"),
        (_data(101, b"abcd"), "nobody asked for"),
        (_data((1 << 64) - 1, b"abcd"), "nobody asked for"),
        (_data(100, b"abcd", done=False) + _data(100, b"abcd"), "nobody asked for"),
        (_hole(100, 0xFFFFFFFF), "nobody asked for"),
        (_chunk(2, b"short"), "sent chunk 2"),
        (_chunk(1, b"short"), "sent chunk 1"),
        (_chunk(99, b""), "sent chunk 99"),
        (_status((4, 0)), "sent chunk 5"),
        (_chunk(1 << 15 | 1, struct.pack(">IH", 5, 7) + b"EIO now"), "cannot read: EIO now"),
        (_chunk(1 << 15 | 1, b""), "no reason given"),
        (_chunk(1, b"", cookie=2), "out of order"),
        (struct.pack(">IHHQI", 0x668E33EF, 1, 1, 1, 0xFFFFFFFF), "out of order"),
        (struct.pack(">IIQ", 0x67446698, 0, 1) + b"abcd", "out of order"),
    ],
)
def test_hostile_reads(said: bytes, message: str) -> None:
    with _served(_HANDSHAKE + said) as connect, pytest.raises(NbdError, match=message):
        connect().read(100, 4)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (_status(), "told nothing"),
        (_status((0, 0)), "told nothing"),
        (_chunk(0, b""), "told nothing"),
        (_status((10, 0), context=8), "sent chunk 5"),
        (_chunk(5, b"\0\0\0\7odd"), "sent chunk 5"),
        (_data(0, b"x"), "sent chunk 1"),
    ],
)
def test_hostile_allocations(said: bytes, message: str) -> None:
    with _served(_HANDSHAKE + said) as connect, pytest.raises(NbdError, match=message):
        list(connect().allocation(0, 100))


@pytest.mark.parametrize("said", [b"", _GREETING, _HANDSHAKE, _HANDSHAKE + _data(0, b"ab", done=False)])
def test_server_that_stalls(said: bytes) -> None:
    with _served(said, hold=True, timeout_seconds=0.2) as connect, pytest.raises(TimeoutError):
        connect().read(0, 4)
