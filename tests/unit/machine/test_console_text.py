from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armvm.errors import UsageError
from armvm.machine.console_text import ConsoleText, Pattern, harmless

FIRMWARE = (
    b"\x1b[2J\x1b[01;01H\x1b[=3hUEFI \x1b[0m\x1b[37m\x1b[40mfirm\x1b]0;title\x07ware\r\n"
    b"\x1b(Bgo\xc3\xa9\r\r\n10%\r20%\x00\x9b31m!\n"
)
PLAIN = "UEFI firmware\ngo\u00e9\n10%\n20%!\n"


def fed(*chunks: bytes) -> str:
    text = ConsoleText()
    return "".join(map(text.feed, chunks))


def test_control_sequences_are_taken_out() -> None:
    # An 8-bit CSI is not UTF-8: it is replaced like any other stray byte.
    assert fed(FIRMWARE) == PLAIN.replace("!", "\ufffd31m!")
    assert fed("\x9b31mred\x85".encode()) == "red"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_and_so_they_are_across_chunks(size: int) -> None:
    chunks = [FIRMWARE[i : i + size] for i in range(0, len(FIRMWARE), size)]
    assert fed(*chunks) == fed(FIRMWARE)


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_chunks_make_no_difference_and_no_control_character_passes(chunks: list[bytes]) -> None:
    # What is still unfinished at the end may differ in nothing but being kept back.
    end = b"\x1b[0m" * 2 + b"." * 300
    text = fed(*chunks, end)
    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in text)


@given(st.text(alphabet="\x1b[]()0;mH\r\n\tab", max_size=60), st.integers(0, 60))
def test_a_border_anywhere_changes_nothing(text: str, border: int) -> None:
    data = text.encode() + b"\x07." * 3
    assert fed(data[:border], data[border:]) == fed(data)


def test_a_sequence_without_end_does_not_swallow_the_console() -> None:
    text = ConsoleText()
    text.feed(b"\x1b]" + b"x" * 5000)
    text.feed(b" login: ")
    text.feed(b"y" * 300)
    assert "login: " in text.window


def test_the_window_is_bounded_and_the_tail_is_its_last_lines() -> None:
    text = ConsoleText()
    for number in range(10_000):
        text.feed(f"line {number}\r\n\r\n".encode())
    assert len(text.window) <= 8192
    assert text.tail.splitlines() == [f"line {number}" for number in range(9980, 10_000)]


def test_patterns_see_lines() -> None:
    assert Pattern("^login:").found_in("Debian\nlogin: ")
    assert Pattern("READY$").found_in("READY\nmore")
    assert not Pattern("^READY$").found_in("not READY\n")


def test_what_is_no_pattern() -> None:
    with pytest.raises(UsageError, match="not a regular expression"):
        Pattern("(")


def test_a_pattern_that_backtracks_for_ever_is_given_up() -> None:
    started = time.process_time()
    with pytest.raises(UsageError, match="takes too long"):
        Pattern("(a+)+$").found_in("a" * 5000 + "!")
    assert time.process_time() - started < 10


def test_text_for_a_terminal_is_harmless() -> None:
    assert harmless("a\tb\nc\u202ed") == "a\tb\nc\\u202ed"
