"""Hostile partition tables: never an exception, never slow, never a large allocation."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armvm.disk.gpt import PartitionTable, TableKind, read_partition_table
from armvm.disk.storage import BaseDisk
from armvm.printable import printable
from tools.gpt_images import BROKEN, MIB, Entry, array_offset, fix_crcs, good_gpt, header_offsets, put

SIZE = MIB // 4
GOOD = {
    size: bytes(good_gpt(SIZE, size, [Entry(1, 15, 19), Entry(2, 20, 40)] if size == 4096 else [Entry(1, 64, 99)]))
    for size in (512, 4096)
}
SMALL = SIZE // 512
EDGES = (0, 1, 2, 33, 34, 127, 128, 129, SMALL - 34, SMALL - 1, SMALL, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
NUMBER = st.sampled_from(EDGES) | st.integers(0, (1 << 64) - 1)
PLACE = st.sampled_from(EDGES) | st.integers(0, SMALL)
WIDTHS = {8: "<I", 12: "<I", 16: "<I", 20: "<I", 24: "<Q", 32: "<Q", 40: "<Q", 48: "<Q"}
WIDTHS |= {72: "<Q", 80: "<I", 84: "<I", 88: "<I"}
MOST_READ_BYTES = 2 * 16 * MIB + 8 * 4096
SECONDS = 1.0


class CountedDisk(BaseDisk):
    """Bytes in memory that say how much was read of them."""

    def __init__(self, content: bytes | bytearray, sector_size: int = 512, size_bytes: int | None = None) -> None:
        super().__init__("hostile", "raw", len(content) if size_bytes is None else size_bytes, sector_size)
        self.content = bytes(content)
        self.bytes_read = 0

    def _read(self, offset: int, length: int) -> bytes:
        self.bytes_read += length
        return self.content[offset : offset + length].ljust(length, b"\0")


def judged(disk: CountedDisk) -> PartitionTable:
    started = time.process_time()
    table = read_partition_table(disk)
    assert time.process_time() - started < SECONDS
    assert disk.bytes_read <= MOST_READ_BYTES
    assert len(table.problems) < 1000
    for problem in table.problems:
        text = f"{problem.message} {problem.evidence.where} {problem.evidence.found} {problem.evidence.expected}"
        assert printable(text) == text
    if table.kind is not TableKind.GPT or not (table.primary_intact and table.backup_intact):
        assert table.serious_problems
    for partition in table.partitions:
        assert partition.size_bytes(disk.sector_size) >= 0
        partition.name.encode()
    return table


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("seed", range(100))
def test_flipped_bits(seed: int, sector_size: int) -> None:
    chance = random.Random(seed)
    image = bytearray(GOOD[sector_size])
    metadata = [*range(440, 512), *range(sector_size, sector_size + 92), *range(2 * sector_size, 2 * sector_size + 256)]
    metadata += [len(image) - sector_size + offset for offset in range(92)]
    for _ in range(chance.choice((1, 1, 2, 5, 30))):
        image[chance.choice(metadata)] ^= 1 << chance.randrange(8)
    # One bit may leave a legal disk (a CHS end, a boot indicator); two tables that differ are always told.
    table = judged(CountedDisk(image, sector_size))
    changed = image[sector_size:] != GOOD[sector_size][sector_size:]
    assert bool(table.serious_problems) or not changed
    if seed % 2:
        judged(CountedDisk(fix_crcs(image, sector_size), sector_size))


@settings(max_examples=150, deadline=None)
@given(
    lies=st.lists(st.tuples(st.booleans(), st.sampled_from(sorted(WIDTHS)), NUMBER), max_size=5),
    sector_size=st.sampled_from([512, 4096]),
    size_bytes=st.sampled_from([SIZE, SIZE - 1, 1 << 62]),
)
def test_lying_headers(lies: list[tuple[bool, int, int]], sector_size: int, size_bytes: int) -> None:
    image = bytearray(GOOD[sector_size])
    headers = header_offsets(image, sector_size)
    for of_backup, offset, value in lies:
        width = WIDTHS[offset]
        put(image, headers[of_backup] + offset, width, value % (1 << 8 * struct.calcsize(width)))
    judged(CountedDisk(image, sector_size, size_bytes))
    judged(CountedDisk(fix_crcs(image, sector_size), sector_size, size_bytes))


@settings(max_examples=100, deadline=None)
@given(
    entries=st.lists(
        st.tuples(st.integers(1, 128), PLACE, PLACE, st.sampled_from(EDGES), st.binary(max_size=72)), max_size=20
    )
)
def test_lying_entries(entries: list[tuple[int, int, int, int, bytes]]) -> None:
    image = bytearray(GOOD[512])
    for header in header_offsets(image):
        for number, first, last, attributes, name in entries:
            raw = Entry(number, first, last, attributes=attributes).packed()
            start = array_offset(image, header) + (number - 1) * 128
            image[start : start + 128] = raw[:56] + name.ljust(72, b"\0")
    judged(CountedDisk(fix_crcs(image)))


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=9000), sector_size=st.sampled_from([512, 4096]))
def test_any_bytes(content: bytes, sector_size: int) -> None:
    judged(CountedDisk(content, sector_size))
    judged(CountedDisk(content[:sector_size].ljust(sector_size, b"\0") + b"EFI PART" + content, sector_size))


@pytest.mark.parametrize("code", BROKEN)
def test_broken_disks_read_with_the_other_sector_size_or_cut(code: str) -> None:
    image = BROKEN[code]()
    judged(CountedDisk(image, 4096))
    for size in (600, 5000, len(image) // 2, len(image) - 512):
        judged(CountedDisk(image[:size]))


def test_the_largest_table_that_is_read_with_everything_wrong_in_it() -> None:
    image = good_gpt(64 * MIB, partitions=[], entry_count=131072)
    hostile = Entry(1, 1 << 40, 3, attributes=1 << 20, name="x" * 36).packed()
    for header in header_offsets(image):
        start = array_offset(image, header)
        image[start : start + 16 * MIB] = hostile * 131072
    image[-513] ^= 1  # the very last entry of the backup
    disk = CountedDisk(fix_crcs(image))
    del image
    table = judged(disk)
    codes = {problem.code for problem in table.problems}
    assert {"too-many-partitions", "entries-differ", "partition-range", "partition-guid-duplicate"} <= codes

    tracemalloc.start()
    try:
        read_partition_table(disk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * MIB
