"""What a disk with other sectors can hold as it stands, what has to be made anew for it, and what cannot live there."""

from __future__ import annotations

from dataclasses import dataclass

from armvm.disk.ext_resize import read_ext_geometry
from armvm.disk.fat import FatVolume
from armvm.disk.fat_tree import EARLIEST_TIME, FatFile, FatFolder, serialise_label
from armvm.disk.fat_write import minimum_fat32_size, plan_fat32
from armvm.disk.filesystems import Content
from armvm.disk.storage import Disk
from armvm.errors import InputError, UsageError
from armvm.units import format_size

_HEAD_BYTES = 68 * 1024
_NO_BLOCKS = frozenset({"swap", "squashfs"})
"""Contents that do not care about sectors: they are read in pages, or the kernel adapts."""
_LAYERS = {
    "crypto_LUKS": "is encrypted",
    "LVM2_member": "holds logical volumes",
    "linux_raid_member": "is a member of a RAID",
    "iso9660": "holds an ISO 9660 file system, which is made for sectors of 2048 bytes",
}


def why_not_carried(disk: Disk, content: Content | None, sector_size: int) -> str | None:
    """Why what stands on ``disk``, a partition, cannot live on sectors of ``sector_size`` bytes; None when it can.

    Linux mounts no file system whose smallest unit is less than a sector of its disk. Raises InputError when a
    superblock cannot be read.
    """
    kind = content.kind if content else None
    if kind in ("ext2", "ext3", "ext4"):
        unit, what = read_ext_geometry(disk).block_size, f"{kind} with blocks"
    elif kind == "xfs":
        # sb_sectsize (xfs_format.h, struct xfs_dsb): mkfs takes over the sectors of the disk that it was run on.
        unit, what = int.from_bytes(disk.read(102, 2), "big"), "XFS made for sectors"
    elif kind == "btrfs":
        unit, what = int.from_bytes(disk.read(0x10090, 4), "little"), "btrfs with sectors"
    elif kind == "erofs":
        unit, what = 1 << min(disk.read(1024 + 12, 1)[0], 32), "EROFS with blocks"
    else:
        return None
    return f"{what} of {unit} bytes cannot be mounted from sectors of {sector_size}" if unit < sector_size else None


def doubt(disk: Disk, content: Content | None, sector_size: int) -> str | None:
    """What cannot be said of ``disk`` on sectors of ``sector_size`` bytes; None when there is no doubt."""
    if sector_size == 512 or (content is not None and content.kind in _NO_BLOCKS):
        return None
    if content is None:
        head = disk.read(0, min(_HEAD_BYTES, disk.size_bytes))
        return "what it holds is not known, it is copied as it is" if any(head) else None
    layer = _LAYERS.get(content.kind)
    return f"{layer}: what is inside is copied without being looked at" if layer else None


@dataclass(frozen=True, slots=True)
class FatCopy:
    """A FAT file system to be written anew as FAT32: the same tree, label, volume id, times and attributes."""

    tree: tuple[FatFile | FatFolder, ...]
    label: str
    volume_id: int
    notes: tuple[str, ...]

    def minimum_size(self, sector_size: int) -> int:
        """The least bytes that it takes on sectors of ``sector_size``."""
        return minimum_fat32_size(self.tree, sector_size, label=self.label)

    def plan(self, size_bytes: int, sector_size: int, hidden_sectors: int) -> Disk:
        """It as a disk of ``size_bytes``; see plan_fat32."""
        return plan_fat32(
            size_bytes,
            sector_size,
            self.tree,
            label=self.label,
            volume_id=self.volume_id,
            timestamp=EARLIEST_TIME,  # of what has no time to keep: the same input gives the same bytes
            hidden_sectors=hidden_sectors,
        )


def copy_fat(volume: FatVolume) -> FatCopy:
    """What is on ``volume``, read only when it is written. Raises InputError when its folders cannot be read."""
    tree: list[FatFile | FatFolder] = []
    total = 0
    for path, entry in volume.walk():
        if entry.is_directory:
            tree.append(FatFolder(path, entry.slot))
            continue
        total += entry.size_bytes
        if total > volume.disk.size_bytes:
            raise InputError(
                "its files claim more bytes than there are",
                subject=volume.disk.name,
                expected=f"at most {format_size(volume.disk.size_bytes)}",
                hint="fsck.vfat -n tells more",
            )
        tree.append(FatFile(path, volume.open(entry), entry.slot))
    label, notes = volume.label, []
    try:
        serialise_label(label)
    except UsageError as error:
        label, notes = "", [f"its label is left out: {error.message}"]
    return FatCopy(tuple(tree), label, volume.serial or 0, tuple(notes))
