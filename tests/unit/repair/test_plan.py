"""Every repair on the image that asks for it: what is done, what is left, and that nothing else changes."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping

import pytest

from armvm.disk.fat import FatVolume
from armvm.disk.gpt import read_partition_table
from armvm.disk.gpt_format import TableKind
from armvm.disk.patched import PatchedDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.execution import ExecutionState
from armvm.guest.check import check_image
from armvm.image.contents import ImageContents
from armvm.spec.verdict import Verdict
from armvm.units import MIB
from tools import gpt_images
from tools.disk_images import (
    AA64,
    BROKEN,
    boot_csv,
    disk_image,
    fallback,
    grub,
    program,
    shim,
    systemd_boot,
    unified_kernel,
)
from tools.fat_images import BLEMISHED, Sample
from tools.repairs import REPAIRED, mbr_disk, plan

A32 = ExecutionState.AARCH32


def failed(disk: Disk) -> set[str]:
    return {finding.requirement for finding in check_image(disk).findings if finding.verdict is Verdict.FAIL}


def files_of(disk: Disk) -> dict[str, bytes]:
    (esp,) = ImageContents(disk).esps
    assert esp.volume is not None
    return {path.strip("/"): esp.volume.read(e) for path, e in esp.volume.walk() if not e.is_directory}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_claimed_is_repaired_and_everything_else_is_left_and_explained(what: str) -> None:
    requirement, make = BROKEN[what]
    with make() as disk:
        found, patched = plan(disk)
        with patched:
            left = failed(patched)
            changed = list(patched.changes())
    if what in REPAIRED:
        assert left == set()
        assert {edit.requirement for edit in found.edits} <= {requirement, "image.gpt"}
        assert found.unrepairable == ()
        assert 0 < sum(len(new) for _, _, new in changed) < 65536
    else:
        assert left == {requirement}
        assert found.edits == ()
        assert changed == []
        assert {entry.requirement for entry in found.unrepairable} == {requirement}
        assert all(entry.why and entry.where for entry in found.unrepairable)


def test_a_good_image_is_left_alone() -> None:
    with disk_image() as disk:
        found, patched = plan(disk)
        assert (found.edits, found.unrepairable, list(patched.changes())) == ((), (), [])


def test_a_repaired_image_asks_for_nothing_more() -> None:
    for what in REPAIRED:
        with BROKEN[what][1]() as disk, plan(disk)[1] as once:
            found, again = plan(once)
            assert (found.edits, list(again.changes())) == ((), []), what


def test_the_same_repair_writes_the_same_bytes() -> None:
    for what in ("disk grown", "vendor path only"):
        with BROKEN[what][1]() as disk:
            first, second = (list(plan(disk)[1].changes()) for _ in range(2))
            assert first == second


def test_only_what_is_wanted_is_repaired() -> None:
    with BROKEN["disk grown"][1]() as disk:
        for wanted, edits in (("image.esp", 0), ("image.gpt", 2)):
            found, patched = plan(disk, wants=wanted.__eq__)
            assert len(found.edits) == edits
            assert bool(list(patched.changes())) == bool(edits)
            assert {entry.requirement for entry in found.unrepairable} <= {wanted}


# The partition table

REBUILT = (
    *("mbr-signature", "pmbr-missing", "pmbr-start", "pmbr-size", "pmbr-other-records", "hybrid-mbr"),
    *("backup-not-at-end", "disk-guid-differs", "usable-range-differs", "entry-geometry-differs", "entries-differ"),
    *("partition-attributes", "partition-guid-zero", "primary-disk-guid-zero"),
    *(
        f"{half}-{code}"
        for half in ("primary", "backup")
        for code in (
            *("header-missing", "header-crc", "header-revision", "header-reserved", "my-lba", "alternate-lba"),
            *("header-size", "usable-range", "entry-size", "entry-count", "array-outside-disk", "array-crc"),
        )
    ),
)


@pytest.mark.parametrize("code", REBUILT)
def test_a_faulty_table_is_rebuilt_and_keeps_its_partitions(code: str) -> None:
    disk = MemoryDisk(gpt_images.BROKEN[code]())
    before = read_partition_table(disk)
    found, patched = plan(disk)
    after = read_partition_table(patched)
    assert after.serious_problems == ()
    assert after.primary_intact
    assert after.backup_intact
    assert after.kind is TableKind.GPT
    kept = [(p.number, p.type_guid, p.first_lba, p.last_lba, p.name) for p in after.partitions]
    usual = gpt_images.usual_entries(4 * MIB)
    assert kept == [(e.number, e.type_guid, e.first_lba, e.last_lba, e.name) for e in usual]
    if before.header and before.header.disk_guid.int:
        assert after.header is not None
        assert after.header.disk_guid == before.header.disk_guid
    assert all(edit.reason for edit in found.edits)
    partitions = slice(usual[0].first_lba * 512, (usual[-1].last_lba + 1) * 512)
    assert patched.read(0, disk.size_bytes)[partitions] == disk.read(0, disk.size_bytes)[partitions]


@pytest.mark.parametrize(
    "code",
    [
        *("disk-size", "other-sector-size", "no-gpt", "mbr-only", "disk-truncated", "partition-range"),
        *("partition-outside-disk", "partition-overlap", "partition-guid-duplicate"),
    ],
)
def test_a_table_that_nobody_can_know_is_left(code: str) -> None:
    found, patched = plan(MemoryDisk(gpt_images.BROKEN[code]()))
    assert read_partition_table(patched).serious_problems
    assert any(entry.requirement == "image.gpt" and entry.remedy for entry in found.unrepairable)


def test_a_table_of_an_unusual_number_of_entries_keeps_it() -> None:
    image = gpt_images.good_gpt(entry_count=160)
    image[-512:] = bytes(512)
    _, patched = plan(MemoryDisk(bytes(image)))
    after = read_partition_table(patched)
    assert after.serious_problems == ()
    assert after.backup is not None
    assert after.backup.entry_count == 160


def test_with_both_tables_gone_nothing_is_believed() -> None:
    image = gpt_images.good_gpt()
    image[520] ^= 1
    image[-500] ^= 1
    found, patched = plan(MemoryDisk(bytes(image)))
    assert list(patched.changes()) == []
    assert "neither of the two" in found.unrepairable[0].why


def test_a_hybrid_mbr_with_a_partition_of_its_own_is_left() -> None:
    image = bytearray(gpt_images.BROKEN["hybrid-mbr"]())
    struct.pack_into("<I", image, gpt_images.RECORD + 16 + 8, 2077)
    found, patched = plan(MemoryDisk(bytes(image)))
    assert list(patched.changes()) == []
    assert "does not know" in found.unrepairable[0].why


def test_two_candidates_for_the_esp_are_left_to_a_human() -> None:
    first, size = MIB // 512, 33 * MIB // 512
    entries = (gpt_images.Entry(1, first, first + size - 1), gpt_images.Entry(2, first + size, first + 2 * size - 1))
    with disk_image() as good:
        volume = good.read(MIB, 33 * MIB)
    image = gpt_images.good_gpt(69 * MIB, partitions=entries)
    image[MIB : 67 * MIB] = volume * 2
    found, patched = plan(MemoryDisk(bytes(image)))
    assert list(patched.changes()) == []
    assert any("partitions 1, 2 all hold" in entry.why for entry in found.unrepairable)


# MBR to GPT


@pytest.mark.parametrize("kind", [0xEF, 0x0C, 0x0B])
def test_an_mbr_disk_becomes_a_gpt_disk(kind: int) -> None:
    image = mbr_disk(((kind, 2048, 33 * MIB // 512), (0x83, 70000, 1000)))
    found, patched = plan(MemoryDisk(bytes(image)))
    assert failed(patched) == set()
    table = read_partition_table(patched)
    assert [(p.number, p.is_esp, p.first_lba, p.last_lba) for p in table.partitions] == [
        (1, True, 2048, 2048 + 33 * MIB // 512 - 1),
        (2, False, 70000, 70999),
    ]
    assert found.unrepairable == ()
    again = plan(MemoryDisk(bytes(image)))[1]
    assert list(again.changes()) == list(patched.changes())


def test_logical_partitions_keep_linux_numbers() -> None:
    end = 2048 + 33 * MIB // 512
    logical = [(0x83, end + 2048, 100), (0x82, end + 4448, 200), (0x83, end + 6848, 300)]
    image = mbr_disk(((0xEF, 2048, end - 2048),), size_bytes=40 * MIB, logical=logical)
    _, patched = plan(MemoryDisk(bytes(image)))
    assert failed(patched) == set()
    table = read_partition_table(patched)
    assert [(p.number, p.first_lba, p.last_lba - p.first_lba + 1) for p in table.partitions] == [
        (1, 2048, end - 2048),
        *((5 + index, first, sectors) for index, (_, first, sectors) in enumerate(logical)),
    ]


def _mbr(**keywords: object) -> bytearray:
    return mbr_disk(**keywords)  # type: ignore[arg-type]


def _loop() -> bytearray:
    end = 2048 + 33 * MIB // 512
    image = _mbr(size_bytes=40 * MIB, logical=[(0x83, end + 2048, 100), (0x83, end + 4448, 200)])
    struct.pack_into("<I", image, (end + 2400) * 512 + 462 + 8, 0)
    struct.pack_into("<B", image, (end + 2400) * 512 + 462 + 4, 5)
    struct.pack_into("<I", image, (end + 2400) * 512 + 462 + 12, 7)
    return image


def _boot_code() -> bytearray:
    image = _mbr()
    image[8192:8200] = b"eGON.BT0"
    return image


HOPELESS_MBRS: Mapping[str, tuple[str, bytearray]] = {
    "no room at the end": ("takes everything from", _mbr(size_bytes=34 * MIB + 20 * 512)),
    "no room at the start": ("takes everything before", _mbr(records=((0xEF, 20, 33 * MIB // 512),))),
    "boot code in the gap": ("boot code", _boot_code()),
    "unknown type": ("no GPT type is known", _mbr(records=((0xEF, 2048, 33 * MIB // 512), (0xA5, 70000, 100)))),
    "no ESP": ("none of the MBR's partitions", _mbr(records=((0x83, 2048, 33 * MIB // 512),))),
    "logical partitions in a loop": ("does not end", _loop()),
}


@pytest.mark.parametrize("what", HOPELESS_MBRS)
def test_an_mbr_disk_without_room_is_left(what: str) -> None:
    why, image = HOPELESS_MBRS[what]
    found, patched = plan(MemoryDisk(bytes(image)))
    assert list(patched.changes()) == []
    assert [why in entry.why for entry in found.unrepairable if entry.requirement == "image.gpt"] == [True]


# The file system


def test_a_lost_boot_sector_comes_back_from_its_backup() -> None:
    with PatchedDisk(disk_image()) as disk:
        disk.write(MIB, random.Random(1).randbytes(512))
        found, patched = plan(disk)
        assert failed(patched) == set()
        assert patched.read(MIB, 512) == patched.read(MIB + 6 * 512, 512)
        assert "backup" in found.edits[0].action


def test_of_two_tables_the_one_that_verifies_is_taken() -> None:
    with disk_image() as good:
        volume = FatVolume(ImageContents(good).esps[0].partition.slice(good))
        entry = volume.lookup(AA64)
        assert entry is not None
        with PatchedDisk(good) as disk:
            place = MIB + volume.boot.reserved_sectors * 512 + 4 * (entry.first_cluster + 2)
            disk.write(place, struct.pack("<I", entry.first_cluster))
            found, patched = plan(disk)
            assert failed(patched) == set()
            assert patched.read(MIB, 33 * MIB) == good.read(MIB, 33 * MIB)
            assert "number 2" in found.edits[0].action


@pytest.mark.parametrize("code", ["dirty", "fsinfo-free-count"])
def test_what_drivers_stumble_over_is_mended_too(code: str) -> None:
    with disk_image(esp=BLEMISHED[code]()) as disk:
        found, patched = plan(disk)
        assert len(found.edits) == 1
        (esp,) = ImageContents(patched).esps
        assert code not in {problem.code for problem in ImageContents(patched).volume_problems(esp)}


def test_a_mend_that_brings_another_fault_is_none() -> None:
    sample = Sample()
    chain = sample.fat(sample.cluster(b"BOOTAA64EFI") + 1, 0)
    esp = sample.patched(*sample.boot(40, b"\x82\0"), chain[0])
    with disk_image(esp=esp) as disk:
        found, patched = plan(disk)
        assert (found.edits, list(patched.changes())) == ((), [])


def test_lost_clusters_are_left_alone() -> None:
    with disk_image(esp=BLEMISHED["lost-clusters"]()) as disk:
        found, patched = plan(disk)
        assert [edit.action for edit in found.edits] == ["FSInfo written anew, with the free clusters counted"]
        (esp,) = ImageContents(patched).esps
        assert [problem.code for problem in ImageContents(patched).volume_problems(esp)] == ["lost-clusters"]


# The boot loader

MENU = b"menuentry a { linux /EFI/kernel }\n"
KERNEL = {"EFI/kernel": b"a kernel"}
DEBIAN = {
    **KERNEL,
    "EFI/debian/shimaa64.efi": shim(),
    "EFI/debian/grubaa64.efi": grub("/EFI/debian"),
    "EFI/debian/mmaa64.efi": program(),
    "EFI/debian/grub.cfg": MENU,
}
LISTED = {"EFI/debian/fbaa64.efi": fallback(), "EFI/debian/BOOTAA64.CSV": boot_csv("shimaa64.efi")}
LOADERS: Mapping[str, tuple[Mapping[str, bytes], Mapping[str, str]]] = {
    "shim and its fallback": (
        {**DEBIAN, **LISTED},
        {AA64: "shimaa64.efi", "EFI/BOOT/fbaa64.efi": "fbaa64.efi", "EFI/BOOT/mmaa64.efi": "mmaa64.efi"},
    ),
    "shim without a list": (
        {**DEBIAN, "EFI/debian/fbaa64.efi": fallback()},
        {AA64: "shimaa64.efi", "EFI/BOOT/grubaa64.efi": "grubaa64.efi", "EFI/BOOT/mmaa64.efi": "mmaa64.efi"},
    ),
    "shim whose list names nothing": (
        {**DEBIAN, **LISTED, "EFI/debian/BOOTAA64.CSV": boot_csv("gone.efi")},
        {AA64: "shimaa64.efi", "EFI/BOOT/grubaa64.efi": "grubaa64.efi", "EFI/BOOT/mmaa64.efi": "mmaa64.efi"},
    ),
    "GRUB with a prefix": (
        {"EFI/debian/grubaa64.efi": grub("/EFI/debian"), "EFI/debian/grub.cfg": MENU, **KERNEL},
        {AA64: "grubaa64.efi"},
    ),
    "GRUB without a prefix": (
        {"EFI/debian/grubaa64.efi": grub(""), "EFI/debian/grub.cfg": MENU, **KERNEL},
        {AA64: "grubaa64.efi", "EFI/BOOT/grub.cfg": "grub.cfg"},
    ),
    "systemd-boot": (
        {
            "EFI/debian/systemd-bootaa64.efi": systemd_boot(),
            "EFI/Linux/a.efi": unified_kernel(),
            "EFI/Linux/b.efi": unified_kernel(),
        },
        {AA64: "systemd-bootaa64.efi"},
    ),
    "for the other state": ({"EFI/debian/grubarm.efi": unified_kernel(A32)}, {"EFI/BOOT/BOOTARM.EFI": "grubarm.efi"}),
    "for both states": (
        {"EFI/debian/grubarm.efi": unified_kernel(A32), "EFI/debian/grubaa64.efi": unified_kernel()},
        {"EFI/BOOT/BOOTARM.EFI": "grubarm.efi", AA64: "grubaa64.efi"},
    ),
}


@pytest.mark.parametrize("what", LOADERS)
def test_the_vendors_loader_is_put_at_the_removable_path(what: str) -> None:
    files, expected = LOADERS[what]
    with disk_image(files) as disk:
        found, patched = plan(disk)
        assert failed(patched) == set()
        new = {path: content for path, content in files_of(patched).items() if path not in files}
        assert new == {path: files[f"EFI/debian/{source}"] for path, source in expected.items()}
        assert {edit.requirement for edit in found.edits} == {"image.removable-path"}
        assert {path: files_of(patched)[path] for path in files} == files


def test_a_state_that_has_to_be_served_gets_its_loader() -> None:
    files = {AA64: unified_kernel(), "EFI/debian/grubarm.efi": unified_kernel(A32)}
    with disk_image(files) as disk:
        assert plan(disk)[0].edits == ()
        _, patched = plan(disk, states=(A32,))
        assert files_of(patched)["EFI/BOOT/BOOTARM.EFI"] == unified_kernel(A32)


def test_of_several_kernels_nobody_chooses() -> None:
    with disk_image({"EFI/Linux/a.efi": unified_kernel(), "EFI/Linux/b.efi": unified_kernel()}) as disk:
        found, patched = plan(disk)
        assert list(patched.changes()) == []
        assert found.unrepairable[0].requirement == "image.removable-path"


COMPLETED: Mapping[str, tuple[Mapping[str, bytes], str, str]] = {
    "shim without its second stage": (
        {AA64: shim(), "EFI/debian/grubaa64.efi": grub("/EFI/debian"), "EFI/debian/grub.cfg": MENU, **KERNEL},
        "EFI/BOOT/grubaa64.efi",
        "EFI/debian/grubaa64.efi",
    ),
    "GRUB with its configuration elsewhere": (
        {AA64: grub("/EFI/debian"), "EFI/ubuntu/grub.cfg": MENU, **KERNEL},
        "EFI/debian/grub.cfg",
        "EFI/ubuntu/grub.cfg",
    ),
}


@pytest.mark.parametrize("what", COMPLETED)
def test_what_the_boot_program_looks_for_is_put_there(what: str) -> None:
    files, target, source = COMPLETED[what]
    with disk_image(files) as disk:
        assert failed(disk) == {"image.self-contained-boot"}
        found, patched = plan(disk)
        assert failed(patched) == set()
        assert files_of(patched) == {**files, target: files[source]}
        assert len(found.edits) == 1


@pytest.mark.parametrize("fault", [0, 4096, 2 * 4096, -1])
def test_a_disk_of_4096_byte_sectors_is_repaired_in_its_own_sectors(fault: int) -> None:
    image = gpt_images.good_gpt(8 * MIB, sector_size=4096)
    start = len(image) - 4096 if fault < 0 else fault
    image[start : start + 600] = bytes(600)
    found, patched = plan(MemoryDisk(bytes(image), sector_size=4096))
    assert found.edits
    after = read_partition_table(patched)
    assert after.serious_problems == ()
    assert patched.read(0, 8 * MIB)[512:] == bytes(gpt_images.good_gpt(8 * MIB, sector_size=4096))[512:]
