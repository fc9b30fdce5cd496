"""The disk image in a tar archive, read where it stands: nothing is unpacked, and the archive may be on a server.

Sparse members are read as what they are: clouds' ``disk.raw`` is packed by ``tar --format=oldgnu -S``.
"""

from __future__ import annotations

import io
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from armvm.disk.storage import BaseDisk, Extent
from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import MIB

CLOUD_NAME = "disk.raw"
"""What the image in an archive for Google's cloud, and in Debian's for all clouds, is called."""
_MOST_MEMBERS = 256
_MOST_READ_BYTES = 16 * MIB
"""How much of headers and sparse maps is read."""
_SHOWN_NAMES = 6

_Piece = tuple[int, int, int]
"""Where in the member, how long, where in the archive."""


class ArchiveMember(BaseDisk):
    """A file in an archive as a disk; between its pieces there are holes. Owns the archive."""

    def __init__(self, archive: BaseDisk, name: str, size_bytes: int, pieces: Sequence[_Piece]) -> None:
        super().__init__(f"{archive.name}, {printable(name)}", "raw", size_bytes)
        self.traffic = archive.traffic
        self._archive = archive
        self._pieces = pieces
        self._starts = [start for start, _, _ in pieces]

    def _read(self, offset: int, length: int) -> bytes:
        end = offset + length
        result = bytearray(length)
        for index in range(max(bisect_right(self._starts, offset) - 1, 0), len(self._pieces)):
            start, size, where = self._pieces[index]
            low, high = max(start, offset), min(start + size, end)
            if start >= end:
                break
            if low < high:
                result[low - offset : high - offset] = self._archive.read(where + low - start, high - low)
        return bytes(result)

    def extents(self) -> Iterator[Extent]:
        """The pieces, and the holes between them."""
        position = 0
        for start, size, _ in self._pieces:
            if start > position:
                yield Extent(position, start - position, data=False)
            yield Extent(start, size, data=True)
            position = start + size
        if position < self.size_bytes:
            yield Extent(position, self.size_bytes - position, data=False)

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


def open_member(archive: BaseDisk, is_image: Callable[[BaseDisk], bool]) -> ArchiveMember:
    """The disk image in the tar archive ``archive``, which the disk then owns.

    It is the file called disk.raw, else the only file there is, else the only one for which ``is_image`` says so by
    its content. Raises InputError when there is none, or more than one.
    """
    members = _members(archive)
    for wanted in members:
        if wanted.name.removeprefix("./") == CLOUD_NAME:
            return _as_disk(archive, wanted)
    if len(members) == 1:
        return _as_disk(archive, members[0])
    images = [disk for disk in (_as_disk(archive, member) for member in members) if disk.size_bytes and is_image(disk)]
    if len(images) == 1:
        return images[0]
    shown = ", ".join(printable(member.name[:80]) for member in members[:_SHOWN_NAMES])
    more = f" and {len(members) - _SHOWN_NAMES} more" if len(members) > _SHOWN_NAMES else ""
    raise InputError(
        "is an archive of no disk image" if not images else f"is an archive of {len(images)} disk images",
        subject=archive.name,
        found=f"{shown}{more}" or "no file",
        expected="one",
        hint="unpack it, and name the disk image" if images else None,
    )


def _members(archive: BaseDisk) -> list[tarfile.TarInfo]:
    """The regular files, in their order."""
    found: list[tarfile.TarInfo] = []
    reader = _Reader(archive)
    try:
        with tarfile.open(fileobj=reader, mode="r:") as tar:
            for count, member in enumerate(iter(tar.next, None)):
                if count == _MOST_MEMBERS:
                    raise InputError(f"is an archive of more than {_MOST_MEMBERS} files", subject=archive.name)
                if member.isreg():
                    found.append(member)
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError, EOFError) as error:
        said = printable(str(error)[:200]) or type(error).__name__
        if isinstance(error, RecursionError):
            said = "headers follow on headers without end"
        raise InputError(
            f"is no sound tar archive: {said}", subject=archive.name, offset_bytes=reader.tell()
        ) from error
    return found


def _as_disk(archive: BaseDisk, member: tarfile.TarInfo) -> ArchiveMember:
    runs: list[tuple[int, int]] = getattr(member, "sparse", None) or [(0, member.size)]
    pieces: list[_Piece] = []
    where, end = member.offset_data, 0
    for start, length in runs:
        if start < end or length < 0 or start + length > member.size:
            raise InputError(
                "the map of a sparse file contradicts itself",
                subject=f"{archive.name}, {printable(member.name[:80])}",
                found=f"{length} bytes at {start} of {member.size}",
            )
        if where + length > archive.size_bytes:
            raise InputError(
                "the archive ends in the middle of the file",
                subject=f"{archive.name}, {printable(member.name[:80])}",
                offset_bytes=archive.size_bytes,
                expected=f"{where + length - archive.size_bytes} bytes more",
            )
        if length:
            pieces.append((start, length, where))
        where, end = where + length, start + length
    return ArchiveMember(archive, member.name[:80], member.size, pieces)


class _Reader(io.RawIOBase):
    """A disk as the file that tarfile wants, which gives out headers and no more: tarfile itself has no limits."""

    def __init__(self, disk: BaseDisk) -> None:
        super().__init__()
        self._disk = disk
        self._position = 0
        self._left = _MOST_READ_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < 0:
            raise ValueError("a place before the archive's start")
        self._position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        length = max(min(size, self._disk.size_bytes - self._position), 0)
        self._left -= length
        if size < 0 or self._left < 0:
            raise ValueError("headers of absurd size")
        content = self._disk.read(self._position, length) if length else b""
        self._position += length
        return content
