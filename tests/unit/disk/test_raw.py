from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk, Extent
from armvm.errors import InputError
from tools.containers import MIB, assert_sound_extents


def test_reads_what_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 16)
    with RawDisk(path) as disk:
        assert isinstance(disk, Disk)
        assert (disk.name, disk.format, disk.size_bytes, disk.sector_size) == (str(path), "raw", 4096, 512)
        assert disk.read(255, 3) == b"\xff\x00\x01"
        assert disk.read(4096, 0) == b""


def test_window(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"abcdefgh")
    with RawDisk(path, offset=2, size_bytes=4, sector_size=4096, name="window") as disk:
        assert (disk.name, disk.size_bytes, disk.sector_size) == ("window", 4, 4096)
        assert disk.read(0, 4) == b"cdef"
        with pytest.raises(InputError):
            disk.read(1, 4)
    with RawDisk(path, offset=2) as disk:
        assert disk.read(0, 6) == b"cdefgh"


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, 9), (9, None), (8, 1)])
def test_window_outside_the_file(tmp_path: Path, offset: int, size: int | None) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8))
    with pytest.raises(InputError, match="does not fit"):
        RawDisk(path, offset=offset, size_bytes=size)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 513), (512, 1), (1 << 70, 1), (0, -1)])
def test_reads_outside_are_refused(tmp_path: Path, offset: int, length: int) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(512))
    with RawDisk(path) as disk, pytest.raises(InputError):
        disk.read(offset, length)


@pytest.mark.parametrize("kind", ["directory", "pipe", "socket", "character device"])
def test_other_kinds_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket has to be short
    path = Path("odd")
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        path = Path("/dev/zero")
    with pytest.raises(InputError, match=f"found a {kind}"):
        RawDisk(path)


@pytest.mark.parametrize("name", ["missing", "zero\0byte", "x" * 5000])
def test_names_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        RawDisk(tmp_path / name)


def test_file_that_shrinks_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * 4096)
    with RawDisk(path) as disk:
        os.truncate(path, 1000)
        with pytest.raises(InputError, match=r"offset 0x3e8.*cut short"):
            disk.read(0, 4096)


def test_closed_disk_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(512))
    disk = RawDisk(path)
    disk.close()
    disk.close()
    with pytest.raises(ValueError, match="closed"):
        disk.read(0, 1)


def test_extents_are_those_of_the_file_system(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(2 * MIB)
        file.write(b"x" * MIB)
    with RawDisk(path) as disk:
        extents = list(disk.extents())
        assert_sound_extents(extents, path.read_bytes())
        assert Extent(0, 2 * MIB, data=False) in extents
    with RawDisk(path, offset=2 * MIB + 4096, size_bytes=4096) as disk:
        assert list(disk.extents()) == [Extent(0, 4096, data=True)]
    with RawDisk(path, offset=4 * MIB) as disk:
        assert list(disk.extents()) == [Extent(0, 4 * MIB, data=False)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a loop device")
def test_block_device(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"block".ljust(MIB, b"\0"))
    found = subprocess.run(["losetup", "--show", "-f", path], check=True, capture_output=True, text=True)
    device = found.stdout.strip()
    try:
        with RawDisk(device) as disk:
            assert (disk.size_bytes, disk.read(0, 5)) == (MIB, b"block")
            assert_sound_extents(list(disk.extents()), path.read_bytes())
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
