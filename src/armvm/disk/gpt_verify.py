"""Judging a GPT's headers and entry arrays, each by itself and against each other (UEFI 2.10 §5.3.2)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from armvm.disk.gpt_format import (
    ENTRY_COUNT,
    ENTRY_SIZE_BYTES,
    HEADER_SIZE_BYTES,
    MAX_ARRAY_BYTES,
    MIN_ARRAY_ROOM_BYTES,
    NIL_GUID,
    REVISION,
    GptHeader,
    TableSource,
)
from armvm.disk.gpt_problems import ProblemLog
from armvm.units import format_size

_HEADER_CRC_OFFSET = 16


@dataclass(frozen=True, slots=True)
class Geometry:
    """The disk that a table is judged against."""

    sector_size: int
    sectors: int

    @property
    def last_lba(self) -> int:
        """The last logical block of the disk."""
        return self.sectors - 1

    def blocks(self, size_bytes: int) -> int:
        """How many logical blocks ``size_bytes`` take."""
        return -(-size_bytes // self.sector_size)


def header_crc(block: bytes, header_size: int) -> int:
    """The CRC32 of the header in ``block``, computed with its own field as zeros (UEFI 2.10 §5.3.2)."""
    zeroed = block[:_HEADER_CRC_OFFSET] + bytes(4) + block[_HEADER_CRC_OFFSET + 4 : header_size]
    return zlib.crc32(zeroed)


class HeaderJudge:
    """Judges one of the two tables; every problem's code starts with ``primary-`` or ``backup-``."""

    def __init__(self, log: ProblemLog, geometry: Geometry, source: TableSource, header: GptHeader) -> None:
        self._log = log
        self._geometry = geometry
        self._source = source
        self._header = header

    def check_header(self, block: bytes) -> bool:
        """Judge the header that ``block`` starts with. Whether firmware would take it as a header."""
        header, geometry = self._header, self._geometry
        size_fits = HEADER_SIZE_BYTES <= header.header_size <= geometry.sector_size
        computed = header_crc(block, header.header_size) if size_fits else None
        if not size_fits:
            expected = f"{HEADER_SIZE_BYTES} to {geometry.sector_size}"
            self._add("header-size", "has an impossible HeaderSize", str(header.header_size), expected)
        elif header.header_size != HEADER_SIZE_BYTES:
            message = "has a header larger than the one that UEFI defines"
            self._add("header-size-unusual", message, str(header.header_size), str(HEADER_SIZE_BYTES), serious=False)
        if computed is not None and computed != header.header_crc:
            self._add("header-crc", "has a wrong header CRC32", f"{header.header_crc:#010x}", f"{computed:#010x}")
        if header.revision != REVISION:
            self._add("header-revision", "has an unknown revision", f"{header.revision:#010x}", f"{REVISION:#010x}")
        if header.reserved:
            self._add("header-reserved", "has a reserved field that is not zero", f"{header.reserved:#010x}", "zero")
        stray = len(block.rstrip(b"\0"))
        if size_fits and stray > header.header_size:
            found = f"{block[stray - 1]:#04x} at offset {stray - 1}"
            self._add("header-tail", "has a header followed by bytes that are not zero", found, "zeros", serious=False)
        if header.my_lba != header.lba:
            self._add("my-lba", "does not name its own place as MyLBA", str(header.my_lba), str(header.lba))
        if header.disk_guid == NIL_GUID:
            self._add("disk-guid-zero", "gives the disk no GUID", "zeros", "a unique GUID")
        usable = self._check_usable()
        return usable and computed == header.header_crc and header.my_lba == header.lba

    def _check_usable(self) -> bool:
        header, geometry = self._header, self._geometry
        first, last = header.first_usable_lba, header.last_usable_lba
        sane = 1 < first <= last < geometry.last_lba
        if not sane:
            found, expected = f"LBA {first} to {last}", f"a range inside LBA 2 to {geometry.last_lba - 1}"
            self._add("usable-range", "has an impossible range of usable blocks", found, expected)
        return sane

    def check_geometry(self) -> bool:
        """Judge size and place of the entry array. Whether it can be read: inside the disk, and of bounded size."""
        header, geometry = self._header, self._geometry
        size, count = header.entry_size, header.entry_count
        if size < ENTRY_SIZE_BYTES or size & (size - 1):
            self._add("entry-size", "has an impossible SizeOfPartitionEntry", str(size), "128 times a power of two")
            return False
        if not count or header.entries_size_bytes > MAX_ARRAY_BYTES:
            found, most = f"{count} entries of {size} bytes", f"1 to {MAX_ARRAY_BYTES // size} entries"
            self._add("entry-count", "has an impossible NumberOfPartitionEntries", found, most)
            return False
        end = header.entries_lba + geometry.blocks(header.entries_size_bytes)
        if header.entries_lba < 1 or end > geometry.sectors:
            found, expected = f"LBA {header.entries_lba} to {end - 1}", f"inside LBA 1 to {geometry.last_lba}"
            self._add("array-outside-disk", "has its partition entries outside the disk", found, expected)
            return False
        self._check_customs()
        self._check_place(end)
        return True

    def _check_customs(self) -> None:
        header = self._header
        if header.entry_size != ENTRY_SIZE_BYTES:
            message = "has partition entries of an unusual size, which Linux and U-Boot do not read"
            self._add("entry-size-unusual", message, str(header.entry_size), str(ENTRY_SIZE_BYTES), serious=False)
        if header.entry_count != ENTRY_COUNT:
            message = "has an unusual number of partition entries"
            self._add("entry-count-unusual", message, str(header.entry_count), str(ENTRY_COUNT), serious=False)

    def _check_place(self, end: int) -> None:
        """The array and its 16 KiB must lie between header and usable blocks, on the header's side (§5.3.1)."""
        header, geometry = self._header, self._geometry
        room = geometry.blocks(MIN_ARRAY_ROOM_BYTES)
        if self._source is TableSource.PRIMARY:
            low, high = header.lba + 1, header.first_usable_lba
        else:
            low, high = header.last_usable_lba + 1, header.lba
        if header.entries_lba < low or end > high:
            expected = f"inside LBA {low} to {high - 1}" if low < high else "room for them beside the usable blocks"
            found = f"LBA {header.entries_lba} to {end - 1}"
            self._add("array-place", "has its partition entries among other data", found, expected)
        if high - low < room:
            found, expected = f"{max(high - low, 0)} blocks", f"at least {room} ({format_size(MIN_ARRAY_ROOM_BYTES)})"
            self._add("array-room", "keeps too little room for partition entries", found, expected)

    def check_array(self, entries: bytes) -> bool:
        """Judge the entry array's CRC32. Whether it is right."""
        computed = zlib.crc32(entries)
        if computed == self._header.entries_crc:
            return True
        found, expected = f"{self._header.entries_crc:#010x}", f"{computed:#010x}"
        self._add("array-crc", "has a wrong CRC32 of its partition entries", found, expected)
        return False

    def _add(self, code: str, message: str, found: str, expected: str, *, serious: bool = True) -> None:
        name = self._source.value
        self._log.add(
            f"{name}-{code}",
            f"The {name} GPT {message}.",
            where=f"{name} GPT header, LBA {self._header.lba}",
            found=found,
            expected=expected,
            serious=serious,
        )


