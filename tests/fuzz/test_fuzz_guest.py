"""Whatever an initial RAM disk, a kernel or a list of modules holds: a result or an InputError, within bounds."""

from __future__ import annotations

import gzip
from contextlib import suppress

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from armvm.disk.decompress import MAGICS, Compression, Member
from armvm.disk.files import FileKind
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError
from armvm.guest.check_drivers import DRIVER_CHECKS
from armvm.guest.initramfs import read_initramfs
from armvm.guest.kernel import read_kernel
from armvm.guest.module_index import parse_index
from tools.initramfs_images import CONFIG, Guest, config_text, cpio, ikconfig, image, zboot, zimage

ARCHIVE = cpio({"etc/fstab": b"x" * 50, "lib": "usr/lib", "usr/lib/modules/6.1/a.ko": b"y" * 300})
KERNELS = [image(ikconfig(config_text(CONFIG)))[4000:], image()]
DAMAGE = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=12)), max_size=6)
PATHS = st.sampled_from(["a", "a/b", "./a", "/a/b/", "..", "a/../b", "a/b/c", "lib", "lib/x", "", "init"])


def spoilt(content: bytes, damage: list[tuple[int, bytes]]) -> bytes:
    result = bytearray(content)
    for place, noise in damage:
        at = place % max(len(result), 1)
        result[at : at + len(noise)] = noise
    return bytes(result)


@given(DAMAGE, st.integers(0, 3000), st.sampled_from([None, "gzip", "zstd"]))
@settings(max_examples=150, deadline=None)
def test_initial_ram_disks(damage: list[tuple[int, bytes]], cut: int, packing: str | None) -> None:
    inner = spoilt(ARCHIVE, damage)[: cut or None]
    if packing == "gzip":
        inner = gzip.compress(inner, 1)
    elif packing == "zstd":
        inner = zstandard.ZstdCompressor(1).compress(inner)
    for content in (ARCHIVE + inner, spoilt(ARCHIVE + inner, damage)):
        tree = read_initramfs([MemoryDisk(content)])
        assert tree.complete or tree.problems
        for entry in tree.walk():
            if entry.kind is FileKind.FILE and entry.size_bytes < 1 << 20:
                with suppress(InputError):
                    assert len(tree.read(entry)) == entry.size_bytes


@given(st.lists(st.tuples(PATHS, st.one_of(st.binary(max_size=9), PATHS)), max_size=12))
@settings(max_examples=150, deadline=None)
def test_trees(entries: list[tuple[str, bytes | str]]) -> None:
    parts = [cpio({path: content}) for path, content in entries]
    tree = read_initramfs([MemoryDisk(b"".join(parts))])
    for entry in tree.walk():
        assert tree.lookup(entry.path, follow=False) == entry
        assert ".." not in entry.path.split("/")


@given(st.sampled_from(Compression), st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_compressed_noise(compression: Compression, noise: bytes) -> None:
    if compression is Compression.LZO:
        return
    total = 0
    with suppress(InputError):
        for piece in Member(MemoryDisk(MAGICS[compression] + noise), 0, compression):
            total += len(piece)
            if total > 1 << 24:
                break


@given(st.sampled_from(KERNELS), st.sampled_from(["plain", "gzip", "zboot", "zimage"]), DAMAGE)
@settings(max_examples=100, deadline=None)
def test_kernels(kernel: bytes, packaging: str, damage: list[tuple[int, bytes]]) -> None:
    packed = gzip.compress(kernel, 1)
    content = {"plain": kernel, "gzip": packed, "zboot": zboot(packed, "gzip"), "zimage": zimage(packed)}[packaging]
    with suppress(InputError):
        facts = read_kernel(MemoryDisk(spoilt(content, damage)), marks=[b"Linux"])
        assert facts.marks() <= {b"Linux"}
        assert facts.version is None or facts.version
        assert facts.config is None or facts.config.values


@given(st.binary(max_size=300), DAMAGE)
@settings(max_examples=150, deadline=None)
def test_lists_of_modules(noise: bytes, damage: list[tuple[int, bytes]]) -> None:
    head = (0xB007F457).to_bytes(4, "big") + (2 << 16 | 1).to_bytes(4, "big")
    with suppress(InputError):
        parse_index(spoilt(head + b"\x20\0\0\x0c" + noise, damage), "list")


@given(DAMAGE, DAMAGE)
@settings(max_examples=40, deadline=None)
def test_whole_guests(in_initrd: list[tuple[int, bytes]], in_kernel: list[tuple[int, bytes]]) -> None:
    guest = Guest()
    damaged = spoilt(guest.initrd(), in_initrd)
    guest.kernel = spoilt(guest.kernel, in_kernel)
    guest.initrd = lambda: damaged  # type: ignore[method-assign]  # what the guest has instead
    kernel = guest.load()
    for check in DRIVER_CHECKS.values():
        check([kernel])
