from __future__ import annotations

import bz2
import gzip
import lzma
import time
from collections.abc import Callable

import lz4.frame
import pytest
import zstandard

from armvm.disk.decompress import Compression
from armvm.disk.files import FileKind, FileSystem
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError
from armvm.guest import initramfs as subject
from armvm.guest.initramfs import Initramfs, read_initramfs
from tools.initramfs_images import TRAILER, cpio, cpio_entry

PACKERS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.GZIP: gzip.compress,
    Compression.XZ: lzma.compress,
    Compression.ZSTD: lambda content: zstandard.ZstdCompressor().compress(content),
    Compression.LZ4: lz4.frame.compress,
    Compression.BZIP2: bz2.compress,
}
MICROCODE = {"kernel/x86/microcode/AuthenticAMD.bin": b"\x01" * 700}
SYSTEM: dict[str, bytes | str] = {
    "init": b"#!/bin/sh\n",
    "usr/lib/modules/6.1/kernel/a.ko": b"A" * 100_000,
    "lib": "usr/lib",
    "etc/fstab": b"UUID=1 / ext4\n",
}


def read(*parts: bytes) -> Initramfs:
    return read_initramfs([MemoryDisk(part, name=f"initrd {number}") for number, part in enumerate(parts)])


def test_a_tree() -> None:
    tree = read(cpio(SYSTEM))
    assert isinstance(tree, FileSystem)
    assert tree.complete
    assert not tree.problems
    assert tree.read("/etc/fstab") == b"UUID=1 / ext4\n"
    assert tree.read("/lib/modules/6.1/kernel/a.ko") == b"A" * 100_000
    assert [entry.name for entry in tree.entries("/")] == ["etc", "init", "lib", "usr"]
    found = tree.lookup("/lib", follow=False)
    assert found is not None
    assert (found.kind, found.link_target) == (FileKind.LINK, "usr/lib")


@pytest.mark.parametrize("magic", [b"070701", b"070702"])
@pytest.mark.parametrize("compression", [None, *PACKERS])
@pytest.mark.parametrize("padding", [0, 4, 1000])
def test_microcode_first_then_the_system(compression: Compression | None, padding: int, magic: bytes) -> None:
    main = cpio(SYSTEM, magic=magic)
    tree = read(cpio(MICROCODE) + bytes(padding) + (PACKERS[compression](main) if compression else main) + bytes(512))
    assert tree.complete
    assert not tree.problems
    assert [segment.compression for segment in tree.segments] == ([None, compression] if compression else [None])
    assert tree.read("/etc/fstab") == b"UUID=1 / ext4\n"
    assert tree.open("/usr/lib/modules/6.1/kernel/a.ko").read(99_999, 1) == b"A"
    assert tree.read("/kernel/x86/microcode/AuthenticAMD.bin") == b"\x01" * 700


def test_large_files_are_not_kept() -> None:
    tree = read(gzip.compress(cpio({"big": b"B" * 5_000_000, "bigger": b"C" * 6_000_000})))
    assert tree._kept_bytes == 0
    assert tree.open("/bigger").read(5_999_990, 10) == b"C" * 10


def test_the_later_part_goes_over_the_earlier() -> None:
    tree = read(
        cpio({"a": b"1", "b": b"1", "c": "a", "d/e": b"1", "f": b""}),
        gzip.compress(cpio({"a": b"2", "b": "a", "c": b"2", "d": b"2", "f/g": b"2"})),
    )
    assert tree.read("/a") == b"2"
    assert tree.read("/b") == b"2"
    assert tree.read("/c") == b"2"
    assert tree.read("/d/e") == b"1"  # a folder with something in it stays, as in Linux
    assert tree.read("/f/g") == b"2"


def test_files_go_through_links_as_the_kernel_sends_them() -> None:
    tree = read(cpio({"usr/lib/x": b"", "lib": "usr/lib"}) + cpio_entry("lib/late.conf", b"late") + TRAILER)
    assert tree.read("/usr/lib/late.conf") == b"late"


def test_one_file_with_several_names() -> None:
    entries = [
        cpio_entry("one", inode=7, links=3),
        cpio_entry("two", inode=7, links=3),
        cpio_entry("three", b"content", inode=7, links=3),
        cpio_entry("other", b"other", inode=8, links=1),
    ]
    tree = read(b"".join(entries) + TRAILER)
    assert [tree.read(f"/{name}") for name in ("one", "two", "three", "other")] == [b"content"] * 3 + [b"other"]


def test_what_the_kernel_would_leave_out() -> None:
    tree = read(cpio_entry("no/folder", b"x") + cpio_entry("../out", b"x") + cpio_entry("in", b"x") + TRAILER)
    assert [entry.path for entry in tree.walk()] == ["/in"]
    assert [problem.code for problem in tree.problems] == ["initrd-no-folder", "initrd-path"]
    assert not any(problem.serious for problem in tree.problems)
    assert tree.complete


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b"junk and more of it", "junk"),
        (gzip.compress(cpio(SYSTEM))[:-30], "cut off"),
        (cpio(SYSTEM)[:-500], "cut off"),
        (cpio(SYSTEM)[:50], "damaged or cut off"),
        (cpio_entry("x").replace(b"07070100000001", b"070701zzzzzzzz"), "no number"),
        (cpio_entry("x")[:94] + b"00010000" + cpio_entry("x")[102:], "longer than 4096"),
        (gzip.compress(b"no archive at all, but long enough", mtime=0), "junk in gzip data"),
        (b"070707" + bytes(200), "layout that Linux does not read"),
        (b"hsqs" + bytes(200), "junk"),
    ],
)
def test_a_bad_tail_leaves_what_came_before(tail: bytes, message: str) -> None:
    tree = read(cpio({"first": b"1"}) + tail)
    assert tree.read("/first") == b"1"
    assert not tree.complete
    assert len(tree.problems) == 1
    assert message in tree.problems[0].message
    assert "initrd 0" in tree.problems[0].evidence.where


def test_no_archive_at_all() -> None:
    for content in (b"hsqs" + bytes(500), b"\x7fELF" + bytes(500)):
        tree = read(content)
        assert not tree.complete
        assert "no cpio archive" in tree.problems[0].message
    assert read(b"").complete
    assert read(bytes(5000)).complete


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MOST_ENTRIES", 10)
    assert "too many files" in read(cpio({f"f{number}": b"" for number in range(11)})).problems[0].message
    monkeypatch.setattr(subject, "MOST_UNPACKED_BYTES", 1 << 20)
    tree = read(gzip.compress(cpio({"bomb": bytes(3 << 20)})))
    assert "unpacks to too much" in tree.problems[0].message
    assert "too many parts" in read(*[gzip.compress(cpio({})) for _ in range(65)]).problems[0].message


def test_a_huge_size_is_no_memory() -> None:
    entry = bytearray(cpio_entry("big", b""))
    entry[54:62] = b"7FFFFFFF"
    start = time.process_time()
    tree = read(bytes(entry))
    assert not tree.complete
    assert time.process_time() - start < 1


def test_links_in_circles_and_deep_folders() -> None:
    deep = "/".join(["d"] * 100)
    tree = read(cpio({"a": "b", "b": "a"}) + cpio_entry("a/x", b"") + cpio({deep: b""}))
    assert tree.lookup("/d/d") is not None
    assert {problem.code for problem in tree.problems} == {"initrd-no-folder", "initrd-path"}
    with pytest.raises(InputError, match="circles"):
        tree.lookup("/a")
    list(tree.walk())
