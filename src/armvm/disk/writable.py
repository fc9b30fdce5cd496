"""Disk images opened to be written in place: raw files and block devices by ourselves, everything else through QEMU."""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Protocol

from armvm.disk.patched import WritableDisk
from armvm.disk.raw import RawDisk
from armvm.errors import BusyError, InputError, OutputError

_WAIT_SECONDS = 5.0
"""How long somebody else may hold an image that we want: a qemu-nbd whose owner was killed needs a moment to leave."""
_HELD = (errno.EACCES, errno.EAGAIN)
_NO_WRITING = ("streamOptimized",)
_WRITTEN_BY_QEMU = ("qcow2", "vmdk", "vhdx", "vpc", "vdi")


class ImageWriter(WritableDisk, Protocol):
    """An image that can be written where it stands; nobody else can write it meanwhile."""

    def flush(self) -> None:
        """Have what was written on the disk before this returns. Raises OutputError when that fails."""
        ...


def open_writer(path: Path, format: str) -> ImageWriter:
    """Open the image at ``path`` to be written in place.

    Raises BusyError when somebody else has it open (a running VM, another armvm), OutputError when it may not be
    written, InputError when it is no image that can be, MissingError when QEMU is needed and absent.
    """
    if format == "raw":
        return RawWriter(path)
    if format not in _WRITTEN_BY_QEMU:
        raise InputError(f"{format} images cannot be written in place", subject=str(path))
    _require_writable(path)
    if format == "qcow2":
        from armvm.disk.qcow2 import open_qcow2

        open_qcow2(path).close()  # refuses what leads to other files before QEMU opens any
    if format == "vmdk":
        _refuse_stream_optimized(path)
    return _through_qemu(path, format)


class RawWriter(RawDisk):
    """A regular file or a block device, written where it stands, locked against QEMU and against ourselves."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            _require_writable(path)
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        except BaseException as error:
            super().close()
            if isinstance(error, OSError):
                raise OutputError(f"cannot write {path}: {error.strerror}") from error
            raise
        self._out = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            _lock(descriptor, path)
        except BaseException:
            self.close()
            raise

    def write(self, offset: int, content: bytes) -> None:
        """Put ``content`` at ``offset``. Raises InputError when it does not fit, OutputError when it cannot be done."""
        if offset < 0 or offset + len(content) > self.size_bytes:
            raise InputError("a write goes past the end", subject=self.name, offset_bytes=offset)
        done = 0
        try:
            while done < len(content):
                done += os.pwrite(self._out.fileno(), content[done:], offset + done)
        except OSError as error:
            raise OutputError(f"cannot write {self.name} at {offset + done:#x}: {error.strerror}") from error

    def flush(self) -> None:
        """Have what was written on the disk. Raises OutputError when that fails."""
        try:
            os.fsync(self._out.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.name}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file, which lets go of the lock."""
        self._out.close()
        super().close()


def _require_writable(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise OutputError(f"{path} may not be written", hint="-o OUT writes a repaired copy and leaves it as it is")


def _lock(descriptor: int, path: Path) -> None:
    """Lock the whole file: QEMU locks single bytes of it (block/file-posix.c), so neither of us gets in beside it."""
    import fcntl

    try:
        if sys.platform == "linux":
            # struct flock: type, whence, start, length (0: to the end), pid; locks of the open file, not of the process
            request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
        else:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise BusyError(f"{path} is in use", hint="stop the VM or the program that has it open") from error
        # A file system without locks: nothing else can be locked there either.


def _through_qemu(path: Path, format: str) -> ImageWriter:
    from armvm.disk.foreign import ForeignDisk

    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return ForeignDisk(path, format, writable=True)
        except InputError as error:
            if "lock" not in error.message:
                raise
            if time.monotonic() > deadline:
                hint = "stop the VM or the program that has it open"
                raise BusyError(f"{path} is in use", hint=hint) from error
        time.sleep(0.05)


def _refuse_stream_optimized(path: Path) -> None:
    from armvm.process import ProgramError, run

    try:
        info = json.loads(
            run("qemu-img", ["info", "--output=json", "-U", "-f", "vmdk", str(path)], timeout_seconds=30).stdout
        )
        kind = info.get("format-specific", {}).get("data", {}).get("create-type")
    except (ProgramError, ValueError, AttributeError) as error:
        raise InputError("QEMU cannot read it as vmdk", subject=str(path)) from error
    if kind in _NO_WRITING:
        raise InputError(
            "cannot be written in place",
            subject=str(path),
            found=f"a vmdk of type {kind}",
            hint="-o OUT writes a repaired copy",
        )
