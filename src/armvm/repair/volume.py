"""Repairs of the ESP's FAT file system: only those after which it verifies whole, and which lose nothing."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from armvm.disk.fat import FatVolume
from armvm.disk.fat_boot import BOOT_SECTOR_BYTES, FatKind, serialise_fsinfo
from armvm.disk.fat_table import PIECE_ENTRIES
from armvm.disk.fat_verify import verify
from armvm.disk.gpt import read_partition_table
from armvm.disk.gpt_format import Partition
from armvm.disk.patched import PatchedDisk, WritableDisk
from armvm.errors import InputError
from armvm.repair.workbench import Workbench
from armvm.spec.verdict import Problem

_FAT = "image.esp-fat32"
_BACKUP_SECTOR, _FSINFO_SECTOR = 6, 1
_MOST_ROUNDS = 12
_MOST_SAID = 4
"""How many kinds of faults of one file system are named: one that is left is enough to keep it from passing."""
_SAFE_TO_COUNT = frozenset({"fsinfo-signature", "fsinfo-sector", "backup-boot-sector", "backup-sector", "fats-differ"})
"""Beside which faults the clusters can still be counted."""
_CLEAN = {FatKind.FAT32: (4, 0x08000000), FatKind.FAT16: (2, 0x8000)}
_WORTH_MENDING = frozenset({"dirty", "fsinfo-free-count"})
"""Not serious, and mended all the same: drivers act on them."""
_REMEDIES = {
    "sector-size": "write it anew for this sector size: `armvm convert --sector-size`",
    "volume-size": "the image was cut short, or the partition made smaller: take the whole image again",
    "cluster-count": "make the ESP at least 33 MiB and format it anew: `mkfs.vfat -F 32`, then copy the files back",
}
_BY_HAND = "copy the files that can be read, format it anew with `mkfs.vfat -F 32`, and copy them back"


@dataclass(frozen=True, slots=True)
class _Mend:
    """Something to try: what is done, in words, and the doing of it; False when it cannot be done here."""

    action: str
    apply: Callable[[WritableDisk], bool]


def repair_volumes(bench: Workbench) -> None:
    """image.esp-fat32: what can be mended of each ESP."""
    if not bench.wants(_FAT):
        return
    for partition in read_partition_table(bench.disk).partitions:
        if partition.is_esp:
            try:
                _repair(bench, partition)
            except InputError as error:
                bench.cannot(_FAT, f"partition {partition.number}", error.message, _BY_HAND)


def _repair(bench: Workbench, partition: Partition) -> None:
    where = f"partition {partition.number}"
    disk = bench.volume(partition)
    if not _readable(disk) and not _restore_boot_sector(bench, disk, where):
        return
    for _ in range(_MOST_ROUNDS):
        volume = FatVolume(disk)
        problems = verify(volume)
        serious = [problem for problem in problems if problem.serious]
        todo = serious or [problem for problem in problems if problem.code in _WORTH_MENDING]
        if not any(_mend(bench, disk, volume, problem, where) for problem in todo):
            break
    serious = [problem for problem in verify(FatVolume(disk)) if problem.serious]
    if not serious and FatVolume(disk).kind is not FatKind.FAT32:
        found = FatVolume(disk).kind.value
        bench.cannot(_FAT, where, f"it is {found}: FAT32 takes at least 65525 clusters", _REMEDIES["cluster-count"])
    kinds: dict[str, Problem] = {}
    for problem in serious:
        kinds.setdefault(problem.code, problem)
    for problem in list(kinds.values())[:_MOST_SAID]:
        place = f"{where}, {problem.evidence.where}"
        bench.cannot(_FAT, place, problem.message, _REMEDIES.get(problem.code, _BY_HAND))


def _mend(bench: Workbench, disk: WritableDisk, volume: FatVolume, problem: Problem, where: str) -> bool:
    """Try every mend for a problem, and keep the first that takes it away and brings no other."""
    before = _serious(volume)
    for mend in _mends(volume, problem.code):
        scratch = PatchedDisk(disk)
        try:
            if not mend.apply(scratch):
                continue
            after = FatVolume(scratch)
            codes = _serious(after)
            gone = problem.code not in {found.code for found in verify(after)}
            if gone and codes <= before:
                for offset, _, content in scratch.changes():
                    disk.write(offset, content)
                bench.did(_FAT, f"{where}, {problem.evidence.where}", mend.action, problem.message)
                return True
        except InputError:
            continue  # with this mend it could not be read at all
        finally:
            scratch.close()
    return False


def _serious(volume: FatVolume) -> set[str]:
    return {problem.code for problem in verify(volume) if problem.serious}


def _readable(disk: WritableDisk) -> bool:
    try:
        FatVolume(disk)
    except InputError:
        return False
    return True


def _restore_boot_sector(bench: Workbench, disk: WritableDisk, where: str) -> bool:
    """A boot sector that cannot be read, from its backup: where that one describes a file system that verifies."""
    for sector_size in (disk.sector_size, 512, 4096):
        offset = _BACKUP_SECTOR * sector_size
        if offset + BOOT_SECTOR_BYTES > disk.size_bytes:
            continue
        scratch = PatchedDisk(disk)
        scratch.write(0, disk.read(offset, BOOT_SECTOR_BYTES))
        try:
            sound = not _serious(FatVolume(scratch))
        except InputError:
            sound = False
        scratch.close()
        if sound:
            disk.write(0, disk.read(offset, BOOT_SECTOR_BYTES))
            reason = "the boot sector describes no file system, and its backup one that is sound"
            bench.did(_FAT, f"{where}, boot sector", "boot sector restored from its backup", reason)
            return True
    why = "it holds no FAT file system, nor the backup of one"
    bench.cannot(_FAT, where, why, "format it with `mkfs.vfat -F 32` and put a boot loader on it")
    return False


def _mends(volume: FatVolume, code: str) -> Iterator[_Mend]:
    """What could help against a problem, the safest first."""
    boot = volume.boot
    fields = {
        "boot-jump": ("the jump at its start written", 0, b"\xeb\x58\x90"),
        "boot-signature": ("its signature written", 510, b"\x55\xaa"),
        "media": ("the media byte set to that of a fixed disk", 21, b"\xf8"),
        "root-entries": ("the count of root entries set to 0, as FAT32 has it", 17, b"\0\0"),
        "total-sectors": ("the 16-bit count of sectors set to 0, as FAT32 has it", 19, b"\0\0"),
        "version": ("the version set to 0", 42, b"\0\0"),
        "active-fat": ("mirroring of the allocation tables switched on", 40, b"\0\0"),
        "fsinfo-sector": ("FSInfo named at sector 1", 48, struct.pack("<H", _FSINFO_SECTOR)),
        "backup-sector": ("the backup named at sector 6", 50, struct.pack("<H", _BACKUP_SECTOR)),
    }
    if boot.layout is FatKind.FAT32 and code != "backup-boot-sector":
        yield _Mend("boot sector restored from its backup", lambda disk: _copy_backup(disk, volume))
    if code in fields and (boot.layout is FatKind.FAT32 or code in ("boot-signature", "media")):
        what, offset, value = fields[code]
        yield _Mend(f"boot sector: {what}", lambda disk: _set_field(disk, volume, offset, value))
    if code == "backup-boot-sector":
        yield _Mend("backup of the boot sector made its copy again", lambda disk: _copy_to_backup(disk, volume))
    if code in ("fsinfo-signature", "fsinfo-free-count"):
        yield _Mend("FSInfo written anew, with the free clusters counted", lambda disk: _write_fsinfo(disk, volume))
    if code == "fats-differ":
        for index in range(min(boot.fat_count, 4)):
            what = (
                "the other allocation tables made copies of" if index == 0 else "the first allocation table replaced by"
            )
            yield _Mend(f"{what} number {index + 1}, which verifies", partial(_copy_table, volume, index))
    if code == "dirty":
        yield _Mend("marked as cleanly unmounted, since it verifies", lambda disk: _mark_clean(disk, volume))


def _set_field(disk: WritableDisk, volume: FatVolume, offset: int, value: bytes) -> bool:
    """A field of the boot sector and of its backup; what is then named must be blank, or what it is named as."""
    size = volume.bytes_per_sector
    if offset == 48:
        target = disk.read(_FSINFO_SECTOR * size, BOOT_SECTOR_BYTES)
        if any(target) and target[:4] != b"RRaA":
            return False
    disk.write(offset, value)
    if offset == 50:
        target = disk.read(_BACKUP_SECTOR * size, BOOT_SECTOR_BYTES)
        if volume.boot.reserved_sectors <= _BACKUP_SECTOR or (any(target) and target[510:] != b"\x55\xaa"):
            return False
        disk.write(_BACKUP_SECTOR * size, disk.read(0, BOOT_SECTOR_BYTES))
    elif volume.boot.layout is FatKind.FAT32 and 0 < volume.boot.backup_sector < volume.boot.reserved_sectors:
        disk.write(volume.boot.backup_sector * size + offset, value)
    return True


def _copy_backup(disk: WritableDisk, volume: FatVolume) -> bool:
    size = volume.bytes_per_sector
    named = volume.boot.backup_sector
    sector = named if 0 < named < volume.boot.reserved_sectors else _BACKUP_SECTOR
    backup = disk.read(sector * size, BOOT_SECTOR_BYTES)
    if backup[510:] != b"\x55\xaa" or backup == disk.read(0, BOOT_SECTOR_BYTES):
        return False
    disk.write(0, backup)
    return not _serious(FatVolume(disk))


def _copy_to_backup(disk: WritableDisk, volume: FatVolume) -> bool:
    disk.write(volume.boot.backup_sector * volume.bytes_per_sector, disk.read(0, BOOT_SECTOR_BYTES))
    return True


def _write_fsinfo(disk: WritableDisk, volume: FatVolume) -> bool:
    if not _serious(volume) <= _SAFE_TO_COUNT:
        return False
    table = volume.table
    free, first_free = 0, 0xFFFFFFFF
    for index in range(-(-table.entry_count // PIECE_ENTRIES)):
        piece = table.piece(index)
        entries = piece.entries if index else piece.entries[2:]
        count = entries.count(0)
        if count and not free:
            first_free = piece.first + (0 if index else 2) + entries.index(0)
        free += count
    offset = volume.boot.fsinfo_sector * volume.bytes_per_sector
    disk.write(offset, serialise_fsinfo(free, first_free))
    return True


def _copy_table(volume: FatVolume, source: int, disk: WritableDisk) -> bool:
    """All tables made copies of one; only when the file system then verifies whole."""
    boot = volume.boot
    if not boot.mirrored:
        return False
    size = boot.fat_sectors * boot.bytes_per_sector
    start = boot.reserved_sectors * boot.bytes_per_sector
    step = 1 << 20
    for position in range(0, size, step):
        length = min(step, size - position)
        content = disk.read(start + source * size + position, length)
        for index in range(boot.fat_count):
            place = start + index * size + position
            if index != source and disk.read(place, length) != content:
                disk.write(place, content)
    return _serious(FatVolume(disk)) <= _SAFE_TO_COUNT - {"fats-differ"}


def _mark_clean(disk: WritableDisk, volume: FatVolume) -> bool:
    if _serious(volume):
        return False
    boot = volume.boot
    if boot.layout in _CLEAN:
        width, mark = _CLEAN[boot.layout]
        for index in range(boot.fat_count):
            place = (boot.reserved_sectors + index * boot.fat_sectors) * boot.bytes_per_sector + width
            value = int.from_bytes(disk.read(place, width), "little") | mark
            disk.write(place, value.to_bytes(width, "little"))
    state_offset = 65 if boot.layout is FatKind.FAT32 else 37
    disk.write(state_offset, bytes([boot.state & ~1]))
    return True
