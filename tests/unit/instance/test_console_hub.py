from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from armvm.instance.console_hub import SCROLLBACK_BYTES, Consoles
from armvm.instance.listener import Listener, Peer
from armvm.instance.store import Instance


class Bench:
    """Consoles with a session that is one pair of sockets for each console beside the first."""

    def __init__(self, instance: Instance, stack: ExitStack, more: int) -> None:
        self.selector = stack.enter_context(selectors.DefaultSelector())
        self.consoles = Consoles(instance, self.selector)
        self.guest: dict[str, socket.socket] = {}
        self.typed = b""
        channels = {}
        for number in range(1, more + 1):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.settimeout(5)
            channels[f"console{number}"], self.guest[f"console{number}"] = (
                stack.enter_context(ours),
                stack.enter_context(theirs),
            )
        self.session = SimpleNamespace(channels=channels, pending_bytes=0, send=self._type)
        self.path = instance.folder / "t.sock"
        self.listener = Listener(self.path, self.selector, on_request=self._asked, on_gone=self.consoles.remove)
        self.consoles.connect(cast("Any", self.session))
        stack.callback(self.consoles.close)
        stack.callback(self.listener.close, 0.0)
        self.stack = stack

    def _type(self, data: bytes) -> None:
        self.typed += data

    def _asked(self, peer: Peer, request: dict[str, Any]) -> None:
        self.consoles.watch(request["index"], peer, scrollback=True)

    def watcher(self, number: int) -> socket.socket:
        connection = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.connect(str(self.path))
        connection.sendall(b'{"index": %d}\n' % number)
        before = len(self.consoles.hubs[number].watchers)
        self.until(lambda: len(self.consoles.hubs[number].watchers) > before)
        connection.settimeout(5)
        return connection

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not reached():
            assert time.monotonic() < deadline
            for key, mask in self.selector.select(0.1):
                key.data(mask)
            self.consoles.hold_back()


@pytest.fixture
def bench(web: Instance) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(web, stack, 2)


def test_every_console_is_its_own(bench: Bench, web: Instance) -> None:
    one, two = bench.watcher(1), bench.watcher(2)
    bench.guest["console1"].sendall(b"from one\r\n")
    bench.until(lambda: "from one" in bench.consoles.hubs[1].text.tail)
    assert one.recv(100) == b"from one\r\n"
    two.sendall(b"keys")
    bench.until(lambda: bool(bench.consoles.hubs[2].watchers) and _peek(bench.guest["console2"]) == b"keys")
    assert web.console_log(1).read_text().endswith("Z from one\n")
    assert web.console_log(2).read_text() == ""
    assert web.console_log(0) == web.log


def _peek(guest: socket.socket) -> bytes:
    try:
        guest.setblocking(False)
        return guest.recv(100, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


def test_scrollback_is_the_last_of_it(bench: Bench) -> None:
    hub = bench.consoles.hubs[0]
    for _ in range(100):
        hub.said(b"x" * 1000)
    hub.said(b"the end")
    late = bench.watcher(0)
    received = b""
    while len(received) < SCROLLBACK_BYTES:
        received += late.recv(1 << 16)
    assert received.endswith(b"xthe end")
    assert len(received) == SCROLLBACK_BYTES


def test_keys_for_a_guest_that_takes_none_wait_where_they_are(bench: Bench) -> None:
    eager = bench.watcher(1)
    eager.setblocking(False)
    sent = 0

    def stuck() -> bool:
        nonlocal sent
        for _ in range(50):
            try:
                sent += eager.send(b"k" * 4096)
            except BlockingIOError:
                return all(watcher.paused for watcher in bench.consoles.hubs[1].watchers)
        return False

    bench.until(stuck)
    assert sent < 8 << 20
    received = 0
    guest = bench.guest["console1"]
    guest.setblocking(False)

    def drained() -> bool:
        nonlocal received
        with suppress(BlockingIOError):
            received += len(guest.recv(1 << 20))
        return received == sent

    bench.until(drained)


def test_a_console_that_is_gone(bench: Bench) -> None:
    bench.watcher(1)
    bench.guest["console1"].close()
    bench.until(lambda: not _on(bench, "console1"))
    assert _on(bench, "console2")
    bench.consoles.disconnect()
    bench.consoles.connect(cast("Any", SimpleNamespace(channels={}, pending_bytes=0, send=lambda _data: None)))
    assert len(bench.consoles.hubs) == 3


def _on(bench: Bench, name: str) -> bool:
    return bench.session.channels[name].fileno() in bench.selector.get_map()
