from __future__ import annotations

from pathlib import Path

import pytest

from armvm.disk.composed import ComposedDisk
from armvm.disk.raw import RawDisk
from armvm.disk.storage import Extent, MemoryDisk, Slice
from armvm.errors import InputError
from tools.containers import MIB, assert_reads_as, scattered_raw


def test_pieces_and_the_zeros_between_them(tmp_path: Path) -> None:
    raw = scattered_raw(tmp_path / "raw", MIB)
    pieces = [(3 * MIB, RawDisk(tmp_path / "raw")), (10, MemoryDisk(b"a" * 20)), (30, MemoryDisk(b"b" * 5))]
    content = bytearray(5 * MIB)
    content[10:35] = b"a" * 20 + b"b" * 5
    content[3 * MIB : 4 * MIB] = raw
    with ComposedDisk("composed", 5 * MIB, pieces, sector_size=4096) as disk:
        assert (disk.name, disk.format, disk.sector_size) == ("composed", "raw", 4096)
        assert_reads_as(disk, bytes(content))


def test_no_pieces() -> None:
    disk = ComposedDisk("empty", 1000, [(1000, MemoryDisk(b""))])
    assert disk.read(0, 1000) == bytes(1000)
    assert list(disk.extents()) == [Extent(0, 1000, data=False)]


def test_piece_up_to_the_end() -> None:
    disk = ComposedDisk("full", 4, [(2, MemoryDisk(b"cd")), (0, MemoryDisk(b"ab"))])
    assert disk.read(0, 4) == b"abcd"
    assert disk.read(1, 2) == b"bc"
    assert list(disk.extents()) == [Extent(0, 2, data=True), Extent(2, 2, data=True)]


@pytest.mark.parametrize("offsets", [(0, 3), (3, 0), (5, 5), (-1, 20), (0, 97)])
def test_pieces_that_overlap_or_reach_outside(offsets: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"overlaps|past the disk"):
        ComposedDisk("bad", 100, [(offset, MemoryDisk(b"1234")) for offset in offsets])


def test_reads_outside_are_refused() -> None:
    with pytest.raises(InputError, match="past the end"):
        ComposedDisk("c", 10, []).read(8, 3)


def test_closing_closes_the_pieces(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(512))
    piece = RawDisk(tmp_path / "raw")
    with ComposedDisk("c", 512, [(0, piece)]):
        pass
    with pytest.raises(ValueError, match="closed"):
        piece.read(0, 1)


def test_slice_of_a_composed_disk() -> None:
    disk = ComposedDisk("c", 1000, [(100, MemoryDisk(b"x" * 50))], sector_size=4096)
    part = Slice(disk, 90, 100, name="partition 1")
    assert part.read(5, 10) == bytes(5) + b"x" * 5
    assert (part.name, part.sector_size) == ("c, partition 1", 4096)
    with pytest.raises(InputError, match="reaches outside"):
        Slice(disk, 950, 100, name="partition 2")
