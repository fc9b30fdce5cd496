"""FAT file systems edited where they stand: fsck.vfat and mtools are the judges, on volumes that others made too."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from armvm.disk.fat import FatVolume
from armvm.disk.fat_edit import FatEditor
from armvm.disk.fat_verify import verify
from armvm.disk.patched import PatchedDisk
from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import InputError
from armvm.process import run
from armvm.units import MIB
from tools.fat_images import BROKEN, TIMESTAMP, fat32_disk, save_sparse, small_fat

ENVIRONMENT = {"MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def judged(disk: Disk, path: Path) -> dict[str, bytes]:
    """Every file as mtools reads it, after fsck found nothing."""
    save_sparse(disk, path)
    result = run("fsck.vfat", ["-n", "-v", str(path)], timeout_seconds=60, check=False)
    assert result.returncode == 0, result.stdout.decode() + result.stderr
    target = path.with_suffix(".tree")
    target.mkdir()
    run("mcopy", ["-i", str(path), "-s", "-n", "::/", str(target)], timeout_seconds=60, env=ENVIRONMENT)
    return {str(f.relative_to(target)): f.read_bytes() for f in target.rglob("*") if f.is_file()}


def volume_of(bits: int, folder: Path) -> Disk:
    """An empty volume that mkfs.vfat made: FAT12 or 16 of a few clusters, or FAT32."""
    path = folder / "made.img"
    size, cluster = {12: (2 * MIB, 4), 16: (9 * MIB, 4), 32: (34 * MIB, 1)}[bits]
    with path.open("wb") as file:
        file.truncate(size)
    run("mkfs.vfat", ["-F", str(bits), "-s", str(cluster), "--invariant", str(path)], timeout_seconds=20)
    return MemoryDisk(path.read_bytes())


@pytest.mark.parametrize("bits", [12, 16, 32])
@pytest.mark.parametrize("seed", range(3))
def test_random_edits_leave_a_sound_volume_with_exactly_these_files(bits: int, seed: int, tmp_path: Path) -> None:
    source = random.Random(seed * 100 + bits)
    disk = PatchedDisk(volume_of(bits, tmp_path))
    editor = FatEditor(disk, timestamp=TIMESTAMP)
    files: dict[str, bytes] = {}
    for step in range(90):
        path = f"d{source.randrange(4)}/A longer folder/file {source.randrange(30)}.bin"
        if source.random() < 0.2:
            path = f"ROOT{source.randrange(9)}.TXT"
        if path in files and source.random() < 0.4:
            editor.delete(path)
            del files[path]
            continue
        files[path] = source.randbytes(source.choice((0, 1, 511, 512, 2048, 2049, source.randrange(9000))))
        editor.write(path, files[path])
        if step % 30 == 0:
            assert verify(FatVolume(disk)) == ()
    assert judged(disk, tmp_path / "edited.img") == files
    assert verify(FatVolume(disk)) == ()


def test_edits_go_on_where_mtools_left_holes(tmp_path: Path) -> None:
    files = {f"f{number}.bin": bytes([number]) * 700 for number in range(120)}
    path = save_sparse(fat32_disk(files), tmp_path / "esp.img")
    for number in range(0, 120, 3):
        run("mdel", ["-i", str(path), f"::f{number}.bin"], timeout_seconds=20, env=ENVIRONMENT)
        del files[f"f{number}.bin"]
    with RawDisk(path) as raw:
        disk = PatchedDisk(raw)
        editor = FatEditor(disk, timestamp=TIMESTAMP)
        for name in (
            "a name of several slots, in a hole somewhere.config",
            "EFI/BOOT/BOOTAA64.EFI",
            "EFI/BOOT/grub.cfg",
        ):
            files[name] = name.encode() * 99
            editor.write(name, files[name])
        editor.write("f1.bin", b"short")
        files["f1.bin"] = b"short"
        assert judged(disk, tmp_path / "edited.img") == files


def test_a_full_volume_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    disk = PatchedDisk(MemoryDisk(small_fat(12)))
    editor = FatEditor(disk, timestamp=TIMESTAMP)
    with pytest.raises(InputError, match="clusters are free"):
        editor.write("deep/er/BIG.BIN", bytes(100 * 512))
    assert list(disk.changes()) == []


def test_a_full_root_directory_is_refused(tmp_path: Path) -> None:
    disk = PatchedDisk(MemoryDisk(small_fat(12)))
    editor = FatEditor(disk, timestamp=TIMESTAMP)
    with pytest.raises(InputError, match="root directory is full"):
        for number in range(70):
            editor.write(f"N{number}", b"")
    judged(disk, tmp_path / "full.img")


def test_replacing_keeps_the_name_and_its_case(tmp_path: Path) -> None:
    disk = PatchedDisk(fat32_disk({"EFI/Debian/Grub.cfg": b"old"}))
    FatEditor(disk, timestamp=TIMESTAMP).write("/efi/debian/GRUB.CFG", b"new" * 1000)
    assert judged(disk, tmp_path / "esp.img") == {"EFI/Debian/Grub.cfg": b"new" * 1000}


@pytest.mark.parametrize("code", sorted(set(BROKEN) - {"volume-size", "sector-size"}))
def test_a_damaged_volume_is_not_touched(code: str) -> None:
    disk = PatchedDisk(BROKEN[code]())
    with pytest.raises(InputError):
        FatEditor(disk, timestamp=TIMESTAMP).write("x", b"x")
    assert list(disk.changes()) == []


@pytest.mark.parametrize("path", ["", "a:b", "EFI", "A long name.txt/below", "trailing."])
def test_what_cannot_be_a_file_is_refused(path: str) -> None:
    disk = PatchedDisk(fat32_disk())
    with pytest.raises(InputError):
        FatEditor(disk, timestamp=TIMESTAMP).write(path, b"x")
    assert list(disk.changes()) == []


@pytest.mark.parametrize("path", ["nothing", "EFI", "EFI/BOOT/none.efi"])
def test_what_is_no_file_cannot_be_deleted(path: str) -> None:
    disk = PatchedDisk(fat32_disk())
    with pytest.raises(InputError):
        FatEditor(disk, timestamp=TIMESTAMP).delete(path)
