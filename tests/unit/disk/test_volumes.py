"""Volumes: partitions, logical volumes and arrays, found as a guest would name them; damage stands in nobody's way."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping
from uuid import UUID

import pytest

from armvm.disk.composed import ComposedDisk
from armvm.disk.files_fat import FatFileSystem
from armvm.disk.filesystems import detect_content, open_files
from armvm.disk.gpt_format import Partition
from armvm.disk.lvm import logical_volumes
from armvm.disk.lvm_format import parse_text, read_physical_volume
from armvm.disk.mapped import MappedDisk, Place, Segment
from armvm.disk.raid import arrays, parse_member
from armvm.disk.storage import Disk, MemoryDisk
from armvm.disk.volumes import Volumes
from armvm.errors import InputError, MissingError
from armvm.guid import ESP_TYPE, LINUX_DATA_TYPE
from armvm.units import KIB, MIB
from tools.fat_images import fat32_disk, small_fat
from tools.volume_images import EXTENT_BYTES, Run, group_text, md_member, physical_volume


def disk_of(*contents: Disk | bytes) -> tuple[Disk, list[Partition]]:
    """A disk with a partition for each of ``contents``."""
    pieces: list[tuple[int, Disk]] = []
    partitions = []
    at = MIB
    for number, content in enumerate(contents, start=1):
        piece = content if not isinstance(content, bytes) else MemoryDisk(content)
        pieces.append((at, piece))
        last = (at + piece.size_bytes) // 512 - 1
        kind = ESP_TYPE if number == 1 else LINUX_DATA_TYPE
        partitions.append(Partition(number, kind, UUID(int=number), at // 512, last, name=f"part {number}"))
        at += piece.size_bytes + MIB - piece.size_bytes % MIB
    return ComposedDisk("disk.img", at, pieces), partitions


def fat(label: bytes, serial: int, files: Mapping[str, bytes]) -> bytes:
    """A small FAT16 with a serial number and label of its own."""
    image = bytearray(small_fat(16, files))
    image[38] = 0x29
    image[39:43] = serial.to_bytes(4, "little")
    image[43:54] = label.ljust(11)
    image[54:62] = b"FAT16   "
    return bytes(image)


def test_partitions_are_found_as_the_kernel_names_them() -> None:
    disk, partitions = disk_of(fat32_disk(), fat(b"ROOT", 0xCAFE0001, {"A.TXT": b"a"}))
    volumes = Volumes(disk, partitions)
    assert [volume.name for volume in volumes] == ["partition 1", "partition 2"]
    second = volumes.partitions[1]
    assert volumes.find(uuid="cafe-0001") is second
    assert volumes.find(uuid="CAFE-0001", label="ROOT") is second
    assert volumes.find(uuid="CAFE-0001", label="root") is None
    assert volumes.find(partuuid=str(UUID(int=2)).upper()) is second
    assert volumes.find(partlabel="part 2") is second
    assert volumes.find(partlabel="part 2", label="ESP") is None
    assert volumes.find() is None
    assert volumes.find(uuid="") is None
    assert second.partition is partitions[1]
    assert isinstance(second.files, FatFileSystem)
    assert second.files is second.files
    assert second.problem is None
    assert second.files.read("/a.txt") == b"a"


def test_what_cannot_be_read_says_why_and_stands_in_nobodys_way() -> None:
    luks = b"LUKS\xba\xbe\0\2".ljust(168, b"\0") + b"1f3c9d2e-aaaa-bbbb-cccc-000000000001".ljust(4096, b"\0")
    disk, partitions = disk_of(luks, b"nothing known".ljust(MIB), fat(b"X", 7, {}))
    partitions.append(Partition(9, LINUX_DATA_TYPE, UUID(int=9), 1 << 40, 1 << 41))
    volumes = Volumes(disk, partitions)
    encrypted, unknown, good, outside = volumes
    assert volumes.find(uuid="1F3C9D2E-aaaa-bbbb-cccc-000000000001") is encrypted
    assert encrypted.files is None
    assert "encrypted" in str(encrypted.problem)
    assert "no file system that is known" in str(unknown.problem)
    assert unknown.content is None
    assert good.files is not None
    assert "outside" in str(outside.problem)
    assert isinstance(outside.problem, InputError)
    assert outside.disk.size_bytes == 0


def test_a_disk_without_partitions_is_a_volume_itself() -> None:
    (whole,) = Volumes(MemoryDisk(fat(b"FLOPPY", 5, {"F": b"f"})), ())
    assert whole.name == "whole disk"
    assert whole.files is not None
    assert not list(Volumes(MemoryDisk(bytes(MIB)), ()))


def test_without_the_extra_the_problem_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("dissect.squashfs", "armvm.disk.files_squash"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dissect.squashfs", None)
    monkeypatch.setitem(sys.modules, "dissect.squashfs.c_squashfs", None)
    disk, partitions = disk_of(b"hsqs".ljust(MIB, b"\0"))
    (volume,) = Volumes(disk, partitions)
    assert volume.files is None
    assert isinstance(volume.problem, MissingError)
    assert "partition 1 holds squashfs" in volume.problem.message
    assert volume.problem.install == "pip install 'armvm[filesystems]'"


RUNS = {
    "root": [Run(2, [("pv0", 3)]), Run(1, [("pv1", 0)])],
    "str-iped": [Run(4, [("pv0", 6), ("pv1", 6)], stripe_bytes=64 * KIB)],
    "thin": [Run(1, [("pv0", 0)], kind="thin")],
    "gone": [Run(1, [("pv9", 0)])],
    "outside": [Run(1, [("pv0", 90)])],
}


def group_of(root: bytes, striped: bytes, *, at: int = 512, seqno: int = 3) -> tuple[bytes, bytes]:
    """Two physical volumes; ``root`` is dealt out as its segments say, ``striped`` in stripes of 64 KiB."""
    text = group_text("my-vg", RUNS, ["pv0", "pv1", "pv9"], seqno=seqno)
    stripes = [striped[start : start + 64 * KIB] for start in range(0, 4 * EXTENT_BYTES, 64 * KIB)]
    first = {3: root[: 2 * EXTENT_BYTES], 6: b"".join(stripes[::2])}
    second = {0: root[2 * EXTENT_BYTES :], 6: b"".join(stripes[1::2])}
    return physical_volume("pv0", text, first, at=at), physical_volume("pv1", text, second, at=at)


def sample(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


@pytest.mark.parametrize("at", [512, MIB - 4096 - 700])
def test_logical_volumes_linear_and_striped(at: int) -> None:
    root, striped = fat(b"LVROOT", 9, {"R": b"r"}).ljust(3 * EXTENT_BYTES, b"\0"), sample(4 * EXTENT_BYTES)
    disk, partitions = disk_of(fat32_disk(), *group_of(root, striped, at=at))
    volumes = Volumes(disk, partitions)
    found = {volume.name: volume for volume in volumes}
    assert [*found][3:] == [f"logical volume my-vg/{name}" for name in RUNS]
    mapped = found["logical volume my-vg/root"]
    assert mapped.disk.read(0, len(root)) == root
    assert mapped.partition is None
    assert volumes.find(label="LVROOT") is mapped
    assert mapped.files is not None
    assert mapped.files.read("/R") == b"r"
    stripes = found["logical volume my-vg/str-iped"].disk
    assert stripes.read(0, len(striped)) == striped
    assert stripes.read(64 * KIB - 3, 64 * KIB + 9) == striped[64 * KIB - 3 : 128 * KIB + 6]
    assert volumes.find_mapped("/dev/mapper/my--vg-str--iped") is found["logical volume my-vg/str-iped"]
    assert volumes.find_mapped("/dev/my-vg/root") is mapped
    assert volumes.find_mapped("/dev/mapper/my-vg-root") is None
    for name, why in (("thin", "linear or striped"), ("gone", "not in this image"), ("outside", "reaches outside")):
        volume = found[f"logical volume my-vg/{name}"]
        assert volume.files is None
        assert why in str(volume.problem)
    assert "physical volume" in str(found["partition 2"].problem)


def test_the_newest_metadata_count() -> None:
    old = physical_volume("pv1", group_text("my-vg", {}, ["pv0", "pv1"], seqno=2), {})
    new = physical_volume("pv0", group_text("my-vg", {"root": [Run(1, [("pv1", 1)])]}, ["pv0", "pv1"], seqno=10), {})
    found = list(logical_volumes([MemoryDisk(old), MemoryDisk(new)]))
    assert [volume.path for volume in found] == ["my-vg/root"]
    assert found[0].disk is not None


@pytest.mark.parametrize(
    "text",
    [
        b"vg {",
        b"}",
        b"vg = ",
        b"vg { a = [1, 2 }",
        b"a {" * 5000,
        b'"' + b"#" * 100_000,
        b"# \n" * 100_000 + b"=",
        b"a = " + b"9" * 100_000,
        b"vg",
        b"\xff\xfe {",
    ],
)
def test_text_that_is_none_ends_soon(text: bytes) -> None:
    started = time.process_time()
    with pytest.raises(InputError, match="no text of LVM's"):
        parse_text(text, subject="pv")
    assert time.process_time() - started < 1


@pytest.mark.parametrize("seed", range(60))
def test_damaged_physical_volumes_come_to_an_input_error(seed: int) -> None:
    source = random.Random(seed)
    image = bytearray(group_of(bytes(3 * EXTENT_BYTES), bytes(4 * EXTENT_BYTES))[0])
    for _ in range(source.choice((1, 5, 50))):
        image[source.choice((512 + source.randrange(160), 4096 + source.randrange(2500)))] = source.randrange(256)
    started = time.process_time()
    try:
        for volume in logical_volumes([MemoryDisk(bytes(image))]):
            assert (volume.disk is None) == (volume.problem is not None)
    except InputError:
        pass
    assert time.process_time() - started < 1


def md_members(level: int, contents: list[bytes], version: str) -> list[Disk]:
    return [
        MemoryDisk(md_member(content, level=level, role=role, members=len(contents), version=version), name=f"m{role}")
        for role, content in enumerate(contents)
    ]


@pytest.mark.parametrize("version", ["0.90", "1.0", "1.1", "1.2"])
@pytest.mark.parametrize("level", [-1, 0, 1])
def test_arrays(level: int, version: str) -> None:
    content = sample(4 * MIB, seed=level + 5)
    chunk = 64 * KIB
    if level == 1:
        parts = [content, content]
    elif level == -1:
        parts = [content[: 1 * MIB], content[1 * MIB :]]
    else:
        chunks = [content[start : start + chunk] for start in range(0, len(content), chunk)]
        parts = [b"".join(chunks[::2]), b"".join(chunks[1::2])]
    members = md_members(level, parts, version)
    for member in members:
        detected = detect_content(member)
        assert detected is not None
        assert detected.kind == "linux_raid_member"
    (array,) = arrays(members[::-1])
    assert array.problem is None
    assert array.disk is not None
    assert array.disk.size_bytes == len(content)
    assert array.disk.read(0, len(content)) == content
    assert array.disk.read(chunk - 1, chunk + 2) == content[chunk - 1 : 2 * chunk + 1]
    (half,) = arrays(members[1:])
    assert (half.disk is not None) == (level == 1)
    if version.startswith("1"):
        assert array.name == "RAID array host:root"


def test_levels_that_are_not_read_and_members_that_are_out_of_date() -> None:
    (array,) = arrays(md_members(5, [bytes(MIB)] * 3, "1.2"))
    assert "found 5" in str(array.problem)
    old = MemoryDisk(md_member(b"old ".ljust(MIB), level=1, role=0, members=2, events=3))
    new = MemoryDisk(md_member(b"new ".ljust(MIB), level=1, role=1, members=2, events=4))
    (mirror,) = arrays([old, new])
    assert mirror.disk is not None
    assert mirror.disk.read(0, 4) == b"new "
    with pytest.raises(InputError, match="no md superblock"):
        list(arrays([MemoryDisk(bytes(MIB))]))


def test_a_volume_group_on_an_array() -> None:
    root = fat(b"DEEP", 11, {"D": b"d"}).ljust(3 * EXTENT_BYTES, b"\0")
    text = group_text("vg", {"root": [Run(3, [("pv0", 2)])]}, ["pv0"])
    members = [md_member(physical_volume("pv0", text, {2: root}), level=1, role=role, members=2) for role in (0, 1)]
    disk, partitions = disk_of(*members)
    volumes = Volumes(disk, partitions)
    assert [volume.name for volume in volumes][2:] == ["RAID array host:root", "logical volume vg/root"]
    volume = volumes.find(label="DEEP")
    assert volume is not None
    assert volume.files is not None
    assert volume.files.read("/D") == b"d"


@pytest.mark.parametrize("seed", range(40))
def test_damaged_md_superblocks_come_to_an_input_error(seed: int) -> None:
    source = random.Random(seed)
    image = bytearray(md_member(bytes(MIB), level=source.choice((-1, 0, 1)), role=0, members=1))
    for _ in range(source.choice((1, 4, 30))):
        image[4096 + source.randrange(8, 260)] = source.randrange(256)
    try:
        parse_member(MemoryDisk(bytes(image)))
        for array in arrays([MemoryDisk(bytes(image))]):
            assert (array.disk is None) == (array.problem is not None)
    except InputError:
        pass


@pytest.mark.parametrize(
    "segment",
    [
        Segment(0, [Place(MemoryDisk(bytes(100)), 0)]),
        Segment(50, [Place(MemoryDisk(bytes(100)), 51)]),
        Segment(50, [Place(MemoryDisk(bytes(100)), -1)]),
        Segment(50, [Place(MemoryDisk(bytes(100)), 0), Place(MemoryDisk(bytes(100)), 0)]),
        Segment(201, [Place(MemoryDisk(bytes(100)), 0), Place(MemoryDisk(bytes(100)), 0)], 50),
    ],
)
def test_segments_that_do_not_fit_are_refused(segment: Segment) -> None:
    with pytest.raises(InputError):
        MappedDisk([segment], name="mapped")


def test_a_physical_volume_without_metadata_of_its_own() -> None:
    image = bytearray(physical_volume("pv0", group_text("vg", {}, ["pv0"]), {}))
    image[4096 + 40 : 4096 + 64] = bytes(24)
    with pytest.raises(InputError, match="on another physical volume"):
        read_physical_volume(MemoryDisk(bytes(image)), subject="pv")


def test_only_btrfs_has_subvolumes() -> None:
    with pytest.raises(InputError, match="no subvolumes"):
        open_files(MemoryDisk(small_fat(16)), name="esp", subvolume="root")
