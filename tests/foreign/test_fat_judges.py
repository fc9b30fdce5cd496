"""FAT judged by others: fsck.vfat and mtools on what we write, and what mkfs.vfat and mtools write read by us."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from armvm.disk.fat import FatKind, FatVolume
from armvm.disk.fat_verify import verify
from armvm.disk.fat_write import FatFile, FatFolder, minimum_fat32_size
from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.process import Completed, run
from armvm.units import GIB, MIB
from tools.fat_images import BLEMISHED, BROKEN, SAMPLE_FILES, PatchedDisk, fat32_disk, save_sparse, small_fat

ENVIRONMENT = {"MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def mtools(name: str, image: Path, *arguments: str) -> bytes:
    return run(name, ["-i", str(image), *arguments], timeout_seconds=60, env=ENVIRONMENT).stdout


def fsck(image: Path) -> Completed:
    return run("fsck.vfat", ["-n", "-v", str(image)], timeout_seconds=60, check=False)


def require_clean(image: Path) -> None:
    result = fsck(image)
    assert result.returncode == 0, result.stdout.decode() + result.stderr


def mtools_tree(image: Path, target: Path) -> dict[str, bytes]:
    """Every file that mtools finds, as it reads it."""
    target.mkdir()
    mtools("mcopy", image, "-s", "-n", "::/", str(target))
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def our_tree(volume: FatVolume) -> dict[str, bytes]:
    return {path[1:]: volume.read(entry) for path, entry in volume.walk() if not entry.is_directory}


def rich_tree() -> dict[str, bytes]:
    source = random.Random(1)
    tree = dict(SAMPLE_FILES)
    tree |= {f"many/{number} é a name of several slots ж.txt": source.randbytes(number * 9) for number in range(700)}
    tree |= {"/".join(f"level{depth}" for depth in range(30)) + "/deep.tar.gz": b"deep"}
    tree |= {f"sizes/{size}.bin": source.randbytes(size) for size in (1, 511, 512, 513, 4095, 4096, 4097, 1_000_000)}
    tree |= {"x" * 255: b"long", "thirteen.unit": b"13", "a+b,c;d=[e].f": b"odd", ".hidden": b"dot", "MiXed.CaSe": b""}
    return tree


@pytest.mark.parametrize(
    ("size_bytes", "sector_size"),
    [
        (None, 512),
        (64 * MIB + 512, 512),
        (260 * MIB, 512),
        (260 * MIB + 512, 512),
        (3 * GIB, 512),
        (40 * GIB, 512),
        (None, 4096),
        (GIB, 4096),
    ],
)
def test_what_we_write_is_clean_and_mtools_reads_it(size_bytes: int | None, sector_size: int, tmp_path: Path) -> None:
    files = rich_tree()
    if size_bytes is None:
        tree: list[FatFile | FatFolder] = [FatFile(path, MemoryDisk(content)) for path, content in files.items()]
        size_bytes = minimum_fat32_size(tree, sector_size, label="ESP")
    disk = fat32_disk(files, ("Empty Folder", "EFI/empty"), size_bytes=size_bytes, sector_size=sector_size)
    image = save_extents(disk, tmp_path / "esp.img")
    require_clean(image)
    assert mtools_tree(image, tmp_path / "copied") == files
    assert (tmp_path / "copied" / "Empty Folder").is_dir()
    with RawDisk(image, sector_size=sector_size) as saved:
        volume = FatVolume(saved)
        assert verify(volume, first_lba=2048) == ()
        assert our_tree(volume) == files


def save_extents(disk: Disk, path: Path) -> Path:
    """Write only the extents that the disk says hold data: they must be enough."""
    with path.open("wb") as file:
        file.truncate(disk.size_bytes)
        for extent in disk.extents():
            if extent.data:
                file.seek(extent.offset)
                file.write(disk.read(extent.offset, extent.length))
    return path


def test_mtools_sees_our_names_labels_and_times(tmp_path: Path) -> None:
    files = {"EFI/BOOT/BOOTAA64.EFI": b"MZ", "EFI/BOOT/grub.cfg": b"set", "EFI/BOOT/A long name.config": b""}
    image = save_sparse(fat32_disk(files), tmp_path / "esp.img")
    listing = mtools("mdir", image, "::EFI/BOOT").decode()
    assert "Volume in drive : is ESP" in listing
    assert "Volume Serial Number is 1234-ABCD" in listing
    lines = [" ".join(line.split()) for line in listing.splitlines()]
    assert "BOOTAA64 EFI 2 2023-11-14 22:13" in lines
    assert "GRUB CFG 3 2023-11-14 22:13 grub.cfg" in lines
    assert "ALONGN~1 CON 0 2023-11-14 22:13 A long name.config" in lines
    assert mtools("mtype", image, "::efi/boot/GRUB.CFG") == b"set"


def test_names_beyond_the_basic_plane(tmp_path: Path) -> None:
    files = {"😀 smile.txt": b"one", "😁 grin.txt": b"two", "日本語.efi": b"three"}
    image = save_sparse(fat32_disk(files), tmp_path / "esp.img")
    require_clean(image)
    assert mtools("mtype", image, "::_SMILE~1.TXT") == b"one"
    assert mtools("mtype", image, "::日本語.efi") == b"three"


@pytest.mark.parametrize("seed", range(6))
def test_odd_names_are_clean(seed: int, tmp_path: Path) -> None:
    source = random.Random(seed)
    letters = "aAbB~1._- +,;=[]éß😀"
    names = {"".join(source.choices(letters, k=source.randrange(1, 30))).rstrip(". ") + "x" for _ in range(400)}
    files = {name: name.encode() for name in {name.upper(): name for name in names}.values()}
    image = save_sparse(fat32_disk(files), tmp_path / "esp.img")
    require_clean(image)
    with RawDisk(image) as saved:
        assert our_tree(FatVolume(saved)) == files
        assert verify(FatVolume(saved)) == ()
    assert len(mtools("mdir", image, "-b", "::").splitlines()) == len(files)


@pytest.mark.parametrize("seed", range(4))
def test_mtools_can_go_on_where_we_stopped(seed: int, tmp_path: Path) -> None:
    source = random.Random(seed)
    names = [f"d{source.randrange(3)}/file {number}.bin" for number in range(40)]
    files = {name: source.randbytes(source.randrange(9000)) for name in names}
    image = save_sparse(fat32_disk(files), tmp_path / "esp.img")
    for path in list(files)[::2]:
        mtools("mdel", image, f"::{path}")
        del files[path]
    fill(image, files, tmp_path, source, 20)
    require_clean(image)
    with RawDisk(image) as saved:
        assert our_tree(FatVolume(saved)) == files
        assert verify(FatVolume(saved)) == ()


def fill(image: Path, files: dict[str, bytes], scratch: Path, source: random.Random, count: int) -> None:
    """Add files at the root with mtools, in pieces where the free space is."""
    for number in range(count):
        content = source.randbytes(source.randrange(30_000))
        name = f"added {source.randrange(10**9)} {number}.dat"
        local = scratch / "local"
        local.write_bytes(content)
        mtools("mcopy", image, str(local), f"::{name}")
        files[name] = content


@pytest.mark.parametrize(
    ("bits", "size_bytes", "options"),
    [
        (12, 2 * MIB, ()),
        (12, 16 * MIB, ("-s", "16")),
        (12, 32 * MIB, ("-S", "4096")),
        (16, 16 * MIB, ("-s", "4")),
        (16, 64 * MIB, ("-S", "4096", "-s", "1")),
        (16, 100 * MIB, ("-f", "1")),
        (32, 34 * MIB, ("-s", "1")),
        (32, 300 * MIB, ("-R", "100", "-b", "9", "-h", "2048")),
        (32, 300 * MIB, ("-S", "4096", "-s", "1")),
        (32, 300 * MIB, ("-S", "2048", "-s", "1")),
    ],
)
def test_what_mkfs_and_mtools_write_is_read(
    bits: int, size_bytes: int, options: tuple[str, ...], tmp_path: Path
) -> None:
    image = tmp_path / "fat.img"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    arguments = ["--invariant", "-F", str(bits), "-n", "MKFS", *options, str(image)]
    run("mkfs.vfat", arguments, timeout_seconds=60)
    source = random.Random(bits)
    files: dict[str, bytes] = {}
    mtools("mmd", image, "::Some folder", "::Some folder/deeper")
    fill(image, files, tmp_path, source, 12)
    for path in list(files)[::2]:
        mtools("mdel", image, f"::{path}")
        del files[path]
    (tmp_path / "big").write_bytes(source.randbytes(400_000))
    for name in ("Some folder/deeper/in pieces.bin", "lower.efi", "UPPER.EFI"):
        mtools("mcopy", image, str(tmp_path / "big"), f"::{name}")
        files[name] = (tmp_path / "big").read_bytes()
    require_clean(image)
    sector_size = int(options[options.index("-S") + 1]) if "-S" in options else 512
    with RawDisk(image, sector_size=sector_size) as saved:
        volume = FatVolume(saved)
        assert volume.kind is FatKind(f"FAT{bits}")
        assert volume.label == "MKFS"
        assert our_tree(volume) == files
        big = volume.lookup("some FOLDER/deeper/IN PIECES.BIN")
        assert big is not None
        assert volume.read_at(big, 123_456, 98_765) == files["Some folder/deeper/in pieces.bin"][123_456:222_221]
        blemishes = {problem.code for problem in verify(volume)}
    assert blemishes == ({"fat-count"} if "-f" in options else set())


def test_the_trap_of_mkfs_with_an_offset_is_seen(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(GIB)
    run("mkfs.vfat", ["-F", "32", "--offset", "2048", str(image), str(64 * 1024)], timeout_seconds=60)
    with RawDisk(image, offset=MIB, size_bytes=64 * MIB) as partition:
        volume = FatVolume(partition)
        assert volume.kind is FatKind.FAT16
        (problem,) = [problem for problem in verify(volume) if problem.serious]
    assert problem.code == "cluster-count"


FSCK_IS_CONTENT = {
    "boot-jump",
    "boot-signature",
    "media",
    "sector-size",
    "version",
    "active-fat",
    "backup-sector",
    "backup-boot-sector",
    "fat-count",
    "disk-errors",
    "fat-media",
    "orphan-long-name",
    "beyond-end-mark",
    "too-large-to-verify",
}
"""Where we are stricter than fsck.vfat -n, or it finds fault without an exit code."""


@pytest.mark.parametrize("code", [*BROKEN, *BLEMISHED])
def test_our_broken_images_are_broken_for_fsck_too(code: str, tmp_path: Path) -> None:
    image = save_sparse((BROKEN.get(code) or BLEMISHED[code])(), tmp_path / "broken.img")
    assert (fsck(image).returncode == 0) == (code in FSCK_IS_CONTENT)


def corruption(disk: Disk, source: random.Random, areas: Mapping[int, int]) -> list[tuple[int, bytes]]:
    """One or a few bytes changed, in one of ``areas`` (offset: length)."""
    start = source.choice(list(areas))
    offset = start + source.randrange(areas[start])
    return [(offset + step, source.randbytes(1)) for step in range(source.choice((1, 1, 4)))]


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_where_fsck_complains_we_complain(bits: int, tmp_path: Path) -> None:
    disk = fat32_disk() if bits == 32 else MemoryDisk(small_fat(bits))
    image = save_sparse(disk, tmp_path / "corrupted.img")
    boot = FatVolume(disk).boot
    table = boot.reserved_sectors * 512
    areas = {
        table: 4 * bits,
        table + boot.fat_sectors * 512: 4 * bits,
        boot.first_root_sector * 512: 7 * 32,
        boot.first_data_sector * 512: 6 * 512,
    }
    source = random.Random(bits)
    complaints = 0
    with image.open("r+b", buffering=0) as file:
        for _ in range(60):
            patches = corruption(disk, source, areas)
            for offset, value in patches:
                os.pwrite(file.fileno(), value, offset)
            result = fsck(image)
            if result.returncode and b"no 8.3 name flag" not in result.stdout:  # a reserved byte, and harmless
                complaints += 1
                assert verify(FatVolume(PatchedDisk(disk, *patches))), result.stdout.decode()
            for offset, value in patches:
                os.pwrite(file.fileno(), disk.read(offset, len(value)), offset)
    assert complaints > 15
