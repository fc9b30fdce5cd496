"""A foreign parser that loops, blows up or lies ends in an InputError."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from armvm.disk.guarded import MOST_READ_BYTES, DiskStream, Guard
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError, MissingError

NAMES: list[str] = []
NUMBERS: dict[str, int] = {}
DISK = MemoryDisk(bytes(range(256)) * 16, name="disk.img")


def loops_and_swallows(_: DiskStream) -> None:
    while True:
        with suppress(Exception):  # what a careless library does
            max(len("never"), 1)


def reads_for_ever(stream: DiskStream) -> None:
    while True:
        stream.seek(0)
        stream.read(4096)


def recurses(stream: DiskStream) -> None:
    recurses(stream)


def reads_a_little_for_ever(stream: DiskStream) -> None:
    while stream.read(1) is not None:
        pass


@pytest.mark.parametrize(
    ("parser", "why"),
    [
        (loops_and_swallows, "more than 2 seconds"),
        (reads_for_ever, "more than"),
        (reads_a_little_for_ever, "more than"),
        (recurses, "no end"),
        (lambda _: NAMES[3], "IndexError"),
        (lambda _: NUMBERS["\x1b[31m"], r"KeyError: '\\x1b"),
        (lambda stream: stream.seek(-1), "before the start"),
        (lambda _: bytearray(1 << 62), "no end"),
    ],
)
def test_whatever_a_parser_does_ends(parser: Callable[[DiskStream], object], why: str) -> None:
    guard = Guard(DISK, subject="partition 2")
    started = time.process_time()
    with pytest.raises(InputError, match=why) as caught, guard.question("/etc") as stream:
        parser(stream)
    assert time.process_time() - started < 4
    assert str(caught.value).startswith("partition 2")
    assert sys.getprofile() is None


def test_errors_of_our_own_come_through() -> None:
    with pytest.raises(MissingError), Guard(DISK, subject="x").question():
        raise MissingError("no", component="none")


def test_every_question_has_a_budget_of_its_own() -> None:
    guard = Guard(DISK, subject="x")
    for _ in range(3):
        with guard.question() as stream:
            for _ in range(MOST_READ_BYTES // 4096):
                stream.seek(0)
                assert len(stream.read()) == 4096


def test_a_stream_is_a_file() -> None:
    stream = DiskStream(DISK, subject="x")
    assert stream.seek(-6, 2) == 4090
    assert stream.read(100) == DISK.read(4090, 6)
    assert stream.read(10) == b""
    assert (stream.tell(), stream.readable(), stream.seekable()) == (4096, True, True)
    assert stream.seek(10_000) == 10_000
    assert stream.read(1) == b""


def test_who_profiles_us_is_left_in_peace() -> None:
    seen = []
    sys.setprofile(lambda *_: seen.append(1))
    try:
        with Guard(DISK, subject="x").question():
            len("x")
        assert sys.getprofile() is not None
    finally:
        sys.setprofile(None)
    assert seen
