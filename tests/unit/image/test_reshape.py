from __future__ import annotations

import struct
from pathlib import Path

import pytest

from armvm.disk.composed import ComposedDisk
from armvm.disk.fat import FatKind, FatVolume
from armvm.disk.gpt import read_partition_table
from armvm.disk.gpt_format import Partition
from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import InputError, UsageError
from armvm.image.reshape import LAST, Reshape, plan_reshape
from tools import gpt_images
from tools.disk_images import disk_image
from tools.fat_images import PatchedDisk, fat32_disk, small_fat
from tools.gpt_images import MIB, Entry

FOREIGN = Path("/nonexistent")
"""No program may run in these tests."""


def _disk(*contents: tuple[int, int, bytes], size: int = 16 * MIB, sector_size: int = 512) -> Disk:
    """A disk with Linux partitions: each (first byte, size, what it begins with)."""
    entries = [
        Entry(number, start // sector_size, (start + length) // sector_size - 1)
        for number, (start, length, _) in enumerate(contents, start=1)
    ]
    table = bytes(gpt_images.good_gpt(size, sector_size, entries))
    pieces: list[tuple[int, Disk]] = [(start, MemoryDisk(content)) for start, _, content in contents if content]
    pieces += [(0, MemoryDisk(table[: 2 * sector_size + 16384])), (size - 33 * 512, MemoryDisk(table[-33 * 512 :]))]
    if sector_size == 4096:
        pieces[-1] = (size - 5 * 4096, MemoryDisk(table[-5 * 4096 :]))
    return ComposedDisk("test", size, pieces, sector_size=sector_size)


def _planned(disk: Disk, wish: Reshape) -> tuple[int, tuple[Partition, ...], tuple[str, ...]]:
    with plan_reshape(disk, wish, scratch_folder=FOREIGN) as planned:
        table = read_partition_table(planned.disk)
        assert not table.serious_problems
        return planned.disk.size_bytes, table.partitions, planned.notes


def _places(partitions: tuple[Partition, ...], sector_size: int) -> list[tuple[int, int]]:
    return [(p.offset_bytes(sector_size), p.size_bytes(sector_size)) for p in partitions]


def _ext(block_log: int, blocks: int = 16) -> bytes:
    block = bytearray(2048)
    struct.pack_into("<I", block, 1024 + 4, blocks)
    struct.pack_into("<I", block, 1024 + 24, block_log)
    struct.pack_into("<H", block, 1024 + 0x38, 0xEF53)
    return bytes(block)


def _xfs(sector: int) -> bytes:
    return b"XFSB" + bytes(98) + struct.pack(">H", sector) + bytes(512)


def _btrfs(sector: int) -> bytes:
    block = bytearray(0x10400)
    block[0x10040:0x10048] = b"_BHRfS_M"
    struct.pack_into("<I", block, 0x10090, sector)
    return bytes(block)


def test_nothing_asked_nothing_changed() -> None:
    disk = MemoryDisk(b"no table at all")
    with plan_reshape(disk, Reshape(), scratch_folder=FOREIGN) as planned:
        assert planned.disk is disk
        assert planned.notes == ()


def test_aligned_partitions_stay_and_others_move() -> None:
    disk = _disk((MIB, MIB, b"one"), (2 * MIB + 512, 1024, b"two"), (4 * MIB, MIB + 512, b"three"))
    size, partitions, notes = _planned(disk, Reshape(sector_size=4096))
    assert size == 16 * MIB
    assert _places(partitions, 4096) == [(MIB, MIB), (3 * MIB, 4096), (4 * MIB, MIB + 4096)]
    assert [p.unique_guid for p in partitions] == [p.unique_guid for p in read_partition_table(disk).partitions]
    assert "partition 2: moves from byte 2097664 to 3145728 (3 MiB)" in notes
    with plan_reshape(disk, Reshape(sector_size=4096), scratch_folder=FOREIGN) as planned:
        assert planned.disk.read(3 * MIB, 6) == b"two\0\0\0"
        assert planned.disk.read(4 * MIB, 6) == b"three\0"


def test_a_partition_before_the_first_usable_block_of_4096() -> None:
    size, partitions, _ = _planned(_disk((34 * 512, 512, b"x")), Reshape(sector_size=4096))
    assert _places(partitions, 4096) == [(MIB, 4096)]
    assert size == 16 * MIB


def test_partitions_out_of_the_order_of_their_numbers() -> None:
    disk = _disk((8 * MIB + 512, MIB, b"late"), (MIB + 512, MIB, b"early"))
    _, partitions, _ = _planned(disk, Reshape(sector_size=4096))
    assert [(p.number, p.offset_bytes(4096)) for p in partitions] == [(1, 9 * MIB), (2, 2 * MIB)]


def test_a_disk_that_becomes_larger_for_its_partitions() -> None:
    disk = _disk((MIB + 512, 15 * MIB - 34 * 512, b"x"))
    size, _, notes = _planned(disk, Reshape(sector_size=4096))
    assert size == 18 * MIB
    assert "the disk becomes 18 MiB, for its partitions need more room" in notes
    with pytest.raises(UsageError, match="a disk of 16 MiB is too small: partition 1"):
        _planned(disk, Reshape(sector_size=4096, size_bytes=16 * MIB))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_ext(0), "ext2 with blocks of 1024 bytes"),
        (_ext(1), "ext2 with blocks of 2048 bytes"),
        (_xfs(512), "XFS made for sectors of 512 bytes"),
        (_btrfs(2048), "btrfs with sectors of 2048 bytes"),
        (bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(8) + b"\x09" + bytes(200), "EROFS with blocks of 512 bytes"),
    ],
)
def test_what_cannot_live_on_large_sectors(content: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=f"partition 1: {said} cannot be mounted from sectors of 4096"):
        _planned(_disk((MIB, MIB, content)), Reshape(sector_size=4096))


