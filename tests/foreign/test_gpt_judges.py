"""Other people's programs judge the partition tables that we write, and our reading of those that they write.

sgdisk and gdisk, libfdisk (sfdisk), libblkid (partx) and the firmware itself (EDK2). Neither sgdisk nor sfdisk 2.38 has
an option for the sector size; partx and a virtual machine's disk have one.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from uuid import UUID

import pytest

from armvm.disk.gpt import PartitionTable, TableSource, read_partition_table
from armvm.disk.gpt_write import GptLayout, PartitionRequest, plan_partitions, serialise
from armvm.disk.storage import MemoryDisk
from armvm.process import require_program, run
from tools.gpt_images import BROKEN, DISK_GUID, ESP, LINUX, MIB, Entry, good_gpt

SIZE = 64 * MIB
REQUESTS = (
    PartitionRequest(ESP, UUID("0a110000-0000-4000-8000-000000000001"), "EFI System", 33 * MIB),
    PartitionRequest(LINUX, UUID("0a110000-0000-4000-8000-000000000002"), "röot 🐧", 5 * MIB, attributes=1 << 60 | 4),
    PartitionRequest(LINUX, UUID("0a110000-0000-4000-8000-000000000003"), "", None),
)
FIRMWARE = Path("/usr/share/AAVMF/AAVMF_CODE.fd")
FIRMWARE_SECONDS = 60

OURS_ONLY = {
    # sgdisk can only say that its own sector size finds nothing, or aborts.
    "other-sector-size",
    "no-gpt",
    "primary-entry-count",
    "backup-entry-count",
}


def layout_of(sector_size: int) -> GptLayout:
    return plan_partitions(REQUESTS, disk_guid=DISK_GUID, sector_size=sector_size, size_bytes=SIZE)


def write_layout(path: Path, layout: GptLayout) -> Path:
    with path.open("wb") as file:
        file.truncate(layout.size_bytes)
        for offset, piece in serialise(layout):
            file.seek(offset)
            file.write(piece)
    return path


def write_image(path: Path, image: bytes | bytearray) -> Path:
    path.write_bytes(image)
    return path


def table_of(path: Path, sector_size: int = 512) -> PartitionTable:
    return read_partition_table(MemoryDisk(path.read_bytes(), sector_size=sector_size))


def sgdisk_verify(path: Path) -> str:
    completed = run("sgdisk", ["-v", str(path)], timeout_seconds=20, check=False)
    return completed.stdout.decode() + completed.stderr


def write_with_sfdisk(path: Path, script: str) -> Path:
    with path.open("wb") as file:
        file.truncate(SIZE)
    command = [require_program("sfdisk"), "--quiet", "--no-reread", "--no-tell-kernel", str(path)]
    subprocess.run(command, input=script.encode(), check=True, timeout=20)
    return path


def test_sgdisk_finds_no_problem_in_what_we_write(tmp_path: Path) -> None:
    said = sgdisk_verify(write_layout(tmp_path / "ours.img", layout_of(512)))
    assert "No problems found" in said
    assert not re.search("warning|caution|problem:", said, re.IGNORECASE)


@pytest.mark.parametrize("size", [34 * 2 * 512 + 512, MIB, 4 << 30, 3 << 40])
def test_sgdisk_finds_no_problem_in_an_empty_table_of_any_size(tmp_path: Path, size: int) -> None:
    said = sgdisk_verify(write_layout(tmp_path / "ours.img", GptLayout(DISK_GUID, 512, size, ())))
    assert "No problems found" in said
    assert not re.search("warning|caution|problem:", said, re.IGNORECASE)


def test_sfdisk_reads_what_we_write(tmp_path: Path) -> None:
    layout = layout_of(512)
    path = write_layout(tmp_path / "ours.img", layout)
    table = json.loads(run("sfdisk", ["--json", str(path)], timeout_seconds=20).stdout)["partitiontable"]
    assert table["label"] == "gpt"
    assert UUID(table["id"]) == DISK_GUID
    assert (table["firstlba"], table["lastlba"]) == (layout.first_usable_lba, layout.last_usable_lba)
    seen = [(p["start"], p["size"], UUID(p["type"]), UUID(p["uuid"]), p.get("name", "")) for p in table["partitions"]]
    assert seen == [
        (p.first_lba, p.last_lba - p.first_lba + 1, p.type_guid, p.unique_guid, p.name) for p in layout.partitions
    ]
    assert table["partitions"][1]["attrs"] == "LegacyBIOSBootable GUID:60"
    assert "No errors detected" in run("sfdisk", ["--verify", str(path)], timeout_seconds=20).stdout.decode()


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_libblkid_reads_what_we_write(tmp_path: Path, sector_size: int) -> None:
    layout = layout_of(sector_size)
    path = write_layout(tmp_path / "ours.img", layout)
    columns = "NR,START,SECTORS,UUID,TYPE,FLAGS,SCHEME"
    arguments = ["--raw", "--noheadings", "--sector-size", str(sector_size), "--output", columns, str(path)]
    seen = [line.split() for line in run("partx", arguments, timeout_seconds=20).stdout.decode().splitlines()]
    in_512 = sector_size // 512  # partx counts in sectors of 512 bytes, whatever the disk's are
    assert seen == [
        [
            str(p.number),
            str(p.first_lba * in_512),
            str((p.last_lba - p.first_lba + 1) * in_512),
            str(p.unique_guid),
            str(p.type_guid),
            f"{p.attributes:#x}",
            "gpt",
        ]
        for p in layout.partitions
    ]


def test_we_read_what_sfdisk_writes(tmp_path: Path) -> None:
    script = f"""label: gpt
