from __future__ import annotations

import io
from pathlib import Path

import pytest

from armvm.disk.composed import ComposedDisk
from armvm.disk.raw import RawDisk
from armvm.disk.storage import MemoryDisk
from armvm.disk.write import CHUNK_BYTES, data_runs, is_zero, write_raw
from tools.containers import MIB, scattered_raw


@pytest.mark.parametrize("length", [0, 1, 4096, CHUNK_BYTES - 1, CHUNK_BYTES])
def test_is_zero(length: int) -> None:
    assert is_zero(bytes(length))
    if length:
        assert not is_zero(bytes(length - 1) + b"\1")
        assert not is_zero(b"\1" + bytes(length - 1))


def test_copy_is_equal_and_sparse(tmp_path: Path) -> None:
    content = scattered_raw(tmp_path / "in", 16 * MIB + 700, pieces=5)
    target = tmp_path / "out"
    target.write_bytes(b"old" * 10_000_000)
    with RawDisk(tmp_path / "in") as source, target.open("r+b") as file:
        write_raw(file, source)
        assert file.tell() == 0
    assert target.read_bytes() == content
    assert target.stat().st_blocks * 512 < MIB


def test_data_that_is_zeros_becomes_a_hole(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(4 * MIB) + b"x" + bytes(MIB))
    with RawDisk(tmp_path / "in") as source, (tmp_path / "out").open("w+b") as file:
        write_raw(file, source)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert (tmp_path / "out").stat().st_blocks * 512 <= 128 * 1024


def test_empty_disk() -> None:
    file = io.BytesIO(b"old")
    write_raw(file, MemoryDisk(b""))
    assert file.getvalue() == b""


def test_progress_never_goes_back_and_ends_at_the_size() -> None:
    pieces = [(start, MemoryDisk(b"x" * 3000)) for start in range(0, 6 * MIB, MIB // 2 + 77)]
    told: list[int] = []
    write_raw(io.BytesIO(), ComposedDisk("c", 7 * MIB, pieces), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 7 * MIB


def test_runs_start_on_blocks_and_do_not_overlap() -> None:
    """Extents that begin and end anywhere share blocks; no block comes twice, none is lost."""
    starts = [0, 700, 5000, 65536 * 3 - 100, 65536 * 3 + 10, 65536 * 90 + 1]
    disk = ComposedDisk("c", 65536 * 100 + 77, [(start, MemoryDisk(b"y" * 50)) for start in starts])
    content = bytearray(disk.size_bytes)
    end = 0
    for offset, piece in data_runs(disk, block_bytes=65536):
        assert offset % 65536 == 0
        assert offset >= end
        assert len(piece) <= CHUNK_BYTES
        end = offset + len(piece)
        assert end % 65536 == 0 or end == disk.size_bytes
        content[offset:end] = piece
    assert bytes(content) == disk.read(0, disk.size_bytes)
