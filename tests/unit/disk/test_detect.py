from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard

from armvm.disk.detect import detect_format, open_disk
from armvm.disk.storage import Disk
from armvm.errors import InputError, UsageError
from tools.containers import MIB, converted, qcow2_header, scattered_raw

_GPT = b"EFI PART"


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("disk.img", b"x")
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("disk.vmdk"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("format", "options", "found"),
    [
        ("raw", (), "raw"),
        ("qcow2", (), "qcow2"),
        ("vmdk", (), "vmdk"),
        ("vmdk", ("-o", "subformat=streamOptimized"), "vmdk"),
        ("vmdk", ("-o", "subformat=monolithicFlat"), "vmdk"),
        ("vhdx", (), "vhdx"),
        ("vpc", (), "vpc"),
        ("vpc", ("-o", "subformat=fixed"), "vpc"),
        ("vdi", (), "vdi"),
    ],
)
def test_formats_by_content_never_by_name(tmp_path: Path, format: str, options: tuple[str, ...], found: str) -> None:
    scattered_raw(tmp_path / "raw", 4 * MIB)
    path = converted(tmp_path / "raw", tmp_path / "image.iso.gz", format, *options)
    assert detect_format(path) == found


@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        (gzip.compress(b"x"), "compressed with gzip", "gzip -d"),
        (lzma.compress(b"x"), "compressed with xz", "xz -d"),
        (zstandard.compress(b"x"), "compressed with zstd", "zstd -d"),
        (bz2.compress(b"x"), "compressed with bzip2", "bzip2 -d"),
        (b"\x04\x22\x4d\x18" + bytes(20), "compressed with lz4", "lz4 -d"),
        (_zip(), "a zip archive", "unpack"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(20), "a 7z archive", "unpack"),
        (_tar(), "a tar archive", "unpack"),
        (b"\x7fELF" + bytes(100), "an ELF program", "disk image"),
        (b"QED\0" + bytes(100), "a QED image", "qemu-img convert"),
        (b"WithoutFreeSpace" + bytes(100), "a Parallels image", "qemu-img convert"),
        (b"WithouFreSpacExt" + bytes(100), "a Parallels image", "qemu-img convert"),
        (b"\x3a\xff\x26\xed" + bytes(100), "an Android sparse image", "simg2img"),
        (bytes(2048) + b"koly".ljust(512, b"\0"), "an Apple disk image", "qemu-img convert"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # the bytes hold the time of day
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, what: str, hint: str) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    with pytest.raises(InputError, match=what) as caught:
        open_disk(path, in_place=True)
    assert hint in (caught.value.hint or "")
    with pytest.raises(InputError, match=what):
        detect_format(path)
    with open_disk(path, format="raw") as disk:
        assert disk.read(0, len(content)) == content


def test_boot_code_that_looks_like_something_else(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\x7fELF".ljust(512, b"\0") + _GPT.ljust(MIB, b"\0"))
    assert detect_format(path) == "raw"


def test_iso_9660_is_raw(tmp_path: Path) -> None:
    path = tmp_path / "cd.iso"
    path.write_bytes(bytes(32769) + b"CD001".ljust(MIB, b"\0"))
    assert detect_format(path) == "raw"


@pytest.mark.parametrize("content", [b"x", b"QFI", b"x" * 511, b"conect"])
def test_tiny_files_are_raw(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    with open_disk(path) as disk:
        assert (disk.format, disk.sector_size, disk.read(0, len(content))) == ("raw", 512, content)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "disk.img").touch()
    with pytest.raises(InputError, match="is empty"):
        open_disk(tmp_path / "disk.img")


@pytest.mark.parametrize("format", [None, "raw", "qcow2", "vmdk"])
def test_missing_file(tmp_path: Path, format: str | None) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        open_disk(tmp_path / "none", format=format)


@pytest.mark.parametrize(
    ("places", "sector_size"),
    [
        ((), 512),
        ((512,), 512),
        ((4096,), 4096),
        ((512, 4096), 512),
        ((MIB - 512,), 512),
        ((MIB - 4096,), 4096),
        ((4096, MIB - 512), 4096),
    ],
)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_sector_size_by_the_place_of_the_gpt(
    tmp_path: Path, places: tuple[int, ...], sector_size: int, format: str
) -> None:
    content = bytearray(MIB)
    for place in places:
        content[place : place + 8] = _GPT
    path = tmp_path / "raw"
    path.write_bytes(content)
    if format == "qcow2":
        path = converted(path, tmp_path / "qcow2", "qcow2")
    with open_disk(path) as disk:
        assert isinstance(disk, Disk)
        assert (disk.format, disk.sector_size) == (format, sector_size)
    with open_disk(path, sector_size=4096) as disk:
        assert disk.sector_size == 4096


def test_size_that_is_no_multiple_of_the_sector_size(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(5000))
    with open_disk(tmp_path / "raw", sector_size=4096) as disk:
        assert disk.size_bytes == 5000


@pytest.mark.parametrize("sector_size", [0, -512, 1, 513, 2048, 1 << 40])
def test_absurd_sector_sizes(tmp_path: Path, sector_size: int) -> None:
    (tmp_path / "raw").write_bytes(bytes(512))
    with pytest.raises(UsageError, match="not a sector size"):
        open_disk(tmp_path / "raw", sector_size=sector_size)


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a disk format: vhd"):
        open_disk(tmp_path / "raw", format="vhd")


def test_format_that_it_is_not(tmp_path: Path) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    for wrong in ("qcow2", "vmdk", "vhdx", "vpc", "vdi"):
        with pytest.raises(InputError):
            open_disk(tmp_path / "raw", format=wrong)


def test_qcow2_of_size_zero(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(qcow2_header(size_bytes=0, l1=(0, 65536)).ljust(65536, b"\0"))
    with open_disk(path) as disk:
        assert (disk.size_bytes, disk.sector_size, list(disk.extents())) == (0, 512, [])


def test_damaged_image_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(qcow2_header(l1=(1, 65536)).ljust(65536, b"\0") + b"\xff" * 8)
    before = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(InputError, match="L2 table stands outside"):
        open_disk(path)
    assert len(list(Path("/dev/fd").iterdir())) == before