label-id: {DISK_GUID}
first-lba: 34
1 : start=2048, size=33MiB, type=U, name="EFI, die Schöne", uuid=0A110000-0000-4000-8000-000000000001
7 : start=40, size=100, type=21686148-6449-6E6F-744E-656564454649, attrs="RequiredPartition NoBlockIOProtocol GUID:63"
128 : start=80000, type=L, name="{"n" * 35}"
"""
    path = write_with_sfdisk(tmp_path / "theirs.img", script)
    table = table_of(path)
    assert {problem.code for problem in table.problems} == {"partition-unaligned"}
    assert table.trusted
    assert table.primary is not None
    theirs = json.loads(run("sfdisk", ["--json", str(path)], timeout_seconds=20).stdout)["partitiontable"]
    assert table.primary.disk_guid == UUID(theirs["id"]) == DISK_GUID
    assert table.primary.first_usable_lba == theirs["firstlba"]
    assert table.primary.last_usable_lba == theirs["lastlba"]
    ours = [
        (f"{path}{p.number}", p.first_lba, p.last_lba - p.first_lba + 1, p.type_guid, p.unique_guid, p.name)
        for p in table.partitions
    ]
    assert ours == [
        (p["node"], p["start"], p["size"], UUID(p["type"]), UUID(p["uuid"]), p.get("name", ""))
        for p in theirs["partitions"]
    ]
    assert table.partitions[1].attributes == 1 << 63 | 0b11
    assert table.partitions[1].hidden_from_firmware


def test_we_read_what_sgdisk_writes_as_gdisk_does(tmp_path: Path) -> None:
    path = tmp_path / "theirs.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    parts = ["-n", "1:0:+33M", "-t", "1:ef00", "-c", "1:EFI System", "-n", "5:0:0", "-c", "5:root ☃", "-A", "5:set:2"]
    run("sgdisk", [*parts, str(path)], timeout_seconds=30)
    table = table_of(path)
    assert table.problems == ()
    said = run("gdisk", ["-l", str(path)], timeout_seconds=20).stdout.decode()
    assert table.primary is not None
    assert f"Disk identifier (GUID): {table.primary.disk_guid}".upper() in said.upper()
    assert f"First usable sector is {table.primary.first_usable_lba}, last usable" in said
    rows = re.findall(r"^ +(\d+) +(\d+) +(\d+) +\S+ \S+ +(\S{4})  (.+)$", said, re.MULTILINE)
    assert [(int(n), int(first), int(last), name) for n, first, last, _, name in rows] == [
        (p.number, p.first_lba, p.last_lba, p.name) for p in table.partitions
    ]
    assert [code for *_, code, _ in rows] == ["EF00", "8300"]
    assert table.partitions[0].is_esp
    assert table.partitions[1].attributes == 4


@pytest.mark.parametrize("code", sorted(BROKEN.keys() - OURS_ONLY))
def test_whatever_sgdisk_complains_of_is_a_problem_of_ours(tmp_path: Path, code: str) -> None:
    path = write_image(tmp_path / "broken.img", BROKEN[code]())
    said = sgdisk_verify(path)
    assert table_of(path).problems
    if re.search("Problem:|Identified|corrupt|CRC", said):
        assert table_of(path).serious_problems, said


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_byte_that_sgdisk_sees_is_seen_by_us(tmp_path: Path, seed: int) -> None:
    image = good_gpt()
    last = len(image) - 512
    places = [*range(446, 462), *range(510, 604), *range(1024, 1280), *range(last, last + 92)]
    place = places[seed * len(places) // 60]
    image[place] ^= 0x55
    path = write_image(tmp_path / "flipped.img", image)
    said = sgdisk_verify(path)
    if "No problems found" not in said or re.search("corrupt|CRC|0xEE", said):
        assert table_of(path).problems, f"offset {place}: {said}"


def test_sfdisk_and_we_take_the_backup_in_the_same_cases(tmp_path: Path) -> None:
    for code in ("primary-header-missing", "primary-header-crc", "primary-array-crc"):
        path = write_image(tmp_path / "broken.img", BROKEN[code]())
        table = table_of(path)
        assert table.source is TableSource.BACKUP
        completed = run("sfdisk", ["--json", str(path)], timeout_seconds=20)
        assert "backup" in completed.stderr
        theirs = json.loads(completed.stdout)["partitiontable"]["partitions"]
        assert [p["start"] for p in theirs] == [p.first_lba for p in table.partitions]


def partitions_seen_by_firmware(folder: Path, disks: list[tuple[Path, int]]) -> list[set[tuple[int, UUID, int, int]]]:
    """What EDK2's shell lists of each (disk, sector size): number, unique GUID, first LBA, sectors."""
    arguments = ["-M", "virt", "-cpu", "cortex-a72", "-m", "256", "-display", "none", "-monitor", "none"]
    arguments += ["-serial", "stdio", "-net", "none", "-boot", "menu=on,splash-time=0"]
    arguments += ["-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}"]
    for number, (path, sector_size) in enumerate(disks):
        size = f"logical_block_size={sector_size},physical_block_size={sector_size}"
        arguments += ["-drive", f"if=none,id=d{number},format=raw,snapshot=on,file={path}"]
        arguments += ["-device", f"virtio-blk-pci,drive=d{number},addr={number + 2:#x},{size}"]
    log = folder / "console.log"
    with log.open("wb") as console:
        machine = subprocess.Popen(
            [require_program("qemu-system-aarch64"), *arguments], stdin=subprocess.DEVNULL, stdout=console
        )
        try:
            said = wait_for_shell(log)
        finally:
            machine.kill()
            machine.wait()
    pattern = r"Pci\(0x([0-9A-F]+),0x0\)/HD\((\d+),GPT,([-0-9A-F]+),0x([0-9A-F]+),0x([0-9A-F]+)\)"
    seen: list[set[tuple[int, UUID, int, int]]] = [set() for _ in disks]
    for slot, number, guid, first, sectors in re.findall(pattern, said):
        seen[int(slot, 16) - 2].add((int(number), UUID(guid), int(first, 16), int(sectors, 16)))
    return seen


