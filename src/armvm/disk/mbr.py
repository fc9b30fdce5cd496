"""The master boot record (UEFI 2.10 §5.2): parsing, and judging the protective one in front of a GPT (§5.2.3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from armvm.disk.gpt_problems import ProblemLog

SIZE_BYTES = 512
SIGNATURE = b"\x55\xaa"
PROTECTIVE_TYPE = 0xEE
STARTING_CHS = bytes.fromhex("000200")
"""The CHS address of LBA 1, as §5.2.3 spells it."""
MAX_SECTORS = 0xFFFFFFFF

RECORD = struct.Struct("<B3sB3s2I")
RECORDS_OFFSET = 446
_DISK_SIGNATURE_OFFSET = 440
_ACTIVE = 0x80


@dataclass(frozen=True, slots=True)
class MbrRecord:
    """One of the four partition records (UEFI 2.10 §5.2.1). ``number`` is 1-based, ``type`` the OSType byte."""

    number: int
    boot_indicator: int
    starting_chs: bytes
    type: int
    ending_chs: bytes
    first_lba: int
    sectors: int

    @property
    def is_blank(self) -> bool:
        """Whether all its bytes are zero."""
        chs = self.starting_chs + self.ending_chs
        return not (self.boot_indicator or self.type or self.first_lba or self.sectors or any(chs))


@dataclass(frozen=True, slots=True)
class Mbr:
    """A master boot record with its signature in place."""

    disk_signature: int
    unknown: int
    """Bytes 444 and 445, which a protective MBR keeps zero."""
    records: tuple[MbrRecord, ...]

    @property
    def protective(self) -> MbrRecord | None:
        """The record that says that the disk belongs to a GPT: of several, the one that firmware takes."""
        claims = [record for record in self.records if record.type == PROTECTIVE_TYPE]
        return next((record for record in claims if record.first_lba == 1), claims[0] if claims else None)

    @property
    def legacy(self) -> tuple[MbrRecord, ...]:
        """The records of partitions other than the GPT's protection.

        None when what stands there cannot be records: a file system's boot sector ends in 55 AA too, with code there.
        """
        if any(record.boot_indicator not in {0, _ACTIVE} for record in self.records):
            return ()
        return tuple(
            record
            for record in self.records
            if record.type not in {0, PROTECTIVE_TYPE} and record.first_lba and record.sectors
        )


def parse_mbr(block: bytes) -> Mbr | None:
    """The MBR in the first 512 bytes of LBA 0; None without its signature."""
    if len(block) < SIZE_BYTES or block[SIZE_BYTES - 2 : SIZE_BYTES] != SIGNATURE:
        return None
    disk_signature, unknown = struct.unpack_from("<IH", block, _DISK_SIGNATURE_OFFSET)
    records = tuple(
        MbrRecord(number, *RECORD.unpack_from(block, RECORDS_OFFSET + RECORD.size * (number - 1)))
        for number in range(1, 5)
    )
    return Mbr(disk_signature, unknown, records)


def check_protective_mbr(log: ProblemLog, block: bytes, mbr: Mbr | None, disk_sectors: int) -> None:
    """Judge the MBR that was parsed from ``block``, before a GPT on a disk of ``disk_sectors`` (UEFI 2.10 §5.2.3)."""
    if mbr is None:
        log.add(
            "mbr-signature",
            "There is no MBR in front of the GPT: its signature is missing.",
            where="LBA 0, offset 510",
            found=block[SIZE_BYTES - 2 : SIZE_BYTES].hex(" "),
            expected=SIGNATURE.hex(" "),
        )
        return
    protective = mbr.protective
    if protective is None:
        log.add(
            "pmbr-missing",
            "The MBR has no protective record, so firmware and systems do not look for a GPT.",
            where="LBA 0, partition records",
            found=_types(mbr),
            expected="one record of type 0xEE",
        )
        return
    _check_record(log, protective, disk_sectors)
    _check_rest(log, mbr, protective)


def _check_record(log: ProblemLog, record: MbrRecord, disk_sectors: int) -> None:
    where = f"LBA 0, partition record {record.number}"
    if record.first_lba != 1:
        log.add(
            "pmbr-start",
            "The protective MBR record does not start at LBA 1, so firmware does not take it as one.",
            where=where,
            found=f"StartingLBA {record.first_lba}",
            expected="1",
        )
    size = min(disk_sectors - 1, MAX_SECTORS)
    if record.sectors == MAX_SECTORS != size:
        log.add(
            "pmbr-size-maximal",
            "The protective MBR record claims the largest size there is instead of the disk's, as some tools write it.",
            where=where,
            found=f"SizeInLBA {record.sectors}",
            expected=str(size),
            serious=False,
        )
    elif record.sectors != size:
        log.add(
            "pmbr-size",
            "The protective MBR record does not cover the disk.",
            where=where,
            found=f"SizeInLBA {record.sectors}",
            expected=str(size),
        )
    if record.boot_indicator:
        log.add(
            "pmbr-boot-indicator",
            "The protective MBR record is marked bootable, which UEFI ignores and older firmware may act on.",
            where=where,
            found=f"BootIndicator {record.boot_indicator:#04x}",
            expected="0x00",
            serious=False,
        )
    if record.starting_chs != STARTING_CHS:
        log.add(
            "pmbr-chs",
            "The protective MBR record's CHS start is not that of LBA 1.",
            where=where,
            found=record.starting_chs.hex(" "),
            expected=STARTING_CHS.hex(" "),
            serious=False,
        )


def _check_rest(log: ProblemLog, mbr: Mbr, protective: MbrRecord) -> None:
    others = [record for record in mbr.records if record is not protective and not record.is_blank]
    if any(record.type not in {0, PROTECTIVE_TYPE} for record in others):
        log.add(
            "hybrid-mbr",
            "The MBR has partitions of its own beside the GPT (a hybrid MBR), which UEFI does not allow.",
            where="LBA 0, partition records",
            found=_types(mbr),
            expected="0xee and three blank records",
        )
    elif others:
        log.add(
            "pmbr-other-records",
            "The MBR's records beside the protective one are not blank.",
            where=f"LBA 0, partition record {others[0].number}",
            found=_types(mbr),
            expected="three blank records",
        )
    if mbr.disk_signature or mbr.unknown:
        log.add(
            "pmbr-disk-signature",
            "The protective MBR has a disk signature, which UEFI leaves zero.",
            where="LBA 0, offset 440",
            found=f"{mbr.disk_signature:#010x} {mbr.unknown:#06x}",
            expected="zeros",
            serious=False,
        )


def _types(mbr: Mbr) -> str:
    return "types " + " ".join(f"{record.type:#04x}" for record in mbr.records)
