from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import lz4.block
import lz4.frame
import pytest
import zstandard

from armvm.disk.decompress import Compression, Member, recognise, unpack, unpack_bytes
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError, MissingError

CONTENT = os.urandom(300_000) + bytes(9_200_000)


def lz4_legacy(content: bytes) -> bytes:
    packed = b"\x02\x21\x4c\x18"
    for start in range(0, len(content), 8 << 20):
        block = lz4.block.compress(content[start : start + (8 << 20)], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed


def lzop(content: bytes) -> bytes:
    return subprocess.run(["lzop", "-c"], input=content, capture_output=True, check=True).stdout


PACKERS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.GZIP: lambda content: gzip.compress(content, 1),
    Compression.XZ: lambda content: lzma.compress(content, check=lzma.CHECK_CRC32, preset=0),
    Compression.LZMA: lambda content: lzma.compress(content, lzma.FORMAT_ALONE, preset=0),
    Compression.ZSTD: lambda content: zstandard.ZstdCompressor(write_checksum=True).compress(content),
    Compression.LZ4: lz4.frame.compress,
    Compression.LZ4_LEGACY: lz4_legacy,
    Compression.BZIP2: lambda content: bz2.compress(content, 1),
    Compression.LZO: lzop,
}


@cache
def packed_content(compression: Compression) -> bytes:
    return PACKERS[compression](CONTENT)


@pytest.mark.parametrize("compression", Compression)
def test_there_and_back(compression: Compression) -> None:
    packed = packed_content(compression)
    assert recognise(packed) is compression
    for behind in (b"", bytes(12) + b"070701" * 20, packed):
        member = Member(MemoryDisk(b"123" + packed + behind), 3)
        pieces = list(member)
        assert b"".join(pieces) == CONTENT
        assert member.end == 3 + len(packed)
        assert max(map(len, pieces)) <= 8 << 20


@pytest.mark.parametrize("compression", Compression)
def test_nothing_packed(compression: Compression) -> None:
    packed = PACKERS[compression](b"")
    assert unpack_bytes(packed, most_bytes=0, name="nothing") == b""


@pytest.mark.parametrize("compression", Compression)
def test_damage_is_named(compression: Compression) -> None:
    packed = PACKERS[compression](CONTENT[:400_000])
    for size in (len(packed) - 1, len(packed) // 2, 12, 10):
        if size > 12 or compression is not Compression.LZ4_LEGACY:
            with pytest.raises(InputError, match=r"it\.img"):
                unpack_bytes(packed[:size], most_bytes=1 << 30, name="it.img")
    if compression in {Compression.GZIP, Compression.XZ, Compression.ZSTD, Compression.BZIP2, Compression.LZO}:
        place = len(packed) // 2
        spoilt = packed[:place] + bytes([packed[place] ^ 0x55, packed[place + 1] ^ 0xAA]) + packed[place + 2 :]
        with pytest.raises(InputError, match="damaged"):
            unpack_bytes(spoilt, most_bytes=1 << 30, name="it.img")


@pytest.mark.parametrize("compression", Compression)
def test_a_bomb_is_stopped(compression: Compression) -> None:
    packed = PACKERS[compression](bytes(24 << 20))
    start = time.process_time()
    with pytest.raises(InputError, match="unpacks to too much"):
        unpack(MemoryDisk(packed, name="bomb"), most_bytes=1 << 20)
    assert time.process_time() - start < 1


def test_a_zstd_bomb_of_repeated_bytes_comes_in_pieces() -> None:
    block = struct.pack("<I", (128 << 10) << 3 | 1 << 1)[:3] + b"\0"  # 128 KiB of one byte in four bytes
    packed = b"\x28\xb5\x2f\xfd\x00\x58" + block * 20_000 + struct.pack("<I", 1)[:3]
    member = Member(MemoryDisk(packed))
    assert len(next(iter(member))) <= 1 << 20


def test_what_is_none_of_them() -> None:
    for noise in (b"", b"\x1f", b"070701", b"hsqs" + bytes(60)):
        assert recognise(noise) is None
        with pytest.raises(InputError, match="no compressed format"):
            Member(MemoryDisk(noise))


def test_lzo_needs_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = lzop(b"content")
    monkeypatch.setattr(shutil, "which", lambda *_args, **_named: None)
    with pytest.raises(MissingError, match="lzop is not installed"):
        unpack_bytes(packed, most_bytes=100, name="it.img")


def test_lzo_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    member = iter(Member(MemoryDisk(packed_content(Compression.LZO))))
    next(member)
    assert list(tmp_path.iterdir())
    member.close()  # type: ignore[attr-defined]  # a generator
    assert not list(tmp_path.iterdir())