@pytest.mark.parametrize("content", [_ext(2), _xfs(4096), _btrfs(4096), bytes(4086) + b"SWAPSPACE2", b"", b"hsqs"])
def test_what_can(content: bytes) -> None:
    assert _planned(_disk((MIB, MIB, content)), Reshape(sector_size=4096))[2] == ()


@pytest.mark.parametrize("content", [_xfs(4096), _xfs(512), _ext(0), b"whatever"])
def test_everything_can_live_on_small_sectors(content: bytes) -> None:
    disk = _disk((MIB, MIB, content), sector_size=4096)
    size, partitions, notes = _planned(disk, Reshape(sector_size=512))
    assert (size, _places(partitions, 512), notes) == (16 * MIB, [(MIB, MIB)], ())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"whatever", "not known"),
        (b"LUKS\xba\xbe" + bytes(300), "is encrypted"),
        (bytes(0x8001) + b"CD001", "2048 bytes"),
    ],
)
def test_what_nobody_knows_is_said(content: bytes, said: str) -> None:
    (note,) = _planned(_disk((MIB, MIB, content)), Reshape(sector_size=4096))[2]
    assert note.startswith("partition 1: ")
    assert said in note


def test_a_lying_superblock() -> None:
    for content in (_ext(9), _ext(2, 0), _ext(2, 0xFFFFFFFF)):
        with pytest.raises(InputError, match="does not fit its partition"):
            _planned(_disk((MIB, MIB, content)), Reshape(sector_size=4096))


