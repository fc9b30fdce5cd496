"""Damaged file systems of every kind: what they come to is files or an InputError, soon, and in little memory."""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from armvm.disk.ext_format import ExtInode
from armvm.disk.files import FileKind, FileSystem
from armvm.disk.filesystems import detect_content, open_files
from armvm.disk.guarded import MOST_SECONDS
from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import InputError
from armvm.units import GIB, KIB, MIB
from tools import file_trees
from tools.fat_images import PatchedDisk
from tools.file_trees import debugfs, ext_image

HOSTILE_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
MOST_MEMORY = 200 * MIB
PATHS = ("/etc/os-release", "/lib/os-release", "/boot/grub/grub.cfg", "/medium", "/large", "/long-link", "/sparse")
ROUNDS = {"ext2": 120, "ext4": 120, "squashfs": 60, "btrfs": 50, "xfs": 50}
SECONDS = {"ext2": 1.0, "ext4": 1.0}


def small_tree(folder: Path) -> Path:
    tree = file_trees.make_tree(folder / "tree", entries=40)
    (tree / "fragmented").unlink()
    return tree


MAKERS: dict[str, Callable[[Path, Path], Path]] = {
    "ext2": lambda path, tree: ext_image(path, tree, "-t", "ext2", "-b", "1024", size_bytes=8 * MIB),
    "ext4": lambda path, tree: ext_image(path, tree, "-t", "ext4", "-O", "inline_data", size_bytes=16 * MIB),
    "squashfs": lambda path, tree: file_trees.squashfs_image(path, tree, "gzip"),
    "btrfs": file_trees.btrfs_image,
    "xfs": file_trees.xfs_image,
}


@pytest.fixture(scope="module", params=MAKERS)
def sound(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Disk, list[int]]]:
    """A sound file system with the places, in pages, that hold anything: where damage does something."""
    folder = tmp_path_factory.mktemp(request.param)
    image = MAKERS[request.param](folder / "image", small_tree(folder))
    with RawDisk(image) as disk:
        yield request.param, disk, _used_pages(image)


def _used_pages(image: Path) -> list[int]:
    pages = []
    with image.open("rb") as file:
        position, end = 0, image.stat().st_size
        while position < end:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA) // 4096 * 4096
            except OSError:
                break
            hole = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            for page in range(position, hole, 4096):
                file.seek(page)
                content = file.read(4096)
                # Files are of random bytes or of one line: what is neither is likely to be the file system's own.
                if 0 < content.count(0) < 4096 and content.count(0) > 64:
                    pages.append(page)
            position = max(hole, position + 4096)
    return pages


def damaged(disk: Disk, pages: list[int], source: random.Random) -> Disk:
    patches = []
    for _ in range(source.choice((1, 2, 4, 16, 200))):
        page = source.choice(pages)
        place = page + source.randrange(min(4096, disk.size_bytes - page))
        value = bytes([source.choice(HOSTILE_BYTES)]) * source.choice((1, 1, 2, 4, 8))
        patches.append((place, value))
    size_bytes = source.randrange(disk.size_bytes) if source.random() < 0.08 else disk.size_bytes
    return PatchedDisk(disk, *patches, size_bytes=size_bytes)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """No more address space than what is in use, and 200 MiB: a blow-up is a MemoryError that fails the test."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Clock:
    """Each question ends within its time."""

    def __init__(self, kind: str) -> None:
        self.most_seconds = SECONDS.get(kind, MOST_SECONDS + 1)
        self.asked = self.answered = 0

    @contextmanager
    def question(self) -> Iterator[None]:
        start = time.process_time()
        self.asked += 1
        with suppress(InputError):
            yield
            self.answered += 1
        assert time.process_time() - start < self.most_seconds


def use(disk: Disk, kind: str, clock: Clock) -> None:
    """What an audit asks of a file system."""
    files: FileSystem | None = None
    with clock.question():
        detect_content(disk)
    with clock.question():
        files = open_files(disk, name=kind)
    if files is None:
        return
    for path in PATHS:
        with clock.question():
            entry = files.lookup(path)
            if entry is not None and entry.kind is FileKind.FILE:
                content = files.open(entry)
                content.read(0, min(content.size_bytes, 256 * KIB))
                content.read(max(content.size_bytes - 5, 0), min(content.size_bytes, 5))
    for path in ("/", "/many", "/etc"):
        with clock.question():
            files.entries(path)
    if kind.startswith("ext"):
        with clock.question():
            for _ in files.walk("/"):
                pass


def test_damage_comes_to_an_input_error(sound: tuple[str, Disk, list[int]]) -> None:
    kind, disk, pages = sound
    assert len(pages) > 2
    use(disk, kind, Clock(kind))  # what is imported is imported
    clock = Clock(kind)
    with bounded_memory():
        for seed in range(ROUNDS[kind]):
            use(damaged(disk, pages, random.Random(seed)), kind, clock)
    assert 0.05 < clock.answered / clock.asked < 0.98  # some of the damage matters, and does not spoil everything


def test_noise_behind_a_sound_superblock(sound: tuple[str, Disk, list[int]]) -> None:
    kind, disk, _ = sound
    head = 68 * KIB if kind == "btrfs" else 4096
    size_bytes = min(disk.size_bytes, 2 * MIB)
    for seed in range(5):
        noise = random.Random(seed).randbytes(size_bytes - head)
        use(PatchedDisk(disk, (head, noise), size_bytes=size_bytes), kind, Clock(kind))


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    return ext_image(tmp_path / "ext4", small_tree(tmp_path), "-t", "ext4", "-b", "4096", size_bytes=16 * MIB)


def patched_inode(image: Path, path: str, at: int, value: bytes) -> Disk:
    """The image with bytes of a file's 60-byte block map changed."""
    content = image.read_bytes()
    disk = MemoryDisk(content)
    entry = open_files(disk, name="ext").lookup(path)
    assert entry is not None
    assert isinstance(entry.node, ExtInode)
    place = content.find(entry.node.block)
    assert content.count(entry.node.block) == 1
    return PatchedDisk(disk, (place + at, value))


