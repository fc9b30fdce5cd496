"""FAT32 file systems planned from a tree: the same tree always gives the same bytes, and no file is read before time.

Sources: Microsoft "FAT: General Overview of On-Disk Format" 1.03 (fatgen103); UEFI 2.10 §13.3.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from armvm.disk.composed import ComposedDisk
from armvm.disk.fat_boot import LEAST_FAT32_CLUSTERS, MOST_FAT32_CLUSTERS, serialise_fsinfo
from armvm.disk.fat_tree import (
    FatFile,
    FatFolder,
    FileNode,
    FolderNode,
    collect_tree,
    serialise_directory,
    serialise_label,
    serialise_time,
)
from armvm.disk.storage import BaseDisk, Disk, MemoryDisk
from armvm.errors import UsageError
from armvm.units import GIB, KIB, MIB, SECTOR_SIZES, align_up, format_size

__all__ = ["FatFile", "FatFolder", "minimum_fat32_size", "plan_fat32"]

LEAST_CLUSTERS = LEAST_FAT32_CLUSTERS + 16
"""Some drivers count clusters wrongly by a few: stay at least 16 clear of the boundary (fatgen103)."""

_LEAST_RESERVED_SECTORS = 32
_FSINFO_SECTOR = 1
_BACKUP_SECTOR = 6
_FAT_COUNT = 2
_ROOT_CLUSTER = 2
_MEDIA = 0xF8
_END_OF_CHAIN = 0x0FFFFFFF
_MOST_UINT32 = 0xFFFFFFFF
_ALIGNMENT_BYTES = 4 * KIB
_CLUSTER_BYTES = ((260 * MIB, 512), (8 * GIB, 4 * KIB), (16 * GIB, 8 * KIB), (32 * GIB, 16 * KIB))
_LARGEST_CLUSTER_BYTES = 32 * KIB
"""The cluster sizes of fatgen103, "FAT Volume Initialization": (up to this volume, bytes), and what is above."""


@dataclass(frozen=True, slots=True)
class _Geometry:
    """How a volume is divided (fatgen103, "FAT Volume Initialization", but exact instead of nearly so)."""

    sector_size: int
    total_sectors: int
    sectors_per_cluster: int

    @property
    def fat_sectors(self) -> int:
        free = self.total_sectors - _LEAST_RESERVED_SECTORS + 2 * self.sectors_per_cluster
        entries_per_sector = self.sector_size // 4
        return -(-free // (self.sectors_per_cluster * entries_per_sector + _FAT_COUNT))

    @property
    def first_data_sector(self) -> int:
        alignment = max(_ALIGNMENT_BYTES // self.sector_size, self.sectors_per_cluster)
        return align_up(_LEAST_RESERVED_SECTORS + _FAT_COUNT * self.fat_sectors, alignment)

    @property
    def reserved_sectors(self) -> int:
        return self.first_data_sector - _FAT_COUNT * self.fat_sectors

    @property
    def cluster_bytes(self) -> int:
        return self.sector_size * self.sectors_per_cluster

    @property
    def cluster_count(self) -> int:
        return (self.total_sectors - self.first_data_sector) // self.sectors_per_cluster

    def cluster_offset(self, cluster: int) -> int:
        return self.first_data_sector * self.sector_size + (cluster - 2) * self.cluster_bytes


def minimum_fat32_size(tree: Sequence[FatFile | FatFolder], sector_size: int, *, label: str = "") -> int:
    """The least bytes of a FAT32 volume that holds ``tree``: whole sectors, and the clusters that make it FAT32.

    Every larger volume holds it too. Raises UsageError for a tree that FAT32 cannot hold.
    """
    _require_whole_sectors(0, sector_size)
    return _least_size(collect_tree(tree, serialise_label(label)), sector_size)


def plan_fat32(
    size_bytes: int,
    sector_size: int,
    tree: Sequence[FatFile | FatFolder],
    *,
    label: str,
    volume_id: int,
    timestamp: int,
    hidden_sectors: int,
) -> ComposedDisk:
    """Plan a FAT32 file system of ``size_bytes`` that holds ``tree``, its entries in the order given.

    ``label`` may be empty. ``timestamp`` is in seconds since 1970 and is clamped to what FAT can say; it is written as
    UTC. ``hidden_sectors`` is the partition's first sector. Closing the disk closes the contents.

    Raises UsageError for a name that is illegal or there twice, a file of 4 GiB or more, and a volume that is too small
    (with the least size) or too large.
    """
    _require_whole_sectors(size_bytes, sector_size)
    label_bytes = serialise_label(label)
    for number, what in ((volume_id, "the volume id"), (hidden_sectors, "the count of hidden sectors")):
        if not 0 <= number <= _MOST_UINT32:
            raise UsageError(f"{what} must fit 32 bits: {number}")
    nodes = collect_tree(tree, label_bytes)
    geometry = _choose_geometry(size_bytes, sector_size, nodes)
    ends = _allocate(nodes, geometry.cluster_bytes)
    used = ends[-1] - 1
    fsinfo = serialise_fsinfo(
        geometry.cluster_count - used, ends[-1] + 1 if used < geometry.cluster_count else _MOST_UINT32
    )
    boot = _boot_sector(geometry, label_bytes, volume_id, hidden_sectors)
    boot_area = MemoryDisk(boot.ljust(_FSINFO_SECTOR * sector_size, b"\0") + fsinfo, sector_size=sector_size)
    pieces: list[tuple[int, Disk]] = [(0, boot_area), (_BACKUP_SECTOR * sector_size, boot_area)]
    table = _Table(ends, sector_size)
    first_sectors = (geometry.reserved_sectors + index * geometry.fat_sectors for index in range(_FAT_COUNT))
    pieces.extend((sector * sector_size, table) for sector in first_sectors)
    stamp = serialise_time(timestamp)
    for node in nodes:
        if node.first_cluster:
            if isinstance(node, FolderNode):
                content: Disk = MemoryDisk(serialise_directory(node, label_bytes, stamp))
            else:
                content = node.content
            pieces.append((geometry.cluster_offset(node.first_cluster), content))
    return ComposedDisk("FAT32 file system", size_bytes, pieces, sector_size=sector_size)


def _require_whole_sectors(size_bytes: int, sector_size: int) -> None:
    if sector_size not in SECTOR_SIZES or size_bytes % sector_size:
        raise UsageError(f"a FAT32 volume of {size_bytes} bytes cannot have sectors of {sector_size} bytes")


def _clusters(node: FileNode | FolderNode, cluster_bytes: int) -> int:
    clusters = -(-node.size_bytes // cluster_bytes)
    return clusters if isinstance(node, FileNode) else max(clusters, 1)


def _choose_geometry(size_bytes: int, sector_size: int, nodes: Sequence[FileNode | FolderNode]) -> _Geometry:
    """Microsoft's cluster size for the volume, or a smaller one where that leaves too few clusters."""
    cluster_bytes = _largest_cluster(size_bytes, sector_size)
    while cluster_bytes >= sector_size:
        geometry = _Geometry(sector_size, size_bytes // sector_size, cluster_bytes // sector_size)
        needed = max(LEAST_CLUSTERS, sum(_clusters(node, cluster_bytes) for node in nodes))
        if geometry.total_sectors > _MOST_UINT32 or geometry.cluster_count > MOST_FAT32_CLUSTERS:
            raise UsageError(f"{format_size(size_bytes)} are too much for FAT32 with {sector_size}-byte sectors")
        if geometry.cluster_count >= needed:
            return geometry
        cluster_bytes //= 2
    least = _least_size(nodes, sector_size)
    raise UsageError(
        f"{size_bytes} bytes are too few for this FAT32 volume with {sector_size}-byte sectors: "
        f"at least {least} bytes ({format_size(align_up(least, MIB))})"
    )


def _largest_cluster(size_bytes: int, sector_size: int) -> int:
    fitting = (cluster for limit, cluster in _CLUSTER_BYTES if size_bytes <= limit)
    return max(next(fitting, _LARGEST_CLUSTER_BYTES), sector_size)


def _least_size(nodes: Sequence[FileNode | FolderNode], sector_size: int) -> int:
    """The least volume over all the cluster sizes that ``_choose_geometry`` would come to for it."""
    sizes = []
    cluster_bytes = sector_size
    while cluster_bytes <= _LARGEST_CLUSTER_BYTES:
        needed = max(LEAST_CLUSTERS, sum(_clusters(node, cluster_bytes) for node in nodes))
        geometry = _Geometry(sector_size, needed * cluster_bytes // sector_size, cluster_bytes // sector_size)
        while geometry.cluster_count < needed:
            missing = (needed - geometry.cluster_count) * geometry.sectors_per_cluster
            geometry = _Geometry(sector_size, geometry.total_sectors + missing, geometry.sectors_per_cluster)
        size_bytes = geometry.total_sectors * sector_size
        if cluster_bytes <= _largest_cluster(size_bytes, sector_size) and needed <= MOST_FAT32_CLUSTERS:
            sizes.append(size_bytes)
        cluster_bytes *= 2
    if not sizes or min(sizes) > _MOST_UINT32 * sector_size:
        raise UsageError(f"no FAT32 volume with {sector_size}-byte sectors is large enough for these files")
    return min(sizes)


def _allocate(nodes: Sequence[FileNode | FolderNode], cluster_bytes: int) -> list[int]:
    """Give each node its clusters, one after the other. Returns the last cluster of each chain."""
    cluster = _ROOT_CLUSTER
    ends = []
    for node in nodes:
        count = _clusters(node, cluster_bytes)
        if count:
            node.first_cluster = cluster
            cluster += count
            ends.append(cluster - 1)
    return ends


class _Table(BaseDisk):
    """The allocation table up to its last used entry, reckoned when it is read: every chain is one run."""

    def __init__(self, ends: Sequence[int], sector_size: int) -> None:
        super().__init__("FAT32 allocation table", "raw", 4 * (ends[-1] + 1), sector_size)
        self._ends = [1, *ends]  # entry 1 holds an end mark (and says "cleanly unmounted")

    def _read(self, offset: int, length: int) -> bytes:
        first, last = offset // 4, -(-(offset + length) // 4)
        words = array("I", range(first + 1, last + 1))
        for end in self._ends[bisect_left(self._ends, first) : bisect_left(self._ends, last)]:
            words[end - first] = _END_OF_CHAIN
        if first == 0 < last:
            words[0] = _END_OF_CHAIN & ~0xFF | _MEDIA
        if sys.byteorder == "big":
            words.byteswap()
        return words.tobytes()[offset - 4 * first :][:length]


def _boot_sector(geometry: _Geometry, label: bytes, volume_id: int, hidden_sectors: int) -> bytes:
    """The first 512 bytes (fatgen103, "Boot Sector and BPB")."""
    common = struct.pack(
        "<3s8sHBHBHHBHHHII",
        b"\xeb\x58\x90",
        b"MSWIN4.1",  # what fatgen103 recommends, since some drivers look at it
        geometry.sector_size,
        geometry.sectors_per_cluster,
        geometry.reserved_sectors,
        _FAT_COUNT,
        0,  # root entries
        0,  # 16-bit total sectors
        _MEDIA,
        0,  # 16-bit sectors of a table
        63,  # sectors a track and heads, as every virtual disk says
        255,
        hidden_sectors,
        geometry.total_sectors,
    )
    wide = struct.pack(
        "<IHHIHH12xBBBI11s8s",
        geometry.fat_sectors,
        0,  # tables are mirrored
        0,  # version
        _ROOT_CLUSTER,
        _FSINFO_SECTOR,
        _BACKUP_SECTOR,
        0x80,  # drive number
        0,
        0x29,  # the three fields that follow are there
        volume_id,
        label or b"NO NAME    ",
        b"FAT32   ",
    )
    halt = b"\xf4\xeb\xfd"  # what an x86 BIOS that boots this does: hlt, and again
    return (common + wide + halt).ljust(510, b"\0") + b"\x55\xaa"
