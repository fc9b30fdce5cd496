"""The conversation between a guest's console and whoever is at this end: a terminal, a script, a log file."""

from __future__ import annotations

import enum
import os
import select
import time
from collections.abc import Callable, Sequence

from armvm.machine.backend import ConsoleOutput, Ended, Ending, Event, GuestReset, Readable, Session
from armvm.machine.console_text import ConsoleText, Pattern

LEAVE = b"\x1d"
"""Ctrl-]: what leaves the console."""
POWER_OFF_SECONDS = 10.0
"""How long a guest that is asked to power off may take."""

_MOST_RESETS = 8
_MOST_UNSENT_BYTES = 65536
_SEARCH_INTERVAL_SECONDS = 0.02

Sink = Callable[[bytes, str], None]
"""Takes what the guest says, as it said it and as plain text."""


class Outcome(enum.Enum):
    """Why a conversation is over."""

    MATCHED = "the guest said what was waited for"
    POWERED_OFF = Ending.POWERED_OFF.value
    STOPPED = Ending.STOPPED.value
    LEFT = "the user left"
    TIMED_OUT = "the time was over"
    RESET_LOOP = "the guest reset itself again and again"


class Conversation:
    """Carries bytes both ways until something ends it. ``text`` is what the guest has said.

    ``keyboard`` is a terminal in raw mode, or None. With ``until``, the guest's saying it ends the conversation, and
    so does a guest that keeps resetting itself.
    """

    def __init__(
        self,
        session: Session,
        *,
        sinks: Sequence[Sink] = (),
        keyboard: int | None = None,
        until: Pattern | None = None,
        timeout_seconds: float | None = None,
        notice: Callable[[str], None] = lambda _message: None,
    ) -> None:
        self.text = ConsoleText()
        self.resets = 0
        self._session = session
        self._sinks = sinks
        self._keyboard = keyboard
        self._until = until
        self._notice = notice
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._leave_by: float | None = None
        self._unsearched = False
        self._searched_at = 0.0

    def run(self) -> Outcome:
        """Carry on until it is over, and say why it is. The VM may still run."""
        while True:
            for event in self._session.poll(self._wait_seconds(), self._watched()):
                outcome = self._take(event)
                if outcome is not None:
                    return Outcome.MATCHED if self._matches() else outcome
            now = time.monotonic()
            if now >= self._searched_at + _SEARCH_INTERVAL_SECONDS and self._matches():
                return Outcome.MATCHED
            if self._leave_by is not None and now >= self._leave_by:
                return Outcome.LEFT
            if self._deadline is not None and now >= self._deadline:
                return Outcome.MATCHED if self._matches() else Outcome.TIMED_OUT

    def _wait_seconds(self) -> float | None:
        moments = [moment for moment in (self._deadline, self._leave_by) if moment is not None]
        if self._unsearched:
            moments.append(self._searched_at + _SEARCH_INTERVAL_SECONDS)
        return max(min(moments) - time.monotonic(), 0.0) if moments else None

    def _watched(self) -> tuple[int, ...]:
        """The keyboard, as long as the guest takes what is typed."""
        if self._keyboard is None or self._session.pending_bytes > _MOST_UNSENT_BYTES:
            return ()
        return (self._keyboard,)

    def _take(self, event: Event) -> Outcome | None:
        if isinstance(event, ConsoleOutput):
            clean = self.text.feed(event.data)
            self._unsearched = self._until is not None
            for sink in self._sinks:
                sink(event.data, clean)
        elif isinstance(event, GuestReset):
            self.resets = event.count
            if self._until is not None and event.count >= _MOST_RESETS:
                return Outcome.RESET_LOOP
        elif isinstance(event, Ended):
            return Outcome(event.how.value)
        elif isinstance(event, Readable):
            return self._type(event.descriptor)
        return None

    def _type(self, keyboard: int) -> Outcome | None:
        typed = os.read(keyboard, 4096)
        if not typed:
            self._keyboard = None
        for index, part in enumerate(typed.split(LEAVE)):
            if index and self._leave_by is not None:
                return Outcome.LEFT
            if index:
                self._leave_by = time.monotonic() + POWER_OFF_SECONDS
                self._session.request_power_off()
                self._notice("asking the guest to power off; Ctrl-] again ends it at once")
            self._session.send(part)
        return None

    def _matches(self) -> bool:
        if self._until is None or not self._unsearched:
            return False
        self._unsearched = False
        found = self._until.found_in(self.text.window)
        self._searched_at = time.monotonic()
        return found


def power_off(session: Session, *, sinks: Sequence[Sink] = ()) -> Outcome:
    """Ask the guest to power off and give it ``POWER_OFF_SECONDS`` for that."""
    session.request_power_off()
    return Conversation(session, sinks=sinks, timeout_seconds=POWER_OFF_SECONDS).run()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, also to a terminal that somebody has made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