HEADER = bytes.fromhex("0af3 0100 0400 0000 00000000")


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, b"\0\0", "damaged"),
        (2, b"\xff\xff", "damaged"),
        (6, b"\x06\0", "6 levels"),
        (6, b"\x01\0", "outside|damaged"),  # the extent taken for an index
        (16, b"\0\0", "empty"),
        (16, b"\xff\x7f", "outside the file system"),
        (18, b"\xff\xff", "outside the file system"),
        (0, HEADER + b"\0\0\0\0\1\0\0\0\0\0\0\0", "outside the file system"),  # block 0
    ],
)
def test_lying_extents(ext4: Path, at: int, value: bytes, why: str) -> None:
    with patched_inode(ext4, "/large", at, value) as disk:
        files = open_files(disk, name="ext")
        with pytest.raises(InputError, match=why):
            files.read("/large")
        assert files.read("/etc/os-release")


def test_an_extent_tree_that_points_at_itself(ext4: Path) -> None:
    block = 3000
    node = HEADER[:6] + b"\1\0\0\0\0\0" + b"\0\0\0\0" + block.to_bytes(4, "little") + bytes(4)
    with patched_inode(ext4, "/large", 0, node) as first:
        files = open_files(PatchedDisk(first, (block * 4096, node)), name="ext")
        with pytest.raises(InputError, match="damaged, level 0"):
            files.read("/large")


@pytest.mark.parametrize("size", ["0x7fffffffffffffff", "0xffffffffff000"])
def test_huge_sizes_are_refused_or_read_in_parts(ext4: Path, size: str) -> None:
    debugfs(ext4, f"sif /large size {size}", f"sif /etc size {size}", f"sif /long-link size {size}", write=True)
    with RawDisk(ext4) as disk, bounded_memory():
        files = open_files(disk, name="ext")
        with pytest.raises(InputError, match=r"size is impossible|too large to be read whole"):
            files.read("/large")
        with pytest.raises(InputError, match="directory is too large"):
            files.entries("/etc")
        with pytest.raises(InputError, match="length is impossible"):
            files.lookup("/long-link")


def test_folders_that_lead_back_end(ext4: Path) -> None:
    debugfs(ext4, "link /deep /deep/a/b/back", "link / /etc/root", write=True)
    with RawDisk(ext4) as disk:
        files = open_files(disk, name="ext")
        assert files.read("/deep/a/b/back/a/b/back" + "/.." * 7 + "/etc/root/etc/os-release")
        with pytest.raises(InputError, match="was there already"):
            list(files.walk("/"))


def test_a_sparse_file_larger_than_memory_is_read_in_parts(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "huge").open("wb") as file:
        file.seek(500 * GIB)
        file.write(b"end")
    image = ext_image(tmp_path / "ext4", tree, "-t", "ext4", size_bytes=16 * MIB)
    with RawDisk(image) as disk, bounded_memory():
        content = open_files(disk, name="ext").open("/huge")
        assert content.read(500 * GIB - 1, 4) == b"\0end"
        assert sum(extent.length for extent in content.extents() if extent.data) == 3
