"""Planning a GUID Partition Table and turning the plan into bytes (UEFI 2.10 §5.2.3, §5.3)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

from armvm.disk import mbr
from armvm.disk.gpt_format import (
    ENTRY,
    ENTRY_COUNT,
    ENTRY_SIZE_BYTES,
    HEADER,
    HEADER_SIZE_BYTES,
    NAME_SIZE_BYTES,
    NIL_GUID,
    REVISION,
    SIGNATURE,
    Partition,
)
from armvm.errors import UsageError
from armvm.units import MIB, SECTOR_SIZES, align_down, align_up, format_size

ALIGNMENT_BYTES = MIB
"""Where planned partitions start and end: what every partitioner of today does, good for any physical sector size."""

_ARRAY_BYTES = ENTRY_COUNT * ENTRY_SIZE_BYTES
_HEADS, _TRACK_SECTORS, _CYLINDERS = 255, 63, 1024


@dataclass(frozen=True, slots=True)
class PartitionRequest:
    """A partition to be placed. ``size_bytes`` None takes what the disk has left, and only the last one may."""

    type_guid: UUID
    unique_guid: UUID
    name: str
    size_bytes: int | None
    attributes: int = 0


@dataclass(frozen=True, slots=True)
class GptLayout:
    """A disk of ``size_bytes`` with its partitions in their places.

    Making one that no GPT can describe is a ValueError: a partition outside the usable blocks or on top of another,
    a number above 128, a missing or repeated GUID, a name that does not fit.
    """

    disk_guid: UUID
    sector_size: int
    size_bytes: int
    partitions: tuple[Partition, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        if self.sector_size not in SECTOR_SIZES:
            raise ValueError(f"not a sector size: {self.sector_size}")
        if self.size_bytes % self.sector_size:
            raise ValueError(f"{self.size_bytes} bytes are no whole number of {self.sector_size}-byte sectors")
        if self.first_usable_lba > self.last_usable_lba:
            raise ValueError(f"a disk of {self.size_bytes} bytes has no room for a GPT")
        if self.disk_guid == NIL_GUID:
            raise ValueError("the disk has no GUID")
        for partition in self.partitions:
            self._check(partition)
        for what, values in (
            ("number", [partition.number for partition in self.partitions]),
            ("unique GUID", [partition.unique_guid for partition in self.partitions]),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"two partitions have the same {what}")
        in_order = sorted(self.partitions, key=lambda partition: partition.first_lba)
        for before, after in pairwise(in_order):
            if after.first_lba <= before.last_lba:
                raise ValueError(f"partitions {before.number} and {after.number} overlap")

    def _check(self, partition: Partition) -> None:
        number = partition.number
        if not 1 <= number <= ENTRY_COUNT:
            raise ValueError(f"partition number {number} is not in 1 to {ENTRY_COUNT}")
        if NIL_GUID in {partition.type_guid, partition.unique_guid}:
            raise ValueError(f"partition {number} has no type or no unique GUID")
        if not self.first_usable_lba <= partition.first_lba <= partition.last_lba <= self.last_usable_lba:
            raise ValueError(
                f"partition {number} (LBA {partition.first_lba} to {partition.last_lba}) is not inside the usable "
                f"blocks {self.first_usable_lba} to {self.last_usable_lba}"
            )
        if not 0 <= partition.attributes < 1 << 64:
            raise ValueError(f"partition {number} has attributes of more than 64 bits")
        _encoded_name(partition.name)

    @property
    def last_lba(self) -> int:
        """The last logical block: the backup header's."""
        return self.size_bytes // self.sector_size - 1

    @property
    def first_usable_lba(self) -> int:
        """The first block that a partition may take: 34 with 512-byte sectors, 6 with 4096 (UEFI 2.10 §5.3.1)."""
        return 2 + self.array_sectors

    @property
    def last_usable_lba(self) -> int:
        """The last block that a partition may take."""
        return self.last_lba - self.array_sectors - 1

    @property
    def array_sectors(self) -> int:
        """How many blocks the 128 partition entries take."""
        return _ARRAY_BYTES // self.sector_size


def disk_size_for(partition_sizes_bytes: Sequence[int]) -> int:
    """The size in bytes of the smallest disk, in whole MiB, on which partitions of these sizes can be planned."""
    return ALIGNMENT_BYTES + sum(align_up(size, ALIGNMENT_BYTES) for size in partition_sizes_bytes) + ALIGNMENT_BYTES


