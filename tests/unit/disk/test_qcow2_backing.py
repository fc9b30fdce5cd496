from __future__ import annotations

import os
from pathlib import Path

import pytest

from armvm.disk.qcow2 import MAX_CHAIN, Qcow2Disk, open_qcow2
from armvm.disk.qcow2_write import write_overlay
from armvm.disk.raw import RawDisk
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError
from tools.containers import CLUSTER, assert_sound_extents, handmade_qcow2, qcow2_extension, qcow2_header


def _overlay(path: Path, backing: str, format: str = "raw", size_bytes: int = 4 * CLUSTER) -> Path:
    with path.open("w+b") as file:
        write_overlay(file, backing_path=backing, backing_format=format, size_bytes=size_bytes)
    return path


def test_backing_file_is_refused_by_default(tmp_path: Path) -> None:
    (tmp_path / "base.img").write_bytes(b"x" * CLUSTER)
    path = _overlay(tmp_path / "top", "base.img")
    with pytest.raises(InputError, match=r"difference to a backing file: found base\.img") as caught:
        open_qcow2(path)
    assert "qemu-img convert" in (caught.value.hint or "")


def test_backing_file_shorter_than_the_overlay(tmp_path: Path) -> None:
    content = b"x" * (CLUSTER + 700)
    (tmp_path / "base.img").write_bytes(content)
    with open_qcow2(_overlay(tmp_path / "top", "base.img"), allow_backing_files=True) as disk:
        assert disk.read(0, 4 * CLUSTER) == content.ljust(4 * CLUSTER, b"\0")
        assert disk.read(CLUSTER + 699, 2) == b"x\0"
        assert disk.read(3 * CLUSTER, 5) == bytes(5)
        extents = list(disk.extents())
        assert_sound_extents(extents, content.ljust(4 * CLUSTER, b"\0"))
        assert not extents[-1].data


def test_backing_file_longer_than_the_overlay(tmp_path: Path) -> None:
    (tmp_path / "base.img").write_bytes(b"x" * 9 * CLUSTER)
    with open_qcow2(_overlay(tmp_path / "top", "base.img"), allow_backing_files=True) as disk:
        assert disk.read(0, 4 * CLUSTER) == b"x" * 4 * CLUSTER
        assert_sound_extents(list(disk.extents()), b"x" * 4 * CLUSTER)


def test_clusters_over_the_backing_file(tmp_path: Path) -> None:
    extension = qcow2_extension(0xE2792ACA, b"raw") + bytes(8)
    header = qcow2_header(size_bytes=4 * CLUSTER, backing=(104 + len(extension), 4), after=extension + b"base")
    path = handmade_qcow2(tmp_path / "x", header, [2 * CLUSTER], [3 * CLUSTER, 0, 1])
    with path.open("r+b"), Qcow2Disk(RawDisk(path), backing=MemoryDisk(b"b" * 4 * CLUSTER)) as disk:
        content = b"\3" * CLUSTER + b"b" * CLUSTER + bytes(CLUSTER) + b"b" * CLUSTER
        assert disk.read(0, 4 * CLUSTER) == content
        assert_sound_extents(list(disk.extents()), content)


def test_chain_of_folders_and_links(tmp_path: Path) -> None:
    """A relative name starts from the folder of the image as it was named; links are followed inside it."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "base.img").write_bytes(b"deep" * 100)
    (tmp_path / "link").symlink_to("deep/base.img")
    _overlay(tmp_path / "middle", "link")
    top = _overlay(tmp_path / "top", str(tmp_path / "middle"), "qcow2")
    with open_qcow2(top, allow_backing_files=True) as disk:
        assert disk.read(0, 8) == b"deepdeep"


@pytest.mark.parametrize("name", ["../secret", "sub/../../secret", "link", "ABSOLUTE"])
def test_backing_file_outside_the_folder(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * CLUSTER)
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "link").symlink_to(secret)
    path = _overlay(folder / "top", str(secret) if name == "ABSOLUTE" else name)
    with pytest.raises(InputError, match="outside its folder"):
        open_qcow2(path, allow_backing_files=True)


@pytest.mark.parametrize("name", ["nbd:localhost:1", "json:{}", "http://x/y", "file:/etc/passwd", "fd:3"])
def test_protocols_are_refused(tmp_path: Path, name: str) -> None:
    after = qcow2_extension(0xE2792ACA, b"raw") + bytes(8)
    header = qcow2_header(backing=(104 + len(after), len(name)), after=after + name.encode())
    path = handmade_qcow2(tmp_path / "x", header, [0], [])
    with pytest.raises(InputError, match="no plain path"):
        open_qcow2(path, allow_backing_files=True)


@pytest.mark.parametrize(("format", "shown"), [(b"vmdk", "vmdk"), (b"\x1b[2J", r"\\x1b\[2J"), (None, "no format")])
def test_backing_format_must_be_named(tmp_path: Path, format: bytes | None, shown: str) -> None:
    (tmp_path / "base").write_bytes(bytes(512))
    after = (qcow2_extension(0xE2792ACA, format) if format is not None else b"") + bytes(8)
    path = handmade_qcow2(tmp_path / "x", qcow2_header(backing=(104 + len(after), 4), after=after + b"base"), [0], [])
    with pytest.raises(InputError, match=f"raw or qcow2: found {shown}"):
        open_qcow2(path, allow_backing_files=True)


def test_backing_files_in_a_circle(tmp_path: Path) -> None:
    _overlay(tmp_path / "a", "b", "qcow2")
    _overlay(tmp_path / "b", "a", "qcow2")
    _overlay(tmp_path / "self", "self", "qcow2")
    (tmp_path / "loop").symlink_to("loop")
    _overlay(tmp_path / "c", "loop", "qcow2")
    for name, message in (("a", "in a circle"), ("self", "in a circle"), ("c", "cannot be")):
        with pytest.raises(InputError, match=message):
            open_qcow2(tmp_path / name, allow_backing_files=True)


@pytest.mark.parametrize("images", [MAX_CHAIN, MAX_CHAIN + 1])
def test_length_of_a_chain(tmp_path: Path, images: int) -> None:
    (tmp_path / "0").write_bytes(b"base" * 128)
    for number in range(1, images):
        _overlay(tmp_path / str(number), str(number - 1), "raw" if number == 1 else "qcow2")
    top = tmp_path / str(images - 1)
    if images > MAX_CHAIN:
        with pytest.raises(InputError, match="more than"):
            open_qcow2(top, allow_backing_files=True)
        return
    with open_qcow2(top, allow_backing_files=True) as disk:
        assert disk.read(0, 4) == b"base"


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "text"])
def test_backing_files_that_are_no_images(tmp_path: Path, kind: str) -> None:
    base = tmp_path / "base"
    if kind == "directory":
        base.mkdir()
    elif kind == "pipe":
        os.mkfifo(base)
    elif kind == "text":
        base.write_text("hello")
    with pytest.raises(InputError):
        open_qcow2(_overlay(tmp_path / "top", "base", "qcow2"), allow_backing_files=True)