def check_missing_header(log: ProblemLog, source: TableSource, lba: int, block: bytes) -> None:
    """Note that at ``lba``, where a header belongs, none stands (UEFI 2.10 §5.3.2)."""
    name = source.value
    log.add(
        f"{name}-header-missing",
        f"There is no {name} GPT header.",
        where=f"LBA {lba}",
        found=block[:8].hex(" ") or "nothing",
        expected='the signature "EFI PART"',
    )


def check_places(log: ProblemLog, primary: GptHeader | None, backup: GptHeader | None, last_lba: int) -> None:
    """Judge where each header says that the other one is (UEFI 2.10 §5.3.2: LBA 1 and the last LBA of the disk)."""
    if primary is not None and primary.alternate_lba != last_lba:
        _judge_alternate(log, primary, backup, last_lba)
    if backup is not None and backup.alternate_lba != 1:
        log.add(
            "backup-alternate-lba",
            "The backup GPT header names another place than LBA 1 as the primary's.",
            where=f"backup GPT header, LBA {backup.lba}",
            found=f"AlternateLBA {backup.alternate_lba}",
            expected="1",
        )


def _judge_alternate(log: ProblemLog, primary: GptHeader, backup: GptHeader | None, last_lba: int) -> None:
    claimed = primary.alternate_lba
    if backup is not None and backup.lba == last_lba:
        code, message = "primary-alternate-lba", "The primary GPT header names another place than the backup's."
    elif claimed > last_lba:
        code = "disk-truncated"
        message = "The disk ends before the place where its backup GPT should be: it was cut short."
    else:
        code = "backup-not-at-end"
        message = "The backup GPT is not at the end of the disk: the disk was grown after it was partitioned."
    log.add(
        code,
        message,
        where="primary GPT header, LBA 1",
        found=f"AlternateLBA {claimed}",
        expected=f"{last_lba}, the last LBA of the disk",
    )


def check_agreement(
    log: ProblemLog, primary: GptHeader, backup: GptHeader, primary_entries: bytes, backup_entries: bytes
) -> None:
    """Judge whether two tables, each intact, say the same (UEFI 2.10 §5.3.2)."""
    fields = (
        ("disk GUID", primary.disk_guid, backup.disk_guid, "disk-guid-differs"),
        ("FirstUsableLBA", primary.first_usable_lba, backup.first_usable_lba, "usable-range-differs"),
        ("LastUsableLBA", primary.last_usable_lba, backup.last_usable_lba, "usable-range-differs"),
        ("NumberOfPartitionEntries", primary.entry_count, backup.entry_count, "entry-geometry-differs"),
        ("SizeOfPartitionEntry", primary.entry_size, backup.entry_size, "entry-geometry-differs"),
    )
    for field, ours, theirs, code in fields:
        if ours != theirs:
            log.add(
                code,
                f"The primary and the backup GPT differ in {field}.",
                where=f"backup GPT header, LBA {backup.lba}",
                found=str(theirs),
                expected=f"{ours}, as in the primary",
            )
    same_shape = (primary.entry_count, primary.entry_size) == (backup.entry_count, backup.entry_size)
    if same_shape and primary_entries != backup_entries:
        size = primary.entry_size
        places = range(0, len(primary_entries), size)
        first = next(at for at in places if primary_entries[at : at + size] != backup_entries[at : at + size])
        log.add(
            "entries-differ",
            "The primary and the backup GPT list different partitions.",
            where=f"backup partition entry {first // size + 1}",
            found="other bytes",
            expected="the same bytes as in the primary",
        )
