"""What can be wrong with a FAT file system before its first cluster: boot sectors, FSInfo, the allocation tables.

Sources: Microsoft "FAT: General Overview of On-Disk Format" 1.03 (fatgen103); UEFI 2.10 §13.3.
"""

from __future__ import annotations

from collections.abc import Iterator

from armvm.disk.fat import FatVolume
from armvm.disk.fat_boot import (
    BOOT_SECTOR_BYTES,
    LEAST_FAT32_CLUSTERS,
    MOST_FAT32_CLUSTERS,
    BootSector,
    FatKind,
)
from armvm.disk.fat_directory import SLOT_BYTES
from armvm.errors import InputError
from armvm.spec.verdict import Evidence, Problem
from armvm.units import KIB, MIB

_MOST_CLUSTER_BYTES = 32 * KIB
_MEDIA = frozenset((0xF0, *range(0xF8, 0x100)))
_STATE_OFFSET = 65
"""Drivers set the dirty bit here in the boot sector and not in its backup."""
_BPB = slice(11, 90)
_COMPARED_AT_ONCE = MIB
_MOST_COMPARED_TABLES = 4
_CLEAN_MARKS = {FatKind.FAT16: (0x8000, 0x4000), FatKind.FAT32: (0x08000000, 0x04000000)}
"""In entry 1 of the table, set when all is well: cleanly unmounted, no read or write error (fatgen103)."""


def problem(
    code: str, message: str, *, where: str, found: object, expected: object = None, serious: bool = True
) -> Problem:
    """A problem with one piece of evidence."""
    return Problem(code, message, Evidence(where, str(found), None if expected is None else str(expected)), serious)


def check_boot_area(volume: FatVolume, first_lba: int | None) -> Iterator[Problem]:
    """Judge the boot sector and what it points at. ``first_lba`` is where the partition starts, when it is one."""
    boot = volume.boot
    yield from _check_bpb(boot)
    yield from _check_counts(boot)
    yield from _check_sizes(volume)
    if boot.layout is FatKind.FAT32:
        yield from _check_fat32(boot)
        yield from _check_fsinfo(volume)
        yield from _check_backup(volume)
    elif boot.root_entry_count == 0 or boot.root_entry_count * SLOT_BYTES % boot.bytes_per_sector:
        yield problem(
            "root-entries",
            f"The root directory of {boot.layout.value} does not fill whole sectors.",
            where="boot sector, offset 0x11",
            found=boot.root_entry_count,
            expected=f"a multiple of {boot.bytes_per_sector // SLOT_BYTES}",
        )
    if first_lba is not None and boot.hidden_sectors != first_lba:
        yield problem(
            "hidden-sectors",
            "The boot sector and the partition table name different starts of the partition.",
            where="boot sector, offset 0x1c",
            found=boot.hidden_sectors,
            expected=first_lba,
            serious=False,
        )


def _check_bpb(boot: BootSector) -> Iterator[Problem]:
    if not boot.starts_with_jump:
        yield problem(
            "boot-jump",
            "The boot sector does not start with a jump.",
            where="boot sector, offset 0x0",
            found=boot.jump.hex(" "),
            expected="eb ?? 90 or e9 ?? ??",
        )
    if boot.signature != b"\x55\xaa":
        yield problem(
            "boot-signature",
            "The boot sector does not end in its signature.",
            where="boot sector, offset 0x1fe",
            found=boot.signature.hex(" "),
            expected="55 aa",
        )
    if boot.sectors_per_cluster & (boot.sectors_per_cluster - 1):
        yield problem(
            "sectors-per-cluster",
            "The sectors of a cluster are no power of two.",
            where="boot sector, offset 0xd",
            found=boot.sectors_per_cluster,
        )
    elif boot.cluster_bytes > _MOST_CLUSTER_BYTES:
        yield problem(
            "cluster-size",
            "Clusters are larger than every driver reads.",
            where="boot sector, offset 0xd",
            found=f"{boot.cluster_bytes} bytes",
            expected=f"at most {_MOST_CLUSTER_BYTES}",
            serious=False,
        )
    if boot.media not in _MEDIA:
        yield problem(
            "media",
            "The media byte has no meaning.",
            where="boot sector, offset 0x15",
            found=f"{boot.media:#04x}",
            expected="0xf8 (or 0xf0, 0xf9 to 0xff)",
        )
    if boot.fat_count != 2:
        yield problem(
            "fat-count",
            "There are not two allocation tables, which some drivers take for granted.",
            where="boot sector, offset 0x10",
            found=boot.fat_count,
            expected=2,
            serious=False,
        )
    if boot.state & 1:
        yield problem(
            "dirty",
            "The file system was not cleanly unmounted.",
            where="boot sector, state byte",
            found=f"{boot.state:#04x}",
            serious=False,
        )


