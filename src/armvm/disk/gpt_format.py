"""The structures of a GUID Partition Table (UEFI 2.10 §5.3): the values that stand for them, and bytes → values."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from armvm.disk.mbr import Mbr
from armvm.disk.storage import Disk, Slice
from armvm.guid import ESP_TYPE
from armvm.spec.verdict import Problem
from armvm.units import KIB, MIB

SIGNATURE = b"EFI PART"
REVISION = 0x00010000
HEADER_SIZE_BYTES = 92
ENTRY_SIZE_BYTES = 128
ENTRY_COUNT = 128
"""What every partitioner writes; UEFI asks only for 16 KiB of room (§5.3.1)."""
NAME_SIZE_BYTES = 72
MIN_ARRAY_ROOM_BYTES = 16 * KIB
MAX_ARRAY_BYTES = 16 * MIB
"""The largest entry array that is read: 131072 entries, a thousand times what partitioners write."""
MAX_PARTITIONS = 4096
"""The most used entries that are turned into values; Linux knows at most 256 partitions on a disk."""
NIL_GUID = UUID(int=0)

HEADER = struct.Struct("<8s4I4Q16sQ3I")
ENTRY = struct.Struct("<16s16s3Q72s")

_NO_BLOCK_IO = 1 << 1


class TableKind(enum.Enum):
    """What kind of partition table a disk carries, as firmware sees it."""

    GPT = "gpt"
    HYBRID = "hybrid"
    """A GPT whose MBR also has records of its own: UEFI allows none (§5.2.3)."""
    MBR_ONLY = "mbr"
    NONE = "none"


class TableSource(enum.Enum):
    """Which of the two tables something came from."""

    PRIMARY = "primary"
    BACKUP = "backup"


@dataclass(frozen=True, slots=True)
class GptHeader:
    """A GPT header as it stands on the disk, right or wrong (UEFI 2.10 §5.3.2). ``lba`` is where it was found."""

    lba: int
    revision: int
    header_size: int
    header_crc: int
    reserved: int
    my_lba: int
    alternate_lba: int
    first_usable_lba: int
    last_usable_lba: int
    disk_guid: UUID
    entries_lba: int
    entry_count: int
    entry_size: int
    entries_crc: int

    @property
    def entries_size_bytes(self) -> int:
        """The size of the partition entry array in bytes."""
        return self.entry_count * self.entry_size


@dataclass(frozen=True, slots=True)
class Partition:
    """A used entry of the partition entry array (UEFI 2.10 §5.3.3).

    ``number`` is its 1-based place in the array, as Linux and firmware count. LBAs are inclusive. ``attributes`` keeps
    unknown bits; in ``name``, what is not UTF-16 became U+FFFD.
    """

    number: int
    type_guid: UUID
    unique_guid: UUID
    first_lba: int
    last_lba: int
    attributes: int = 0
    name: str = ""

    @property
    def is_esp(self) -> bool:
        """Whether its type is EFI System Partition."""
        return self.type_guid == ESP_TYPE

    @property
    def hidden_from_firmware(self) -> bool:
        """Whether its No Block IO Protocol bit keeps firmware from looking into it (UEFI 2.10 Table 5.8)."""
        return bool(self.attributes & _NO_BLOCK_IO)

    def offset_bytes(self, sector_size: int) -> int:
        """Where it starts on a disk with sectors of ``sector_size`` bytes."""
        return self.first_lba * sector_size

    def size_bytes(self, sector_size: int) -> int:
        """Its size on a disk with sectors of ``sector_size`` bytes; 0 when it ends before it starts."""
        return max(self.last_lba - self.first_lba + 1, 0) * sector_size

    def slice(self, disk: Disk) -> Slice:
        """Its bytes on ``disk``. Raises InputError when it reaches outside the disk."""
        sector_size = disk.sector_size
        return Slice(
            disk, self.offset_bytes(sector_size), self.size_bytes(sector_size), name=f"partition {self.number}"
        )


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """Everything read from a disk's partition table, and everything wrong with it.

    A header is None when none was found; one that was found is kept whatever is wrong with it. A table is *intact*
    when it can be believed: its header stands where it says, names blocks of this disk, and both CRCs are right.
    ``partitions`` come from ``source``: the primary if intact, else the backup if intact, else the first whose array
    could be read at all; ``source`` is None when there was none, or the disk is no GPT disk.
    """

    kind: TableKind
    mbr: Mbr | None
    primary: GptHeader | None
    backup: GptHeader | None
    primary_intact: bool
    backup_intact: bool
    partitions: tuple[Partition, ...]
    source: TableSource | None
    problems: tuple[Problem, ...]

    @property
    def trusted(self) -> bool:
        """Whether ``partitions`` come from an intact table."""
        if self.source is None:
            return False
        return self.primary_intact if self.source is TableSource.PRIMARY else self.backup_intact

    @property
    def header(self) -> GptHeader | None:
        """The header that ``partitions`` come from."""
        if self.source is None:
            return None
        return self.primary if self.source is TableSource.PRIMARY else self.backup

    @property
    def serious_problems(self) -> tuple[Problem, ...]:
        """The problems that break the UEFI specification, or keep firmware or systems from using the disk."""
        return tuple(problem for problem in self.problems if problem.serious)


def parse_header(block: bytes, lba: int) -> GptHeader | None:
    """The GPT header at the start of ``block``, which was read from ``lba``; None without the signature."""
    if len(block) < HEADER_SIZE_BYTES or not block.startswith(SIGNATURE):
        return None
    _, revision, size, crc, reserved, my_lba, alternate, first, last, guid, array, count, entry_size, array_crc = (
        HEADER.unpack_from(block)
    )
    return GptHeader(
        lba=lba,
        revision=revision,
        header_size=size,
        header_crc=crc,
        reserved=reserved,
        my_lba=my_lba,
        alternate_lba=alternate,
        first_usable_lba=first,
        last_usable_lba=last,
        disk_guid=UUID(bytes_le=guid),
        entries_lba=array,
        entry_count=count,
        entry_size=entry_size,
        entries_crc=array_crc,
    )


def used_entries(entries: bytes, entry_size: int) -> Iterator[tuple[int, int]]:
    """Number and offset of every entry of the array that is in use: whose type GUID is not zero."""
    unused = bytes(16)
    for number, offset in enumerate(range(0, len(entries), entry_size), start=1):
        if entries[offset : offset + 16] != unused:
            yield number, offset


def parse_entry(entries: bytes, number: int, offset: int) -> Partition:
    """The entry that stands at ``offset`` in the array."""
    kind, unique, first, last, attributes, raw_name = ENTRY.unpack_from(entries, offset)
    return Partition(
        number=number,
        type_guid=UUID(bytes_le=kind),
        unique_guid=UUID(bytes_le=unique),
        first_lba=first,
        last_lba=last,
        attributes=attributes,
        name=name_units(raw_name).decode("utf-16-le", errors="replace"),
    )


def name_units(raw_name: bytes) -> bytes:
    """The bytes of a name field up to its first NUL code unit."""
    for offset in range(0, len(raw_name), 2):
        if raw_name[offset : offset + 2] == b"\0\0":
            return raw_name[:offset]
    return raw_name
