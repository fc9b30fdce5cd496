"""An MBR disk with an EFI System Partition turned into a GPT disk, where there is room for the tables.

Partitions keep their places and the numbers that Linux gives them. Sources: UEFI 2.10 §5.2 (type 0xEF), §5.3; for
logical partitions the chain of extended boot records as Linux reads it (block/partitions/msdos.c).
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from armvm.disk.gpt import read_partition_table
from armvm.disk.gpt_format import ENTRY_COUNT, Partition, TableKind
from armvm.disk.gpt_rebuild import new_raw_table, protective_mbr, serialise_table
from armvm.disk.mbr import Mbr, MbrRecord, parse_mbr
from armvm.errors import InputError
from armvm.guid import ESP_TYPE, LINUX_DATA_TYPE, derived_guid
from armvm.repair.table import has_efi_programs
from armvm.repair.workbench import Workbench

_GPT = "image.gpt"
_ESP_TYPE = 0xEF
_EXTENDED = (0x05, 0x0F, 0x85)
_BASIC_DATA = UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
_TYPES = {
    _ESP_TYPE: ESP_TYPE,
    0x83: LINUX_DATA_TYPE,
    0x82: UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"),
    0x8E: UUID("e6d6d379-f507-44c2-a23c-238f2a3df928"),
    0xFD: UUID("a19d880f-05fc-4d3b-a006-743f0f84911e"),
    **dict.fromkeys((0x01, 0x04, 0x06, 0x07, 0x0B, 0x0C, 0x0E), _BASIC_DATA),
}
"""MBR partition types and what they are called in a GPT."""
_FAT_TYPES = frozenset({0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E})
_FIRST_LOGICAL = 5
_MOST_LOGICAL = 60
_REMEDY = "convert it with `gdisk IMAGE`, or make the image anew with `armvm build`"


@dataclass(frozen=True, slots=True)
class MbrPartition:
    """A partition of an MBR disk. ``number`` is Linux's: 1 to 4, logical ones from 5. ``type`` is the OSType byte."""

    number: int
    type: int
    first_lba: int
    sectors: int


def convert_mbr(bench: Workbench) -> None:
    """image.gpt on an MBR disk with an ESP: the same partitions in a GPT, with GUIDs derived from where they are."""
    table = read_partition_table(bench.disk)
    if not bench.wants(_GPT) or table.kind is not TableKind.MBR_ONLY or table.mbr is None or table.primary is not None:
        return
    try:
        partitions = read_mbr_partitions(bench, table.mbr)
    except InputError as error:
        bench.cannot(_GPT, "MBR", error.message, _REMEDY)
        return
    why = _obstacle(bench, partitions)
    if why is None:
        placed = tuple(_placed(bench, table.mbr, partition) for partition in partitions)
        esps = [partition for partition in placed if partition.is_esp]
        why = None if esps else "none of the MBR's partitions is an EFI System Partition or holds EFI programs"
    if why is None:
        disk_guid = derived_guid("mbr", f"{table.mbr.disk_signature:08x}", str(bench.disk.size_bytes))
        try:
            raw = new_raw_table(bench.disk, disk_guid, placed)
        except ValueError as error:
            why = f"a GPT has no room: {error}"
    if why is not None:
        bench.cannot(_GPT, "MBR", why, _REMEDY)
        return
    bench.disk.write(0, protective_mbr(bench.disk, bench.disk.read(0, 512)))
    for offset, content in serialise_table(raw, bench.disk):
        bench.disk.write(offset, content)
    numbers = ", ".join(str(partition.number) for partition in placed)
    reason = "The disk has an MBR partition table and no GPT. Nothing but the tables changes; no partition moves."
    bench.did(_GPT, "LBA 0", f"MBR turned into a GPT; partitions keep their numbers ({numbers}) and places", reason)
    _note_partuuids(bench, table.mbr, placed)


def read_mbr_partitions(bench: Workbench, mbr: Mbr) -> tuple[MbrPartition, ...]:
    """The MBR's partitions, the logical ones included. Raises InputError at a chain that leads astray."""
    found: list[MbrPartition] = []
    extended: MbrRecord | None = None
    for record in mbr.legacy:
        if record.type in _EXTENDED:
            extended = extended or record
        else:
            found.append(MbrPartition(record.number, record.type, record.first_lba, record.sectors))
    if extended is None:
        return tuple(found)
    start = lba = extended.first_lba
    for number in range(_FIRST_LOGICAL, _FIRST_LOGICAL + _MOST_LOGICAL):
        block = parse_mbr(bench.disk.read(lba * bench.disk.sector_size, 512))
        if block is None:
            raise InputError(f"the chain of logical partitions is broken at LBA {lba}", subject=bench.disk.name)
        inside = [record for record in block.records if record.type and record.sectors]
        logical = next((record for record in inside if record.type not in _EXTENDED), None)
        link = next((record for record in inside if record.type in _EXTENDED), None)
        if logical is not None:
            found.append(MbrPartition(number, logical.type, lba + logical.first_lba, logical.sectors))
        if link is None:
            return tuple(found)
        lba = start + link.first_lba
    raise InputError("the chain of logical partitions does not end", subject=bench.disk.name)


def _obstacle(bench: Workbench, partitions: tuple[MbrPartition, ...]) -> str | None:
    """Why the tables cannot be written: a type without a counterpart, or something stands where they have to go."""
    unknown = [partition for partition in partitions if partition.type not in _TYPES]
    if unknown:
        return f"partition {unknown[0].number} has the MBR type {unknown[0].type:#04x}, for which no GPT type is known"
    if any(partition.number > ENTRY_COUNT for partition in partitions):
        return "it has too many partitions"
    size = bench.disk.sector_size
    if bench.disk.size_bytes % size:
        return "the disk is no whole number of sectors long"
    array = 16384 // size
    last = bench.disk.size_bytes // size - 1
    first = min((partition.first_lba for partition in partitions), default=0)
    end = max((partition.first_lba + partition.sectors for partition in partitions), default=0)
    if first < 2 + array:
        return f"the first partition starts at LBA {first}, and a GPT takes everything before LBA {2 + array}"
    if end > last - array:
        return f"the last partition ends at LBA {end - 1}, and a GPT takes everything from LBA {last - array} on"
    for start, blocks, what in ((1, 1 + array, "before the first partition"), (last - array, 1 + array, "at its end")):
        if any(bench.disk.read(start * size, blocks * size)):
            return f"the disk holds something {what}, where the GPT would go (a board's boot code, perhaps)"
    return None


def _placed(bench: Workbench, mbr: Mbr, partition: MbrPartition) -> Partition:
    last = partition.first_lba + partition.sectors - 1
    guid = derived_guid("mbr", f"{mbr.disk_signature:08x}", str(partition.number), str(partition.first_lba))
    placed = Partition(partition.number, _TYPES[partition.type], guid, partition.first_lba, last)
    if partition.type in _FAT_TYPES and has_efi_programs(bench, placed):
        return Partition(partition.number, ESP_TYPE, guid, partition.first_lba, last)
    return placed


def _note_partuuids(bench: Workbench, mbr: Mbr, partitions: tuple[Partition, ...]) -> None:
    """What the partitions were called by the disk's signature, and what by their new GUIDs: a later stage renames."""
    if mbr.disk_signature:
        for partition in partitions:
            bench.partuuids[f"{mbr.disk_signature:08x}-{partition.number:02x}"] = str(partition.unique_guid)
