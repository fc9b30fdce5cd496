from __future__ import annotations

import struct
import time
from collections.abc import Callable

import pytest

from armvm.disk.fat import FatVolume
from armvm.disk.fat_verify import verify
from armvm.disk.storage import Disk, MemoryDisk
from armvm.spec.verdict import Problem
from tools.fat_images import BLEMISHED, BROKEN, FIRST_LBA, Sample, fat32_disk, small_fat

KNOCK_ON = {
    "sectors-per-cluster": None,  # nothing is where it was
    "root-entries": None,
    "fat-size": {"fats-differ"},
    "total-sectors": {"cluster-count"},
    "root-cluster": {"chain-range"},
    "active-fat": {"chain-range"},
}
"""The other serious problems that come with one, where there are any; None for whatever they are."""


def judge(disk: Disk) -> dict[str, Problem]:
    return {problem.code: problem for problem in verify(FatVolume(disk))}


@pytest.mark.parametrize(
    "disk", [fat32_disk(), fat32_disk({}, label=""), *(MemoryDisk(small_fat(b)) for b in (12, 16))]
)
def test_sound_file_systems_have_no_problem(disk: Disk) -> None:
    assert verify(FatVolume(disk), first_lba=FIRST_LBA) == ()


@pytest.mark.parametrize("code", BROKEN)
def test_every_serious_problem_is_found(code: str) -> None:
    found = judge(BROKEN[code]())
    assert found[code].serious
    expected = KNOCK_ON.get(code, set())
    if expected is not None:
        assert {problem.code for problem in found.values() if problem.serious} == {code} | expected


@pytest.mark.parametrize("code", BLEMISHED)
def test_every_blemish_is_found_and_is_not_serious(code: str) -> None:
    found = judge(BLEMISHED[code]())
    assert code in found
    assert not [problem for problem in found.values() if problem.serious]


def test_another_start_of_the_partition_is_a_blemish() -> None:
    (problem,) = verify(FatVolume(fat32_disk()), first_lba=34)
    assert (problem.code, problem.serious) == ("hidden-sectors", False)
    assert (problem.evidence.found, problem.evidence.expected) == ("2048", "34")


def test_the_fat32_trap_names_the_kind_it_really_is() -> None:
    sample = Sample()
    problem = judge(BROKEN["cluster-count"]())["cluster-count"]
    assert "FAT32" in problem.message
    assert "FAT16" in problem.message
    assert problem.evidence.found == f"{60_000 - sample.data_offset // 512} clusters"
    assert problem.evidence.expected == "at least 65525"


def test_a_cross_link_names_both_files() -> None:
    problem = judge(BROKEN["cross-link"]())["cross-link"]
    assert problem.evidence.where == "/EFI/BOOT/BOOTARM.EFI"
    assert "/EFI/BOOT/BOOTAA64.EFI" in problem.evidence.found


def test_a_chain_that_meets_itself_in_the_middle_is_a_loop() -> None:
    sample = Sample()
    first = sample.cluster(b"BOOTAA64EFI")
    found = judge(sample.patched(*sample.fat(first + 5, first + 2)))
    assert "second time" in found["chain-loop"].evidence.found


def test_an_older_backup_is_serious_only_where_it_describes_the_file_system() -> None:
    boot_code = judge(Sample().patched((6 * 512 + 100, b"x")))["backup-boot-sector"]
    assert not boot_code.serious
    assert judge(BROKEN["backup-boot-sector"]())["backup-boot-sector"].serious
    assert "backup-boot-sector" not in judge(Sample().patched((65, b"\1")))  # the dirty bit is only in the first


def test_no_backup_at_all_is_a_blemish() -> None:
    sample = Sample()
    assert not judge(sample.patched(*sample.boot(50, b"\0\0")))["backup-sector"].serious


def test_dot_dot_to_the_root_by_its_number_is_a_blemish() -> None:
    sample = Sample()
    dots = sample.data_offset + (sample.cluster(b"EFI        ") - 2) * 512
    assert not judge(sample.patched((dots + 32 + 26, b"\2\0")))["dot-entries"].serious
    assert judge(sample.patched((dots, b"X")))["dot-entries"].serious


