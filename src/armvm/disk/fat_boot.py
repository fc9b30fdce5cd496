"""The first sector of a FAT file system (the BIOS parameter block) and the FSInfo sector: bytes to values.

Sources: Microsoft "FAT: General Overview of On-Disk Format" 1.03 (fatgen103), which UEFI 2.10 §13.3 builds on.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from armvm.disk.fat_directory import SLOT_BYTES
from armvm.disk.storage import Disk
from armvm.errors import InputError

BOOT_SECTOR_BYTES = 512
"""What of the boot sector has a meaning, whatever the sector size."""
SECTOR_SIZES_BYTES = (512, 1024, 2048, 4096)
"""The sector sizes a BPB may name (fatgen103, BPB_BytsPerSec)."""
LEAST_FAT16_CLUSTERS = 4085
LEAST_FAT32_CLUSTERS = 65525
MOST_FAT32_CLUSTERS = 0x0FFFFFF5
"""Clusters 2 to 0x0FFFFFF6; what is above are marks."""

_COMMON = struct.Struct("<3s8sHBHBHHBHHHII")
_TAIL_FAT16 = struct.Struct("<xBBI11s8s")
_TAIL_FAT32 = struct.Struct("<IHHIHH12xxBBI11s8s")
_FSINFO_LEAD = b"RRaA"
_FSINFO_STRUCTURE = b"rrAa"
_FSINFO_TRAIL = b"\0\0\x55\xaa"


class FatKind(enum.Enum):
    """The three kinds of FAT, told apart by nothing but the count of clusters."""

    FAT12 = "FAT12"
    FAT16 = "FAT16"
    FAT32 = "FAT32"

    @classmethod
    def of(cls, cluster_count: int) -> FatKind:
        """The kind that a count of clusters makes a file system (fatgen103, "FAT Type Determination")."""
        if cluster_count < LEAST_FAT16_CLUSTERS:
            return cls.FAT12
        return cls.FAT16 if cluster_count < LEAST_FAT32_CLUSTERS else cls.FAT32

    @property
    def entry_bits(self) -> int:
        """The width of an entry of the allocation table."""
        return int(self.value[3:])


@dataclass(frozen=True, slots=True)
class BootSector:
    """The values of a boot sector, as they stand (fatgen103, "Boot Sector and BPB").

    Fields that only FAT32 has are zero when ``fat_sectors_16`` is not: that is what makes the FAT32 layout.
    """

    jump: bytes
    oem_name: bytes
    bytes_per_sector: int
    sectors_per_cluster: int
    reserved_sectors: int
    fat_count: int
    root_entry_count: int
    total_sectors_16: int
    media: int
    fat_sectors_16: int
    hidden_sectors: int
    total_sectors_32: int
    fat_sectors_32: int
    extended_flags: int
    version: int
    root_cluster: int
    fsinfo_sector: int
    backup_sector: int
    state: int
    volume_id: int | None
    label: bytes
    signature: bytes

    @property
    def starts_with_jump(self) -> bool:
        """Whether it starts with one of the two jumps that fatgen103 allows (BS_jmpBoot)."""
        return self.jump[:1] == b"\xe9" or (self.jump[:1] == b"\xeb" and self.jump[2:] == b"\x90")

    @property
    def total_sectors(self) -> int:
        """Sectors of the whole file system."""
        return self.total_sectors_16 or self.total_sectors_32

    @property
    def fat_sectors(self) -> int:
        """Sectors of one allocation table."""
        return self.fat_sectors_16 or self.fat_sectors_32

    @property
    def root_sectors(self) -> int:
        """Sectors of the fixed root directory (FAT12 and FAT16)."""
        return -(-self.root_entry_count * SLOT_BYTES // self.bytes_per_sector)

    @property
    def first_root_sector(self) -> int:
        """Where the fixed root directory of FAT12 and FAT16 starts."""
        return self.reserved_sectors + self.fat_count * self.fat_sectors

    @property
    def first_data_sector(self) -> int:
        """The sector where cluster 2 starts."""
        return self.first_root_sector + self.root_sectors

    @property
    def cluster_bytes(self) -> int:
        """Bytes of one cluster."""
        return self.bytes_per_sector * self.sectors_per_cluster

    @property
    def cluster_count(self) -> int:
        """How many clusters the data area holds."""
        return (self.total_sectors - self.first_data_sector) // self.sectors_per_cluster

    @property
    def kind(self) -> FatKind:
        """What the count of clusters makes it: the only thing that decides (UEFI 2.10 §13.3.1.1)."""
        return FatKind.of(self.cluster_count)

    @property
    def layout(self) -> FatKind:
        """What its structures are laid out as, which is what readers go by. On a sound file system it is ``kind``."""
        if self.fat_sectors_16 == 0:
            return FatKind.FAT32
        return FatKind.FAT16 if self.kind is FatKind.FAT32 else self.kind

    @property
    def mirrored(self) -> bool:
        """Whether all tables are kept equal (FAT32 can switch that off)."""
        return not self.extended_flags & 0x80

    @property
    def active_fat(self) -> int:
        """The index of the table that counts."""
        return 0 if self.mirrored else self.extended_flags & 0x0F

    @property
    def table_entry_count(self) -> int:
        """How many entries the table has for clusters that exist, the two reserved ones included."""
        in_table = self.fat_sectors * self.bytes_per_sector * 8 // self.layout.entry_bits
        return min(self.cluster_count + 2, in_table)


@dataclass(frozen=True, slots=True)
class FsInfo:
    """The FSInfo sector of FAT32: hints that spare a driver counting."""

    signatures_right: bool
    free_clusters: int
    next_free: int


def parse_boot_sector(disk: Disk) -> BootSector:
    """Read the boot sector of ``disk``, judging nothing. Raises InputError when it holds no BPB at all."""
    if disk.size_bytes < BOOT_SECTOR_BYTES:
        raise InputError(
            "this is not a FAT file system",
            subject=disk.name,
            found=f"{disk.size_bytes} bytes",
            expected=f"at least {BOOT_SECTOR_BYTES}",
        )
    boot = _unpack(disk.read(0, BOOT_SECTOR_BYTES))
    fault = _not_a_bpb(boot)
    if fault is not None:
        raise InputError(f"this is not a FAT file system: {fault}", subject=disk.name, offset_bytes=0)
    return boot


def _unpack(sector: bytes) -> BootSector:
    common = _COMMON.unpack_from(sector)
    wide = [0] * 6
    if common[9]:  # BPB_FATSz16
        state, extended, volume_id, label, _ = _TAIL_FAT16.unpack_from(sector, _COMMON.size)
    else:
        *wide, state, extended, volume_id, label, _ = _TAIL_FAT32.unpack_from(sector, _COMMON.size)
    if extended != 0x29:
        label = b""
    if extended not in (0x28, 0x29):
        volume_id = None
    # Sectors a track and heads, fields 10 and 11, say nothing about a virtual disk.
    return BootSector(*(*common[:10], *common[12:], *wide, state, volume_id, label, sector[510:512]))


def _not_a_bpb(boot: BootSector) -> str | None:
    """Why nothing can be read by this boot sector; None when it can."""
    if boot.signature != b"\x55\xaa" and not boot.starts_with_jump:
        return "the first sector has neither the boot signature 55 aa nor a jump"
    if boot.bytes_per_sector not in SECTOR_SIZES_BYTES:
        return f"{boot.bytes_per_sector} bytes a sector"
    for value, what in (
        (boot.sectors_per_cluster, "sectors a cluster"),
        (boot.reserved_sectors, "reserved sectors"),
        (boot.fat_count, "allocation tables"),
        (boot.fat_sectors, "sectors an allocation table"),
        (boot.total_sectors, "sectors in all"),
    ):
        if value == 0:
            return f"0 {what}"
    if boot.total_sectors < boot.first_data_sector + boot.sectors_per_cluster:
        return f"{boot.total_sectors} sectors in all leave no cluster after {boot.first_data_sector} of tables"
    return None


def parse_fsinfo(sector: bytes) -> FsInfo:
    """Read the first 512 bytes of an FSInfo sector (fatgen103, "FAT32 FSInfo Sector Structure")."""
    free_clusters, next_free = struct.unpack_from("<II", sector, 488)
    right = (sector[:4], sector[484:488], sector[508:512]) == (_FSINFO_LEAD, _FSINFO_STRUCTURE, _FSINFO_TRAIL)
    return FsInfo(right, free_clusters, next_free)


def serialise_fsinfo(free_clusters: int, next_free: int) -> bytes:
    """The 512 bytes of an FSInfo sector."""
    return struct.pack("<4s480x4sII12x4s", _FSINFO_LEAD, _FSINFO_STRUCTURE, free_clusters, next_free, _FSINFO_TRAIL)
