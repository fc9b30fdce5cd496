"""ext2, ext3 and ext4 of another size, through resize2fs on a copy: the source is never written to.

The field offsets are those of Linux, Documentation/filesystems/ext4/super.rst; all stand 1024 bytes from the start.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from armvm.disk.raw import RawDisk
from armvm.disk.scratch import scratch_file
from armvm.disk.storage import Disk
from armvm.disk.write import write_raw
from armvm.errors import InputError, UsageError
from armvm.printable import printable
from armvm.process import ProgramError, require_program, run
from armvm.units import KIB, MIB, align_down, format_size

_SUPERBLOCK_OFFSET = 1024
_SUPERBLOCK_BYTES = 1024
_MAGIC = 0xEF53
_INCOMPATIBLE_64BIT = 0x80
_LARGEST_LOG_BLOCK = 6
_LEAST_SECONDS = 600.0
_LEAST_BYTES_PER_SECOND = 4 * MIB


@dataclass(frozen=True, slots=True)
class ExtGeometry:
    """How large a file system is, and when it was last written (seconds since 1970)."""

    block_size: int
    block_count: int
    written: int

    @property
    def size_bytes(self) -> int:
        """The bytes that it takes from its start."""
        return self.block_size * self.block_count


def read_ext_geometry(disk: Disk) -> ExtGeometry:
    """The geometry of the ext file system on ``disk``. Raises InputError when there is none, or its superblock lies."""
    present = min(_SUPERBLOCK_BYTES, max(disk.size_bytes - _SUPERBLOCK_OFFSET, 0))
    block = disk.read(_SUPERBLOCK_OFFSET, present) if present == _SUPERBLOCK_BYTES else b""
    if not block or struct.unpack_from("<H", block, 0x38)[0] != _MAGIC:
        raise InputError("no ext file system is here", subject=disk.name, offset_bytes=_SUPERBLOCK_OFFSET)
    count, log_size, written = (struct.unpack_from("<I", block, at)[0] for at in (0x4, 0x18, 0x30))
    if struct.unpack_from("<I", block, 0x60)[0] & _INCOMPATIBLE_64BIT:
        count |= struct.unpack_from("<I", block, 0x150)[0] << 32
    if log_size > _LARGEST_LOG_BLOCK or not 0 < count << (10 + log_size) <= disk.size_bytes:
        raise InputError(
            "the ext superblock does not fit its partition",
            subject=disk.name,
            offset_bytes=_SUPERBLOCK_OFFSET,
            found=f"{count} blocks of 2^{10 + min(log_size, 64)} bytes",
            expected=f"at most {disk.size_bytes} bytes",
        )
    return ExtGeometry(KIB << log_size, count, written)


@contextmanager
def resized_ext(source: Disk, size_bytes: int | None, *, folder: Path) -> Iterator[Disk]:
    """The ext file system on ``source``, made to fill ``size_bytes``, or as small as resize2fs can make it.

    The copy that this works on is in ``folder``, for as long as the block runs. The same input gives the same bytes.
    Raises InputError when the file system is not clean, UsageError when it cannot be made so small, MissingError
    without e2fsprogs.
    """
    for program in ("e2fsck", "resize2fs"):
        require_program(program)
    before = read_ext_geometry(source)
    seconds = _LEAST_SECONDS + source.size_bytes / _LEAST_BYTES_PER_SECOND
    # The time that both programs believe it is: it ends up in the superblock.
    env = {"E2FSPROGS_FAKE_TIME": str(max(before.written, 1)), "LC_ALL": "C"}
    with scratch_file(folder) as (file, path):
        write_raw(file, source)
        if size_bytes is not None:
            file.truncate(max(size_bytes, source.size_bytes))
        file.flush()
        _require_clean(path, source.name, seconds, env)
        size = ["-M", str(path)] if size_bytes is None else [str(path), f"{align_down(size_bytes, 4 * KIB) // KIB}K"]
        try:
            run("resize2fs", ["-f", *size], timeout_seconds=seconds, env=env)
        except ProgramError as error:
            said = printable((error.stderr.strip() or error.message).splitlines()[-1]).replace(str(path), "it")
            wanted = "smaller" if size_bytes is None else f"{format_size(size_bytes)} large"
            raise UsageError(f"the file system on {source.name} cannot be made {wanted}: {said}") from error
        _require_clean(path, source.name, seconds, env)
        with RawDisk(path, name=source.name) as after:
            used = read_ext_geometry(after).size_bytes
        file.truncate(used if size_bytes is None else size_bytes)
        with RawDisk(path, name=source.name) as result:
            yield result


def _require_clean(path: Path, name: str, timeout_seconds: float, env: dict[str, str]) -> None:
    completed = run("e2fsck", ["-fn", str(path)], timeout_seconds=timeout_seconds, env=env, check=False)
    if completed.returncode:
        said = completed.stdout.decode(errors="replace").replace(str(path), "it").strip().splitlines()
        raise InputError(
            "the ext file system is not clean, and armvm convert repairs nothing",
            subject=name,
            found=printable(said[0]) if said else f"e2fsck exits {completed.returncode}",
            hint="boot the image and shut it down, or run e2fsck on it",
        )
