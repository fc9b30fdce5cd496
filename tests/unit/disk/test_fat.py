from __future__ import annotations

import struct
from datetime import datetime

import pytest

from armvm.disk.fat import Attribute, FatKind, FatVolume
from armvm.disk.storage import BaseDisk, Disk, MemoryDisk
from armvm.errors import InputError
from tools.fat_images import (
    BLEMISHED,
    BROKEN,
    SAMPLE_FILES,
    SMALL_FILES,
    VOLUME_ID,
    PatchedDisk,
    Sample,
    fat32_disk,
    small_fat,
)


class CountingDisk(BaseDisk):
    """Another disk that keeps how much was read of it."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.name, disk.format, disk.size_bytes, disk.sector_size)
        self._disk = disk
        self.read_bytes = 0

    def _read(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        return self._disk.read(offset, length)


@pytest.mark.parametrize("bits", [12, 16])
def test_the_small_kinds_are_read(bits: int) -> None:
    volume = FatVolume(MemoryDisk(small_fat(bits)))
    assert volume.kind is FatKind(f"FAT{bits}")
    assert volume.cluster_count == {12: 100, 16: 4100}[bits]
    assert volume.serial == VOLUME_ID
    assert volume.label == ""
    files = {path: volume.read(entry) for path, entry in volume.walk() if not entry.is_directory}
    assert files == {f"/{path}": content for path, content in SMALL_FILES.items()}
    assert volume.fsinfo() is None


def test_fat32_is_read() -> None:
    volume = FatVolume(fat32_disk(folders=("Empty one",)))
    assert volume.kind is FatKind.FAT32
    assert (volume.bytes_per_sector, volume.sectors_per_cluster) == (512, 1)
    assert volume.label == "ESP"
    walked = dict(volume.walk())
    assert list(walked)[:3] == ["/Empty one", "/EFI", "/EFI/BOOT"]
    assert {f"/{path}" for path in SAMPLE_FILES} < set(walked)
    for path, content in SAMPLE_FILES.items():
        assert volume.read(walked[f"/{path}"]) == content
    assert walked["/A long name.txt"].short_name == "ALONGN~1.TXT"
    assert walked["/EMPTY"].attributes is Attribute.ARCHIVE
    assert walked["/EMPTY"].modified == datetime(2023, 11, 14, 22, 13, 20)
    info = volume.fsinfo()
    assert info is not None
    assert info.signatures_right


@pytest.mark.parametrize(
    "path",
    ["EFI/BOOT/BOOTAA64.EFI", "\\efi\\boot\\bootaa64.efi", "/EFI//Boot\\bootAA64.efi/", "EFI/BOOT/BOOTAA64.EFI"],
)
def test_lookup_takes_either_slash_and_any_case(path: str) -> None:
    entry = FatVolume(fat32_disk()).lookup(path)
    assert entry is not None
    assert entry.name == "BOOTAA64.EFI"


def test_lookup_finds_long_and_short_names_and_the_root() -> None:
    volume = FatVolume(fat32_disk({"Übergrößenträger.txt": b"x"}))
    by_long = volume.lookup("übergrößenTRÄGER.TXT")
    assert by_long is not None
    assert volume.lookup(by_long.short_name) == by_long
    assert volume.lookup("/") is volume.root
    assert volume.lookup("übergrössenträger.txt") is None  # ß is no ss
    assert volume.lookup("nothing") is None
    assert volume.lookup("Übergrößenträger.txt/below a file") is None


def test_a_folder_is_no_file_and_a_file_no_folder() -> None:
    volume = FatVolume(fat32_disk())
    folder, file = volume.lookup("EFI"), volume.lookup("EMPTY")
    assert folder is not None
    assert file is not None
    with pytest.raises(InputError, match="is a folder"):
        volume.open(folder)
    with pytest.raises(InputError, match="is not a folder"):
        volume.entries(file)
    with pytest.raises(InputError, match="there is no"):
        volume.entries("nowhere")
    assert [entry.name for entry in volume.entries("EFI")] == ["BOOT"]


def test_reading_a_part_looks_at_little() -> None:
    content = bytes(range(256)) * 4096 * 8
    disk = CountingDisk(fat32_disk({"BIG.BIN": content}, size_bytes=64 << 20))
    volume = FatVolume(disk)
    entry = volume.lookup("BIG.BIN")
    assert entry is not None
    with volume.open(entry) as file:
        assert file.size_bytes == len(content)
        assert file.read(1000, 3000) == content[1000:4000]
        assert file.read(len(content), 0) == b""
        assert disk.read_bytes < 64 * 1024
        with pytest.raises(InputError, match="past the end"):
            file.read(len(content), 1)
    assert volume.read_at(entry, 5_000_001, 7) == content[5_000_001:5_000_008]


def test_a_file_too_large_is_not_read_whole() -> None:
    volume = FatVolume(fat32_disk({"BIG.BIN": bytes(4096)}))
    with pytest.raises(InputError, match="too large"):
        volume.read(volume.entries()[0], max_bytes=4095)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("chain-loop", "runs in a loop through cluster"),
        ("chain-free", "at cluster 0, the mark of a free cluster"),
        ("chain-bad", "at 0xffffff7, the mark of a bad cluster"),
        ("chain-range", "at cluster 15728640, outside 2..66513"),
        ("chain-short", r"found 7 clusters, expected 10 of 512 bytes"),
        ("chain-long", r"found more than 1 clusters, expected 1 of 512 bytes"),
    ],
)
def test_broken_chains_are_said_exactly(code: str, said: str) -> None:
    volume = FatVolume(BROKEN[code]())
    entry = volume.lookup("EFI/BOOT/BOOTAA64.EFI")
    assert entry is not None
    with pytest.raises(InputError, match=said):
        volume.read(entry)
    with pytest.raises(InputError, match=said):  # and again: the fault is not forgotten
        volume.read(entry)


def test_a_file_in_too_many_pieces_is_refused_soon() -> None:
    volume = FatVolume(BLEMISHED["too-large-to-verify"]())
    with pytest.raises(InputError, match="lies in more than 65536 pieces"):
        volume.read(volume.entries()[0])
    assert volume.read_at(volume.entries()[0], 0, 4) == bytes(4)


def test_cluster_numbers_end_where_the_marks_begin() -> None:
    """A volume that claims more clusters than 28 bits can number, and a folder that starts beyond them."""
    sample = Sample()
    boot = sample.boot(32, b"\xff" * 4), sample.boot(36, struct.pack("<I", 0x03000000))
    volume = FatVolume(sample.patched(*boot[0], *boot[1], *sample.boot(44, struct.pack("<I", 0x10000002))))
    assert volume.cluster_count > 0x10000000
    with pytest.raises(InputError, match=r"starts at cluster 268435458, outside 2\.\.268435446"):
        volume.entries()


def test_an_empty_file_with_clusters_is_refused() -> None:
    sample = Sample()
    volume = FatVolume(sample.patched(sample.slot(b"BOOTAA64EFI", 28, bytes(4))))
    entry = volume.lookup("EFI/BOOT/BOOTAA64.EFI")
    assert entry is not None
    with pytest.raises(InputError, match="more than 0 clusters"):
        volume.read(entry)


def test_the_header_of_a_file_with_a_broken_end_can_be_read() -> None:
    volume = FatVolume(BROKEN["chain-short"]())
    entry = volume.lookup("EFI/BOOT/BOOTAA64.EFI")
    assert entry is not None
    file = volume.open(entry)
    assert file.read(0, 2) == b"MZ"
    with pytest.raises(InputError, match="does not fit its size"):
        file.read(4999, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found 0 bytes, expected at least 512"),
        (b"\xeb\x3c\x90" + bytes(507) + b"\x55\xaa", "0 bytes a sector"),
        (bytes(4096), "neither the boot signature"),
        (small_fat(12)[:510] + b"xx" + small_fat(12)[512:], None),
        (small_fat(12)[:13] + b"\0" + small_fat(12)[14:], "0 sectors a cluster"),
        (small_fat(12)[:19] + b"\x07\0" + small_fat(12)[21:], "leave no cluster"),
        (b"\xeb\x76\x90EXFAT   " + bytes(499) + b"\x55\xaa", "0 bytes a sector"),
    ],
)
def test_what_is_no_fat_is_refused(content: bytes, said: str | None) -> None:
    if said is None:
        assert FatVolume(MemoryDisk(content)).kind is FatKind.FAT12
        return
    with pytest.raises(InputError, match=f"not a FAT file system.*{said}"):
        FatVolume(MemoryDisk(content))


@pytest.mark.parametrize(
    ("clusters", "kind"),
    [(4084, FatKind.FAT12), (4085, FatKind.FAT16), (65524, FatKind.FAT16), (65525, FatKind.FAT32)],
)
def test_the_count_of_clusters_decides_the_kind(clusters: int, kind: FatKind) -> None:
    boot = bytearray(small_fat(16)[:512])
    struct.pack_into("<H", boot, 22, 256)
    first_data = 1 + 2 * 256 + 4
    struct.pack_into("<HxxxxxxxxxxxI", boot, 19, 0, first_data + clusters)
    boot[21] = 0xF8
    struct.pack_into("<H", boot, 22, 256)
    volume = FatVolume(MemoryDisk(bytes(boot)))
    assert volume.cluster_count == clusters
    assert volume.kind is kind


def test_the_fat32_trap_is_seen_and_still_read() -> None:
    volume = FatVolume(BROKEN["cluster-count"]())
    assert volume.kind is FatKind.FAT16
    assert volume.boot.layout is FatKind.FAT32
    entry = volume.lookup("EFI/BOOT/BOOTAA64.EFI")
    assert entry is not None
    assert volume.read(entry) == SAMPLE_FILES["EFI/BOOT/BOOTAA64.EFI"]


def test_a_folder_in_itself_is_walked_once() -> None:
    sample = Sample()
    efi = struct.pack("<H", sample.cluster(b"EFI        "))
    volume = FatVolume(sample.patched(sample.slot(b"BOOT       ", 26, efi)))
    assert [path for path, _ in volume.walk()] == ["/EFI", "/EFI/BOOT", "/A long name.txt", "/EMPTY"]


def test_walking_has_its_limits() -> None:
    volume = FatVolume(fat32_disk({"a/b/c/d": b"", "a/b/e": b""}))
    assert len(list(volume.walk(max_entries=5, max_depth=4))) == 5
    with pytest.raises(InputError, match="more than 4 files"):
        list(volume.walk(max_entries=4))
    with pytest.raises(InputError, match="deeper than 3"):
        list(volume.walk(max_depth=3))


def test_an_endless_folder_is_refused() -> None:
    count = 70_000
    sample = Sample(fat32_disk({"F": bytes(count * 512)}, size_bytes=36 << 20))
    volume = FatVolume(sample.patched(sample.slot(b"F          ", 11, b"\x10")))
    with pytest.raises(InputError, match="F has more than 65536 slots"):
        volume.entries("F")


def test_the_active_table_is_the_one_that_counts() -> None:
    sample = Sample()
    broken_first_table = sample.fat(sample.cluster(b"BOOTAA64EFI"), 0)[0]
    volume = FatVolume(sample.patched(broken_first_table, (40, b"\x81\0")))
    entry = volume.lookup("EFI/BOOT/BOOTAA64.EFI")
    assert entry is not None
    assert volume.read(entry) == SAMPLE_FILES["EFI/BOOT/BOOTAA64.EFI"]


def test_the_label_falls_back_on_the_boot_sector() -> None:
    sample = Sample()
    assert FatVolume(sample.patched((71, b"FROM BOOT  "))).label == "ESP"
    assert FatVolume(sample.patched((71, b"FROM BOOT  "), sample.slot(b"ESP        ", 0, b"\xe5"))).label == "FROM BOOT"
    assert FatVolume(sample.patched((71, b"FROM BOOT  "), (44, bytes(4)))).label == "FROM BOOT"


def test_a_disk_cut_short_is_an_input_error() -> None:
    volume = FatVolume(PatchedDisk(fat32_disk(), size_bytes=4096))
    with pytest.raises(InputError, match="past the end"):
        volume.entries()
