"""Reading and judging partition tables: every kind of fault has its own problem, and a good table has none."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

import armvm.disk
from armvm.disk.gpt import Partition, PartitionTable, TableKind, TableSource, read_partition_table
from armvm.disk.storage import BaseDisk, MemoryDisk
from armvm.errors import InputError
from tools.gpt_images import (
    ALTERNATE_LBA,
    BROKEN,
    DISK_GUID,
    ESP,
    MIB,
    NAME,
    RECORD,
    Entry,
    array_offset,
    fix_crcs,
    good_gpt,
    header_offsets,
    put,
    usual_entries,
)

MINOR = {
    "pmbr-size-maximal",
    "pmbr-boot-indicator",
    "pmbr-chs",
    "pmbr-disk-signature",
    "partition-name",
    "partition-name-unterminated",
    "partition-unaligned",
    *(
        f"{which}-{code}"
        for which in ("primary", "backup")
        for code in ("header-size-unusual", "header-tail", "entry-size-unusual", "entry-count-unusual")
    ),
}

ALSO = {
    # Faults that cannot stand alone: both tables are made alike, or one fault makes another.
    "disk-truncated": {"backup-header-missing", "primary-usable-range"},
    "primary-disk-guid-zero": {"backup-disk-guid-zero"},
    "backup-disk-guid-zero": {"primary-disk-guid-zero"},
    "primary-entry-size-unusual": {"backup-entry-size-unusual"},
    "backup-entry-size-unusual": {"primary-entry-size-unusual"},
    "primary-entry-count-unusual": {"backup-entry-count-unusual"},
    "backup-entry-count-unusual": {"primary-entry-count-unusual"},
    "primary-array-room": {"primary-entry-count-unusual", "backup-entry-count-unusual"},
    "backup-array-room": {"primary-entry-count-unusual", "backup-entry-count-unusual"},
    "backup-usable-range": {"backup-array-place", "backup-array-room"},
    "entry-geometry-differs": {"backup-entry-count-unusual"},
    "too-many-partitions": {"primary-entry-count-unusual", "backup-entry-count-unusual", "partition-unaligned"},
}


def table_of(image: bytes | bytearray, sector_size: int = 512) -> PartitionTable:
    return read_partition_table(MemoryDisk(bytes(image), sector_size=sector_size))


def codes_of(table: PartitionTable) -> set[str]:
    return {problem.code for problem in table.problems}


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_good_table_has_no_problem_and_says_what_it_holds(sector_size: int) -> None:
    table = table_of(good_gpt(sector_size=sector_size), sector_size)
    assert table.problems == ()
    assert table.kind is TableKind.GPT
    assert table.source is TableSource.PRIMARY
    assert table.trusted
    assert table.primary_intact
    assert table.backup_intact
    assert table.header is table.primary
    assert table.primary is not None
    assert table.primary.disk_guid == DISK_GUID
    assert table.primary.first_usable_lba == {512: 34, 4096: 6}[sector_size]
    assert table.backup is not None
    assert table.backup.lba == table.primary.alternate_lba == 4 * MIB // sector_size - 1
    esp, root = table.partitions
    assert (esp.number, esp.type_guid, esp.name, esp.is_esp) == (1, ESP, "EFI System", True)
    assert (root.number, root.name, root.is_esp) == (2, "root ☃", False)
    assert (esp.offset_bytes(sector_size), esp.size_bytes(sector_size)) == (MIB, MIB)


@pytest.mark.parametrize("code", BROKEN)
def test_each_fault_has_its_own_problem_and_no_other(code: str) -> None:
    table = table_of(BROKEN[code]())
    assert codes_of(table) == {code} | ALSO.get(code, set())
    for problem in table.problems:
        assert problem.message.endswith(".")
        assert problem.evidence.where
        assert problem.evidence.found
        assert problem.evidence.found != problem.evidence.expected
        assert problem.serious is (problem.code not in MINOR)


def test_the_catalogue_of_broken_disks_has_every_problem_that_the_code_can_find() -> None:
    folder = Path(armvm.disk.__file__).parent
    written = set()
    for path in (folder / "mbr.py", *folder.glob("gpt*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(r"-?[a-z]+(-[a-z]+)+", text):
                written.add(text.removeprefix("-"))
    known = {re.sub("^(primary|backup)-", "", code) for code in BROKEN} | BROKEN.keys()
    assert written <= known
    assert len(written) > 40


@pytest.mark.parametrize("code", [code for code in BROKEN if code.startswith(("primary-", "backup-"))])
def test_one_broken_table_leaves_the_partitions_readable(code: str) -> None:
    table = table_of(BROKEN[code]())
    assert table.trusted
    assert [(p.number, p.first_lba) for p in table.partitions] == [(1, 2048), (2, 4096)]


@pytest.mark.parametrize(
    ("code", "source"),
    [
        ("primary-header-missing", TableSource.BACKUP),
        ("primary-header-crc", TableSource.BACKUP),
        ("primary-my-lba", TableSource.BACKUP),
        ("primary-array-crc", TableSource.BACKUP),
        ("primary-entry-count", TableSource.BACKUP),
        ("primary-header-revision", TableSource.PRIMARY),
        ("backup-header-crc", TableSource.PRIMARY),
    ],
)
def test_the_partitions_come_from_the_table_that_firmware_would_take(code: str, source: TableSource) -> None:
    table = table_of(BROKEN[code]())
    assert table.source is source
    assert table.trusted
    assert (table.header is table.primary) is (source is TableSource.PRIMARY)


def test_headers_are_kept_whatever_is_wrong_with_them() -> None:
    table = table_of(BROKEN["primary-header-crc"]())
    assert table.primary is not None
    assert table.primary.header_crc == 0xBAD
    assert table.primary.disk_guid == DISK_GUID
    assert not table.primary_intact
    assert table.backup_intact


def test_with_both_tables_damaged_the_partitions_are_a_best_effort_that_is_not_trusted() -> None:
    image = good_gpt()
    for header in header_offsets(image):
        image[header + 16] ^= 1
    table = table_of(image)
    assert codes_of(table) == {"primary-header-crc", "backup-header-crc"}
    assert [partition.number for partition in table.partitions] == [1, 2]
    assert table.source is TableSource.PRIMARY
    assert not table.trusted


def test_with_both_tables_beyond_reading_there_are_no_partitions() -> None:
    image = good_gpt()
    for header in header_offsets(image):
        put(image, header + 84, "<I", 0)
    table = table_of(fix_crcs(image))
    assert (table.kind, table.source, table.partitions, table.header) == (TableKind.GPT, None, (), None)
    assert not table.trusted


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("hybrid-mbr", TableKind.HYBRID),
        ("mbr-only", TableKind.MBR_ONLY),
        ("no-gpt", TableKind.NONE),
        ("other-sector-size", TableKind.NONE),
        ("pmbr-missing", TableKind.GPT),
        ("mbr-signature", TableKind.GPT),
        ("primary-header-missing", TableKind.GPT),
    ],
)
def test_the_kind_of_table(code: str, kind: TableKind) -> None:
    assert table_of(BROKEN[code]()).kind is kind


def test_an_mbr_partitioned_disk_with_a_forgotten_gpt_is_an_mbr_disk() -> None:
    image = good_gpt()
    put(image, RECORD + 4, "<B", 0x83)
    table = table_of(image)
    assert table.kind is TableKind.MBR_ONLY
    assert (table.partitions, table.source, table.trusted) == ((), None, False)
    assert table.primary is not None
    assert table.backup_intact
    assert codes_of(table) == {"pmbr-missing"}


def test_a_boot_sector_of_a_file_system_is_no_partition_table() -> None:
    image = bytearray(MIB)
    image[:510] = bytes(range(1, 256)) * 2
    image[510:512] = b"\x55\xaa"
    table = table_of(image)
    assert table.kind is TableKind.NONE
    assert codes_of(table) == {"no-gpt"}


def test_a_protective_mbr_alone_is_no_gpt() -> None:
    image = good_gpt()
    for header in header_offsets(image):
        image[header] = 0
    table = table_of(image)
    assert table.kind is TableKind.NONE
    assert "protective MBR" in table.problems[0].evidence.found


def test_the_protective_record_may_be_any_and_the_one_at_lba_1_counts() -> None:
    image = good_gpt()
    image[RECORD + 48 : RECORD + 64] = image[RECORD : RECORD + 16]
    image[RECORD : RECORD + 16] = bytes(16)
    assert table_of(image).problems == ()
    put(image, RECORD + 4, "<B", 0xEE)
    assert codes_of(table_of(image)) == {"pmbr-other-records"}


@pytest.mark.parametrize(("made_for", "read_as"), [(512, 4096), (4096, 512)])
def test_a_table_for_the_other_sector_size_is_named_as_such(made_for: int, read_as: int) -> None:
    table = table_of(good_gpt(sector_size=made_for), read_as)
    (problem,) = table.problems
    assert problem.code == "other-sector-size"
    assert f"sectors of {made_for} bytes" in problem.message
    assert f"sectors of {read_as} bytes" in problem.message


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_grown_disk_has_its_backup_found_and_judged_where_it_is(sector_size: int) -> None:
    image = good_gpt(sector_size=sector_size) + bytes(MIB)
    table = table_of(image, sector_size)
    assert codes_of(table) == {"backup-not-at-end", "pmbr-size"}
    assert table.backup is not None
    assert table.backup.lba == 4 * MIB // sector_size - 1
    assert table.backup_intact
    image[table.backup.lba * sector_size + 16] ^= 1
    assert codes_of(table_of(image, sector_size)) == {"backup-not-at-end", "pmbr-size", "backup-header-crc"}


def test_a_stray_signature_at_the_end_does_not_hide_the_backup_of_a_grown_disk() -> None:
    image = good_gpt() + bytes(MIB)
    image[-512:-504] = b"EFI PART"
    table = table_of(image)
    assert table.backup is not None
    assert table.backup.lba == 4 * MIB // 512 - 1


def test_a_backup_at_the_end_is_found_though_the_primary_points_elsewhere() -> None:
    image = good_gpt()
    put(image, 512 + ALTERNATE_LBA, "<Q", (1 << 64) - 1)
    table = table_of(image)
    assert codes_of(table) == {"primary-header-crc", "primary-alternate-lba"}
    assert table.backup_intact


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 1025, 1536, 4095, 4096, 8192, 12288, 20000])
@pytest.mark.parametrize("end", ["start", "end"])
def test_a_disk_cut_anywhere_is_read_without_an_error(size: int, sector_size: int, end: str) -> None:
    image = good_gpt(sector_size=sector_size)
    table = table_of(image[:size] if end == "start" else image[len(image) - size :], sector_size)
    assert table.serious_problems


def test_a_disk_that_cannot_be_read_is_an_input_error() -> None:
    class Failing(BaseDisk):
        def _read(self, offset: int, length: int) -> bytes:
            raise InputError("bad sector", subject=self.name, offset_bytes=offset, expected=f"{length} bytes")

    with pytest.raises(InputError, match="bad sector"):
        read_partition_table(Failing("broken.img", "raw", 4 * MIB))


def test_a_partition_gives_its_slice_of_the_disk() -> None:
    image = good_gpt()
    image[MIB : MIB + 5] = b"hello"
    disk = MemoryDisk(bytes(image), name="d.img")
    esp = read_partition_table(disk).partitions[0]
    piece = esp.slice(disk)
    assert (piece.name, piece.size_bytes, piece.read(0, 5)) == ("d.img, partition 1", MIB, b"hello")


@pytest.mark.parametrize(("first", "last"), [(5, 3), (0, 1 << 60), (1 << 63, (1 << 63) + 4)])
def test_a_partition_that_is_not_on_the_disk_gives_no_bytes(first: int, last: int) -> None:
    disk = MemoryDisk(bytes(MIB))
    partition = Partition(1, ESP, DISK_GUID, first, last)
    if first > last:
        assert partition.slice(disk).size_bytes == 0
    else:
        with pytest.raises(InputError, match="partition 1 reaches outside its disk"):
            partition.slice(disk)


def test_unknown_attributes_types_and_odd_numbers_are_kept() -> None:
    kind = UUID("deadbeef-0000-4000-8000-00000badcafe")
    entry = Entry(77, 2048, 4095, kind, attributes=0xFFFF_0000_0000_0007, name="x" * 35)
    table = table_of(good_gpt(partitions=[entry]))
    assert table.problems == ()
    (partition,) = table.partitions
    assert (partition.number, partition.type_guid, partition.attributes) == (77, kind, entry.attributes)
    assert partition.hidden_from_firmware
    assert not replace(partition, attributes=5).hidden_from_firmware


def test_a_name_that_is_not_utf_16_stays_printable_and_ends_at_its_nul() -> None:
    image = good_gpt()
    for header in header_offsets(image):
        name = array_offset(image, header) + NAME
        image[name : name + 10] = b"a\0\0\xd8b\0\0\0c\0"
    table = table_of(fix_crcs(image))
    assert table.partitions[0].name == "a�b"
    assert codes_of(table) == {"partition-name"}


def test_the_name_of_a_partition_cannot_steer_a_terminal() -> None:
    evil = usual_entries(4 * MIB)[0]
    table = table_of(good_gpt(partitions=[replace(evil, name="\x1b[2Jevil", unique_guid=UUID(int=0))]))
    assert "\x1b" not in repr([problem.evidence.where for problem in table.problems])
    assert table.problems[-1].evidence.where == "partition 1 (\\x1b[2Jevil)"


def test_an_overlap_is_found_however_far_apart_the_entries_are() -> None:
    entries = [Entry(1, 2048, 7000), Entry(2, 2100, 2200), Entry(3, 4096, 4100), Entry(4, 7001, 7002)]
    table = table_of(good_gpt(partitions=entries))
    overlaps = [problem.message for problem in table.problems if problem.code == "partition-overlap"]
    assert overlaps == ["Partitions 1 and 2 overlap.", "Partitions 1 and 3 overlap."]


def test_a_thousand_problems_of_a_kind_are_counted_not_listed() -> None:
    entries = [Entry(number, 2048, 2048) for number in range(1, 129)]
    table = table_of(good_gpt(partitions=entries))
    assert len(table.problems) == 17
    assert table.problems[-1].message == "There are 111 more problems of this kind."
    assert table.problems[-1].serious


def test_the_protective_record_of_a_disk_beyond_2_tib_is_as_large_as_can_be() -> None:
    class Huge(BaseDisk):
        """8 TiB, of which only the first MiB and the end are there."""

        def __init__(self) -> None:
            super().__init__("huge", "raw", 8 << 40)
            self.image = good_gpt(partitions=[])
            last = (self.size_bytes >> 9) - 1
            put(self.image, RECORD + 12, "<I", 0xFFFFFFFF)
            for offset, value in ((512 + ALTERNATE_LBA, last), (512 + 48, last - 33)):
                put(self.image, offset, "<Q", value)
            fix_crcs(self.image)
            self.end = bytearray(good_gpt(partitions=[])[-MIB:])
            for field, value in ((24, last), (48, last - 33), (72, last - 32)):
                put(self.end, MIB - 512 + field, "<Q", value)

        def _read(self, offset: int, length: int) -> bytes:
            if offset < MIB:
                return bytes(self.image[offset : offset + length])
            start = offset - (self.size_bytes - MIB)
            return bytes(self.end[start : start + length])

    # The backup keeps the CRC of another header: the one problem that is left, so that everything else was right.
    assert codes_of(read_partition_table(Huge())) == {"backup-header-crc"}
