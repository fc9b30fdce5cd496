"""Planning and writing partition tables: what is refused, and that the bytes are the same every time."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from armvm.disk.gpt import Partition, read_partition_table
from armvm.disk.gpt_write import GptLayout, PartitionRequest, disk_size_for, plan_partitions, serialise
from armvm.disk.storage import MemoryDisk
from armvm.errors import UsageError
from tools.gpt_images import DISK_GUID, ESP, LINUX, MIB, Entry, good_gpt

ESP_REQUEST = PartitionRequest(ESP, UUID(int=1), "EFI System", 33 * MIB)
ROOT_REQUEST = PartitionRequest(LINUX, UUID(int=2), "root ☃", None, attributes=1 << 60)
ONE = Partition(1, ESP, UUID(int=1), 2048, 4095)


def image_of(layout: GptLayout) -> bytes:
    image = bytearray(layout.size_bytes)
    for offset, piece in serialise(layout):
        image[offset : offset + len(piece)] = piece
    return bytes(image)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_partitions_are_planned_in_whole_mib_and_read_back_the_same(sector_size: int) -> None:
    layout = plan_partitions(
        [ESP_REQUEST, ROOT_REQUEST], disk_guid=DISK_GUID, sector_size=sector_size, size_bytes=64 * MIB
    )
    places = [(p.offset_bytes(sector_size), p.size_bytes(sector_size)) for p in layout.partitions]
    assert places == [(MIB, 33 * MIB), (34 * MIB, 29 * MIB)]
    table = read_partition_table(MemoryDisk(image_of(layout), sector_size=sector_size))
    assert table.problems == ()
    assert table.partitions == layout.partitions
    assert table.primary is not None
    assert table.primary.first_usable_lba == layout.first_usable_lba == {512: 34, 4096: 6}[sector_size]
    assert table.primary.last_usable_lba == layout.last_usable_lba


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_the_bytes_are_those_of_an_independent_writer(sector_size: int) -> None:
    size = 64 << 30  # beyond what CHS can say
    mib = MIB // sector_size
    entries = [Entry(1, mib, 9 * mib - 1, ESP, UUID(int=5), 4, "EFI"), Entry(128, 9 * mib, 9 * mib, name="one")]
    partitions = [
        Partition(e.number, e.type_guid, e.unique_guid or UUID(bytes_le=e.packed()[16:32]), e.first_lba, e.last_lba)
        for e in entries
    ]
    partitions = [replace(p, attributes=e.attributes, name=e.name) for p, e in zip(partitions, entries, strict=True)]
    (_, start), (offset, end) = serialise(GptLayout(DISK_GUID, sector_size, 16 * MIB, tuple(partitions)))
    theirs = good_gpt(16 * MIB, sector_size, entries)
    theirs[446 + 5 : 446 + 8] = start[446 + 5 : 446 + 8]
    assert start == theirs[: len(start)]
    assert end == theirs[offset:]
    (_, start), _ = serialise(GptLayout(DISK_GUID, sector_size, size, ()))
    last = size // sector_size - 1
    assert start[446:462] == b"\0\0\2\0\xee\xff\xff\xff\1\0\0\0" + last.to_bytes(4, "little")


def test_the_end_of_a_small_disk_has_its_chs_address() -> None:
    # LBA 8191: head 130 of cylinder 0 (63 sectors a track), sector 2 counted from 1.
    (_, start), _ = serialise(GptLayout(DISK_GUID, 512, 4 * MIB, ()))
    assert start[446 + 5 : 446 + 8] == bytes([130, 2, 0])
    # LBA 8388607, cylinder 522: its two high bits share a byte with the sector.
    (_, start), _ = serialise(GptLayout(DISK_GUID, 512, 4 << 30, ()))
    assert start[446 + 5 : 446 + 8] == bytes([42, 2 << 6 | 32, 522 & 0xFF])


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_the_smallest_disk_for_partitions_takes_them_and_a_smaller_one_does_not(sector_size: int) -> None:
    requests = [ESP_REQUEST, replace(ROOT_REQUEST, size_bytes=5 * MIB + 1)]
    size = disk_size_for([33 * MIB, 5 * MIB + 1])
    assert size == (1 + 33 + 6 + 1) * MIB
    layout = plan_partitions(requests, disk_guid=DISK_GUID, sector_size=sector_size, size_bytes=size)
    assert layout.partitions[1].size_bytes(sector_size) == 6 * MIB
    with pytest.raises(UsageError, match=r"partition 2 .* does not fit") as caught:
        plan_partitions(requests, disk_guid=DISK_GUID, sector_size=sector_size, size_bytes=size - MIB)
    assert caught.value.hint == "it takes a disk of at least 41 MiB"


def test_a_table_without_partitions_is_a_table() -> None:
    layout = plan_partitions([], disk_guid=DISK_GUID, sector_size=512, size_bytes=MIB)
    assert read_partition_table(MemoryDisk(image_of(layout))).problems == ()


@pytest.mark.parametrize(
    ("requests", "sector_size", "size_bytes", "message"),
    [
        ([ROOT_REQUEST, ESP_REQUEST], 512, 64 * MIB, "takes the rest of the disk, but is not the last"),
        ([ESP_REQUEST, ROOT_REQUEST], 512, 35 * MIB, "partition 2 .* does not fit on a disk of 35 MiB"),
        ([replace(ESP_REQUEST, size_bytes=0)], 512, 35 * MIB, "does not fit"),
        ([replace(ESP_REQUEST, size_bytes=-MIB)], 512, 35 * MIB, "does not fit"),
        ([ROOT_REQUEST], 520, 64 * MIB, "sectors of 520 bytes"),
        ([ROOT_REQUEST], 4096, 64 * MIB + 512, "sectors of 4096 bytes"),
        ([ROOT_REQUEST], 512, 0, "does not fit"),
        ([], 512, 0, "no room for a GPT"),
        ([replace(ROOT_REQUEST, name="x" * 36)], 512, 64 * MIB, "at most 35 UTF-16 code units"),
        ([replace(ROOT_REQUEST, name="☃" * 30 + "🐧" * 3)], 512, 64 * MIB, "at most 35 UTF-16 code units"),
        ([replace(ROOT_REQUEST, name="a\0b")], 512, 64 * MIB, "no NUL"),
        ([replace(ROOT_REQUEST, name="\udc80")], 512, 64 * MIB, "surrogates"),
        ([replace(ESP_REQUEST, size_bytes=MIB), replace(ESP_REQUEST, size_bytes=MIB)], 512, 8 * MIB, "same unique"),
        ([replace(ROOT_REQUEST, type_guid=UUID(int=0))], 512, 64 * MIB, "no type"),
        ([replace(ROOT_REQUEST, attributes=1 << 64)], 512, 64 * MIB, "64 bits"),
        (
            [replace(ROOT_REQUEST, size_bytes=MIB, unique_guid=UUID(int=n + 1)) for n in range(129)],
            512,
            256 * MIB,
            "number 129",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_a_usage_error(
    requests: list[PartitionRequest], sector_size: int, size_bytes: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan_partitions(requests, disk_guid=DISK_GUID, sector_size=sector_size, size_bytes=size_bytes)


@pytest.mark.parametrize(
    ("partitions", "message"),
    [
        ([replace(ONE, first_lba=33)], "not inside the usable blocks"),
        ([replace(ONE, last_lba=8159)], "not inside the usable blocks"),
        ([replace(ONE, first_lba=4096)], "not inside the usable blocks"),
        ([replace(ONE, number=0)], "number 0"),
        ([ONE, replace(ONE, number=2, unique_guid=UUID(int=2), first_lba=4095)], "overlap"),
        ([ONE, replace(ONE, first_lba=4096, last_lba=4096)], "same number"),
        ([replace(ONE, unique_guid=UUID(int=0))], "no unique GUID"),
    ],
)
def test_a_layout_that_no_gpt_can_hold_is_refused(partitions: list[Partition], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GptLayout(DISK_GUID, 512, 4 * MIB, tuple(partitions))


def test_a_layout_needs_a_guid_and_whole_sectors() -> None:
    with pytest.raises(ValueError, match="the disk has no GUID"):
        GptLayout(UUID(int=0), 512, 4 * MIB, ())
    with pytest.raises(ValueError, match="not a sector size"):
        GptLayout(DISK_GUID, 1024, 4 * MIB, ())
    with pytest.raises(ValueError, match="no whole number"):
        GptLayout(DISK_GUID, 4096, 4 * MIB + 512, ())
