from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Self

import pytest

from armvm.machine import console
from armvm.machine.backend import ConsoleOutput, Ended, Ending, Event, GuestReset, Readable
from armvm.machine.console import Conversation, Outcome, power_off
from armvm.machine.console_text import Pattern


class Script:
    """A Session that plays events; keys that are typed, and what is asked of it, are noted."""

    def __init__(self, *events: Event | None, keyboard: int | None = None) -> None:
        self._events = list(events)
        self._keyboard = keyboard
        self.pending_bytes = 0
        self.typed = b""
        self.asked = 0

    def poll(self, timeout_seconds: float | None, watch: Sequence[int] = ()) -> list[Event]:
        if self._keyboard in watch:
            return [Readable(int(self._keyboard or 0))]
        if self._events:
            event = self._events.pop(0)
            return [event] if event is not None else []
        assert timeout_seconds is not None, "nothing would ever happen again"
        time.sleep(timeout_seconds)
        return []

    def send(self, data: bytes) -> None:
        self.typed += data

    def request_power_off(self) -> None:
        self.asked += 1

    def end(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def keys() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_the_guest_powers_off() -> None:
    script = Script(ConsoleOutput(b"bye"), Ended(Ending.POWERED_OFF))
    seen: list[tuple[bytes, str]] = []
    conversation = Conversation(script, sinks=[lambda data, text: seen.append((data, text))])
    assert conversation.run() is Outcome.POWERED_OFF
    assert seen == [(b"bye", "bye")]


@pytest.mark.parametrize("ending", Ending)
def test_every_ending_is_an_outcome(ending: Ending) -> None:
    assert Conversation(Script(Ended(ending))).run().value == ending.value


def test_until_is_seen_across_chunks() -> None:
    script = Script(ConsoleOutput(b"lo\x1b[3"), ConsoleOutput(b"1mgi"), None, ConsoleOutput(b"n: "))
    assert Conversation(script, until=Pattern("login:"), timeout_seconds=60).run() is Outcome.MATCHED


def test_what_is_said_last_counts() -> None:
    script = Script(ConsoleOutput(b"done"), Ended(Ending.POWERED_OFF))
    assert Conversation(script, until=Pattern("done")).run() is Outcome.MATCHED
    script = Script(ConsoleOutput(b"nothing"), Ended(Ending.POWERED_OFF))
    assert Conversation(script, until=Pattern("done")).run() is Outcome.POWERED_OFF


def test_the_time_is_kept_even_when_the_guest_never_stops_talking() -> None:
    class Chatter(Script):
        def poll(self, *_: object) -> list[Event]:
            return [ConsoleOutput(b"noise " * 1000)]

    started = time.monotonic()
    assert Conversation(Chatter(), until=Pattern("login:"), timeout_seconds=0.3).run() is Outcome.TIMED_OUT
    assert time.monotonic() - started < 5


def test_a_guest_that_resets_for_ever_is_given_up_only_when_something_is_waited_for() -> None:
    resets = [GuestReset(count) for count in range(1, 20)]
    conversation = Conversation(Script(*resets), until=Pattern("login:"))
    assert conversation.run() is Outcome.RESET_LOOP
    assert conversation.resets == 8
    patient = Conversation(Script(*resets, Ended(Ending.POWERED_OFF)))
    assert patient.run() is Outcome.POWERED_OFF
    assert patient.resets == 19


def test_keys_go_to_the_guest_and_leaving_asks_it_to_power_off(keys: tuple[int, int]) -> None:
    reading, writing = keys
    script = Script(keyboard=reading)
    notices: list[str] = []
    os.write(writing, b"ls\x03\r\x1dy\x1dnever")
    conversation = Conversation(script, keyboard=reading, notice=notices.append)
    assert conversation.run() is Outcome.LEFT
    assert script.typed == b"ls\x03\ry"
    assert script.asked == 1
    assert len(notices) == 1


def test_leaving_does_not_wait_for_ever(keys: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "POWER_OFF_SECONDS", 0.2)
    reading, writing = keys

    class Deaf(Script):
        def poll(self, timeout_seconds: float | None, watch: Sequence[int] = ()) -> list[Event]:
            if self.asked:
                time.sleep(timeout_seconds or 0)
                return []
            return super().poll(timeout_seconds, watch)

    os.write(writing, b"\x1d")
    script = Deaf(keyboard=reading)
    assert Conversation(script, keyboard=reading).run() is Outcome.LEFT
    assert script.asked == 1


def test_a_guest_that_takes_no_keys_is_not_flooded(keys: tuple[int, int]) -> None:
    reading, writing = keys
    os.write(writing, b"x")
    script = Script(Ended(Ending.POWERED_OFF), keyboard=reading)
    script.pending_bytes = 1 << 20
    assert Conversation(script, keyboard=reading).run() is Outcome.POWERED_OFF
    assert script.typed == b""


def test_a_keyboard_that_ends_does_no_harm() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    try:
        script = Script(Ended(Ending.POWERED_OFF), keyboard=reading)
        assert Conversation(script, keyboard=reading).run() is Outcome.POWERED_OFF
    finally:
        os.close(reading)


def test_powering_off() -> None:
    script = Script(ConsoleOutput(b"stopping"), Ended(Ending.POWERED_OFF))
    assert power_off(script) is Outcome.POWERED_OFF
    assert script.asked == 1