def wait_for_shell(log: Path) -> str:
    """The firmware's console up to the end of its shell's list of devices."""
    deadline = time.monotonic() + FIRMWARE_SECONDS
    while time.monotonic() < deadline:
        said = log.read_text(errors="replace")
        if "startup.nsh" in said:
            return re.sub(r"\x1b\[[0-9;]*[A-Za-z]|\r?\n *", "", said)
        time.sleep(0.1)
    raise AssertionError(f"the firmware's shell did not start: {log.read_text(errors='replace')[-500:]}")


def listed(table: PartitionTable) -> set[tuple[int, UUID, int, int]]:
    return {(p.number, p.unique_guid, p.first_lba, p.last_lba - p.first_lba + 1) for p in table.partitions}


@pytest.mark.boot
def test_firmware_reads_what_we_write_with_either_sector_size(tmp_path: Path) -> None:
    disks = [(write_layout(tmp_path / f"{size}.img", layout_of(size)), size) for size in (512, 4096)]
    seen = partitions_seen_by_firmware(tmp_path, disks)
    assert seen == [listed(table_of(path, size)) for path, size in disks]
    assert [len(partitions) for partitions in seen] == [3, 3]


FIRMWARE_CASES = {
    # What EDK2 lists of a disk: all that we read from the table it would take ("same"), or nothing.
    "mbr-only": "nothing",
    "no-gpt": "nothing",
    "other-sector-size": "nothing",
    "pmbr-missing": "nothing",
    "pmbr-start": "nothing",
    "pmbr-size": "same",
    "pmbr-size-maximal": "same",
    "hybrid-mbr": "same",
    "backup-not-at-end": "same",
    "primary-header-missing": "same",
    "primary-header-crc": "same",
    "primary-my-lba": "same",
    "primary-array-crc": "same",
    "primary-entry-size-unusual": "same",
    "primary-entry-count-unusual": "same",
    "primary-header-size-unusual": "same",
    "backup-header-missing": "same",
    "backup-header-crc": "same",
    "disk-guid-differs": "same",
    "partition-attributes": "same",
    "partition-name-unterminated": "same",
}


@pytest.mark.boot
def test_firmware_takes_the_same_table_of_a_broken_disk_as_we_do(tmp_path: Path) -> None:
    disks = [(write_image(tmp_path / f"{code}.img", BROKEN[code]()), 512) for code in FIRMWARE_CASES]
    hidden = good_gpt(partitions=[Entry(1, 2048, 4095, ESP, attributes=2), Entry(2, 4096, 6143)])
    disks.append((write_image(tmp_path / "hidden.img", hidden), 512))
    *seen, seen_of_hidden = partitions_seen_by_firmware(tmp_path, disks)
    for (code, expected), (path, _), partitions in zip(FIRMWARE_CASES.items(), disks, seen, strict=False):
        table = table_of(path)
        assert partitions == (listed(table) if expected == "same" else set()), code
        assert len(partitions) == (2 if expected == "same" else 0), code
    visible = {p.number for p in table_of(disks[-1][0]).partitions if not p.hidden_from_firmware}
    assert {number for number, *_ in seen_of_hidden} == visible == {2}