def _esp_disk(volume: Disk, size: int = 40 * MIB) -> Disk:
    entry = Entry(1, 2048, 2048 + volume.size_bytes // 512 - 1, gpt_images.ESP)
    table = bytes(gpt_images.good_gpt(size, partitions=[entry]))
    pieces: list[tuple[int, Disk]] = [(0, MemoryDisk(table[:MIB])), (MIB, volume)]
    return ComposedDisk("test", size, [*pieces, (size - MIB, MemoryDisk(table[-MIB:]))])


@pytest.mark.parametrize("bits", [12, 16])
def test_small_fats_become_fat32(bits: int) -> None:
    volume = MemoryDisk(small_fat(bits))
    files = {path: FatVolume(volume).read(e) for path, e in FatVolume(volume).walk() if not e.is_directory}
    padded = ComposedDisk("esp", 16 * MIB, [(0, volume)])
    with plan_reshape(_esp_disk(padded), Reshape(sector_size=4096), scratch_folder=FOREIGN) as planned:
        (partition,) = read_partition_table(planned.disk).partitions
        made = FatVolume(partition.slice(planned.disk))
        assert (made.kind, made.bytes_per_sector) == (FatKind.FAT32, 4096)
        assert made.boot.hidden_sectors == partition.first_lba == 256
        assert {path: made.read(e) for path, e in made.walk() if not e.is_directory} == files
        assert planned.disk.size_bytes == 259 * MIB
        assert f"was FAT{bits} and is rebuilt as FAT32" in planned.notes[0]


def test_times_and_attributes_are_kept() -> None:
    esp = fat32_disk({"A/b.txt": b"x"}, ("empty",))
    slots = {path: entry.slot for path, entry in FatVolume(esp).walk()}
    with plan_reshape(_esp_disk(esp), Reshape(sector_size=4096), scratch_folder=FOREIGN) as planned:
        (partition,) = read_partition_table(planned.disk).partitions
        made = FatVolume(partition.slice(planned.disk))
        for path, entry in made.walk():
            assert entry.slot[11:20] == slots[path][11:20]
            assert entry.slot[22:26] == slots[path][22:26]
        assert made.serial == FatVolume(esp).serial
        assert made.label == "ESP"


def test_a_label_that_fat_does_not_know_is_left_out() -> None:
    esp = fat32_disk({})
    root = FatVolume(esp).cluster_offset(2)
    bad = PatchedDisk(esp, (root, b"caf\x82.     "))
    with plan_reshape(_esp_disk(bad), Reshape(sector_size=4096), scratch_folder=FOREIGN) as planned:
        assert any("its label is left out" in note for note in planned.notes)


def test_files_that_claim_more_than_there_is() -> None:
    esp = fat32_disk({"A": b"x", "B": b"y"})
    root = FatVolume(esp).cluster_offset(2)
    bad = PatchedDisk(esp, (root + 32 + 28, b"\xff\xff\xff\xff"))
    with pytest.raises(InputError, match="claim more bytes than there are"):
        _planned(_esp_disk(bad), Reshape(sector_size=4096))


def test_an_esp_that_is_no_fat() -> None:
    with pytest.raises(InputError):
        _planned(_esp_disk(MemoryDisk(b"nothing".ljust(MIB, b"\0"))), Reshape(sector_size=4096))


@pytest.mark.parametrize(
    "edit",
    [
        lambda image: image.extend(bytes(MIB)),  # grown: the backup is not at the end
        lambda image: gpt_images.put(image, 512 + 16, "<I", 1),
        lambda image: gpt_images.put(image, gpt_images.RECORD + 16 + 4, "<B", 0x83),
        lambda image: gpt_images.put(image, 0, "<4096s", bytes(4096)),
    ],
)
@pytest.mark.parametrize("wish", [Reshape(sector_size=4096), Reshape(extra_bytes=MIB), Reshape(smallest=True)])
def test_a_broken_table_is_not_built_on(edit: object, wish: Reshape) -> None:
    image = gpt_images.good_gpt()
    edit(image)  # type: ignore[operator]  # each of them takes the image
    with pytest.raises(InputError, match=r"not sound|only a disk with a GPT") as caught:
        _planned(MemoryDisk(bytes(image)), wish)
    assert caught.value.hint is None or "armvm repair" in caught.value.hint


def test_growing_and_cutting() -> None:
    disk = _disk((MIB, MIB, b"x"), (4 * MIB, MIB, b"y"))
    before = read_partition_table(disk).partitions
    assert _planned(disk, Reshape(extra_bytes=MIB + 1))[:2] == (17 * MIB + 512, before)
    assert _planned(disk, Reshape(smallest=True))[:2] == (6 * MIB, before)
    assert _planned(disk, Reshape(size_bytes=5 * MIB + 33 * 512))[:2] == (5 * MIB + 33 * 512, before)
    with pytest.raises(UsageError, match=r"partition 2 \(something unknown\) ends at byte 5242880") as caught:
        _planned(disk, Reshape(size_bytes=5 * MIB + 32 * 512))
    assert caught.value.hint == "--size min makes it 6 MiB"


def test_a_disk_that_is_full_is_not_made_larger_by_min() -> None:
    disk = _disk((MIB, 15 * MIB - 33 * 512, b"x"))
    assert _planned(disk, Reshape(smallest=True))[0] == 16 * MIB


def test_no_partitions() -> None:
    assert _planned(_disk(), Reshape(smallest=True))[0] == 2 * MIB
    with pytest.raises(UsageError, match="no partition"):
        _planned(_disk(), Reshape(grow=LAST))


def test_a_partition_grows() -> None:
    disk = _disk((MIB, MIB, b"x"), (4 * MIB, MIB, b"y"))
    _, partitions, notes = _planned(disk, Reshape(grow=1))
    assert _places(partitions, 512) == [(MIB, 3 * MIB), (4 * MIB, MIB)]
    assert notes[0] == "partition 1: grows from 1 MiB to 3 MiB"
    _, partitions, _ = _planned(disk, Reshape(grow=LAST, size_bytes=32 * MIB))
    assert _places(partitions, 512)[1] == (4 * MIB, 27 * MIB)
    with pytest.raises(UsageError, match="there is no partition 3"):
        _planned(disk, Reshape(grow=3))
    tight = _disk((MIB, MIB, b"x"), (2 * MIB, 13 * MIB, b"y"))
    with pytest.raises(UsageError, match="partition 1 cannot grow: partition 2 stands right behind it"):
        _planned(tight, Reshape(grow=1))
    with pytest.raises(UsageError, match="reaches to the end"):
        _planned(tight, Reshape(grow=LAST))


def test_what_the_guest_has_to_grow_is_said() -> None:
    _, _, notes = _planned(_disk((MIB, MIB, _xfs(512))), Reshape(grow=LAST))
    assert "xfs_growfs" in notes[1]


def test_without_resize2fs_the_guest_grows_ext4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armvm.image.reshape.find_program", lambda _name: None)
    _, partitions, notes = _planned(_disk((MIB, MIB, _ext(2))), Reshape(grow=LAST))
    assert _places(partitions, 512) == [(MIB, 14 * MIB)]
    assert "resize2fs is not installed" in notes[1]


def test_only_ext_shrinks() -> None:
    size, _, notes = _planned(_disk((MIB, MIB, _xfs(512))), Reshape(shrink=True))
    assert size == 3 * MIB
    assert notes == ("partition 1: xfs cannot be made smaller: only what is unused is cut off",)


@pytest.mark.parametrize(
    "wish",
    [
        {"size_bytes": 1, "smallest": True},
        {"extra_bytes": 1, "size_bytes": 1},
        {"grow": 1, "shrink": True},
        {"shrink": True, "extra_bytes": 1},
        {"sector_size": 520},
    ],
)
def test_wishes_that_contradict_themselves(wish: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Reshape(**wish)  # type: ignore[arg-type]  # whole numbers and truths


def test_boot_code_and_the_gap_are_kept() -> None:
    """Other firmware than UEFI may load something from before the first partition."""
    disk = PatchedDisk(_disk((MIB, MIB, b"x")), (0, b"boot code"), (100 * 512, b"second stage"))
    with plan_reshape(disk, Reshape(extra_bytes=MIB), scratch_folder=FOREIGN) as planned:
        assert planned.disk.read(0, 9) == b"boot code"
        assert planned.disk.read(100 * 512, 12) == b"second stage"
        assert planned.disk.read(440, 6) == bytes(6)


def test_the_same_sectors_rewrite_a_sound_table_as_it_was() -> None:
    disk = disk_image()
    with plan_reshape(disk, Reshape(sector_size=512), scratch_folder=FOREIGN) as planned:
        assert planned.disk.read(512, MIB) == disk.read(512, MIB)  # the MBR's CHS address may be told in two ways
        assert planned.disk.read(disk.size_bytes - MIB, MIB) == disk.read(disk.size_bytes - MIB, MIB)
        assert planned.notes == ()
