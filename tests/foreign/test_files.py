"""Files by path on the file systems that the usual tools make: every byte, link and name as the source tree has it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from armvm.disk.files import FileKind, FileSystem
from armvm.disk.files_ext import ExtFileSystem
from armvm.disk.filesystems import Content, detect_content, open_files
from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.units import MIB
from tools import file_trees
from tools.file_trees import UUID, debugfs, ext_image, run

EXT_FLAVOURS = {
    "ext2, 1 KiB blocks": ("-t", "ext2", "-b", "1024"),
    "ext2, no types": ("-t", "ext2", "-b", "1024", "-O", "^filetype", "-I", "128"),
    "ext2, revision 0": ("-t", "ext2", "-r", "0", "-b", "1024"),
    "ext3, 4 KiB blocks": ("-t", "ext3", "-b", "4096"),
    "ext4": ("-t", "ext4"),
    "ext4, 1 KiB blocks, old": ("-t", "ext4", "-b", "1024", "-O", "^64bit,^metadata_csum,^flex_bg"),
    "ext4, inline data": ("-t", "ext4", "-O", "64bit,inline_data,metadata_csum", "-I", "256"),
    "ext4, meta groups": ("-t", "ext4", "-b", "1024", "-g", "512", "-O", "meta_bg,^resize_inode,64bit"),
    "ext4, meta groups, no 64bit": ("-t", "ext4", "-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode,^64bit"),
    "ext4, 64 KiB blocks": ("-t", "ext4", "-b", "65536"),
    "ext4, bigalloc": ("-t", "ext4", "-O", "bigalloc", "-C", "16384"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return file_trees.make_tree(tmp_path_factory.mktemp("source") / "tree")


def require_same(files: FileSystem, tree: Path) -> None:
    """Everything that is in ``tree`` is in ``files``, byte for byte, and nothing else but ``lost+found``."""
    found = set()
    for entry in files.walk("/"):
        if entry.path.startswith("/lost+found"):
            continue
        found.add(entry.path)
        source = tree / entry.path[1:]
        if entry.kind is FileKind.LINK:
            assert entry.link_target == str(source.readlink())
        elif entry.kind is FileKind.FILE:
            content = files.open(entry)
            assert content.size_bytes == entry.size_bytes == source.stat().st_size
            assert content.read(0, content.size_bytes) == source.read_bytes(), entry.path
            middle, length = entry.size_bytes // 3, min(9000, entry.size_bytes // 2)
            assert content.read(middle, length) == source.read_bytes()[middle : middle + length]
            assert sum(extent.length for extent in content.extents()) == entry.size_bytes
        else:
            assert entry.kind is FileKind.FOLDER
            assert source.is_dir()
    assert found == {f"/{path.relative_to(tree)}" for path in tree.rglob("*")}
    for path in ("/lib/os-release", "boot/../etc/os-release"):
        assert files.read(path) == (tree / "etc/os-release").read_bytes()
    assert files.lookup("/dangling") is None
    assert files.lookup("/many/entry-300") is None
    with pytest.raises(InputError, match="circles"):
        files.lookup("/loop")


@pytest.mark.parametrize("flavour", EXT_FLAVOURS)
def test_every_flavour_of_ext(tree: Path, tmp_path: Path, flavour: str) -> None:
    options = EXT_FLAVOURS[flavour]
    size_bytes = 160 * MIB if "65536" in options else 48 * MIB
    image = ext_image(tmp_path / "ext", tree, *options, size_bytes=size_bytes)
    with RawDisk(image) as disk:
        content = detect_content(disk)
        assert content is not None
        files = open_files(disk, name="partition 2")
        if "inline" not in flavour:  # mke2fs 1.47 itself cuts sparse files short with inline_data
            require_same(files, tree)
        else:
            for name in ("tiny", "medium", "large", "etc/os-release", "many/entry-7"):
                assert files.read(f"/{name}") == (tree / name).read_bytes()
            assert [entry.name for entry in files.entries("/usr/lib")] == ["os-release"]
            assert "medium" in debugfs(image, "ls /")
        require_as_debugfs_has_it(files, image, tmp_path / "dumped")


def require_as_debugfs_has_it(files: FileSystem, image: Path, target: Path) -> None:
    target.mkdir()
    debugfs(image, f"rdump / {target}")
    for entry in files.walk("/"):
        dumped = target / entry.path[1:]
        if entry.kind is FileKind.FILE:
            content = files.read(entry)  # debugfs 1.47 gives inline data with the zeros behind them
            assert content == dumped.read_bytes()[: len(content)], entry.path
            assert not dumped.read_bytes()[len(content) :].strip(b"\0")
            assert entry.mode == stat.S_IMODE(dumped.stat().st_mode)
        elif entry.kind is FileKind.LINK:
            assert entry.link_target == str(dumped.readlink())


def test_what_only_a_triple_indirect_block_reaches(tmp_path: Path) -> None:
    source = tmp_path / "far"
    source.mkdir()
    file_trees.far_file(source)
    image = ext_image(tmp_path / "ext", source, "-t", "ext2", "-b", "1024", size_bytes=16 * MIB)
    with RawDisk(image) as disk:
        content = open_files(disk, name="far").open("/far")
        assert content.size_bytes == 70 * MIB + 8
        assert content.read(70 * MIB - 2, 10) == b"\0\0far away"
        assert content.read(0, 5) == b"near\0"
        assert [extent.length for extent in content.extents() if extent.data] == [1024, 8]


def test_a_hashed_folder_of_5000_entries(tmp_path: Path) -> None:
    tree = file_trees.make_tree(tmp_path / "tree", entries=5000)
    image = ext_image(tmp_path / "ext", tree, "-t", "ext4", "-b", "4096", size_bytes=64 * MIB)
    run("e2fsck", "-f", "-y", "-D", str(image), allowed=(0, 1))
    assert "Index" in debugfs(image, "htree_dump /many") or "Root node" in debugfs(image, "htree_dump /many")
    with RawDisk(image) as disk:
        files = open_files(disk, name="ext")
        assert len(files.entries("/many")) == 5000
        assert files.read("/many/entry-4999") == b"4999"
        assert files.lookup("/many/entry-5000") is None


def test_what_was_allocated_and_never_written_reads_as_zeros(tmp_path: Path) -> None:
    image = ext_image(tmp_path / "ext", None, "-t", "ext4", size_bytes=16 * MIB)
    with image.open("r+b") as file:  # every free block holds something else
        for offset in range(4 * MIB, 16 * MIB, 4096):
            file.seek(offset)
            if not file.read(4096).strip(b"\0"):
                file.seek(offset)
                file.write(b"old " * 1024)
    (tmp_path / "word").write_bytes(b"new")
    debugfs(image, f"write {tmp_path / 'word'} file", "fallocate /file 1 9", "sif /file size 40000", write=True)
    with RawDisk(image) as disk:
        files = open_files(disk, name="ext")
        assert files.read("/file") == b"new".ljust(40000, b"\0")


def test_an_encrypted_file_and_one_that_is_gone(tree: Path, tmp_path: Path) -> None:
    image = ext_image(tmp_path / "ext", tree, "-t", "ext4", "-O", "encrypt")
    debugfs(image, "sif /tiny flags 0x80800", "sif /etc/os-release mode 0", write=True)
    with RawDisk(image) as disk:
        files = open_files(disk, name="ext")
        with pytest.raises(InputError, match="fscrypt"):
            files.read("/tiny")
        with pytest.raises(InputError, match="not in use"):
            files.lookup("/etc/os-release")
        assert files.read("/boot/grub/grub.cfg")


def test_a_journal_that_was_not_written_back_is_known(tree: Path, tmp_path: Path) -> None:
    image = ext_image(tmp_path / "ext", tree, "-t", "ext4")
    with RawDisk(image) as disk:
        assert not ExtFileSystem(disk, name="ext").needs_recovery
    debugfs(image, "feature needs_recovery", write=True)
    with RawDisk(image) as disk:
        assert ExtFileSystem(disk, name="ext").needs_recovery


@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd", "lz4", "lzo"])
def test_squashfs(tree: Path, tmp_path: Path, compression: str) -> None:
    image = file_trees.squashfs_image(tmp_path / "squashfs", tree, compression)
    with RawDisk(image) as disk:
        require_same(open_files(disk, name="squashfs"), tree)


def test_btrfs(tree: Path, tmp_path: Path) -> None:
    image = file_trees.btrfs_image(tmp_path / "btrfs", tree)
    with RawDisk(image) as disk:
        files = open_files(disk, name="btrfs")
        require_same(files, tree)
        assert files.name == "btrfs"
        with pytest.raises(InputError, match="no subvolume"):
            open_files(disk, name="btrfs", subvolume="root")


@pytest.mark.parametrize(
    "options", [(), ("-b", "size=1024"), ("-m", "crc=0,finobt=0,reflink=0,rmapbt=0,inobtcount=0,bigtime=0")]
)
def test_xfs(tree: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    image = file_trees.xfs_image(tmp_path / "xfs", tree, *options)
    with RawDisk(image) as disk:
        if "size=1024" in str(options):  # its directory blocks are 4 KiB all the same
            with pytest.raises(InputError, match="directory blocks"):
                open_files(disk, name="xfs")
            return
        require_same(open_files(disk, name="xfs"), tree)


def blkid(image: Path) -> dict[str, str]:
    lines = run("blkid", "-p", "-o", "export", str(image)).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def content_of(disk: Disk) -> Content:
    content = detect_content(disk)
    assert content is not None
    return content


@pytest.mark.parametrize(
    ("size_mib", "command"),
    [
        (16, ["mke2fs", "-q", "-F", "-t", "ext2", "-L", "two"]),
        (16, ["mke2fs", "-q", "-F", "-t", "ext3", "-L", "three"]),
        (16, ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "four", "-U", UUID]),
        (16, ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^extents,^64bit,^flex_bg"]),
        (16, ["mke2fs", "-q", "-F", "-O", "journal_dev"]),
        (64, ["mkfs.vfat", "-F", "32", "-n", "EFISYS", "-i", "a1b2c3d4"]),
        (16, ["mkfs.vfat", "-F", "16", "-i", "0012ab00"]),
        (4, ["mkfs.vfat", "-F", "12", "-n", "Small"]),
        (320, ["mkfs.xfs", "-q", "-L", "xfs"]),
        (128, ["mkfs.btrfs", "-q", "-L", "butter"]),
        (16, ["mkswap", "-L", "swap"]),
        (16, ["mkswap", "-p", "65536", "-U", UUID]),
    ],
    ids=lambda value: " ".join(value[:1] + value[-3:]) if isinstance(value, list) else None,
)
def test_kind_label_and_uuid_are_what_blkid_says(tmp_path: Path, size_mib: int, command: list[str]) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(size_mib * MIB)
    run(*command, str(image))
    said = blkid(image)
    with RawDisk(image) as disk:
        content = content_of(disk)
    assert (content.kind, content.label, content.uuid) == (said["TYPE"], said.get("LABEL"), said.get("UUID"))


def test_erofs_is_named_and_not_read(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "erofs"
    run("mkfs.erofs", str(image), str(tree / "etc"))
    with RawDisk(image) as disk:
        assert content_of(disk).kind == blkid(image)["TYPE"] == "erofs"
        with pytest.raises(InputError, match="cannot read") as caught:
            open_files(disk, name="partition 3")
    assert caught.value.hint
