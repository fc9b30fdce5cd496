"""A GPT written anew from the one of its two tables that can be trusted (UEFI 2.10 §5.3.2: "the primary … restored").

Unlike ``gpt_write`` it keeps what is there: the entry array byte for byte, its size, both kinds of GUIDs.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from uuid import UUID

from armvm.disk import mbr
from armvm.disk.gpt_format import (
    ENTRY,
    ENTRY_COUNT,
    ENTRY_SIZE_BYTES,
    HEADER,
    HEADER_SIZE_BYTES,
    MIN_ARRAY_ROOM_BYTES,
    REVISION,
    SIGNATURE,
    GptHeader,
    Partition,
    used_entries,
)
from armvm.disk.storage import Disk

_TYPE, _UNIQUE, _ATTRIBUTES = 0, 16, 48


@dataclass(frozen=True, slots=True)
class RawTable:
    """What both tables of a disk are to say. ``entries`` is the whole array; LBAs are inclusive."""

    disk_guid: UUID
    entry_size: int
    entries: bytes
    first_usable_lba: int
    last_usable_lba: int

    @property
    def entry_count(self) -> int:
        """How many entries the array has."""
        return len(self.entries) // self.entry_size

    def with_type(self, number: int, type_guid: UUID) -> RawTable:
        """The same with another type for partition ``number``."""
        return self._patched(number, _TYPE, type_guid.bytes_le)

    def with_unique(self, number: int, unique_guid: UUID) -> RawTable:
        """The same with another unique GUID for partition ``number``."""
        return self._patched(number, _UNIQUE, unique_guid.bytes_le)

    def with_attributes(self, number: int, attributes: int) -> RawTable:
        """The same with other attributes for partition ``number``."""
        return self._patched(number, _ATTRIBUTES, attributes.to_bytes(8, "little"))

    def _patched(self, number: int, offset: int, value: bytes) -> RawTable:
        place = (number - 1) * self.entry_size + offset
        return replace(self, entries=self.entries[:place] + value + self.entries[place + len(value) :])


def read_raw_table(disk: Disk, header: GptHeader) -> RawTable:
    """The table that an intact ``header`` describes, on the disk as large as it is now.

    The usable blocks keep their start; their end moves with the disk's. Raises ValueError when they have no room.
    """
    entries = disk.read(header.entries_lba * disk.sector_size, header.entries_size_bytes)
    room = _array_blocks(len(entries), disk.sector_size)
    last_lba = disk.size_bytes // disk.sector_size - 1
    latest = last_lba - 1 - room
    at_end = header.last_usable_lba <= latest and max(header.alternate_lba, header.lba) == last_lba
    last_usable = header.last_usable_lba if at_end else latest
    first_usable = header.first_usable_lba
    lowest, highest = _used_range(entries, header.entry_size)
    first_usable = max(first_usable, 2 + room)
    if (lowest is not None and lowest < first_usable) or (highest is not None and highest > last_usable):
        raise ValueError(
            f"partitions take LBA {lowest} to {highest}, and the tables leave LBA {first_usable} to {last_usable}"
        )
    if first_usable > last_usable:
        raise ValueError("the disk has no room for a GPT")
    return RawTable(header.disk_guid, header.entry_size, entries, first_usable, last_usable)


def new_raw_table(disk: Disk, disk_guid: UUID, partitions: tuple[Partition, ...]) -> RawTable:
    """A table of 128 entries for a disk that had none. Raises ValueError when ``partitions`` leave no room for it."""
    from armvm.disk.gpt_write import GptLayout, serialise

    layout = GptLayout(disk_guid, disk.sector_size, disk.size_bytes, partitions)
    (_, head), _ = serialise(layout)
    entries = head[2 * disk.sector_size : 2 * disk.sector_size + ENTRY_COUNT * ENTRY_SIZE_BYTES]
    return RawTable(disk_guid, ENTRY_SIZE_BYTES, entries, layout.first_usable_lba, layout.last_usable_lba)


def serialise_table(table: RawTable, disk: Disk) -> tuple[tuple[int, bytes], ...]:
    """(byte offset, bytes) of the primary header and array, then of the backup's array and header."""
    size = disk.sector_size
    last_lba = disk.size_bytes // size - 1
    blocks = -(-len(table.entries) // size)
    array = table.entries.ljust(blocks * size, b"\0")
    backup_lba = last_lba - _array_blocks(len(table.entries), size)
    primary = _header(table, size, (1, last_lba), 2)
    backup = _header(table, size, (last_lba, 1), backup_lba)
    return (
        (size, primary),
        (2 * size, array),
        (backup_lba * size, array),
        (last_lba * size, backup),
    )


def protective_mbr(disk: Disk, block: bytes) -> bytes:
    """LBA 0's first 512 bytes with a protective MBR for ``disk``; the boot code of ``block`` stays (§5.2.3)."""
    last_lba = disk.size_bytes // disk.sector_size - 1
    code = block[:440].ljust(440, b"\0") if block[510:512] == mbr.SIGNATURE else bytes(440)
    sectors = min(last_lba, mbr.MAX_SECTORS)
    record = mbr.RECORD.pack(0, mbr.STARTING_CHS, mbr.PROTECTIVE_TYPE, b"\xff\xff\xff", 1, sectors)
    return code + bytes(6) + record + bytes(48) + mbr.SIGNATURE


def _array_blocks(size_bytes: int, sector_size: int) -> int:
    """The blocks that an entry array and UEFI's 16 KiB of room for it take."""
    return -(-max(size_bytes, MIN_ARRAY_ROOM_BYTES) // sector_size)


def _used_range(entries: bytes, entry_size: int) -> tuple[int | None, int | None]:
    places = [ENTRY.unpack_from(entries, offset)[2:4] for _, offset in used_entries(entries, entry_size)]
    return (min(first for first, _ in places), max(last for _, last in places)) if places else (None, None)


def _header(table: RawTable, sector_size: int, lbas: tuple[int, int], entries_lba: int) -> bytes:
    def pack(crc: int) -> bytes:
        return HEADER.pack(
            SIGNATURE,
            REVISION,
            HEADER_SIZE_BYTES,
            crc,
            0,
            *lbas,
            table.first_usable_lba,
            table.last_usable_lba,
            table.disk_guid.bytes_le,
            entries_lba,
            table.entry_count,
            table.entry_size,
            zlib.crc32(table.entries),
        )

    return pack(zlib.crc32(pack(0))).ljust(sector_size, b"\0")
