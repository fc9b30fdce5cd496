"""The consoles of a running machine and everybody at them: logs, and any number of watchers who see all and may type.

No watcher holds the guest up. One who reads too slowly misses something, and is told so.
"""

from __future__ import annotations

import selectors
from contextlib import suppress
from typing import TYPE_CHECKING

from armvm.instance.log import ConsoleLog
from armvm.machine.console_text import ConsoleText

if TYPE_CHECKING:
    from armvm.instance.listener import Peer
    from armvm.instance.store import Instance
    from armvm.machine.qemu.session import QemuSession

SCROLLBACK_BYTES = 1 << 16
"""How much of what was said is shown to who comes later."""

_MOST_UNSENT_BYTES = 1 << 20
_MOST_TYPED_BYTES = 65536
_READ_BYTES = 65536


class ConsoleHub:
    """A console: ``text`` is the last that was said on it, ``watchers`` who sees and types.

    ``followers`` are told by a newline that the log has grown, and nothing else.
    """

    def __init__(self, log: ConsoleLog) -> None:
        self.text = ConsoleText()
        self.log = log
        self.watchers: list[Peer] = []
        self.followers: list[Peer] = []
        self._scrollback = bytearray()
        self._missed: dict[Peer, int] = {}

    def said(self, data: bytes) -> None:
        """The guest said ``data``."""
        self.log.write(self.text.feed(data))
        self._scrollback += data
        del self._scrollback[:-SCROLLBACK_BYTES]
        for watcher in list(self.watchers):
            self._tell(watcher, data)
        self.nudge()

    def nudge(self) -> None:
        """Tell the followers that there is something new."""
        for follower in list(self.followers):
            if not follower.unsent_bytes:
                follower.send(b"\n")

    def add(self, watcher: Peer, *, scrollback: bool) -> None:
        """Let ``watcher`` see what is said from now on, and with ``scrollback`` what was said last."""
        self.watchers.append(watcher)
        if scrollback and self._scrollback:
            watcher.send(bytes(self._scrollback))

    def remove(self, peer: Peer) -> None:
        """Forget somebody who is gone, or never was here."""
        for group in (self.watchers, self.followers):
            if peer in group:
                group.remove(peer)
        self._missed.pop(peer, None)

    def _tell(self, watcher: Peer, data: bytes) -> None:
        if watcher.unsent_bytes + len(data) > _MOST_UNSENT_BYTES:
            self._missed[watcher] = self._missed.get(watcher, 0) + len(data)
            return
        missed = self._missed.pop(watcher, 0)
        if missed:
            watcher.send(f"\r\n[armvm: {missed} bytes were said too fast for this terminal]\r\n".encode())
        watcher.send(data)


class Consoles:
    """All consoles of a machine, by number: the first is the session's own, the others its channels."""

    def __init__(self, instance: Instance, selector: selectors.BaseSelector) -> None:
        self.hubs: list[ConsoleHub] = []
        self._instance = instance
        self._selector = selector
        self._session: QemuSession | None = None
        self._unsent: dict[int, bytearray] = {}
        self._typing: dict[Peer, int] = {}

    def connect(self, session: QemuSession) -> None:
        """Carry the consoles of ``session`` from now on. Raises OutputError when a log cannot be written."""
        self._session = session
        self._open(0)
        for number in range(1, len(session.channels) + 1):
            channel = session.channels.get(f"console{number}")
            if channel is not None:
                self._open(number)
                self._unsent[number] = bytearray()
                self._selector.register(channel, selectors.EVENT_READ, self._carrier(number))

    def disconnect(self) -> None:
        """Leave the session, which is about to end. Watchers stay."""
        if self._session is not None:
            for number in self._unsent:
                with suppress(KeyError, ValueError):
                    self._selector.unregister(self._session.channels[f"console{number}"])
        self._unsent.clear()
        self._session = None

    def watch(self, number: int, peer: Peer, *, scrollback: bool) -> None:
        """Let ``peer`` see the console of that number, and type on it."""
        self.hubs[number].add(peer, scrollback=scrollback)
        self._typing[peer] = number
        peer.take = lambda data: self._type(number, data)

    def remove(self, peer: Peer) -> None:
        """Forget somebody who is gone."""
        self._typing.pop(peer, None)
        for hub in self.hubs:
            hub.remove(peer)

    def nudge(self) -> None:
        """Tell every follower that there is something new."""
        for hub in self.hubs:
            hub.nudge()

    def hold_back(self) -> None:
        """Read no more from who types on a console that takes nothing, until it does."""
        for peer, number in list(self._typing.items()):
            peer.pause(paused=self._untyped_bytes(number) > _MOST_TYPED_BYTES)

    def close(self) -> None:
        """Close the logs."""
        for hub in self.hubs:
            hub.log.close()

    def _open(self, number: int) -> None:
        if number == len(self.hubs):
            self.hubs.append(ConsoleHub(ConsoleLog(self._instance.console_log(number))))

    def _type(self, number: int, data: bytes) -> None:
        if self._session is None:
            return
        if number not in self._unsent:
            self._session.send(data)
            return
        self._unsent[number] += data
        self._carry(number, selectors.EVENT_WRITE)

    def _untyped_bytes(self, number: int) -> int:
        if number in self._unsent:
            return len(self._unsent[number])
        return self._session.pending_bytes if self._session is not None else 0

    def _carrier(self, number: int):  # type: ignore[no-untyped-def] # a callback of the selector's
        return lambda mask: self._carry(number, mask)

    def _carry(self, number: int, mask: int) -> None:
        """Bytes of a console beside the first, both ways, as far as that needs no waiting."""
        if self._session is None or number not in self._unsent:
            return
        channel, unsent = self._session.channels[f"console{number}"], self._unsent[number]
        data: bytes | None = None
        try:
            if mask & selectors.EVENT_READ:
                with suppress(BlockingIOError):
                    data = channel.recv(_READ_BYTES)
            with suppress(BlockingIOError):
                while mask & selectors.EVENT_WRITE and unsent:
                    del unsent[: channel.send(unsent)]
        except OSError:
            data = b""
        if data:
            self.hubs[number].said(data)
        if data == b"":
            self._selector.unregister(channel)
            del self._unsent[number]
        else:
            writing = selectors.EVENT_WRITE if unsent else 0
            self._selector.modify(channel, selectors.EVENT_READ | writing, self._carrier(number))
