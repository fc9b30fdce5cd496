"""Finds out what an image is, by its content and never by its name, and opens it: the one door to all disks."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from armvm.disk.raw import RawDisk
from armvm.disk.remote import is_url, open_remote, shown_name
from armvm.disk.storage import BaseDisk, Disk
from armvm.disk.wrapping import Progress, Wrapping, detect_wrapping
from armvm.errors import InputError, UsageError
from armvm.units import MIB, SECTOR_SIZES

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
_UNPACK = "unpack it first, and take the disk image in it"
_CONVERT = "convert it first: qemu-img convert -O qcow2 IMAGE ONE.qcow2"
_NO_IMAGES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"\x7fELF", "an ELF program", "name the disk image that holds it"),
    (0, b"QED\0", "a QED image", _CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels image", _CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels image", _CONVERT),
    (0, b"\x3a\xff\x26\xed", "an Android sparse image", "decompress it first: simg2img"),
)
_HEAD_BYTES = 4096 + 512
_FOOTER_BYTES = 512
_GPT_SIGNATURE = b"EFI PART"
_MBR_SIGNATURE = b"\x55\xaa"


def detect_format(path: str | os.PathLike[str]) -> str:
    """The format of the image at ``path``, one of FORMATS: raw where it is nothing else that is known.

    Raises InputError when it cannot be read, is empty, or is known to be no disk image, with what to do about it; an
    image that is compressed or in an archive is none either, for nobody can use it where it stands.
    """
    with RawDisk(path) as file:
        return _require_bare(file, _detect(file))


def open_disk(
    source: str | os.PathLike[str],
    *,
    sector_size: int | None = None,
    allow_backing_files: bool = False,
    format: str | None = None,
    in_place: bool = False,
    progress: Progress | None = None,
) -> BaseDisk:
    """Open the image at ``source``, a path or a URL, whatever its container; without ``format``, what its content says.

    An image that is compressed is decompressed into a temporary file, with ``progress`` told the step and how many of
    how many bytes are done; of a tar archive, the one image in it is read. ``in_place`` admits neither these nor URLs:
    for whoever writes to the file, or hands its name on. Images on servers are read by ranges: see the ``traffic`` of
    the disk.
    Without ``sector_size`` it is what the GPT says by the place that it stands in, and 512 bytes where there is none.
    ``allow_backing_files`` admits the backing file of a local qcow2 image, below the image's own folder.
    Raises InputError when it is no image that can be read, MissingError when a program or library for that is missing,
    OutputError when there is no room to decompress it, UsageError for a sector size, format or URL that is none.
    """
    if sector_size is not None and sector_size not in SECTOR_SIZES:
        raise UsageError(f"not a sector size: {sector_size}", hint="512 or 4096 bytes")
    if format is not None and format not in FORMATS:
        raise UsageError(f"not a disk format: {format}", hint=", ".join(FORMATS))
    path = os.fspath(source)
    with ExitStack() as undo:
        file = undo.enter_context(_open_file(path, in_place))
        traffic = file.traffic
        inner, found = (file, format) if format else _unwrapped(file, in_place, progress)
        undo.enter_context(inner)
        by_path = inner is file and traffic is None and found != "raw"
        disk = _open_by_path(path, found, allow_backing_files) if by_path else _open_within(inner, found)
        undo.enter_context(disk)
        disk.traffic = traffic
        disk.sector_size = sector_size or _find_sector_size(disk)
        undo.pop_all()
    if by_path:
        file.close()
    return disk


def _open_file(path: str, in_place: bool) -> BaseDisk:
    if not is_url(path):
        return RawDisk(path)
    if in_place:
        raise InputError("is on a server", subject=shown_name(path), hint="download it first, and name the file")
    return open_remote(path)


def _unwrapped(file: BaseDisk, in_place: bool, progress: Progress | None) -> tuple[BaseDisk, str]:
    """What stands in ``file`` behind a compression, and in an archive, where there are any; and its format."""
    found = _detect(file)
    if in_place:
        return file, _require_bare(file, found)
    with ExitStack() as undo:
        undo.enter_context(file)
        if isinstance(found, Wrapping) and found is not Wrapping.TAR:
            from armvm.disk.compressed import decompress

            packed = file
            file = undo.enter_context(decompress(file, found, progress=progress))
            packed.close()
            found = _detect(file)
        if found is Wrapping.TAR:
            from armvm.disk.archive import open_member

            file = open_member(file, _is_image)
            found = _detect(file)
        bare = _require_bare(file, found)
        undo.pop_all()
    return file, bare


def _require_bare(file: BaseDisk, found: str | Wrapping) -> str:
    """The format, when what was found is one."""
    if isinstance(found, str):
        return found
    raise InputError("is no disk image", subject=file.name, found=found.label, hint=found.remedy)


def _is_image(file: BaseDisk) -> bool:
    """Whether a file of an archive is a disk image for certain: in a known container, or with a partition table."""
    try:
        if _detect(file) != "raw":
            return True
    except InputError:
        return False
    return _find_gpt(file) is not None or (file.size_bytes >= MIB and file.read(510, 2) == _MBR_SIGNATURE)


def _open_by_path(path: str, format: str, allow_backing_files: bool) -> BaseDisk:
    if format == "qcow2":
        from armvm.disk.qcow2 import open_qcow2

        return open_qcow2(path, allow_backing_files=allow_backing_files)
    from armvm.disk.foreign import ForeignDisk

    return ForeignDisk(path, format)


def _open_within(file: BaseDisk, format: str) -> BaseDisk:
    """The disk in ``file``, which it then owns: a file on a server, one that was unpacked, or one in an archive."""
    if format == "raw":
        return file
    if format == "qcow2":
        from armvm.disk.qcow2 import Qcow2Disk

        return Qcow2Disk(file)
    if file.traffic is not None:
        hint = "download it first, and name the file"
        raise InputError(f"an image in the format {format} is not read from a server", subject=file.name, hint=hint)
    if not Path("/proc/self/fd").is_dir():
        raise InputError(
            f"is an image in the format {format} that is packed", subject=file.name, hint=Wrapping.TAR.remedy
        )
    from armvm.disk.foreign import ForeignDisk
    from armvm.disk.temporary import TemporaryDisk, unpack_disk

    with file, ExitStack() as opened:
        unpacked = file if isinstance(file, TemporaryDisk) else opened.enter_context(unpack_disk(file))
        return ForeignDisk(unpacked.path, format, name=file.name)  # QEMU has it open by then, and needs no name


def _detect(file: BaseDisk) -> str | Wrapping:
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
    wrapping = detect_wrapping(head)
    if wrapping is not None:
        return wrapping
    for offset, magic, what, remedy in _NO_IMAGES:
        if head.startswith(magic, offset):
            raise InputError("is no disk image", subject=file.name, found=what, hint=remedy)
    if footer.startswith(b"koly"):
        raise InputError("is no disk image", subject=file.name, found="an Apple disk image (DMG)", hint=_CONVERT)
    return "raw"


def _find_sector_size(disk: Disk) -> int:
    """The sector size by the place of the GPT, 512 where there is none."""
    return _find_gpt(disk) or SECTOR_SIZES[0]


def _find_gpt(disk: Disk) -> int | None:
    """Where the GPT header stands tells the sector size: in sector 1, its copy in the last (UEFI 2.10 §5.3.1)."""
    for size in SECTOR_SIZES:
        if _has_gpt_header(disk, size):
            return size
    for size in SECTOR_SIZES:
        if _has_gpt_header(disk, disk.size_bytes - size):
            return size
    return None


def _has_gpt_header(disk: Disk, offset: int) -> bool:
    fits = 0 <= offset <= disk.size_bytes - len(_GPT_SIGNATURE)
    return fits and disk.read(offset, len(_GPT_SIGNATURE)) == _GPT_SIGNATURE
