"""A disk with changes laid over it."""

from __future__ import annotations

import random

import pytest

from armvm.disk import patched
from armvm.disk.composed import ComposedDisk
from armvm.disk.patched import PatchedDisk
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError


@pytest.mark.parametrize("kept", [0, 3, 1000])
@pytest.mark.parametrize("size", [100_000, 100_001, 4096, 511])
def test_it_reads_as_if_it_had_been_written(size: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patched, "_MOST_KEPT", kept)
    source = random.Random(size)
    base = source.randbytes(size)
    model = bytearray(base)
    with PatchedDisk(MemoryDisk(base)) as disk:
        for _ in range(60):
            offset = source.randrange(size)
            content = source.randbytes(source.randrange(min(9000, size - offset) + 1))
            disk.write(offset, content)
            model[offset : offset + len(content)] = content
            start = source.randrange(size)
            stop = source.randrange(start, size + 1)
            assert disk.read(start, stop - start) == model[start:stop]
        assert disk.base.read(0, size) == base
        again = bytearray(base)
        end = 0
        for offset, old, new in disk.changes():
            assert base[offset : offset + len(old)] == old
            assert len(old) == len(new)
            assert offset % 512 == 0
            assert offset >= end
            assert old != new
            end = offset + len(new)
            again[offset:end] = new
        assert again == model


def test_what_is_written_back_is_no_change() -> None:
    with PatchedDisk(MemoryDisk(b"same" * 4096)) as disk:
        disk.write(1000, b"same" * 100)
        disk.write(5000, b"other")
        disk.write(5000, b"same" * 2)
        assert list(disk.changes()) == []


def test_neighbours_are_one_change_and_long_ones_are_divided() -> None:
    with PatchedDisk(MemoryDisk(bytes(4 << 20))) as disk:
        disk.write(512, b"\1" * (3 << 20))
        lengths = [len(new) for _, _, new in disk.changes()]
    assert lengths == [1 << 20] * 3


def test_what_was_changed_is_data() -> None:
    with PatchedDisk(ComposedDisk("holes", 1 << 20, [(65536, MemoryDisk(b"x" * 4096))])) as disk:
        disk.write(0, b"a")
        disk.write(500_000, b"b" * 5000)
        found = [(extent.offset, extent.length, extent.data) for extent in disk.extents()]
    assert found == [
        (0, 4096, True),
        (4096, 61440, False),
        (65536, 4096, True),
        (69632, 430080, False),
        (499712, 8192, True),
        (507904, 540672, False),
    ]


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (100, 1), (90, 11)])
def test_nothing_is_written_outside(offset: int, length: int) -> None:
    with PatchedDisk(MemoryDisk(bytes(100))) as disk:
        with pytest.raises(InputError):
            disk.write(offset, bytes(length))
        with pytest.raises(InputError):
            disk.window(10, 20, name="window").write(offset if offset < 0 else 20, b"x")


def test_a_window_writes_through_and_knows_the_holes() -> None:
    with PatchedDisk(ComposedDisk("holes", 1 << 20, [(65536, MemoryDisk(b"x" * 4096))])) as disk:
        window = disk.window(65536, 8192, name="window")
        window.write(5, b"yes")
        assert disk.read(65541, 3) == b"yes"
        assert [(e.offset, e.length, e.data) for e in window.extents()] == [(0, 4096, True), (4096, 4096, False)]
