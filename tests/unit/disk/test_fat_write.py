from __future__ import annotations

import struct
from datetime import datetime

import pytest

from armvm.disk.fat import FatKind, FatVolume
from armvm.disk.fat_write import FatFile, FatFolder, minimum_fat32_size, plan_fat32
from armvm.disk.storage import BaseDisk, Disk, MemoryDisk
from armvm.errors import UsageError
from armvm.units import GIB, KIB, MIB, TIB
from tools.fat_images import Sample, fat32_disk

Tree = tuple[FatFile | FatFolder, ...]


class Unread(BaseDisk):
    """Content of any size that must not be read."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__("unread", "raw", size_bytes)
        self.closed = False

    def _read(self, offset: int, length: int) -> bytes:  # noqa: ARG002
        raise AssertionError("read before its time")

    def close(self) -> None:
        self.closed = True


def plan(
    size_bytes: int = 33 * MIB, sector_size: int = 512, tree: Tree = (), label: str = "ESP", timestamp: int = 0
) -> Disk:
    return plan_fat32(size_bytes, sector_size, tree, label=label, volume_id=7, timestamp=timestamp, hidden_sectors=2048)


def file(path: str, content: bytes = b"x") -> FatFile:
    return FatFile(path, MemoryDisk(content))


@pytest.mark.parametrize(
    ("size_bytes", "sector_size", "cluster_bytes"),
    [
        (33 * MIB, 512, 512),
        (260 * MIB, 512, 512),
        (261 * MIB, 512, 4 * KIB),
        (258 * MIB, 4096, 4 * KIB),
        (8 * GIB, 512, 4 * KIB),
        (8 * GIB + 512, 512, 8 * KIB),
        (20 * GIB, 4096, 16 * KIB),
        (40 * GIB, 512, 32 * KIB),
        (2 * TIB - 512, 512, 32 * KIB),
        (7 * TIB, 4096, 32 * KIB),
    ],
)
def test_the_geometry_is_microsofts_and_always_fat32(size_bytes: int, sector_size: int, cluster_bytes: int) -> None:
    volume = FatVolume(plan(size_bytes, sector_size))
    boot = volume.boot
    assert volume.kind is FatKind.FAT32
    assert volume.cluster_count >= 65525 + 16
    assert volume.cluster_bytes == cluster_bytes
    assert boot.total_sectors * sector_size == size_bytes
    assert boot.fat_sectors * sector_size // 4 >= volume.cluster_count + 2
    assert boot.first_data_sector * sector_size % 4096 == 0
    assert boot.bytes_per_sector == sector_size
    info = volume.fsinfo()
    assert info is not None
    assert (info.free_clusters, info.next_free) == (volume.cluster_count - 1, 3)


@pytest.mark.parametrize(("sector_size", "expected_mib"), [(512, 33), (4096, 257)])
@pytest.mark.parametrize("content_bytes", [0, 5 * MIB, 200 * MIB, 300 * MIB])
def test_the_least_size_is_the_least(sector_size: int, expected_mib: int, content_bytes: int) -> None:
    tree: Tree = (FatFile("a/b", Unread(content_bytes)), FatFolder("c"))
    least = minimum_fat32_size(tree, sector_size)
    if content_bytes <= 5 * MIB:
        assert -(-least // MIB) == expected_mib
    assert least % sector_size == 0
    plan(least, sector_size, tree, label="")
    with pytest.raises(UsageError, match=f"at least {least} bytes"):
        plan(least - sector_size, sector_size, tree, label="")
    for more in (sector_size, 3 * sector_size, MIB, 40 * MIB, GIB):
        plan(least + more, sector_size, tree, label="")


def test_a_label_can_cost_a_cluster() -> None:
    tree: Tree = (FatFile("BIG", Unread(40 * MIB)), *(file(f"F{number}") for number in range(15)))
    assert minimum_fat32_size(tree, 512, label="ESP") == minimum_fat32_size(tree, 512) + 512


def test_the_volume_can_be_filled_to_the_last_cluster() -> None:
    tree: Tree = (FatFile("FULL", Unread(60 * MIB)),)
    volume = FatVolume(plan(minimum_fat32_size(tree, 512), 512, tree, label=""))
    info = volume.fsinfo()
    assert info is not None
    assert (info.free_clusters, info.next_free) == (0, 0xFFFFFFFF)


def test_nothing_is_read_and_everything_is_closed() -> None:
    content = Unread(3 * GIB)
    disk = plan(4 * GIB, 512, (FatFile("EFI/BIG.IMG", content),))
    entry = FatVolume(disk).lookup("EFI/BIG.IMG")
    assert entry is not None
    assert entry.size_bytes == 3 * GIB
    disk.close()
    assert content.closed


def test_the_same_tree_gives_the_same_bytes() -> None:
    first, second = fat32_disk(), fat32_disk()
    assert first.read(0, 4 * MIB) == second.read(0, 4 * MIB)


def test_free_space_is_a_hole() -> None:
    disk = plan(64 * MIB, 512, (file("a", bytes(1000)),))
    assert sum(extent.length for extent in disk.extents() if extent.data) < 8 * KIB


def test_folders_merge_whatever_their_case() -> None:
    volume = FatVolume(plan(tree=(file("EFI/BOOT/a"), file("efi\\boot\\b"), FatFolder("/Efi/BOOT/"), FatFolder("/"))))
    assert [path for path, _ in volume.walk()] == ["/EFI", "/EFI/BOOT", "/EFI/BOOT/a", "/EFI/BOOT/b"]


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        (-5, datetime(1980, 1, 1)),
        (0, datetime(1980, 1, 1)),
        (1_700_000_001, datetime(2023, 11, 14, 22, 13, 20)),
        (1 << 40, datetime(2107, 12, 31, 23, 59, 58)),
    ],
)
def test_times_are_clamped_to_what_fat_can_say(timestamp: int, expected: datetime) -> None:
    (entry,) = FatVolume(plan(tree=(file("A"),), timestamp=timestamp)).entries()
    assert entry.modified == expected
    assert entry.slot[13] == (100 if timestamp == 1_700_000_001 else 0)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ((file("EFI/a:b"),), "EFI/a:b cannot be written to FAT: a:b holds ':'"),
        ((file("../up"),), "a folder's name for itself or its parent"),
        ((file("x" * 256),), "256 UTF-16 units"),
        ((file("end. /x"),), "ends in a dot or a space"),
        ((file("evil\x1b[2J"),), r"evil\\x1b\[2J"),
        ((file("\udcff"),), "no valid Unicode"),
        ((file("A"), file("a")), "a is there twice"),
        ((file("A"), file("a/b")), "A|a is a file and a folder"),
        ((file("a/b"), file("a")), "a is there twice"),
        ((file("a"), FatFolder("A")), "is a file and a folder"),
        ((file("//"),), "needs a name"),
        ((FatFile("huge", Unread(4 * GIB)),), "huge has 4 GiB, a file on FAT32 less than 4 GiB"),
        ((FatFile("big", Unread(40 * MIB)),), "34603008 bytes are too few .* at least 42"),
    ],
)
def test_what_fat32_cannot_hold_is_refused(tree: Tree, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(tree=tree)


def test_a_folder_of_too_many_slots_is_refused() -> None:
    with pytest.raises(UsageError, match="more than FAT32 allows in one folder"):
        plan(64 * MIB, tree=tuple(file(f"d/a rather long name {number:07}", b"") for number in range(22_000)))


@pytest.mark.parametrize(
    ("size_bytes", "sector_size", "said"),
    [
        (33 * MIB + 1, 512, "cannot have sectors of 512"),
        (33 * MIB, 1024, "cannot have sectors of 1024"),
        (33 * MIB, 4096, "at least 2691"),
        (0, 512, "at least 34"),
        (2 * TIB, 512, "too much for FAT32"),
        (9 * TIB, 4096, "too much for FAT32"),
    ],
)
def test_impossible_volumes_are_refused(size_bytes: int, sector_size: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(size_bytes, sector_size)


def test_the_least_size_of_impossible_sectors_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot have sectors of 0 bytes"):
        minimum_fat32_size((), 0)


@pytest.mark.parametrize("label", ["twelve chars", "Ä", "a.b", "a*", " a"])
def test_illegal_labels_are_refused(label: str) -> None:
    with pytest.raises(UsageError, match="cannot be a FAT label"):
        plan(label=label)


def test_numbers_past_32_bits_are_refused() -> None:
    for wrong in ({"volume_id": 1 << 32, "hidden_sectors": 0}, {"volume_id": 0, "hidden_sectors": -1}):
        with pytest.raises(UsageError, match="must fit 32 bits"):
            plan_fat32(33 * MIB, 512, (), label="", timestamp=0, **wrong)


def test_the_sectors_that_firmware_looks_at() -> None:
    disk = plan(label="my esp")
    boot = disk.read(0, 512)
    assert boot[71:82] == b"MY ESP     "
    assert disk.read(6 * 512, 1024) == disk.read(0, 1024)
    assert struct.unpack_from("<I", boot, 28) == (2048,)
    assert struct.unpack_from("<I", boot, 67) == (7,)
    sample = Sample(disk)
    table = disk.read(sample.reserved * 512, 12)
    assert struct.unpack("<III", table) == (0x0FFFFFF8, 0x0FFFFFFF, 0x0FFFFFFF)
    assert disk.read((sample.reserved + sample.fat_sectors) * 512, 12) == table
    assert [disk.read(sample.reserved * 512 + offset, 3) for offset in range(6)] == [
        table[offset : offset + 3] for offset in range(6)
    ]
