"""The memory disk that grub-mkimage puts into a GRUB program: a tar, FAT or squashfs of its own."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

from armvm.disk.files import FileSystem, MemoryFileSystem
from armvm.disk.files_fat import FatFileSystem
from armvm.disk.filesystems import detect_content
from armvm.disk.storage import Disk
from armvm.errors import ArmvmError, InputError
from armvm.guest.grub_devices import Absent, NoAnswer
from armvm.printable import printable
from armvm.units import MIB

MOST_TAR_BYTES = 32 * MIB
_MOST_MEMBERS = 10_000
_MOST_NAME = 1024
_MOST_DEEP = 16

OpenFiles = Callable[[Disk, str], FileSystem]
"""Opens a file system; raises ArmvmError when it cannot."""


def open_memdisk(disk: Disk, *, name: str, open_files: OpenFiles | None = None) -> FileSystem | NoAnswer:
    """The files of a memory disk; or why they cannot be read. ``open_files`` opens what is neither tar nor FAT."""
    try:
        content = detect_content(disk)
        if content is not None and content.kind == "vfat":
            return FatFileSystem(disk, name=name)
        if content is not None:
            if open_files is None:
                return NoAnswer(Absent.UNTOLD, f"the memory disk holds {content.kind}, which is not read")
            return open_files(disk, name)
        return _tar_files(disk, name)
    except ArmvmError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return NoAnswer(Absent.UNTOLD, printable(f"the memory disk cannot be read: {error.message}{hint}"))


def _tar_files(disk: Disk, name: str) -> FileSystem:
    if disk.size_bytes > MOST_TAR_BYTES:
        raise InputError("the memory disk is too large to be read", subject=name, found=f"{disk.size_bytes} bytes")
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    archive_bytes = disk.read(0, disk.size_bytes)
    try:
        with tarfile.open(fileobj=io.BytesIO(archive_bytes), mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= _MOST_MEMBERS:
                    raise InputError("the memory disk has too many files", subject=name)
                if len(member.name) > _MOST_NAME or member.name.count("/") > _MOST_DEEP:
                    continue
                if member.issym():
                    links[member.name] = member.linkname
                elif member.isreg() and not member.issparse():
                    start = member.offset_data
                    files[member.name] = archive_bytes[start : start + member.size]
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise InputError("the memory disk is no tar archive that can be read", subject=name) from error
    return MemoryFileSystem(files, links, name=name)
