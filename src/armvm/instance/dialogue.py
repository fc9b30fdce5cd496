"""A conversation with a running guest for a script: type this, wait until it says that."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Self

from armvm.errors import GuestError
from armvm.instance import client
from armvm.instance.store import Instance
from armvm.machine.console_text import ConsoleText, Pattern

_MOST_CHARACTERS = 1 << 20
_MOST_READS = 16
_SEARCH_INTERVAL_SECONDS = 0.02


class Dialogue:
    """A conversation on the console ``index`` of ``instance``. A context, which ends it; the guest runs on.

    What is waited for must be said after the conversation began or, with ``scrollback``, within the last 64 KiB before;
    and after what was last sent, and what was last waited for. ``on_text`` gets what the guest says, as plain text.
    """

    def __init__(
        self,
        instance: Instance,
        *,
        index: int = 0,
        scrollback: bool = False,
        on_text: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._instance = instance
        self._connection = client.attach(instance, index=index, scrollback=scrollback)
        self._on_text = on_text
        self._text = ConsoleText()
        self._said = ""
        self._over = False
        self._hear(self._connection.first)

    def send(self, data: bytes, *, timeout_seconds: float = 60.0) -> None:
        """Type ``data``. Raises GuestError when the guest does not take it in time."""
        self._listen(0)
        self._said = ""
        deadline = time.monotonic() + timeout_seconds
        while data:
            data = data[self._connection.send(data) :]
            if data and self._over:
                return
            if data:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._failure(f"has not taken what was typed within {timeout_seconds:g} s")
                select.select([self._connection], [self._connection], [], left)
                self._listen(0)

    def expect(self, expression: str | Pattern, *, timeout_seconds: float) -> None:
        """Wait until the guest says what matches ``expression``; what comes after it is left for the next call.

        Raises GuestError, with the last that it said, when it does not; UsageError when that is no expression.
        """
        pattern = Pattern(expression) if isinstance(expression, str) else expression
        deadline = time.monotonic() + timeout_seconds
        while True:
            end = pattern.end_in(self._said)
            if end is not None:
                self._said = self._said[end:]
                return
            left = deadline - time.monotonic()
            if self._over:
                raise self._failure(f"ended and had not said what matches {pattern.expression!r}")
            if left <= 0:
                raise self._failure(f"has not said what matches {pattern.expression!r} within {timeout_seconds:g} s")
            self._listen(left)
            time.sleep(
                min(_SEARCH_INTERVAL_SECONDS, max(left, 0))
            )  # a search for every byte would take the guest's time
            self._listen(0)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self, timeout_seconds: float) -> None:
        """Take in what has come, waiting so long for something to come."""
        if self._over:
            return
        select.select([self._connection], [], [], timeout_seconds)
        for _ in range(_MOST_READS):  # a guest that never falls silent must not keep us from looking at the time
            data = self._connection.receive()
            if not data:
                self._over = data is not None
                return
            self._hear(data)

    def _hear(self, data: bytes) -> None:
        text = self._text.feed(data)
        if text:
            self._on_text(text)
            self._said = (self._said + text)[-_MOST_CHARACTERS:]

    def _failure(self, what: str) -> GuestError:
        return GuestError(f"the guest of instance {self._instance.name} {what}", console_tail=self._text.tail)
