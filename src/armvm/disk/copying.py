"""Copies files byte for byte, sparse: shared with the original where the file system can, holes kept everywhere."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO

from armvm.units import MIB

_CLONE = 0x40049409
"""FICLONE of ioctl_ficlone(2), linux/fs.h."""
_PIECE_BYTES = 16 * MIB


def copy_file(source: BinaryIO, target: BinaryIO, *, progress: Callable[[int], None] | None = None) -> None:
    """Make the empty regular file ``target`` a copy of the regular file ``source``.

    ``progress`` is told how many bytes are done, holes too. Raises OSError when either cannot be read or written.
    """
    size = os.fstat(source.fileno()).st_size
    if not _share(source.fileno(), target.fileno()):
        os.ftruncate(target.fileno(), size)
        for start, end in _data(source.fileno(), size):
            for position in range(start, end, _PIECE_BYTES):
                _copy_range(source.fileno(), target.fileno(), position, min(_PIECE_BYTES, end - position))
                if progress is not None:
                    progress(min(position + _PIECE_BYTES, end))
    if progress is not None:
        progress(size)


def _share(source: int, target: int) -> bool:
    """Have ``target`` share the blocks of ``source`` (btrfs, XFS): at once, and without room. Whether that works."""
    try:
        import fcntl

        fcntl.ioctl(target, _CLONE, source)
    except (ImportError, OSError):
        return False
    return True


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where data starts and ends in a file (lseek(2), SEEK_DATA); all of it where the system cannot say."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here on
                return
            yield position, size
            return
        yield start, end
        position = end


def _copy_range(source: int, target: int, position: int, length: int) -> None:
    """Copy within the kernel where that works, through this process elsewhere."""
    end = position + length
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):  # not between these two file systems: each says so by another error
            while position < end:
                count = os.copy_file_range(source, target, end - position, position, position)
                if not count:
                    break
                position += count
    while position < end:
        content = os.pread(source, min(end - position, MIB), position)
        if not content:
            return  # cut short meanwhile
        written = 0
        while written < len(content):
            written += os.pwrite(target, content[written:], position + written)
        position += len(content)
