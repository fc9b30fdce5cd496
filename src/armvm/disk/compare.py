"""Where two disks first differ, without reading what both know to be zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from armvm.disk.storage import Disk
from armvm.disk.write import CHUNK_BYTES


def first_difference(
    one: Disk, other: Disk, *, size_bytes: int | None = None, progress: Callable[[int], None] | None = None
) -> int | None:
    """The offset of the first byte in which the disks differ, up to ``size_bytes``; None when there is none.

    A disk reads as zeros behind its end. ``progress`` is told how many bytes are done.
    Raises InputError when a disk cannot be read.
    """
    end = max(one.size_bytes, other.size_bytes) if size_bytes is None else size_bytes
    for start, stop in _either(_data(one, end), _data(other, end)):
        for position in range(start, stop, CHUNK_BYTES):
            length = min(CHUNK_BYTES, stop - position)
            first, second = _padded(one, position, length), _padded(other, position, length)
            if first != second:
                return position + _first_byte(first, second)
            if progress is not None:
                progress(position + length)
    if progress is not None:
        progress(end)
    return None


def data_bytes(disk: Disk) -> int:
    """How many bytes of ``disk`` are not known to be zeros."""
    return sum(extent.length for extent in disk.extents() if extent.data)


def _data(disk: Disk, end: int) -> Iterator[tuple[int, int]]:
    for extent in disk.extents():
        if extent.offset >= end:
            return
        if extent.data:
            yield extent.offset, min(extent.offset + extent.length, end)


def _either(one: Iterator[tuple[int, int]], other: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The runs that stand in one of two ordered lists, joined where they meet."""
    from heapq import merge

    current: tuple[int, int] | None = None
    for start, stop in merge(one, other):
        if current is None:
            current = start, stop
        elif start <= current[1]:
            current = current[0], max(current[1], stop)
        else:
            yield current
            current = start, stop
    if current is not None:
        yield current


def _padded(disk: Disk, offset: int, length: int) -> bytes:
    present = min(length, max(disk.size_bytes - offset, 0))
    return disk.read(offset, present).ljust(length, b"\0") if present else bytes(length)


def _first_byte(first: bytes, second: bytes) -> int:
    """The index of the first byte that differs, of two that are not equal."""
    low, high = 0, len(first)
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low
