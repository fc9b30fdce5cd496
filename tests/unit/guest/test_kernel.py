from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable

import lz4.frame
import pytest
import zstandard

from armvm.disk.decompress import Compression
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.guest.kernel import KernelFormat, read_kernel
from armvm.guest.kernel_config import KernelConfig, Setting
from tools.initramfs_images import CONFIG, RELEASE, banner, config_text, ikconfig, image, zboot, zimage

PACKERS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.GZIP: gzip.compress,
    Compression.XZ: lzma.compress,
    Compression.LZMA: lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    Compression.ZSTD: lambda content: zstandard.ZstdCompressor().compress(content),
    Compression.LZ4: lz4.frame.compress,
    Compression.BZIP2: bz2.compress,
}
WORDS = bytes(100_000) + b"uart-pl011\0" + ikconfig(config_text(CONFIG))


def disk(content: bytes) -> MemoryDisk:
    return MemoryDisk(content, name="vmlinuz")


@pytest.mark.parametrize("compression", PACKERS)
def test_every_packaging(compression: Compression) -> None:
    plain, pack = image(WORDS), PACKERS[compression]
    for content, state, packaging, packed in (
        (plain, ExecutionState.AARCH64, KernelFormat.IMAGE, None),
        (pack(plain), ExecutionState.AARCH64, KernelFormat.PACKED_IMAGE, compression),
        (zboot(pack(plain), "any"), ExecutionState.AARCH64, KernelFormat.ZBOOT, compression),
        (zboot(pack(plain), "any", 0x01C2), ExecutionState.AARCH32, KernelFormat.ZBOOT, compression),
        (zimage(pack(plain)), ExecutionState.AARCH32, KernelFormat.ZIMAGE, compression),
    ):
        kernel = read_kernel(disk(content), marks=[b"uart-pl011", b"no such words"])
        assert (kernel.state, kernel.format, kernel.compression) == (state, packaging, packed)
        assert kernel.version == RELEASE
        assert kernel.marks() == {b"uart-pl011"}
        assert kernel.config is not None
        assert kernel.config.setting("VIRTIO_BLK") is Setting.MODULE


def test_words_across_pieces() -> None:
    for place in range((1 << 20) - 4220, (1 << 20) - 4090, 13):
        content = image(release=None) + bytes(place - 600) + banner() + b"mark" + ikconfig(config_text(CONFIG))
        kernel = read_kernel(disk(content), marks=[b"mark"])
        assert kernel.marks() == {b"mark"}
        assert kernel.config is not None
        assert read_kernel(disk(content)).version == RELEASE


def test_magic_numbers_inside_the_decompressor() -> None:
    decoys = b"\xfd7zXZ\0 no, it is not" + b"\x1f\x8b\x08" + bytes(40) + b"\x5d\0\0" + bytes(40)
    kernel = read_kernel(disk(zimage(decoys + lzma.compress(image(WORDS)))))
    assert kernel.compression is Compression.XZ
    assert kernel.version == RELEASE


def test_a_kernel_without_words() -> None:
    kernel = read_kernel(disk(image(b"IKCFG_ST", b"IKCFG_ED", release=None)), marks=[b"x" * 8])
    assert kernel.version is None
    assert kernel.config is None
    assert not kernel.marks()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no Linux kernel for ARM"),
        (b"MZ" + bytes(4000), "no Linux kernel for ARM"),
        (b"MZ" + bytes(0x200) + b"HdrS" + bytes(500), "an x86 kernel"),
        (gzip.compress(b"no kernel", mtime=0), "no Linux kernel for ARM"),
        (gzip.compress(image())[:40], "cut off"),
        (zboot(gzip.compress(image()), "gzip", 0x8664), "PE machine type 0x8664"),
        (zboot(gzip.compress(image()), "gzip")[:600], "reaches outside"),
        (zboot(b"unknown", "brotli"), "unknown compression: found brotli"),
    ],
)
def test_what_is_no_kernel(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_kernel(disk(content))


def test_a_kernel_that_is_cut_off() -> None:
    content = zboot(gzip.compress(image(WORDS)), "gzip")
    kernel = read_kernel(disk(content[:0x0C] + (300).to_bytes(4, "little") + content[0x10:]))
    with pytest.raises(InputError, match="cut off"):
        kernel.marks()


def test_a_configuration() -> None:
    text = (
        '# Linux/arm64 6.1.0 Kernel Configuration\nCONFIG_ARM64=y\nCONFIG_A=m\n# CONFIG_B is not set\nCONFIG_C="x y"\n'
    )
    config = KernelConfig.parse(text + "CONFIG_D=0x10\n", "config")
    assert [config.setting(symbol) for symbol in "ABCE"] == [Setting.MODULE, Setting.OFF, Setting.OFF, Setting.OFF]
    assert (config.value("C"), config.value("D"), config.value("B")) == ("x y", "0x10", None)
    assert config.is_for(ExecutionState.AARCH64)
    assert not config.is_for(ExecutionState.AARCH32)
    for bad, message in (("", "no kernel configuration"), ("CONFIG_X86=y\n", "no kernel"), (text[:-3], "cut off")):
        with pytest.raises(InputError, match=message):
            KernelConfig.parse(bad, "config")
