"""Which file system, or other known content, a partition holds, with label and UUID; and files by path on it.

Kinds, labels and UUIDs are spelled as ``blkid`` spells them, because that is what root=, fstab and GRUB refer to.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

from armvm.disk.files import FileSystem
from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import KIB

_HEAD_BYTES = 68 * KIB
_RAID_MAGIC = b"\xfc\x4e\x2b\xa9"
_RAID_RESERVED_BYTES = 64 * KIB
_SWAP_PAGES = (4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB)
_LVM_SECTORS = (0, 512, 1024, 1536)
_EXTRA_KINDS = frozenset({"xfs", "btrfs", "squashfs"})
_NO_FILES = {
    "crypto_LUKS": ("is encrypted (LUKS): what it holds cannot be judged", None),
    "LVM2_member": ("is a physical volume of LVM2: its file systems are on logical volumes", None),
    "linux_raid_member": ("is a member of a software RAID: its file system is on the array", None),
    "swap": ("is swap space, and holds no files", None),
    "firmware volume": ("is a firmware volume, and holds no files", None),
    "erofs": (
        "holds an EROFS, which this release cannot read",
        "no library reads it; fsck.erofs --extract=FOLDER unpacks it, and armvm build --root packs the folder again",
    ),
    "iso9660": ("holds an ISO 9660 file system, which this release cannot read", None),
}


@dataclass(frozen=True, slots=True)
class Content:
    """What a partition holds. ``kind`` is the name that ``blkid`` uses where it knows one."""

    kind: str
    label: str | None = None
    uuid: str | None = None


def open_files(disk: Disk, *, name: str, content: Content | None = None, subvolume: str | None = None) -> FileSystem:
    """The file system on ``disk``, opened for reading; ``name`` is what evidence calls it (``partition 2``).

    ``content`` saves the detection where it is known; ``subvolume`` names a btrfs subvolume that becomes the root,
    instead of the default one (``root``, ``@/.snapshots``; ``/`` is the top level).
    The disk stays the caller's to close.

    Raises InputError when nothing readable stands there, and MissingError when it needs an extra that is not installed.
    """
    content = content or detect_content(disk)
    if content is None:
        raise InputError("holds no file system that is known here", subject=name)
    if subvolume is not None and content.kind != "btrfs":
        raise InputError("has no subvolumes", subject=name, found=content.kind, expected="btrfs")
    if content.kind == "vfat":
        from armvm.disk.files_fat import FatFileSystem

        return FatFileSystem(disk, name=name)
    if content.kind in ("ext2", "ext3", "ext4"):
        from armvm.disk.files_ext import ExtFileSystem

        return ExtFileSystem(disk, name=name, kind=content.kind)
    if content.kind in _EXTRA_KINDS:
        from armvm.disk.files_extra import open_extra

        return open_extra(disk, content.kind, name=name, subvolume=subvolume)
    message, hint = _NO_FILES.get(content.kind, (f"holds {printable(content.kind)}, which cannot be read here", None))
    raise InputError(message, subject=name, hint=hint)


def detect_content(disk: Disk) -> Content | None:
    """Say what stands on ``disk``, a partition; None when nothing is recognised.

    Reads the first 68 KiB, a FAT volume's root directory for its label, and the end only when the start says nothing.
    Raises InputError only when the disk cannot be read.
    """
    head = disk.read(0, min(_HEAD_BYTES, disk.size_bytes))
    for detect in (_luks, _lvm, _raid, _ext, _xfs, _btrfs, _squashfs, _erofs, _swap, _iso9660, _firmware_volume):
        content = detect(head)
        if content is not None:
            return content
    return _fat(head, disk) or _raid_at_end(disk)


def _at(head: bytes, offset: int, magic: bytes) -> bool:
    return head[offset : offset + len(magic)] == magic


def _label(raw: bytes) -> str | None:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace").rstrip() or None


def _uuid(raw: bytes) -> str | None:
    return str(UUID(bytes=raw)) if any(raw) else None


def _ext(head: bytes) -> Content | None:
    if not _at(head, 0x438, b"\x53\xef") or len(head) < 0x800:
        return None
    compatible, incompatible, read_only = (int.from_bytes(head[at : at + 4], "little") for at in (0x45C, 0x460, 0x464))
    label, uuid = _label(head[0x478:0x488]), _uuid(head[0x468:0x478])
    if incompatible & 0x8:
        return Content("jbd", label, uuid)
    # As in libblkid: what ext3 does not know makes it ext4, else the journal makes it ext3.
    if incompatible & ~0x16 or read_only & ~0x7:
        return Content("ext4", label, uuid)
    return Content("ext3" if compatible & 0x4 else "ext2", label, uuid)


def _xfs(head: bytes) -> Content | None:
    if not _at(head, 0, b"XFSB") or len(head) < 120:
        return None
    return Content("xfs", _label(head[108:120]), _uuid(head[32:48]))


def _btrfs(head: bytes) -> Content | None:
    if not _at(head, 0x10040, b"_BHRfS_M") or len(head) < 0x1022B:
        return None
    return Content("btrfs", _label(head[0x1012B:0x1022B]), _uuid(head[0x10020:0x10030]))


def _luks(head: bytes) -> Content | None:
    if not _at(head, 0, b"LUKS\xba\xbe") or len(head) < 208:
        return None
    label = _label(head[24:72]) if head[6:8] == b"\0\2" else None
    return Content("crypto_LUKS", label, _label(head[168:208]))


def _squashfs(head: bytes) -> Content | None:
    return Content("squashfs") if _at(head, 0, b"hsqs") else None


def _erofs(head: bytes) -> Content | None:
    if not _at(head, 1024, b"\xe2\xe1\xf5\xe0") or len(head) < 1104:
        return None
    return Content("erofs", _label(head[1088:1104]), _uuid(head[1072:1088]))


def _lvm(head: bytes) -> Content | None:
    for sector in _LVM_SECTORS:
        if _at(head, sector, b"LABELONE") and _at(head, sector + 24, b"LVM2 001"):
            header = sector + int.from_bytes(head[sector + 20 : sector + 24], "little")
            return Content("LVM2_member", uuid=_lvm_uuid(head[header : header + 32]))
    return None


def _lvm_uuid(raw: bytes) -> str | None:
    """The 32 characters as LVM writes them: in groups of 6, 4, 4, 4, 4, 4 and 6."""
    if len(raw) < 32 or not raw.isalnum():
        return None
    text = raw.decode("ascii")
    cuts = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(text[start:stop] for start, stop in pairwise(cuts))


def _raid(head: bytes) -> Content | None:
    for offset in (4096, 0):
        if _at(head, offset, _RAID_MAGIC) and _at(head, offset + 4, b"\1\0\0\0"):
            return _raid_content(head[offset : offset + 64])
    return None


def _raid_content(superblock: bytes) -> Content:
    return Content("linux_raid_member", _label(superblock[32:64]), _uuid(superblock[16:32]))


def _raid_at_end(disk: Disk) -> Content | None:
    """Metadata 1.0 and 0.90 are at the end (Linux, include/uapi/linux/raid/md_p.h)."""
    offset = ((disk.size_bytes - 8 * KIB) // 4096) * 4096
    if offset >= 0:
        superblock = disk.read(offset, min(64, disk.size_bytes - offset))
        if superblock.startswith(_RAID_MAGIC + b"\1\0\0\0"):
            return _raid_content(superblock)
    offset = disk.size_bytes // _RAID_RESERVED_BYTES * _RAID_RESERVED_BYTES - _RAID_RESERVED_BYTES
    if offset >= 0:
        superblock = disk.read(offset, 64)
        if superblock.startswith(_RAID_MAGIC + b"\0\0\0\0"):
            words = superblock[20:24] + superblock[52:64]
            return Content("linux_raid_member", uuid=_uuid(b"".join(words[at : at + 4][::-1] for at in (0, 4, 8, 12))))
    return None


def _swap(head: bytes) -> Content | None:
    for page in _SWAP_PAGES:
        if _at(head, page - 10, b"SWAPSPACE2"):
            return Content("swap", _label(head[1052:1068]), _uuid(head[1036:1052]))
    return None


def _iso9660(head: bytes) -> Content | None:
    return Content("iso9660", _label(head[0x8028:0x8048])) if _at(head, 0x8001, b"CD001") else None


def _firmware_volume(head: bytes) -> Content | None:
    return Content("firmware volume") if _at(head, 0x28, b"_FVH") else None


def _fat(head: bytes, disk: Disk) -> Content | None:
    # The strings say little about FAT (the cluster count decides), but enough to say that it is one.
    if not any(_at(head, offset, b"FAT") for offset in (0x52, 0x36)) or not _at(head, 510, b"\x55\xaa"):
        return None
    from armvm.disk.fat import FatVolume

    try:
        volume = FatVolume(disk)
        label, serial = volume.label, volume.serial
    except InputError:
        return Content("vfat")
    return Content("vfat", label or None, None if serial is None else f"{serial >> 16:04X}-{serial & 0xFFFF:04X}")