def _check_counts(boot: BootSector) -> Iterator[Problem]:
    """The count of clusters decides the kind of FAT; everything else has to agree with it."""
    if boot.layout is not boot.kind:
        yield problem(
            "cluster-count",
            f"Laid out as {boot.layout.value}, the file system is {boot.kind.value} by its count of clusters.",
            where="boot sector",
            found=f"{boot.cluster_count} clusters",
            expected=f"{'at least' if boot.layout is FatKind.FAT32 else 'less than'} {LEAST_FAT32_CLUSTERS}",
        )
    elif boot.cluster_count > MOST_FAT32_CLUSTERS:
        yield problem(
            "cluster-count",
            "There are more clusters than FAT32 can number.",
            where="boot sector",
            found=f"{boot.cluster_count} clusters",
            expected=f"at most {MOST_FAT32_CLUSTERS}",
        )
    needed = -(-(boot.cluster_count + 2) * boot.layout.entry_bits // (8 * boot.bytes_per_sector))
    if boot.fat_sectors < needed:
        yield problem(
            "fat-size",
            "The allocation table is too short for the clusters.",
            where="boot sector, offset 0x24" if boot.layout is FatKind.FAT32 else "boot sector, offset 0x16",
            found=f"{boot.fat_sectors} sectors",
            expected=f"at least {needed}",
        )
    if boot.total_sectors_16 and boot.total_sectors_32 not in (0, boot.total_sectors_16):
        yield problem(
            "total-sectors",
            "The boot sector says twice how many sectors there are, and differently.",
            where="boot sector, offset 0x13",
            found=boot.total_sectors_16,
            expected=boot.total_sectors_32,
        )


def _check_sizes(volume: FatVolume) -> Iterator[Problem]:
    boot, disk = volume.boot, volume.disk
    if boot.bytes_per_sector != disk.sector_size:
        yield problem(
            "sector-size",
            "The file system has another sector size than its disk.",
            where="boot sector, offset 0xb",
            found=f"{boot.bytes_per_sector} bytes",
            expected=f"{disk.sector_size} bytes",
        )
    if boot.total_sectors * boot.bytes_per_sector > disk.size_bytes:
        yield problem(
            "volume-size",
            "The file system is larger than what it stands on.",
            where="boot sector, offset 0x20",
            found=f"{boot.total_sectors * boot.bytes_per_sector} bytes",
            expected=f"at most {disk.size_bytes}",
        )


def _check_fat32(boot: BootSector) -> Iterator[Problem]:
    for code, offset, found in (
        ("root-entries", 0x11, boot.root_entry_count),
        ("total-sectors", 0x13, boot.total_sectors_16),
        ("version", 0x2A, boot.version),
    ):
        if found:
            yield problem(
                code,
                "A field that must be zero on FAT32 is not.",
                where=f"boot sector, offset {offset:#x}",
                found=found,
                expected=0,
            )
    if not 2 <= boot.root_cluster < boot.cluster_count + 2:
        yield problem(
            "root-cluster",
            "The root directory starts at a cluster that does not exist.",
            where="boot sector, offset 0x2c",
            found=boot.root_cluster,
            expected=f"2 to {boot.cluster_count + 1}",
        )
    if boot.active_fat >= boot.fat_count:
        yield problem(
            "active-fat",
            "The allocation table that is said to be active does not exist.",
            where="boot sector, offset 0x28",
            found=boot.active_fat,
            expected=f"less than {boot.fat_count}",
        )


def _check_fsinfo(volume: FatVolume) -> Iterator[Problem]:
    sector = volume.boot.fsinfo_sector
    if not 1 <= sector < volume.boot.reserved_sectors:
        yield problem(
            "fsinfo-sector",
            "The FSInfo sector is not among the reserved sectors.",
            where="boot sector, offset 0x30",
            found=sector,
            expected=f"1 to {volume.boot.reserved_sectors - 1}",
        )
        return
    fsinfo = volume.fsinfo()
    if fsinfo is not None and not fsinfo.signatures_right:
        yield problem(
            "fsinfo-signature",
            "The FSInfo sector does not have its three signatures.",
            where=f"sector {sector}",
            found="other bytes",
            expected="RRaA at 0x0, rrAa at 0x1e4, 00 00 55 aa at 0x1fc",
        )


def _check_backup(volume: FatVolume) -> Iterator[Problem]:
    sector = volume.boot.backup_sector
    if not 1 <= sector < volume.boot.reserved_sectors:
        yield problem(
            "backup-sector",
            "There is no backup of the boot sector.",
            where="boot sector, offset 0x32",
            found=sector,
            expected=6,
            serious=sector != 0,
        )
        return
    main = bytearray(volume.disk.read(0, BOOT_SECTOR_BYTES))
    backup = bytearray(volume.disk.read(sector * volume.bytes_per_sector, BOOT_SECTOR_BYTES))
    main[_STATE_OFFSET] = backup[_STATE_OFFSET] = 0
    if main != backup:
        place = next(index for index in range(BOOT_SECTOR_BYTES) if main[index] != backup[index])
        yield problem(
            "backup-boot-sector",
            "The backup of the boot sector is not its copy.",
            where=f"sector {sector}, offset {place:#x}",
            found=f"{backup[place]:02x}",
            expected=f"{main[place]:02x}",
            # Boot code means nothing here; what describes the file system has to be the same.
            serious=main[_BPB] != backup[_BPB],
        )


def check_tables(volume: FatVolume) -> Iterator[Problem]:
    """Judge the two marks that each table starts with, and whether all tables agree."""
    table, boot = volume.table, volume.boot
    if table.entry(0) & 0xFF != boot.media:
        yield problem(
            "fat-media",
            "The allocation table starts with another media byte than the boot sector has.",
            where="allocation table, entry 0",
            found=f"{table.entry(0) & 0xFF:#04x}",
            expected=f"{boot.media:#04x}",
            serious=False,
        )
    for mark, code, message in zip(
        _CLEAN_MARKS.get(boot.layout, ()),
        ("dirty", "disk-errors"),
        ("The file system was not cleanly unmounted.", "A driver met read or write errors on this file system."),
        strict=False,
    ):
        if not table.entry(1) & mark:
            yield problem(code, message, where="allocation table, entry 1", found=f"{table.entry(1):#x}", serious=False)
    if boot.mirrored:
        for index in range(1, min(boot.fat_count, _MOST_COMPARED_TABLES)):
            yield from _check_copy(volume, index)


def _check_copy(volume: FatVolume, index: int) -> Iterator[Problem]:
    boot, disk = volume.boot, volume.disk
    first = boot.reserved_sectors * boot.bytes_per_sector
    copy = first + index * boot.fat_sectors * boot.bytes_per_sector
    size_bytes = -(-boot.table_entry_count * boot.layout.entry_bits // 8)
    for start in range(0, size_bytes, _COMPARED_AT_ONCE):
        length = min(_COMPARED_AT_ONCE, size_bytes - start)
        ours, theirs = disk.read(first + start, length), disk.read(copy + start, length)
        if ours != theirs:
            place = next(place for place in range(length) if ours[place] != theirs[place])
            yield problem(
                "fats-differ",
                f"Allocation table {index + 1} is not the same as the first.",
                where=f"entry {(start + place) * 8 // boot.layout.entry_bits}, offset {copy + start + place:#x}",
                found=f"{theirs[place]:02x}",
                expected=f"{ours[place]:02x}",
            )
            return


def unreadable(error: InputError) -> Problem:
    """What could not be read at all, as a problem."""
    return problem("unreadable", "A part of the file system cannot be read.", where="file system", found=error.message)
