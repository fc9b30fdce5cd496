"""Finds out what an image is, by its content and never by its name, and opens it: the one door to all disks."""

from __future__ import annotations

import os

from armvm.disk.qcow2 import open_qcow2
from armvm.disk.raw import RawDisk
from armvm.disk.storage import BaseDisk, Disk
from armvm.errors import InputError, UsageError
from armvm.units import SECTOR_SIZES

FORMATS = ("raw", "qcow2", "vmdk", "vhdx", "vpc", "vdi")
"""The formats that can be opened, as QEMU spells them."""

_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
)
_DECOMPRESS = "decompress it first"
_UNPACK = "unpack it first, and take the disk image in it"
_CONVERT = "convert it first: qemu-img convert -O qcow2 IMAGE ONE.qcow2"
_NO_IMAGES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b\x08", "compressed with gzip", f"{_DECOMPRESS}: gunzip"),
    (0, b"\xfd7zXZ\0", "compressed with xz", f"{_DECOMPRESS}: unxz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", f"{_DECOMPRESS}: unzstd"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", f"{_DECOMPRESS}: unlz4"),
    (0, b"BZh", "compressed with bzip2", f"{_DECOMPRESS}: bunzip2"),
    (0, b"PK\x03\x04", "a zip archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (257, b"ustar", "a tar archive (or an OVA)", _UNPACK),
    (0, b"\x7fELF", "an ELF program", "name the disk image that holds it"),
    (0, b"QED\0", "a QED image", _CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels image", _CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels image", _CONVERT),
    (0, b"\x3a\xff\x26\xed", "an Android sparse image", f"{_DECOMPRESS}: simg2img"),
)
_HEAD_BYTES = 4096 + 512
_FOOTER_BYTES = 512
_GPT_SIGNATURE = b"EFI PART"


def detect_format(path: str | os.PathLike[str]) -> str:
    """The format of the image at ``path``, one of FORMATS: raw where it is nothing else that is known.

    Raises InputError when it cannot be read, is empty, or is known to be no disk image, with what to do about it.
    """
    with RawDisk(path) as file:
        return _detect(file)


def open_disk(
    path: str | os.PathLike[str],
    *,
    sector_size: int | None = None,
    allow_backing_files: bool = False,
    format: str | None = None,
) -> Disk:
    """Open the image at ``path``, whatever its container; without ``format``, what its content says it is.

    Without ``sector_size`` it is what the GPT says by the place that it stands in, and 512 bytes where there is none.
    ``allow_backing_files`` admits the backing file of a qcow2 image, below the image's own folder.
    Raises InputError when it is no image that can be read, MissingError when a program for that is missing,
    UsageError for a sector size or format that is none.
    """
    if sector_size is not None and sector_size not in SECTOR_SIZES:
        raise UsageError(f"not a sector size: {sector_size}", hint="512 or 4096 bytes")
    if format is not None and format not in FORMATS:
        raise UsageError(f"not a disk format: {format}", hint=", ".join(FORMATS))
    disk = _open(path, detect_format(path) if format is None else format, allow_backing_files)
    try:
        disk.sector_size = sector_size or _find_sector_size(disk)
    except BaseException:
        disk.close()
        raise
    return disk


def _open(path: str | os.PathLike[str], format: str, allow_backing_files: bool) -> BaseDisk:
    if format == "raw":
        return RawDisk(path)
    if format == "qcow2":
        return open_qcow2(path, allow_backing_files=allow_backing_files)
    from armvm.disk.foreign import ForeignDisk

    return ForeignDisk(path, format)


def _detect(file: RawDisk) -> str:
    if not file.size_bytes:
        raise InputError("is empty", subject=file.name)
    head = file.read(0, min(_HEAD_BYTES, file.size_bytes))
    for offset, magic, found in _MAGICS:
        if head.startswith(magic, offset):
            return found
    footer_offset = max(file.size_bytes - _FOOTER_BYTES, 0)
    footer = file.read(footer_offset, file.size_bytes - footer_offset)
    if footer.startswith(b"conectix"):  # a VHD of fixed size: the raw bytes and a footer
        return "vpc"
    if any(head.startswith(_GPT_SIGNATURE, size) for size in SECTOR_SIZES):
        return "raw"  # with a GPT it is a disk, whatever the boot code before it looks like
    for offset, magic, what, remedy in _NO_IMAGES:
        if head.startswith(magic, offset):
            raise InputError("is no disk image", subject=file.name, found=what, hint=remedy)
    if footer.startswith(b"koly"):
        raise InputError("is no disk image", subject=file.name, found="an Apple disk image (DMG)", hint=_CONVERT)
    return "raw"


def _find_sector_size(disk: Disk) -> int:
    """Where the GPT header stands tells the sector size: in sector 1, its copy in the last (UEFI 2.10 §5.3.1)."""
    for size in SECTOR_SIZES:
        if _has_gpt_header(disk, size):
            return size
    for size in SECTOR_SIZES:
        if _has_gpt_header(disk, disk.size_bytes - size):
            return size
    return SECTOR_SIZES[0]


def _has_gpt_header(disk: Disk, offset: int) -> bool:
    fits = 0 <= offset <= disk.size_bytes - len(_GPT_SIGNATURE)
    return fits and disk.read(offset, len(_GPT_SIGNATURE)) == _GPT_SIGNATURE
