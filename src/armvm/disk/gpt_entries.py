"""Judging a GPT's partition entries (UEFI 2.10 §5.3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from armvm.disk.gpt_format import ENTRY, MAX_PARTITIONS, NAME_SIZE_BYTES, NIL_GUID, GptHeader, Partition, name_units
from armvm.disk.gpt_problems import ProblemLog
from armvm.disk.gpt_verify import Geometry
from armvm.printable import printable
from armvm.units import MIB, format_size

_RESERVED_ATTRIBUTES = ((1 << 48) - 1) & ~0b111
"""Bits 3 to 47: undefined, must be zero (UEFI 2.10 Table 5.8). 48 to 63 belong to the partition type's owner."""


def check_partitions(
    log: ProblemLog, partitions: Sequence[Partition], entries: bytes, header: GptHeader, geometry: Geometry
) -> None:
    """Judge the partitions that were read from the array ``entries`` of ``header``, each one and all together."""
    owners: dict[UUID, Partition] = {}
    for partition in partitions:
        _check_range(log, partition, header, geometry)
        _check_fields(log, partition)
        offset = (partition.number - 1) * header.entry_size
        _check_name(log, partition, entries[offset + ENTRY.size - NAME_SIZE_BYTES : offset + ENTRY.size])
        owner = owners.setdefault(partition.unique_guid, partition)
        if owner is not partition and partition.unique_guid != NIL_GUID:
            log.add(
                "partition-guid-duplicate",
                f"Partitions {owner.number} and {partition.number} have the same unique GUID.",
                where=_name(partition),
                found=str(partition.unique_guid),
                expected="a GUID of its own",
            )
    _check_overlaps(log, partitions)


def check_count(log: ProblemLog, used: int) -> None:
    """Note that a table has more used entries than are read."""
    if used > MAX_PARTITIONS:
        log.add(
            "too-many-partitions",
            f"The GPT has more partitions than any system reads; only the first {MAX_PARTITIONS} were looked at.",
            where="partition entries",
            found=f"{used} in use",
            expected=f"at most {MAX_PARTITIONS}",
        )


def _check_range(log: ProblemLog, partition: Partition, header: GptHeader, geometry: Geometry) -> None:
    first, last = partition.first_lba, partition.last_lba
    found = f"LBA {first} to {last}"
    if first > last:
        log.add(
            "partition-range",
            f"Partition {partition.number} ends before it starts.",
            where=_name(partition),
            found=found,
            expected="StartingLBA not above EndingLBA",
        )
    elif last > geometry.last_lba:
        log.add(
            "partition-outside-disk",
            f"Partition {partition.number} reaches past the end of the disk.",
            where=_name(partition),
            found=found,
            expected=f"at most LBA {geometry.last_lba}",
        )
    elif first < header.first_usable_lba or last > header.last_usable_lba:
        log.add(
            "partition-outside-usable",
            f"Partition {partition.number} reaches outside the usable blocks.",
            where=_name(partition),
            found=found,
            expected=f"inside LBA {header.first_usable_lba} to {header.last_usable_lba}",
        )
    offset = partition.offset_bytes(geometry.sector_size)
    if offset % MIB:
        log.add(
            "partition-unaligned",
            f"Partition {partition.number} does not start at a multiple of 1 MiB, which can cost speed.",
            where=_name(partition),
            found=f"byte {offset}, a multiple of {format_size(offset & -offset)}",
            expected="a multiple of 1 MiB, or of 4 KiB at least",
            serious=False,
        )


def _check_fields(log: ProblemLog, partition: Partition) -> None:
    if partition.unique_guid == NIL_GUID:
        log.add(
            "partition-guid-zero",
            f"Partition {partition.number} has no unique GUID.",
            where=_name(partition),
            found="zeros",
            expected="a unique GUID",
        )
    if partition.attributes & _RESERVED_ATTRIBUTES:
        log.add(
            "partition-attributes",
            f"Partition {partition.number} has attribute bits set that UEFI reserves.",
            where=_name(partition),
            found=f"{partition.attributes:#018x}",
            expected="bits 3 to 47 zero",
        )


def _check_name(log: ProblemLog, partition: Partition, raw_name: bytes) -> None:
    units = name_units(raw_name)
    try:
        units.decode("utf-16-le")
    except UnicodeDecodeError as error:
        log.add(
            "partition-name",
            f"Partition {partition.number} has a name that is not UTF-16.",
            where=f"{_name(partition)}, code unit {error.start // 2}",
            found=units[error.start : error.end].hex(" "),
            expected="UTF-16LE",
            serious=False,
        )
    if len(units) == NAME_SIZE_BYTES:
        log.add(
            "partition-name-unterminated",
            f"Partition {partition.number} has a name without the NUL at its end that UEFI asks for.",
            where=_name(partition),
            found=f"{NAME_SIZE_BYTES // 2} code units",
            expected=f"at most {NAME_SIZE_BYTES // 2 - 1} and a NUL",
            serious=False,
        )


def _check_overlaps(log: ProblemLog, partitions: Sequence[Partition]) -> None:
    in_order = sorted((p for p in partitions if p.first_lba <= p.last_lba), key=lambda p: (p.first_lba, p.number))
    furthest: Partition | None = None
    for partition in in_order:
        if furthest is not None and partition.first_lba <= furthest.last_lba:
            log.add(
                "partition-overlap",
                f"Partitions {furthest.number} and {partition.number} overlap.",
                where=_name(partition),
                found=f"LBA {partition.first_lba} to {partition.last_lba}",
                expected=f"outside LBA {furthest.first_lba} to {furthest.last_lba}",
            )
        if furthest is None or partition.last_lba > furthest.last_lba:
            furthest = partition


def _name(partition: Partition) -> str:
    shown = f" ({printable(partition.name)})" if partition.name else ""
    return f"partition {partition.number}{shown}"
