"""Files on FAT by path: names in any case, paths as the directory spells them, damage that ends."""

from __future__ import annotations

import pytest

from armvm.disk.fat import FatKind, FatVolume
from armvm.disk.files import FileKind, FileSystem
from armvm.disk.files_fat import FatFileSystem
from armvm.disk.filesystems import detect_content, open_files
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError
from tools.fat_images import SAMPLE_FILES, SMALL_FILES, fat32_disk, small_fat


def test_it_is_a_file_system() -> None:
    files = open_files(fat32_disk(), name="partition 1")
    assert isinstance(files, FileSystem)
    assert (files.name, files.kind) == ("partition 1", "vfat")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/efi/boot/bootaa64.efi", "/EFI/BOOT/BOOTAA64.EFI"),
        ("EFI/BOOT/../Boot//BOOTARM.EFI", "/EFI/BOOT/BOOTARM.EFI"),
        ("/a LONG name.TXT", "/A long name.txt"),
        ("/ALONGN~1.TXT", "/A long name.txt"),
        ("/../EFI", "/EFI"),
        ("/", "/"),
    ],
)
def test_paths_come_back_as_the_directory_spells_them(path: str, found: str) -> None:
    entry = FatFileSystem(fat32_disk(), name="esp").lookup(path)
    assert entry is not None
    assert entry.path == found


@pytest.mark.parametrize("path", ["/EFI/BOOT/NONE", "/EMPTY/below", "/EFI\\BOOT", "/ "])
def test_what_is_not_there(path: str) -> None:
    assert FatFileSystem(fat32_disk(), name="esp").lookup(path) is None


@pytest.mark.parametrize("disk", [fat32_disk(), MemoryDisk(small_fat(12)), MemoryDisk(small_fat(16))])
def test_every_file_is_read_whole(disk: MemoryDisk) -> None:
    files = FatFileSystem(FatVolume(disk), name="esp")
    found = {entry.path: files.read(entry) for entry in files.walk() if entry.kind is FileKind.FILE}
    expected = SAMPLE_FILES if files.volume.kind is FatKind.FAT32 else SMALL_FILES
    assert found == {f"/{path}": content for path, content in expected.items()}
    assert all(files.read(path.lower()) == content for path, content in found.items())


def test_faults_name_the_partition_and_the_path() -> None:
    files = FatFileSystem(fat32_disk(), name="partition 1")
    with pytest.raises(InputError, match=r"partition 1, /none: is not there"):
        files.read("/none")
    with pytest.raises(InputError, match=r"partition 1, /EFI: is no file"):
        files.open("/EFI")
    with pytest.raises(InputError, match="too large"):
        files.read("/EFI/BOOT/BOOTAA64.EFI", max_bytes=10)


def test_a_folder_that_leads_back_to_itself_ends() -> None:
    image = bytearray(small_fat(16))
    volume = FatVolume(MemoryDisk(bytes(image)))
    upper, lower = volume.lookup("EFI"), volume.lookup("EFI/BOOT")
    assert upper is not None
    assert lower is not None
    at = image.find(lower.slot)
    image[at + 26 : at + 28] = upper.first_cluster.to_bytes(2, "little")
    files = FatFileSystem(MemoryDisk(bytes(image)), name="esp")
    with pytest.raises(InputError, match="was there already"):
        list(files.walk())
    assert files.lookup("/EFI/BOOT/BOOT/BOOT") is not None


def test_the_serial_number_is_the_uuid() -> None:
    content = detect_content(fat32_disk(label="ESP"))
    assert content is not None
    assert (content.kind, content.label, content.uuid) == ("vfat", "ESP", "1234-ABCD")
