"""Which file system, or other known content, a partition holds: by its magic numbers alone, with label and UUID."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from armvm.disk.storage import Disk

_HEAD_BYTES = 68 * 1024


@dataclass(frozen=True, slots=True)
class Content:
    """What a partition holds. ``kind`` is the name that ``blkid`` uses where it knows one."""

    kind: str
    label: str | None = None
    uuid: str | None = None


def detect_content(disk: Disk) -> Content | None:
    """Say what stands on ``disk``, a partition; None when nothing is recognised. Reads at most the first 68 KiB.

    Raises InputError only when the disk cannot be read.
    """
    head = disk.read(0, min(_HEAD_BYTES, disk.size_bytes))
    for detect in (_ext, _xfs, _btrfs, _luks, _squashfs, _erofs, _lvm, _raid, _swap, _iso9660, _firmware_volume, _fat):
        content = detect(head)
        if content is not None:
            return content
    return None


def _at(head: bytes, offset: int, magic: bytes) -> bool:
    return head[offset : offset + len(magic)] == magic


def _label(raw: bytes) -> str | None:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace").rstrip() or None


def _ext(head: bytes) -> Content | None:
    if not _at(head, 0x438, b"\x53\xef"):
        return None
    compatible, incompatible = (int.from_bytes(head[at : at + 4], "little") for at in (0x45C, 0x460))
    kind = "ext4" if incompatible & 0x40 else "ext3" if compatible & 0x4 else "ext2"
    return Content(kind, _label(head[0x478:0x488]), str(UUID(bytes=head[0x468:0x478])))


def _xfs(head: bytes) -> Content | None:
    if not _at(head, 0, b"XFSB") or len(head) < 120:
        return None
    return Content("xfs", _label(head[108:120]), str(UUID(bytes=head[32:48])))


def _btrfs(head: bytes) -> Content | None:
    if not _at(head, 0x10040, b"_BHRfS_M") or len(head) < 0x1022B:
        return None
    return Content("btrfs", _label(head[0x1012B:0x1022B]), str(UUID(bytes=head[0x10020:0x10030])))


def _luks(head: bytes) -> Content | None:
    if not _at(head, 0, b"LUKS\xba\xbe") or len(head) < 208:
        return None
    return Content("crypto_LUKS", uuid=_label(head[168:208]))


def _squashfs(head: bytes) -> Content | None:
    return Content("squashfs") if _at(head, 0, b"hsqs") else None


def _erofs(head: bytes) -> Content | None:
    if not _at(head, 1024, b"\xe2\xe1\xf5\xe0") or len(head) < 1104:
        return None
    return Content("erofs", _label(head[1088:1104]), str(UUID(bytes=head[1072:1088])))


def _lvm(head: bytes) -> Content | None:
    return Content("LVM2_member") if _at(head, 512, b"LABELONE") and _at(head, 536, b"LVM2 001") else None


def _raid(head: bytes) -> Content | None:
    return Content("linux_raid_member") if _at(head, 4096, b"\xfc\x4e\x2b\xa9") else None


def _swap(head: bytes) -> Content | None:
    if not _at(head, 4086, b"SWAPSPACE2"):
        return None
    return Content("swap", _label(head[1052:1068]), str(UUID(bytes=head[1036:1052])))


def _iso9660(head: bytes) -> Content | None:
    return Content("iso9660", _label(head[0x8028:0x8048])) if _at(head, 0x8001, b"CD001") else None


def _firmware_volume(head: bytes) -> Content | None:
    return Content("firmware volume") if _at(head, 0x28, b"_FVH") else None


def _fat(head: bytes) -> Content | None:
    # The strings say little about FAT (the cluster count decides), but enough to say that it is one.
    for offset in (0x52, 0x36):
        if _at(head, offset, b"FAT") and _at(head, 510, b"\x55\xaa"):
            return Content("vfat")
    return None
