"""The supervisor's end of its control socket: connections of this user's commands, none of which ever blocks it."""

from __future__ import annotations

import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from armvm.errors import ArmvmError, InputError, OutputError
from armvm.instance import protocol

MOST_PEERS = 64
_READ_BYTES = 65536
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7), struct ucred


class Peer:
    """A connection. It brings one request; then its bytes go to ``take``, where the request's nature sets that.

    ``closing`` closes it as soon as what was sent is on its way.
    """

    def __init__(self, connection: socket.socket, listener: Listener) -> None:
        self.take: Callable[[bytes], None] | None = None
        self.asked = False
        self.closing = False
        self.closed = False
        self.paused = False
        self._connection = connection
        self._listener = listener
        self._received = bytearray()
        self._unsent = bytearray()
        self._hung_up = False

    @property
    def unsent_bytes(self) -> int:
        """How much still waits to be read at the other end."""
        return len(self._unsent)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._connection.fileno()

    def answer(self, result: dict[str, Any]) -> None:
        """Say how the request came out; the connection is over with that."""
        self.send(protocol.encode({"ok": result}))
        self.finish()

    def refuse(self, error: ArmvmError) -> None:
        """Say that, and why, it did not."""
        self.send(protocol.encode_error(error))
        self.finish()

    def send(self, data: bytes) -> None:
        """Send, or keep until it can be sent."""
        if not self.closed:
            self._unsent += data
            self._flush()

    def finish(self) -> None:
        """Close, when all is sent."""
        self.closing = True
        self._settle()

    def close(self) -> None:
        """Close now."""
        if not self.closed:
            self.closed = True
            self._listener.forget(self)
            self._connection.close()

    def pause(self, *, paused: bool) -> None:
        """Leave what it sends where it is, or go on reading it."""
        if self.paused != paused:
            self.paused = paused
            self._settle()

    def interest(self) -> int:
        """What of it is to be waited for (selectors.EVENT_*)."""
        reading = 0 if self.paused or self._hung_up else selectors.EVENT_READ
        return reading | (selectors.EVENT_WRITE if self._unsent else 0)

    def ready(self, events: int) -> None:
        """Do what can be done without waiting."""
        if events & selectors.EVENT_WRITE and not self.closed:
            self._flush()
        if events & selectors.EVENT_READ and not self.closed:
            self._read()

    def _read(self) -> None:
        try:
            data = self._connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data and self.take is None:
            self.close()  # who asks for something and leaves takes no answer
        elif not data:
            self._hung_up = True  # standard input of a watcher has ended; it still listens
            self._settle()
        elif self.take is not None:
            self.take(data)
        elif not self.asked:
            self._received += data
            self._request()

    def _request(self) -> None:
        line, newline, rest = bytes(self._received).partition(b"\n")
        if len(line) > protocol.MOST_LINE_BYTES:
            self.refuse(InputError("a request without end on the control socket"))
        elif newline:
            self.asked = True
            self._received.clear()
            try:
                self._listener.on_request(self, protocol.decode(line))
            except ArmvmError as error:
                self.refuse(error)
            if rest and self.take is not None:
                self.take(rest)

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        self._settle()

    def _settle(self) -> None:
        if self.closed:
            return
        if self.closing and not self._unsent:
            self.close()
        else:
            self._listener.update(self)


class Listener:
    """Listens at ``path``, and knows who is connected. ``selector`` says when there is something to do.

    Raises OutputError when it cannot listen.
    """

    def __init__(
        self,
        path: Path,
        selector: selectors.BaseSelector,
        *,
        on_request: Callable[[Peer, dict[str, Any]], None],
        on_gone: Callable[[Peer], None],
    ) -> None:
        self.on_request = on_request
        self.peers: list[Peer] = []
        self._path = path
        self._selector = selector
        self._on_gone = on_gone
        self._interests: dict[Peer, int] = {}
        self._socket = self._listen()

    def renew(self) -> None:
        """Listen anew: somebody has removed the socket. Raises OutputError."""
        renewed = self._listen()
        self._selector.unregister(self._socket)
        self._socket.close()
        self._socket = renewed

    def update(self, peer: Peer) -> None:
        """What is waited for of ``peer`` may have changed."""
        before, now = self._interests.get(peer, 0), peer.interest()
        if before == now:
            return
        self._interests[peer] = now
        if not now:
            self._selector.unregister(peer)
        elif before:
            self._selector.modify(peer, now, peer.ready)
        else:
            self._selector.register(peer, now, peer.ready)

    def forget(self, peer: Peer) -> None:
        """``peer`` is closing."""
        if self._interests.pop(peer, 0):
            self._selector.unregister(peer)
        if peer in self.peers:
            self.peers.remove(peer)
        self._on_gone(peer)

    def close(self, timeout_seconds: float) -> None:
        """Listen no longer; what was sent to who is there may take so long to get there."""
        with suppress(OSError):
            self._path.unlink()
        self._selector.unregister(self._socket)
        self._socket.close()
        for peer in list(self.peers):
            peer.pause(paused=True)
            peer.finish()
        deadline = time.monotonic() + timeout_seconds
        while self.peers and (left := deadline - time.monotonic()) > 0:
            for key, events in self._selector.select(left):
                if isinstance(key.fileobj, Peer):
                    key.fileobj.ready(events)
                else:
                    self._selector.unregister(key.fileobj)
        for peer in list(self.peers):
            peer.close()

    def _listen(self) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with suppress(FileNotFoundError):
                self._path.unlink()
            mask = os.umask(0o177)
            try:
                listening.bind(os.fspath(self._path))
            finally:
                os.umask(mask)
            listening.listen(MOST_PEERS)
        except OSError as error:
            listening.close()
            raise OutputError(f"cannot listen at {self._path}: {error.strerror or error}") from error
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ, self._accept)
        return listening

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return  # gone again, or no descriptor left
        if not _same_user(connection):
            connection.close()
            return
        connection.setblocking(False)
        if len(self.peers) >= MOST_PEERS:
            silent = next((peer for peer in self.peers if not peer.asked), None)
            if silent is None:
                connection.close()
                return
            silent.close()
        peer = Peer(connection, self)
        self.peers.append(peer)
        self.update(peer)


def _same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end is this user's (unix(7), SO_PEERCRED), as the folder's mode says too."""
    if not sys.platform.startswith("linux"):
        return True
    content = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(content)[1] in {os.getuid(), 0})
