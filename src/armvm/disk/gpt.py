"""Reading the GUID Partition Table of a disk, and finding everything wrong with it (UEFI 2.10 §5.2, §5.3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from armvm.disk.gpt_entries import check_count, check_partitions
from armvm.disk.gpt_format import (
    MAX_PARTITIONS,
    GptHeader,
    Partition,
    PartitionTable,
    TableKind,
    TableSource,
    parse_entry,
    parse_header,
    used_entries,
)
from armvm.disk.gpt_problems import ProblemLog
from armvm.disk.gpt_verify import (
    Geometry,
    HeaderJudge,
    check_agreement,
    check_missing_header,
    check_places,
    header_crc,
)
from armvm.disk.mbr import Mbr, check_protective_mbr, parse_mbr
from armvm.disk.storage import Disk
from armvm.units import SECTOR_SIZES

__all__ = ["GptHeader", "Partition", "PartitionTable", "TableKind", "TableSource", "read_partition_table"]


@dataclass(frozen=True, slots=True)
class _Place:
    """A logical block where a header is, or should be. Its ``header`` is None when none is there."""

    lba: int
    block: bytes
    header: GptHeader | None


@dataclass(frozen=True, slots=True)
class _Half:
    """One of the two tables as it was read."""

    source: TableSource
    header: GptHeader | None
    entries: bytes | None
    intact: bool


def read_partition_table(disk: Disk) -> PartitionTable:
    """Read and judge the partition table of ``disk``, whatever it holds.

    What is wrong with it is in the table's ``problems``; a table without serious ones is a conforming GPT.
    Raises InputError only when the disk itself cannot be read.
    """
    log = ProblemLog()
    geometry = Geometry(disk.sector_size, disk.size_bytes // disk.sector_size)
    if disk.size_bytes % disk.sector_size:
        log.add(
            "disk-size",
            "The disk's size is not a whole number of logical sectors.",
            where="disk",
            found=f"{disk.size_bytes} bytes",
            expected=f"a multiple of {disk.sector_size}",
        )
    first_block = _read_block(disk, 0)
    mbr = parse_mbr(first_block)
    primary_place = _place(disk, 1)
    backup_place = _find_backup(disk, geometry, primary_place.header)
    if primary_place.header is None and backup_place.header is None:
        return _without_gpt(disk, log, mbr)

    check_protective_mbr(log, first_block, mbr, geometry.sectors)
    primary = _read_half(disk, log, geometry, TableSource.PRIMARY, primary_place)
    backup = _read_half(disk, log, geometry, TableSource.BACKUP, backup_place)
    check_places(log, primary.header, backup.header, geometry.last_lba)
    if primary.header and primary.entries and primary.intact and backup.header and backup.entries and backup.intact:
        check_agreement(log, primary.header, backup.header, primary.entries, backup.entries)

    kind = _kind(mbr)
    half = _chosen(primary, backup) if kind is not TableKind.MBR_ONLY else None
    partitions = _partitions(log, geometry, half) if half else ()
    return PartitionTable(
        kind=kind,
        mbr=mbr,
        primary=primary.header,
        backup=backup.header,
        primary_intact=primary.intact,
        backup_intact=backup.intact,
        partitions=partitions,
        source=half.source if half else None,
        problems=log.problems(),
    )


def _read_block(disk: Disk, lba: int) -> bytes:
    """The logical block at ``lba``; empty when the disk does not reach that far."""
    start = lba * disk.sector_size
    return disk.read(start, disk.sector_size) if 0 <= start <= disk.size_bytes - disk.sector_size else b""


def _place(disk: Disk, lba: int) -> _Place:
    block = _read_block(disk, lba)
    return _Place(lba, block, parse_header(block, lba))


def _find_backup(disk: Disk, geometry: Geometry, primary: GptHeader | None) -> _Place:
    """Where the backup header is, or should be: where the primary says (the disk may have grown), else at the end."""
    lbas = [geometry.last_lba]
    if primary is not None and primary.alternate_lba != geometry.last_lba:
        lbas.insert(0, primary.alternate_lba)
    places = [_place(disk, lba) if lba > 1 else _Place(lba, b"", None) for lba in lbas]
    found = [place for place in places if place.header is not None]
    # Of two, the one that is whole: a stray signature at the end must not hide the backup of a disk that has grown.
    found.sort(key=lambda place: not _is_whole(place))
    return found[0] if found else places[-1]


def _is_whole(place: _Place) -> bool:
    return place.header is not None and header_crc(place.block, place.header.header_size) == place.header.header_crc


def _read_half(disk: Disk, log: ProblemLog, geometry: Geometry, source: TableSource, place: _Place) -> _Half:
    header = place.header
    if header is None:
        check_missing_header(log, source, place.lba, place.block)
        return _Half(source, None, None, intact=False)
    judge = HeaderJudge(log, geometry, source, header)
    header_good = judge.check_header(place.block)
    if not judge.check_geometry():
        return _Half(source, header, None, intact=False)
    entries = disk.read(header.entries_lba * geometry.sector_size, header.entries_size_bytes)
    array_good = judge.check_array(entries)
    return _Half(source, header, entries, intact=header_good and array_good)


def _chosen(primary: _Half, backup: _Half) -> _Half | None:
    """The half to take the partitions from: an intact one, else one that could at least be read."""
    readable = [half for half in (primary, backup) if half.entries is not None]
    return next((half for half in readable if half.intact), readable[0] if readable else None)


def _partitions(log: ProblemLog, geometry: Geometry, half: _Half) -> tuple[Partition, ...]:
    if half.header is None or half.entries is None:
        return ()
    used = list(used_entries(half.entries, half.header.entry_size))
    check_count(log, len(used))
    partitions = tuple(parse_entry(half.entries, *place) for place in islice(used, MAX_PARTITIONS))
    check_partitions(log, partitions, half.entries, half.header, geometry)
    return partitions


def _kind(mbr: Mbr | None) -> TableKind:
    """What firmware takes a disk with GPT headers for: its MBR decides."""
    if mbr is None or not mbr.legacy:
        return TableKind.GPT
    return TableKind.HYBRID if mbr.protective else TableKind.MBR_ONLY


def _without_gpt(disk: Disk, log: ProblemLog, mbr: Mbr | None) -> PartitionTable:
    legacy = mbr.legacy if mbr else ()
    other = _other_sector_size(disk)
    if other is not None:
        log.add(
            "other-sector-size",
            f"The GPT was made for sectors of {other} bytes, but the disk has sectors of {disk.sector_size} bytes.",
            where=f"offset {other}",
            found='the signature "EFI PART"',
            expected=f"it at offset {disk.sector_size}",
        )
    elif legacy:
        log.add(
            "mbr-only",
            "The disk has an MBR partition table and no GPT.",
            where="LBA 0, partition records",
            found=f"{len(legacy)} MBR partitions",
            expected="a GUID Partition Table",
        )
    else:
        log.add(
            "no-gpt",
            "The disk has no GUID Partition Table.",
            where="LBA 1 and the last LBA",
            found="a protective MBR, but no GPT header" if mbr and mbr.protective else "no GPT header",
            expected='the signature "EFI PART"',
        )
    return PartitionTable(
        kind=TableKind.MBR_ONLY if legacy else TableKind.NONE,
        mbr=mbr,
        primary=None,
        backup=None,
        primary_intact=False,
        backup_intact=False,
        partitions=(),
        source=None,
        problems=log.problems(),
    )


def _other_sector_size(disk: Disk) -> int | None:
    """The sector size for which there would be a GPT header at LBA 1, if it is not the disk's own."""
    for size in SECTOR_SIZES:
        if size != disk.sector_size and 2 * size <= disk.size_bytes:
            header = parse_header(disk.read(size, size), 1)
            if header is not None and header.my_lba == 1:
                return size
    return None
