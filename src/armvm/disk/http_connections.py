"""Connections to a web server that end when their time is up, and the way there through the user's proxy.

Imports urllib3: only ``armvm.disk.http`` imports this.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass
from weakref import ref

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError
from urllib3.util import Url, make_headers, parse_url

from armvm.printable import printable


class Watchdog:
    """Cuts every connection when the time is up, whatever it waits for.

    A time-out between two bytes ends no server that sends one byte at a time, in a header or in a handshake. So each
    socket is kept twice: shutting the twin down wakes whoever reads, through TLS as well.
    """

    def __init__(self) -> None:
        self.expired = False
        self._sockets: list[tuple[ref[HTTPConnection], socket.socket]] = []

    def watch(self, connection: HTTPConnection, sock: socket.socket) -> None:
        """Answer for a new connection."""
        self.forget_closed()
        self._sockets.append((ref(connection), sock.dup()))

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """What runs in the block loses its connections after ``seconds``."""
        self.expired = False
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _expire(self) -> None:
        self.expired = True
        for _, twin in list(self._sockets):
            _shut_down(twin)

    def forget_closed(self) -> None:
        """End what nobody holds any more: a twin keeps its connection from ending."""
        kept = []
        for connection, twin in self._sockets:
            owner = connection()
            if owner is None or owner.sock is None:
                twin.close()
            else:
                kept.append((connection, twin))
        self._sockets = kept

    def close(self) -> None:
        """End all."""
        for _, twin in self._sockets:
            _shut_down(twin)
            twin.close()
        self._sockets = []


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):  # it has ended by itself
        sock.shutdown(socket.SHUT_RDWR)


def connect_pools(url: Url, watch: Callable[[HTTPConnection, socket.socket], None]) -> urllib3.PoolManager:
    """Connections, each told to ``watch``, by the proxy that the environment names for ``url``, if any."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            sock = super()._new_conn()
            watch(self, sock)
            return sock

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            sock = super()._new_conn()
            watch(self, sock)
            return sock

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    proxy = getproxies().get(url.scheme or "")
    if proxy and not proxy_bypass(url.netloc or ""):
        proxy_url = parse_url(proxy)
        headers = make_headers(proxy_basic_auth=unquote(proxy_url.auth)) if proxy_url.auth else None
        manager: urllib3.PoolManager = urllib3.ProxyManager(
            proxy_url._replace(auth=None).url, proxy_headers=headers, num_pools=4, maxsize=2
        )
    else:
        manager = urllib3.PoolManager(num_pools=4, maxsize=2)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


def in_words(error: Exception) -> str:
    """What a library's exception says, without its objects and addresses."""
    cause = error.__cause__ or error.__context__
    if isinstance(error, NewConnectionError) and isinstance(cause, OSError):
        return cause.strerror or str(cause)
    text = error.args[-1] if error.args else type(error).__name__
    return printable(str(text)[:200])
