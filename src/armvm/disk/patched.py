"""A disk with changes laid over it that nobody has written yet: what a repair plans, judges, and then writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import IO, Protocol

from armvm.disk.storage import BaseDisk, Disk, Extent, Slice
from armvm.errors import InputError
from armvm.units import KIB, MIB

BLOCK_BYTES = 4 * KIB
"""How much of the disk is kept for each change."""
CHANGE_BYTES = 512
"""What one change is a multiple of: no device writes less."""
_MOST_CHANGE_BYTES = MIB
_MOST_KEPT = 32 * MIB // BLOCK_BYTES
"""How many changed blocks are kept in memory; more go to a temporary file."""


class WritableDisk(Disk, Protocol):
    """A disk that can be written, somewhere."""

    def write(self, offset: int, content: bytes) -> None:
        """Put ``content`` at ``offset``. Raises InputError when it does not fit the disk."""
        ...


class PatchedDisk(BaseDisk):
    """``disk`` with the changes that ``write`` makes, which are kept beside it: the disk itself stays as it is.

    Closing it drops the changes and leaves the disk open.
    """

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.name, disk.format, disk.size_bytes, disk.sector_size)
        self.base = disk
        self._blocks: dict[int, bytes | int] = {}  # a block's bytes, or where they are in the temporary file
        self._spilled: IO[bytes] | None = None
        self._kept = 0

    def write(self, offset: int, content: bytes) -> None:
        """Put ``content`` at ``offset``. Raises InputError when it goes past the end."""
        if offset < 0 or offset + len(content) > self.size_bytes:
            raise InputError(
                f"a write of {len(content)} bytes goes past the end", subject=self.name, offset_bytes=offset
            )
        end = offset + len(content)
        position = offset
        while position < end:
            block = position // BLOCK_BYTES
            start = block * BLOCK_BYTES
            stop = min(end, start + BLOCK_BYTES)
            piece = bytearray(self._block(block))
            piece[position - start : stop - start] = content[position - offset : stop - offset]
            self._keep(block, bytes(piece))
            position = stop

    def _keep(self, block: int, piece: bytes) -> None:
        known = self._blocks.get(block)
        if isinstance(known, bytes) or (known is None and self._kept < _MOST_KEPT):
            self._kept += known is None
            self._blocks[block] = piece
            return
        if self._spilled is None:
            self._spilled = tempfile.TemporaryFile(prefix="armvm-")  # noqa: SIM115 - closed by close()
        place = self._spilled.seek(0, os.SEEK_END) if known is None else self._spilled.seek(known)
        self._spilled.write(piece.ljust(BLOCK_BYTES, b"\0"))
        self._blocks[block] = place

    def _block(self, block: int) -> bytes:
        """What stands in a block now; the disk's last may be short."""
        length = min(BLOCK_BYTES, self.size_bytes - block * BLOCK_BYTES)
        kept = self._blocks.get(block)
        if kept is None:
            return self.base.read(block * BLOCK_BYTES, length)
        if isinstance(kept, bytes):
            return kept
        assert self._spilled is not None  # noqa: S101 - whose place was noted
        self._spilled.seek(kept)
        return self._spilled.read(BLOCK_BYTES)[:length]

    def _read(self, offset: int, length: int) -> bytes:
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        if len(self._blocks) < last - first + 1:
            changed = sorted(block for block in self._blocks if first <= block <= last)
        else:
            changed = [block for block in range(first, last + 1) if block in self._blocks]
        content = self.base.read(offset, length)
        if not changed:
            return content
        result = bytearray(content)
        for block in changed:
            start = block * BLOCK_BYTES
            piece = self._block(block)
            low, high = max(start, offset), min(start + len(piece), offset + length)
            result[low - offset : high - offset] = piece[low - start : high - start]
        return bytes(result)

    def extents(self) -> Iterator[Extent]:
        """The disk's own extents; what was changed is data."""
        changed = iter(_runs(sorted(self._blocks)))
        run = next(changed, None)
        for extent in self.base.extents():
            position, end = extent.offset, extent.offset + extent.length
            if extent.data:
                yield extent
                continue
            while position < end:
                while run is not None and run[1] <= position:
                    run = next(changed, None)
                if run is None or run[0] >= end:
                    yield Extent(position, end - position, data=False)
                    break
                start, stop = max(run[0], position), min(run[1], end)
                if start > position:
                    yield Extent(position, start - position, data=False)
                yield Extent(start, stop - start, data=True)
                position = stop

    def changes(self) -> Iterator[tuple[int, bytes, bytes]]:
        """(offset, what stood there, what is to stand there) in order: whole sectors that differ, neighbours as one.

        A change has at most 1 MiB and starts on a multiple of 512; only the disk's end may make it no multiple long.
        """
        offset, old, new = 0, bytearray(), bytearray()
        for block in sorted(self._blocks):
            before = self.base.read(block * BLOCK_BYTES, min(BLOCK_BYTES, self.size_bytes - block * BLOCK_BYTES))
            after = self._block(block)
            for start in range(0, len(after), CHANGE_BYTES):
                was, becomes = before[start : start + CHANGE_BYTES], after[start : start + CHANGE_BYTES]
                if was == becomes:
                    continue
                here = block * BLOCK_BYTES + start
                if new and (here != offset + len(new) or len(new) >= _MOST_CHANGE_BYTES):
                    yield offset, bytes(old), bytes(new)
                    old, new = bytearray(), bytearray()
                if not new:
                    offset = here
                old += was
                new += becomes
        if new:
            yield offset, bytes(old), bytes(new)

    def window(self, offset: int, size_bytes: int, *, name: str) -> WritableSlice:
        """A run of this disk that can be written too, such as a partition."""
        return WritableSlice(self, offset, size_bytes, name=name)

    def close(self) -> None:
        """Drop the changes."""
        self._blocks.clear()
        if self._spilled is not None:
            self._spilled.close()


class WritableSlice(Slice):
    """A run of a disk's bytes whose changes go to the disk, and which knows the disk's holes."""

    def __init__(self, disk: WritableDisk, offset: int, size_bytes: int, *, name: str) -> None:
        super().__init__(disk, offset, size_bytes, name=name)
        self._whole = disk
        self._start = offset

    def write(self, offset: int, content: bytes) -> None:
        """Put ``content`` at ``offset``. Raises InputError when it goes past the end."""
        if offset < 0 or offset + len(content) > self.size_bytes:
            raise InputError(
                f"a write of {len(content)} bytes goes past the end", subject=self.name, offset_bytes=offset
            )
        self._whole.write(self._start + offset, content)

    def extents(self) -> Iterator[Extent]:
        """The disk's extents, as far as they lie in the slice."""
        for extent in self._whole.extents():
            low = max(extent.offset, self._start)
            high = min(extent.offset + extent.length, self._start + self.size_bytes)
            if low < high:
                yield Extent(low - self._start, high - low, extent.data)


def _past_the_end(name: str, offset: int, length: int) -> InputError:
    return InputError(f"a write of {length} bytes goes past the end", subject=name, offset_bytes=offset)


def _runs(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """Blocks in order as runs of bytes."""
    start = stop = -1
    for block in blocks:
        if block * BLOCK_BYTES == stop:
            stop += BLOCK_BYTES
            continue
        if start >= 0:
            yield start, stop
        start, stop = block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
    if start >= 0:
        yield start, stop