def test_tables_may_differ_where_mirroring_is_off() -> None:
    sample = Sample()
    patches = sample.boot(40, b"\x80\0")
    changed = sample.fat(sample.cluster(b"BOOTAA64EFI"), 0)[1]
    assert judge(sample.patched(*patches, changed)) == {}


def test_clusters_of_more_than_32_kib_are_a_blemish() -> None:
    sample = Sample()
    assert not judge(sample.patched(*sample.boot(13, b"\x80")))["cluster-size"].serious


@pytest.mark.parametrize(("offset", "value", "code"), [(17, b"\0\0", "root-entries"), (17, b"\x41\0", "root-entries")])
def test_the_fixed_root_has_to_fill_sectors(offset: int, value: bytes, code: str) -> None:
    content = bytearray(small_fat(16))
    content[offset : offset + len(value)] = value
    assert judge(MemoryDisk(bytes(content)))[code].serious


def test_the_state_byte_counts_as_dirty() -> None:
    content = bytearray(small_fat(16))
    content[37] = 1
    assert not judge(MemoryDisk(bytes(content)))["dirty"].serious


def test_problems_of_one_kind_are_bounded_and_counted() -> None:
    sample = Sample(fat32_disk({f"FILE{number}": b"x" for number in range(40)}))
    patches = [sample.slot(f"FILE{number:<7}".encode(), 28, struct.pack("<I", 5000)) for number in range(40)]
    problems = verify(FatVolume(sample.patched(*patches)))
    assert [problem.code for problem in problems] == ["chain-short"] * 17
    assert problems[-1].evidence.found == "24 more"
    assert problems[-1].serious


def test_a_folder_that_cannot_be_read_hides_no_other() -> None:
    sample = Sample()
    problems = judge(sample.patched(sample.slot(b"EFI        ", 20, struct.pack("<H", 0xFFFF))))
    assert problems["chain-range"].evidence.where == "/EFI"


def test_names_that_steer_a_terminal_are_escaped() -> None:
    sample = Sample(fat32_disk({"a\u202eb.txt": b"", "folder/evil name": b"abc"}))
    found = judge(sample.patched(sample.slot(b"EVILNA~1   ", 28, struct.pack("<I", 5000))))
    assert found["chain-short"].evidence.where == "/folder/evil name"
    bidi = Sample(fat32_disk({"a\u202eb/c.txt": b"abc"}))
    found = judge(bidi.patched(bidi.slot(b"C       TXT", 28, struct.pack("<I", 5000))))
    assert found["chain-short"].evidence.where == "/a\\u202eb/c.txt"


def test_folders_too_deep_to_follow_are_said() -> None:
    deep = "/".join("d" * 300)
    assert not judge(fat32_disk({f"{deep}/file": b"x"}))["too-large-to-verify"].serious


def cpu_seconds(work: Callable[[], object]) -> float:
    def once() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return min(once() for _ in range(3))


def test_a_full_volume_is_judged_quickly() -> None:
    disk = fat32_disk({f"dir{n % 7}/file number {n}": bytes(200_000) for n in range(300)}, size_bytes=64 << 20)
    assert cpu_seconds(lambda: verify(FatVolume(disk))) < 0.1


def test_many_files_sharing_one_long_chain_cost_no_more_than_one() -> None:
    count = 30_000
    names = [f"F{number}" for number in range(2_000)]
    sample = Sample(fat32_disk({"BACK.BIN": bytes(count * 512), **dict.fromkeys(names, b"x")}))
    first = sample.cluster(b"BACK    BIN")
    raw = struct.pack(f"<{count}I", 0x0FFFFFFF, *range(first, first + count - 1))
    tables = [((sample.reserved + table * sample.fat_sectors) * 512 + 4 * first, raw) for table in (0, 1)]
    start = struct.pack("<H", first + count - 1)
    patches = [sample.slot(f"{name:<11}".encode(), 26, start) for name in ("BACK    BIN", *names)]
    found: list[dict[str, Problem]] = []
    assert cpu_seconds(lambda: found.append(judge(sample.patched(*tables, *patches)))) < 1
    assert found[0]["cross-link"].serious
