from __future__ import annotations

import random

import pytest

from armvm.disk.compare import data_bytes, first_difference
from armvm.disk.composed import ComposedDisk
from armvm.disk.storage import Disk, Extent, MemoryDisk, Slice
from armvm.disk.write import CHUNK_BYTES

MIB = 1 << 20


def _sparse(size: int, *pieces: tuple[int, bytes]) -> ComposedDisk:
    return ComposedDisk("sparse", size, [(offset, MemoryDisk(content)) for offset, content in pieces])


def test_equal_whatever_is_data() -> None:
    one = _sparse(10 * MIB, (MIB, b"x" * 100), (5 * MIB, bytes(100)))
    other = MemoryDisk(one.read(0, 10 * MIB))
    assert first_difference(one, other) is None
    assert first_difference(other, one) is None


@pytest.mark.parametrize("offset", [0, 1, MIB - 1, CHUNK_BYTES, CHUNK_BYTES + 77, 10 * MIB - 1])
def test_the_first_byte_that_differs(offset: int) -> None:
    content = bytearray(random.Random(1).randbytes(10 * MIB))
    one = MemoryDisk(bytes(content))
    content[offset] ^= 1
    content[-1] ^= 2
    assert first_difference(one, MemoryDisk(bytes(content))) == offset
    assert first_difference(MemoryDisk(bytes(content)), one) == offset


def test_data_against_a_hole() -> None:
    holes = _sparse(10 * MIB)
    assert first_difference(holes, _sparse(10 * MIB, (7 * MIB, b"\0" * 9 + b"x"))) == 7 * MIB + 9
    assert first_difference(_sparse(10 * MIB, (7 * MIB, b"x")), holes) == 7 * MIB


def test_behind_the_end_there_are_zeros() -> None:
    assert first_difference(MemoryDisk(b"ab"), MemoryDisk(b"ab" + bytes(510))) is None
    assert first_difference(MemoryDisk(b"ab"), MemoryDisk(b"abc")) == 2
    assert first_difference(MemoryDisk(b"ab"), MemoryDisk(b"abc"), size_bytes=2) is None


def test_nobody_reads_what_both_know_to_be_zeros() -> None:
    class Unreadable(MemoryDisk):
        def _read(self, offset: int, length: int) -> bytes:
            assert offset >= 8 * MIB
            return super()._read(offset, length)

    disks: list[Disk] = [
        ComposedDisk("huge", 1 << 50, [(8 * MIB, MemoryDisk(b"x" * 5)), (1 << 49, MemoryDisk(b"y"))]) for _ in range(2)
    ]
    told: list[int] = []
    assert first_difference(*disks, progress=told.append) is None
    assert told == sorted(told)
    assert told[-1] == 1 << 50
    assert data_bytes(disks[0]) == 6


def test_a_slice_is_as_sparse_as_its_disk() -> None:
    disk = ComposedDisk("c", 1000, [(100, MemoryDisk(b"x" * 50)), (200, MemoryDisk(b"y" * 50))])
    part = Slice(disk, 120, 100, name="part")
    assert list(part.extents()) == [
        Extent(0, 30, data=True),
        Extent(30, 50, data=False),
        Extent(80, 20, data=True),
    ]
    assert list(Slice(disk, 500, 100, name="part").extents()) == [Extent(0, 100, data=False)]
    assert list(Slice(disk, 0, 0, name="nothing").extents()) == []
