from __future__ import annotations

import pytest

from armvm.lab.wire import MOST_BODY_BYTES, Frame, Reader, WireError, serialise

FRAMES = [
    Frame("ready", b"{}"),
    Frame("said", b"@L1 said 3 00000000\nabc\n"),
    Frame("done"),
    Frame("said", bytes(range(256))),
]


@pytest.mark.parametrize("step", [1, 7, 4096])
def test_frames_come_back_whole_however_they_are_cut(step: int) -> None:
    data = b"".join(map(serialise, FRAMES))
    reader = Reader()
    found = [frame for start in range(0, len(data), step) for frame in reader.feed(data[start : start + step])]
    assert found == FRAMES


def test_what_stands_between_is_passed_over() -> None:
    reader = Reader()
    data = b"left over @L" + serialise(FRAMES[0]) + b"\0\0 @ noise\n" + serialise(FRAMES[2]) + b"@L1"
    assert list(reader.feed(data)) == [FRAMES[0], FRAMES[2]]
    assert list(reader.feed(b" done 0 00000000\n")) == [Frame("done")]


def test_noise_without_end_is_not_kept() -> None:
    reader = Reader()
    for _ in range(64):
        assert list(reader.feed(b"x" * 65536)) == []
    assert len(reader._buffer) < 8


@pytest.mark.parametrize(
    "data",
    [
        b"@L1 said 3 00000000\nabc",
        b"@L1 said x 00000000\n",
        b"@L1 said -1 00000000\n",
        b"@L1 said %d 00000000\n" % (MOST_BODY_BYTES + 1),
        b"@L1 sa1d 0 00000000\n",
        b"@L1 said 0 0\n",
        b"@L1 " + b"a" * 100,
        b"@L1 \xff 0 00000000\n",
    ],
)
def test_a_damaged_frame_ends_it(data: bytes) -> None:
    with pytest.raises(WireError):
        list(Reader().feed(data))


def test_a_body_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(WireError):
        serialise(Frame("said", bytes(MOST_BODY_BYTES + 1)))
