from __future__ import annotations

import random

from armvm.disk.read_ahead import BLOCK_BYTES, KEPT_BYTES, MOST_FETCHED_BYTES, ReadAhead


class _Source:
    def __init__(self, size_bytes: int) -> None:
        self.content = random.Random(1).randbytes(size_bytes)
        self.fetched: list[tuple[int, int]] = []
        self.blocks = ReadAhead(size_bytes, self.fetch)

    def fetch(self, offset: int, length: int) -> bytes:
        assert 0 <= offset < offset + length <= len(self.content)
        self.fetched.append((offset, length))
        return self.content[offset : offset + length]

    def read(self, offset: int, length: int) -> None:
        assert self.blocks.read(offset, length) == self.content[offset : offset + length]

    @property
    def fetched_bytes(self) -> int:
        return sum(length for _, length in self.fetched)


def test_every_read_is_right_and_a_fetch_is_bounded() -> None:
    source = _Source(10 * BLOCK_BYTES + 77)
    chance = random.Random(2)
    for _ in range(500):
        start = chance.randrange(len(source.content) + 1)
        source.read(start, chance.randrange(min(3 * BLOCK_BYTES, len(source.content) - start) + 1))
    source.read(0, len(source.content))
    assert source.fetched_bytes == len(source.content)  # nothing twice


def test_scattered_reads_fetch_one_block_each() -> None:
    source = _Source(200 * BLOCK_BYTES)
    for number in (7, 150, 3, 90, 44):
        source.read(number * BLOCK_BYTES + 100, 16)
        source.read(number * BLOCK_BYTES + 9000, 512)
    assert source.fetched == [(number * BLOCK_BYTES, BLOCK_BYTES) for number in (7, 150, 3, 90, 44)]


def test_reading_on_fetches_ever_more_up_to_a_bound() -> None:
    source = _Source(24 << 20)
    for offset in range(0, len(source.content), 4096):
        source.read(offset, 4096)
    lengths = [length for _, length in source.fetched]
    assert lengths[:6] == [BLOCK_BYTES * blocks for blocks in (1, 1, 2, 4, 8, 16)]
    assert max(lengths) == MOST_FETCHED_BYTES
    assert source.fetched_bytes == len(source.content)


def test_two_streams_in_step_are_both_noticed() -> None:
    source = _Source(400 * BLOCK_BYTES)
    for number in range(64):
        source.read(number * BLOCK_BYTES, BLOCK_BYTES)
        source.read((number + 200) * BLOCK_BYTES, BLOCK_BYTES)
    assert len(source.fetched) < 20


def test_what_is_kept_is_bounded() -> None:
    source = _Source(KEPT_BYTES + (8 << 20))
    source.read(0, len(source.content))
    before = len(source.fetched)
    source.read(len(source.content) - KEPT_BYTES, KEPT_BYTES)
    assert len(source.fetched) == before
    source.read(0, 1)
    assert len(source.fetched) == before + 1
    assert max(length for _, length in source.fetched) == MOST_FETCHED_BYTES


def test_what_is_put_is_not_fetched_unless_it_is_no_whole_block() -> None:
    source = _Source(2 * BLOCK_BYTES + 5)
    source.blocks.put(0, source.content[:BLOCK_BYTES])
    source.blocks.put(BLOCK_BYTES, source.content[BLOCK_BYTES : BLOCK_BYTES + 9])
    source.blocks.put(2 * BLOCK_BYTES, source.content[2 * BLOCK_BYTES :])
    source.read(0, len(source.content))
    assert source.fetched == [(BLOCK_BYTES, BLOCK_BYTES)]
