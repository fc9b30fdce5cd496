"""A disk whose bytes were unpacked into a file that has no name: sparse, and gone however this process ends."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import NoReturn

from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk
from armvm.disk.write import is_zero
from armvm.errors import InputError, OutputError
from armvm.units import GIB, MIB, format_size

PIECE_BYTES = 64 * 1024
"""How large the pieces may be that are unpacked; one of zeros becomes a hole."""
MOST_BYTES = 256 * GIB
"""The largest disk that is unpacked, holes included."""
_ROOM_BYTES = 256 * MIB
"""What is left free on the file system, or a twentieth of it where that is less."""
_LOOK_BYTES = 16 * MIB


class TemporaryDisk(RawDisk):
    """A raw disk in a file without a name."""

    @property
    def path(self) -> str:
        """Where a program started by this process finds the file while the disk is open (Linux, proc(5))."""
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}"


def unpack(pieces: Iterable[bytes], *, name: str) -> TemporaryDisk:
    """Write ``pieces``, each at most PIECE_BYTES, into a temporary file in $TMPDIR (else /tmp); the disk that they are.

    Raises InputError when they come to more than MOST_BYTES, OutputError when there is no room; then nothing is left.
    """
    try:
        file = tempfile.TemporaryFile(buffering=0, prefix="armvm-")  # noqa: SIM115 - the disk becomes its owner
    except OSError as error:
        _refuse(error)
    try:
        position = written = looked = 0
        for piece in pieces:
            _require_bounds(position + len(piece), name)
            if not is_zero(piece):
                if written >= looked:
                    _require_room(file.fileno())
                    looked = written + _LOOK_BYTES
                _write(file.fileno(), piece, position)
                written += len(piece)
            position += len(piece)
        os.ftruncate(file.fileno(), position)
        return TemporaryDisk(file, name=name)
    except OSError as error:
        file.close()
        _refuse(error)
    except BaseException:
        file.close()
        raise


def unpack_disk(disk: Disk) -> TemporaryDisk:
    """A copy of ``disk`` in a temporary file, holes kept. Raises as ``unpack`` does."""
    return unpack(_pieces(disk), name=disk.name)


def _pieces(disk: Disk) -> Iterator[bytes]:
    for extent in disk.extents():
        for offset in range(extent.offset, extent.offset + extent.length, PIECE_BYTES):
            length = min(PIECE_BYTES, extent.offset + extent.length - offset)
            yield disk.read(offset, length) if extent.data else bytes(length)


def _require_bounds(size_bytes: int, name: str) -> None:
    if size_bytes > MOST_BYTES:
        raise InputError("is too large to be unpacked", subject=name, expected=f"at most {format_size(MOST_BYTES)}")


def _write(descriptor: int, piece: bytes, position: int) -> None:
    done = 0
    while done < len(piece):
        done += os.pwrite(descriptor, piece[done:], position + done)


def _require_room(descriptor: int) -> None:
    room = os.fstatvfs(descriptor)
    kept = min(_ROOM_BYTES, room.f_blocks * room.f_frsize // 20)
    if room.f_bavail * room.f_frsize < kept + _LOOK_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _refuse(error: OSError) -> NoReturn:
    raise OutputError(
        f"cannot unpack into {tempfile.gettempdir()}: {error.strerror}",
        hint="name a folder with more room: TMPDIR=FOLDER armvm …",
    ) from error
