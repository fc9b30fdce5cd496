"""A disk that is a regular file or a block device, byte for byte, read where it stands."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from armvm.disk.storage import BaseDisk, Extent
from armvm.errors import InputError

_OTHER_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
)
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class RawDisk(BaseDisk):
    """A regular file or a block device as a disk; with ``offset`` and ``size_bytes``, a window of it.

    ``path`` may also be a file that is open already; it is closed with the disk, and needs a ``name``.
    Raises InputError when ``path`` cannot be opened, is of another kind, or is too small for the window.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | FileIO,
        *,
        sector_size: int = 512,
        offset: int = 0,
        size_bytes: int | None = None,
        name: str | None = None,
    ) -> None:
        if isinstance(path, FileIO):
            self._file, name = path, name or str(path.name)
        else:
            path = os.fspath(path)
            name = path if name is None else name
            # A file object owns the descriptor, so that a disk that nobody closed is reported and closed.
            self._file = os.fdopen(_open(path, name), "rb", buffering=0)
        whole = self._file.seek(0, os.SEEK_END)  # st_size is 0 for a block device
        if offset < 0 or offset + (size_bytes or 0) > whole:
            self._file.close()
            raise InputError(
                f"a window of {size_bytes or 0} bytes does not fit",
                subject=name,
                offset_bytes=max(offset, 0),
                found=f"{whole} bytes",
            )
        super().__init__(name, "raw", whole - offset if size_bytes is None else size_bytes, sector_size)
        self._offset = offset

    def _read(self, offset: int, length: int) -> bytes:
        descriptor, position = self._file.fileno(), self._offset + offset
        try:
            content = os.pread(descriptor, length, position)
            if len(content) == length:
                return content
            pieces = [content]  # the kernel gives 2 GiB at most, and a file may shrink under us
            done = len(content)
            while pieces[-1] and done < length:
                pieces.append(os.pread(descriptor, length - done, position + done))
                done += len(pieces[-1])
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
            raise InputError(message, subject=self.name, offset_bytes=position) from error
        if done < length:
            raise InputError("was cut short while it was read", subject=self.name, offset_bytes=position + done)
        return b"".join(pieces)

    def extents(self) -> Iterator[Extent]:
        """Data and holes as the file system knows them; one run of data where it cannot tell."""
        if not hasattr(os, "SEEK_DATA"):
            yield from super().extents()
            return
        position = 0
        while position < self.size_bytes:
            start = self._seek(position, os.SEEK_DATA, unknown=position)
            if start > position:
                yield Extent(position, start - position, data=False)
            if start == self.size_bytes:
                return
            end = self._seek(start, os.SEEK_HOLE, unknown=self.size_bytes)
            if end == start:  # a file system that contradicts itself: the rest is data
                end = self.size_bytes
            yield Extent(start, end - start, data=True)
            position = end

    def _seek(self, position: int, whence: int, *, unknown: int) -> int:
        try:
            found = os.lseek(self._file.fileno(), self._offset + position, whence) - self._offset
        except OSError as error:
            found = self.size_bytes if error.errno == errno.ENXIO else unknown
        return min(max(found, position), self.size_bytes)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _open(path: str, name: str) -> int:
    """A descriptor of a regular file or a block device, opened without waiting for anybody."""
    try:
        # Judged before it is opened, for opening alone can wake a pipe's writer or start a watchdog, and again after.
        _refuse_other_kinds(Path(path).stat(), name)
        descriptor = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be opened: {reason}", subject=name) from error
    try:
        _refuse_other_kinds(os.fstat(descriptor), name)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_other_kinds(status: os.stat_result, name: str) -> None:
    for is_kind, kind in _OTHER_KINDS:
        if is_kind(status.st_mode):
            raise InputError("is no disk image", subject=name, found=kind, expected="a regular file or a block device")
