"""btrfs with subvolumes and every compression: an image of our own making, which btrfs-progs read as we do."""

from __future__ import annotations

from pathlib import Path

import pytest

from armvm.disk.files import FileKind
from armvm.disk.filesystems import open_files
from armvm.disk.storage import Disk, MemoryDisk
from armvm.disk.volumes import Volumes
from armvm.errors import InputError
from tools.btrfs_images import BtrfsFile, BtrfsLink, BtrfsSubvolume, Entry, btrfs_image, pack
from tools.fat_images import PatchedDisk
from tools.file_trees import run

TEXT = b"the same line again and again\n" * 4000
ROOT: dict[str, Entry] = {
    "none": BtrfsFile(TEXT),
    "zlib": BtrfsFile(TEXT, "zlib"),
    "zstd": BtrfsFile(TEXT, "zstd"),
    "lzo": BtrfsFile(TEXT[:20_001], "lzo"),
    "inline": BtrfsFile(b"inline", inline=True),
    "inline-zlib": BtrfsFile(TEXT[:900], "zlib", inline=True),
    "inline-lzo": BtrfsFile(TEXT[:90], "lzo", inline=True),
    "inline-zstd": BtrfsFile(TEXT[:900], "zstd", inline=True),
    "hole": BtrfsFile(b"behind a hole", hole=8192),
    "hole-zstd": BtrfsFile(TEXT, "zstd", hole=1 << 20),
    "link": BtrfsLink("zstd"),
}
LAYOUT: dict[int, dict[str, Entry]] = {
    5: {"root": BtrfsSubvolume(256), "home": BtrfsSubvolume(257), "grub.cfg": BtrfsFile(b"top", inline=True)},
    256: ROOT,
    257: {"user": BtrfsFile(b"default", inline=True), "@snap": BtrfsSubvolume(258)},
    258: {"old": BtrfsFile(b"snapshot", inline=True)},
}
NAMES = {256: (5, "root"), 257: (5, "home"), 258: (257, "@snap")}


@pytest.fixture(scope="module")
def image() -> bytes:
    return btrfs_image(LAYOUT, NAMES)


@pytest.fixture
def disk(image: bytes) -> Disk:
    return MemoryDisk(image)


def test_every_compression_and_every_subvolume(disk: Disk) -> None:
    files = open_files(disk, name="partition 3", subvolume="root")
    assert files.name == "partition 3, subvolume root"
    assert {entry.path[1:] for entry in files.walk()} == set(ROOT)
    for name, entry in ROOT.items():
        if isinstance(entry, BtrfsFile):
            content = files.open(f"/{name}")
            expected = bytes(entry.hole) + entry.content
            assert content.read(0, content.size_bytes) == expected, name
            assert content.read(len(expected) // 2, 3) == expected[len(expected) // 2 :][:3], name
    link = files.lookup("/link", follow=False)
    assert link is not None
    assert (link.kind, link.link_target) == (FileKind.LINK, "zstd")
    assert files.read("/link") == TEXT


def test_the_default_subvolume_the_top_level_and_named_ones(disk: Disk) -> None:
    (volume,) = Volumes(disk, ())
    assert volume.files is not None
    assert [entry.path for entry in volume.files.entries()] == ["/@snap", "/user"]
    assert volume.open_files("/").read("/grub.cfg") == b"top"
    assert volume.open_files("/").read("/home/@snap/old") == b"snapshot"
    assert volume.open_files("home/@snap").read("/old") == b"snapshot"
    assert volume.open_files("/home/@snap/").name == "whole disk, subvolume home/@snap"
    for missing in ("rooot", "root/none", "home/user"):
        with pytest.raises(InputError, match="no subvolume"):
            volume.open_files(missing)


def test_all_subvolumes_are_listed(disk: Disk) -> None:
    from armvm.disk.files_btrfs import BtrfsFileSystem

    assert BtrfsFileSystem(disk, name="btrfs").subvolumes() == ("home", "home/@snap", "root")


def test_btrfs_progs_read_it_as_we_do(image: bytes, tmp_path: Path) -> None:
    path, target = tmp_path / "btrfs", tmp_path / "restored"
    path.write_bytes(image)
    target.mkdir()
    run("btrfs", "restore", "-S", "-r", "256", str(path), str(target))
    for name, entry in ROOT.items():
        if isinstance(entry, BtrfsFile):
            restored = (target / name).read_bytes()
            assert restored == bytes(entry.hole) + entry.content, name
    assert str((target / "link").readlink()) == "zstd"


@pytest.mark.parametrize("name", ["zlib", "zstd", "lzo"])
def test_packed_content_that_is_damaged_is_refused(disk: Disk, image: bytes, name: str) -> None:
    entry = ROOT[name]
    assert isinstance(entry, BtrfsFile)
    packed = pack(entry.content.ljust(-(-len(entry.content) // 4096) * 4096, b"\0"), name)
    at = image.find(packed)
    assert at > 0
    files = open_files(PatchedDisk(disk, (at, b"\xff" * 40)), name="btrfs", subvolume="root")
    with pytest.raises(InputError):
        files.read(f"/{name}")
    assert files.read("/none") == TEXT


@pytest.mark.parametrize(("compression", "name"), [(1, "zlib"), (2, "lzo"), (3, "zstd")])
def test_a_bomb_unpacks_to_what_an_extent_may_hold(compression: int, name: str) -> None:
    from armvm.disk.files_btrfs import _unpack

    bomb = pack(bytes(16 << 20 if name != "lzo" else 1 << 20), name)
    assert _unpack(bomb, compression, 4096, 128 << 10) == bytes(128 << 10)
    with pytest.raises(ValueError, match="unpacks to"):
        _unpack(bomb, compression, 4096, 1 << 40)