def plan_partitions(
    requests: Sequence[PartitionRequest], *, disk_guid: UUID, sector_size: int, size_bytes: int
) -> GptLayout:
    """Place ``requests`` one after the other, each in whole MiB, and number them from 1.

    Raises UsageError when they do not fit on a disk of ``size_bytes``, or ask for what no GPT can hold.
    """
    if sector_size not in SECTOR_SIZES or size_bytes % sector_size:
        raise UsageError(f"a disk of {size_bytes} bytes cannot have sectors of {sector_size} bytes")
    partitions = []
    position = ALIGNMENT_BYTES
    backup_bytes = _ARRAY_BYTES + sector_size
    end = align_down(max(size_bytes - backup_bytes, 0), ALIGNMENT_BYTES)
    for number, request in enumerate(requests, start=1):
        if request.size_bytes is None and number < len(requests):
            raise UsageError(f"partition {number} takes the rest of the disk, but is not the last")
        size = end - position if request.size_bytes is None else align_up(request.size_bytes, ALIGNMENT_BYTES)
        if size <= 0 or position + size > end:
            raise UsageError(
                f"partition {number} ({request.name}) does not fit on a disk of {format_size(size_bytes)}",
                hint=_size_hint(requests),
            )
        partitions.append(
            Partition(
                number=number,
                type_guid=request.type_guid,
                unique_guid=request.unique_guid,
                first_lba=position // sector_size,
                last_lba=(position + size) // sector_size - 1,
                attributes=request.attributes,
                name=request.name,
            )
        )
        position += size
    try:
        return GptLayout(disk_guid, sector_size, size_bytes, tuple(partitions))
    except ValueError as error:
        raise UsageError(f"these partitions cannot be put into a GPT: {error}") from error


def serialise(layout: GptLayout) -> tuple[tuple[int, bytes], ...]:
    """The layout as (byte offset, bytes): MBR, primary header and array, then the backup's array and header.

    The same layout always gives the same bytes. They cover everything outside the usable blocks.
    """
    array = _array(layout)
    size = layout.sector_size
    primary = _header(layout, array, my_lba=1, alternate_lba=layout.last_lba, entries_lba=2)
    backup_lba = layout.last_usable_lba + 1
    backup = _header(layout, array, my_lba=layout.last_lba, alternate_lba=1, entries_lba=backup_lba)
    return (0, _protective_mbr(layout) + primary + array), (backup_lba * size, array + backup)


def _size_hint(requests: Sequence[PartitionRequest]) -> str | None:
    sizes = [ALIGNMENT_BYTES if request.size_bytes is None else request.size_bytes for request in requests]
    return f"it takes a disk of at least {format_size(disk_size_for(sizes))}" if min(sizes) > 0 else None


def _encoded_name(name: str) -> bytes:
    """The name field's bytes. Raises ValueError when the name does not fit with the NUL that ends it."""
    encoded = name.encode("utf-16-le")  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
    if "\0" in name or len(encoded) > NAME_SIZE_BYTES - 2:
        raise ValueError(f"a partition's name has at most {NAME_SIZE_BYTES // 2 - 1} UTF-16 code units and no NUL")
    return encoded


def _array(layout: GptLayout) -> bytes:
    array = bytearray(_ARRAY_BYTES)
    for partition in layout.partitions:
        ENTRY.pack_into(
            array,
            (partition.number - 1) * ENTRY_SIZE_BYTES,
            partition.type_guid.bytes_le,
            partition.unique_guid.bytes_le,
            partition.first_lba,
            partition.last_lba,
            partition.attributes,
            _encoded_name(partition.name),
        )
    return bytes(array)


def _header(layout: GptLayout, array: bytes, *, my_lba: int, alternate_lba: int, entries_lba: int) -> bytes:
    def pack(crc: int) -> bytes:
        return HEADER.pack(
            SIGNATURE,
            REVISION,
            HEADER_SIZE_BYTES,
            crc,
            0,
            my_lba,
            alternate_lba,
            layout.first_usable_lba,
            layout.last_usable_lba,
            layout.disk_guid.bytes_le,
            entries_lba,
            ENTRY_COUNT,
            ENTRY_SIZE_BYTES,
            zlib.crc32(array),
        )

    return pack(zlib.crc32(pack(0))).ljust(layout.sector_size, b"\0")


def _protective_mbr(layout: GptLayout) -> bytes:
    block = bytearray(layout.sector_size)
    mbr.RECORD.pack_into(
        block,
        mbr.RECORDS_OFFSET,
        0,
        mbr.STARTING_CHS,
        mbr.PROTECTIVE_TYPE,
        _chs(layout.last_lba),
        1,
        min(layout.last_lba, mbr.MAX_SECTORS),
    )
    block[mbr.SIZE_BYTES - 2 : mbr.SIZE_BYTES] = mbr.SIGNATURE
    return bytes(block)


def _chs(lba: int) -> bytes:
    """A CHS address by the customary geometry; FF FF FF where there is none (UEFI 2.10 Table 5.4)."""
    track, sector = divmod(lba, _TRACK_SECTORS)
    cylinder, head = divmod(track, _HEADS)
    if cylinder >= _CYLINDERS:
        return b"\xff\xff\xff"
    return bytes([head, sector + 1 | cylinder >> 8 << 6, cylinder & 0xFF])
