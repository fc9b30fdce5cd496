"""A disk put together from pieces, read lazily: what a build plans and a writer then copies, sparse."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from armvm.disk.storage import BaseDisk, Disk, Extent


class ComposedDisk(BaseDisk):
    """A disk of ``size_bytes`` on which each piece stands at its byte offset; everything else reads as zeros.

    Pieces may be given in any order and must neither overlap nor reach past the end (ValueError: a caller's fault).
    Closing it closes the pieces.
    """

    def __init__(self, name: str, size_bytes: int, pieces: Iterable[tuple[int, Disk]], *, sector_size: int = 512):
        super().__init__(name, "raw", size_bytes, sector_size)
        self._pieces = sorted(
            ((offset, disk) for offset, disk in pieces if disk.size_bytes), key=lambda piece: piece[0]
        )
        self._starts = [offset for offset, _ in self._pieces]
        end = 0
        for offset, disk in self._pieces:
            if offset < end:
                raise ValueError(f"{disk.name} overlaps what stands before it at {offset:#x}")
            end = offset + disk.size_bytes
        if end > size_bytes:
            raise ValueError(f"the last piece ends at {end}, past the disk's {size_bytes} bytes")

    def _read(self, offset: int, length: int) -> bytes:
        end = offset + length
        last = max(bisect_right(self._starts, offset) - 1, 0)
        if self._pieces and self._starts[last] <= offset:
            start, disk = self._pieces[last]
            if end <= start + disk.size_bytes:  # nearly every read of a copy: nothing to put together
                return disk.read(offset - start, length)
        result = bytearray(length)
        for index in range(last, len(self._pieces)):
            start, disk = self._pieces[index]
            if start >= end:
                break
            low, high = max(start, offset), min(start + disk.size_bytes, end)
            if low < high:
                result[low - offset : high - offset] = disk.read(low - start, high - low)
        return bytes(result)

    def extents(self) -> Iterator[Extent]:
        """The pieces' own extents, with holes between them."""
        position = 0
        for start, disk in self._pieces:
            if start > position:
                yield Extent(position, start - position, data=False)
            for extent in disk.extents():
                yield Extent(start + extent.offset, extent.length, extent.data)
            position = start + disk.size_bytes
        if position < self.size_bytes:
            yield Extent(position, self.size_bytes - position, data=False)

    def close(self) -> None:
        """Close every piece."""
        for _, disk in self._pieces:
            disk.close()
