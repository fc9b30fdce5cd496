"""Writes a disk as a sparse raw file; and what every sparse writer shares: which bytes are worth writing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

from armvm.disk.storage import Disk
from armvm.units import KIB, MIB, align_down, align_up

CHUNK_BYTES = 2 * MIB
"""How much is read at a time."""
_RAW_BLOCK_BYTES = 64 * KIB
_ZEROS = bytes(CHUNK_BYTES)


def is_zero(content: bytes) -> bool:
    """Whether all bytes are zero (and at most CHUNK_BYTES of them)."""
    return content == (_ZEROS if len(content) == len(_ZEROS) else _ZEROS[: len(content)])


def data_runs(
    source: Disk, *, block_bytes: int, progress: Callable[[int], None] | None = None
) -> Iterator[tuple[int, bytes]]:
    """The bytes of ``source`` that are not zero, in order: runs that start on a multiple of ``block_bytes``.

    A run ends on such a multiple or at the disk's end and holds at most CHUNK_BYTES; whatever lies between the runs
    reads as zeros. ``block_bytes`` divides CHUNK_BYTES. ``progress`` is told how many bytes of the disk are done.
    """
    done = 0
    for extent in source.extents():
        end = min(align_up(extent.offset + extent.length, block_bytes), source.size_bytes)
        position = max(align_down(extent.offset, block_bytes), done) if extent.data else end
        while position < end:
            content = source.read(position, min(CHUNK_BYTES, end - position))
            for start, stop in _nonzero(content, block_bytes):
                yield position + start, content[start:stop]
            position = done = position + len(content)
            if progress is not None:
                progress(done)
    if progress is not None:
        progress(source.size_bytes)


def _nonzero(content: bytes, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Where runs of blocks that are not all zero start and stop."""
    if is_zero(content):
        return
    start: int | None = None
    zeros = bytes(block_bytes)
    for position in range(0, len(content), block_bytes):
        # startswith compares in place; a slice would copy every byte once more.
        rest = len(content) - position
        if content.startswith(zeros if rest >= block_bytes else zeros[:rest], position):
            if start is not None:
                yield start, position
            start = None
        elif start is None:
            start = position
    if start is not None:
        yield start, len(content)


def write_raw(file: BinaryIO, source: Disk, *, progress: Callable[[int], None] | None = None) -> None:
    """Write ``source`` into the regular file ``file``, replacing what it holds; zeros become holes.

    ``progress`` is told how many bytes of the disk are done.
    """
    file.truncate(0)
    for offset, content in data_runs(source, block_bytes=_RAW_BLOCK_BYTES, progress=progress):
        file.seek(offset)
        file.write(content)
    file.truncate(source.size_bytes)
    file.seek(0)
