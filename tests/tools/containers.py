"""Disk containers for tests: made by QEMU's own programs, or by hand where a sound program would not make them."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

from armvm.disk.storage import Disk, Extent

MIB = 1 << 20
CLUSTER = 65536


def qemu_img(*arguments: str | Path) -> str:
    """Run qemu-img, which must succeed; what it printed."""
    command = ["qemu-img", *(str(argument) for argument in arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def qemu_io(image: Path, *commands: str, format: str = "qcow2") -> None:
    """Run qemu-io commands on an image; every one must succeed."""
    arguments = [word for command in commands for word in ("-c", command)]
    command = ["qemu-io", "-f", format, *arguments, str(image)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def scattered_raw(path: Path, size_bytes: int, *, seed: int = 1, pieces: int = 40) -> bytes:
    """A sparse raw image with random pieces, compressible ones, and data in its first and last sector."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for number in range(pieces):
            length = min(chance.randrange(1, 70_000), size_bytes)
            file.seek(chance.randrange(size_bytes - length + 1))
            file.write(chance.randbytes(length) if number % 2 else b"armvm" * (length // 5))
        for offset in (0, size_bytes - 512):
            file.seek(offset)
            file.write(chance.randbytes(512))
    return path.read_bytes()


def converted(source: Path, target: Path, format: str, *options: str) -> Path:
    """``source``, a raw image, in another format by ``qemu-img convert``."""
    qemu_img("convert", "-f", "raw", "-O", format, *options, source, target)
    return target


def assert_reads_as(disk: Disk, content: bytes, *, seed: int = 1) -> None:
    """Read all of ``disk`` whole, in pieces and by its extents: ``content`` and then zeros."""
    content = content.ljust(disk.size_bytes, b"\0")
    assert disk.read(0, disk.size_bytes) == content
    chance = random.Random(seed)
    for _ in range(200):
        start = chance.randrange(disk.size_bytes)
        length = chance.randrange(min(disk.size_bytes - start, 200_000) + 1)
        assert disk.read(start, length) == content[start : start + length]
    assert_sound_extents(list(disk.extents()), content)


def assert_sound_extents(extents: list[Extent], content: bytes) -> None:
    """The extents cover all of ``content`` in order, and what they call no data is zeros."""
    position = 0
    for extent in extents:
        assert extent.offset == position
        assert extent.length > 0
        position += extent.length
        assert extent.data or not any(content[extent.offset : position])
    assert position == len(content)


def patch(path: Path, offset: int, content: bytes) -> None:
    """Overwrite bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def qcow2_header(
    *,
    version: int = 3,
    backing: tuple[int, int] = (0, 0),
    cluster_bits: int = 16,
    size_bytes: int = MIB,
    encryption: int = 0,
    l1: tuple[int, int] = (1, CLUSTER),
    incompatible: int = 0,
    header_length: int = 104,
    after: bytes = b"",
) -> bytes:
    """A qcow2 header by hand; ``backing`` is offset and length, ``l1`` entries and offset."""
    base = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, *backing, cluster_bits, size_bytes, encryption, *l1, 0, 0, 0, 0
    )
    return base + (struct.pack(">QQQII", incompatible, 0, 0, 4, header_length) if version != 2 else b"") + after


def qcow2_extension(kind: int, content: bytes) -> bytes:
    """One header extension."""
    return struct.pack(">II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8, b"\0")


def handmade_qcow2(path: Path, header: bytes, l1: list[int], l2: list[int], *, clusters: int = 5) -> Path:
    """Header in cluster 0, L1 table in 1, L2 table in 2, then clusters full of their own number."""
    parts = [header, struct.pack(f">{len(l1)}Q", *l1), struct.pack(f">{len(l2)}Q", *l2)]
    parts += [bytes([number]) * CLUSTER for number in range(3, clusters)]
    path.write_bytes(b"".join(part.ljust(CLUSTER, b"\0") for part in parts))
    return path
