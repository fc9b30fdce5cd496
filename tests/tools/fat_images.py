"""Makers of FAT file systems for tests: good ones of each kind, and BROKEN, one for each problem that verify knows.

All are small in memory: FAT32 needs 33 MiB, which are holes in a composed disk (``save_sparse`` keeps them holes).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from armvm.disk.fat_write import FatFile, FatFolder, plan_fat32
from armvm.disk.storage import BaseDisk, Disk, MemoryDisk
from armvm.execution import ExecutionState
from armvm.units import MIB
from tools.pe_images import linux_kernel, make_pe

SAMPLE_FILES: Mapping[str, bytes] = {
    "EFI/BOOT/BOOTAA64.EFI": make_pe(tail=bytes(range(256)) * 4 + b"!"),
    "EFI/BOOT/BOOTARM.EFI": linux_kernel(ExecutionState.AARCH32, 512),
    "A long name.txt": b"long" * 300,
    "EMPTY": b"",
}
VOLUME_ID = 0x1234ABCD
TIMESTAMP = 1_700_000_000
FIRST_LBA = 2048

Patch = tuple[int, bytes]


class PatchedDisk(BaseDisk):
    """Another disk with some bytes changed."""

    def __init__(self, disk: Disk, *patches: Patch, size_bytes: int | None = None, sector_size: int | None = None):
        super().__init__(
            disk.name,
            disk.format,
            disk.size_bytes if size_bytes is None else size_bytes,
            sector_size or disk.sector_size,
        )
        self._disk = disk
        self._patches = patches

    def _read(self, offset: int, length: int) -> bytes:
        content = bytearray(self._disk.read(offset, length))
        for start, patch in self._patches:
            low, high = max(start, offset), min(start + len(patch), offset + length)
            if low < high:
                content[low - offset : high - offset] = patch[low - start : high - start]
        return bytes(content)


def save_sparse(disk: Disk, path: Path, *, step: int = 64 * 1024) -> Path:
    """Write a disk to a file, leaving zeros as holes."""
    with path.open("wb") as file:
        file.truncate(disk.size_bytes)
        for start in range(0, disk.size_bytes, step):
            content = disk.read(start, min(step, disk.size_bytes - start))
            if content.strip(b"\0"):
                file.seek(start)
                file.write(content)
    return path


def fat32_disk(
    files: Mapping[str, bytes] = SAMPLE_FILES,
    folders: tuple[str, ...] = (),
    *,
    size_bytes: int = 33 * MIB,
    sector_size: int = 512,
    label: str = "ESP",
) -> Disk:
    """A sound FAT32 file system. With 4096-byte sectors it needs 258 MiB."""
    tree: list[FatFile | FatFolder] = [FatFolder(path) for path in folders]
    tree += [FatFile(path, MemoryDisk(content)) for path, content in files.items()]
    return plan_fat32(
        size_bytes,
        sector_size,
        tree,
        label=label,
        volume_id=VOLUME_ID,
        timestamp=TIMESTAMP,
        hidden_sectors=FIRST_LBA,
    )


SMALL_FILES: Mapping[str, bytes] = {name: content for name, content in SAMPLE_FILES.items() if " " not in name}


def small_fat(bits: int, files: Mapping[str, bytes] = SMALL_FILES) -> bytes:
    """A sound FAT12 (100 clusters) or FAT16 (4100) file system with 8.3 names, made without the code under test."""
    clusters = {12: 100, 16: 4100}[bits]
    fat_sectors = -(-(clusters + 2) * bits // 8 // 512)
    root_entries = 64
    first_data = 1 + 2 * fat_sectors + root_entries * 32 // 512
    total = first_data + clusters
    data = bytearray(clusters * 512)
    fat = [0xF8 | ((1 << bits) - 256), (1 << bits) - 1] + [0] * clusters
    next_free = 2

    def store(content: bytes) -> int:
        nonlocal next_free
        first, count = next_free, -(-len(content) // 512)
        if not count:
            return 0
        data[(first - 2) * 512 : (first - 2) * 512 + len(content)] = content
        fat[first : first + count] = [*range(first + 1, first + count), (1 << bits) - 1]
        next_free += count
        return first

    def slot(name: str, attributes: int, cluster: int, size: int) -> bytes:
        base, _, extension = (name, "", "") if name in (".", "..") else name.partition(".")
        packed = f"{base:8}{extension:3}".encode("ascii")
        return struct.pack("<11sB10xHHHI", packed, attributes, 0, 1 << 5 | 1, cluster, size)

    def folder(prefix: str, parent: int | None) -> bytes:
        names = dict.fromkeys(path[len(prefix) :].split("/")[0] for path in files if path.startswith(prefix))
        own, slots = 0, []
        if parent is not None:
            own = store(b"\0" * 512)
            slots = [slot(".", 0x10, own, 0), slot("..", 0x10, parent, 0)]
        for name in names:
            content = files.get(prefix + name)
            if content is None:
                slots.append(slot(name, 0x10, int.from_bytes(folder(f"{prefix}{name}/", own)), 0))
            else:
                slots.append(slot(name, 0x20, store(content), len(content)))
        if parent is None:
            return b"".join(slots)
        joined = b"".join(slots)
        data[(own - 2) * 512 : (own - 2) * 512 + len(joined)] = joined
        return own.to_bytes(4)

    root = folder("", None).ljust(root_entries * 32, b"\0")
    packed = sum(value << bits * index for index, value in enumerate(fat))
    table = packed.to_bytes(fat_sectors * 512, "little")
    boot = struct.pack(
        "<3s8sHBHBHHBHHHIIBBBI11s8s",
        *(b"\xeb\x3c\x90", b"TESTMADE", 512, 1, 1, 2, root_entries, total, 0xF8, fat_sectors, 63, 255),
        *(FIRST_LBA, 0, 0x80, 0, 0x29, VOLUME_ID, b"NO NAME    ", f"FAT{bits}   ".encode("ascii")),
    )
    return boot.ljust(510, b"\0") + b"\x55\xaa" + table + table + root + data


class Sample:
    """The places in the sound FAT32 file system ``fat32_disk()`` that the makers of broken ones change."""

    def __init__(self, disk: Disk | None = None) -> None:
        self.disk = disk or fat32_disk()
        boot = self.disk.read(0, 512)
        self.reserved = int.from_bytes(boot[14:16], "little")
        self.fat_sectors = int.from_bytes(boot[36:40], "little")
        self.data_offset = (self.reserved + 2 * self.fat_sectors) * 512
        self._data = self.disk.read(self.data_offset, 64 * 1024)

    def boot(self, offset: int, value: bytes) -> tuple[Patch, ...]:
        """Change the boot sector and its backup."""
        return (offset, value), (6 * 512 + offset, value)

    def fat(self, cluster: int, value: int) -> tuple[Patch, ...]:
        """Change an entry in both tables."""
        raw = struct.pack("<I", value)
        return tuple(((self.reserved + table * self.fat_sectors) * 512 + 4 * cluster, raw) for table in (0, 1))

    def slot_offset(self, short_name: bytes) -> int:
        """Where an entry stands."""
        return self.data_offset + self._data.index(short_name)

    def cluster(self, short_name: bytes) -> int:
        """The first cluster of an entry."""
        halves: tuple[int, int] = struct.unpack_from("<H4xH", self._data, self._data.index(short_name) + 20)
        return halves[0] << 16 | halves[1]

    def slot(self, short_name: bytes, offset: int, value: bytes) -> Patch:
        """Change a byte range of an entry."""
        return self.slot_offset(short_name) + offset, value

    def patched(self, *patches: Patch) -> Disk:
        """The file system with these changes."""
        return PatchedDisk(self.disk, *patches)


_AA64 = b"BOOTAA64EFI"
_ARM = b"BOOTARM EFI"
_BOOT_FOLDER = b"BOOT       "


def _boot(offset: int, value: bytes) -> Callable[[], Disk]:
    return lambda: (sample := Sample()).patched(*sample.boot(offset, value))


def _raw(offset: int, value: bytes) -> Callable[[], Disk]:
    return lambda: Sample().patched((offset, value))


def _chain(name: bytes, index: int, value: int | None = None) -> Callable[[], Disk]:
    """Change what follows the cluster number ``index`` of a file; None makes it a loop."""

    def make() -> Disk:
        sample = Sample()
        cluster = sample.cluster(name)
        return sample.patched(*sample.fat(cluster + index, cluster if value is None else value))

    return make


def _slot(name: bytes, offset: int, value: bytes) -> Callable[[], Disk]:
    return lambda: (sample := Sample()).patched(sample.slot(name, offset, value))


def _fat_entry(cluster: int, value: int) -> Callable[[], Disk]:
    return lambda: (sample := Sample()).patched(*sample.fat(cluster, value))


def _cross_link() -> Disk:
    sample = Sample()
    return sample.patched(*sample.fat(sample.cluster(_ARM), sample.cluster(_AA64) + 3))


def _wrong_parent() -> Disk:
    sample = Sample()
    place = (sample.cluster(_BOOT_FOLDER) - 2) * 512 + 32
    return sample.patched((sample.data_offset + place + 26, b"\x63\0"))


def _second_table() -> Disk:
    sample = Sample()
    return sample.patched(sample.fat(sample.cluster(_AA64), 0x0FFFFFFF)[1])


def _one_table() -> Disk:
    """The two tables made one of twice the length."""
    sample = Sample()
    return sample.patched(*sample.boot(16, b"\1"), *sample.boot(36, struct.pack("<I", 2 * sample.fat_sectors)))


def _orphan() -> Disk:
    sample = Sample()
    return sample.patched(sample.slot(b"ALONGN~1TXT", 0, b"B"))


def _beyond() -> Disk:
    sample = Sample()
    return sample.patched((sample.data_offset + (sample.cluster(b"EFI        ") - 2) * 512 + 4 * 32, _AA64))


def _twice() -> Disk:
    sample = Sample()
    return sample.patched(sample.slot(_ARM, 0, _AA64))


def _fragments() -> Disk:
    """A file whose clusters are chained backwards: each a piece of its own, and too many of them."""
    count = 66_000
    sample = Sample(fat32_disk({"BACK.BIN": bytes(count * 512)}, size_bytes=34 * MIB))
    first = sample.cluster(b"BACK    BIN")
    words = [0x0FFFFFFF, *range(first, first + count - 1)]
    raw = struct.pack(f"<{count}I", *words)
    tables = [((sample.reserved + table * sample.fat_sectors) * 512 + 4 * first, raw) for table in (0, 1)]
    return sample.patched(*tables, sample.slot(b"BACK    BIN", 20, struct.pack("<H4xH", 1, first + count - 1 - 65536)))


BROKEN: Mapping[str, Callable[[], Disk]] = {
    "boot-jump": _boot(0, b"\0\0\0"),
    "boot-signature": _boot(510, b"\0\0"),
    "sectors-per-cluster": _boot(13, b"\3"),
    "media": _boot(21, b"\x12"),
    "cluster-count": _boot(32, struct.pack("<I", 60_000)),
    "fat-size": _boot(36, struct.pack("<I", 100)),
    "total-sectors": _boot(19, struct.pack("<H", 60_000)),
    "sector-size": lambda: PatchedDisk(fat32_disk(), sector_size=4096),
    "volume-size": lambda: PatchedDisk(fat32_disk(), size_bytes=32 * MIB),
    "root-entries": _boot(17, struct.pack("<H", 512)),
    "version": _boot(42, b"\1\0"),
    "root-cluster": _boot(44, struct.pack("<I", 1)),
    "active-fat": _boot(40, b"\x82\0"),
    "fsinfo-sector": _boot(48, b"\xff\x7f"),
    "fsinfo-signature": _raw(512, b"XXXX"),
    "backup-sector": _boot(50, b"\xff\x7f"),
    "backup-boot-sector": _raw(6 * 512 + 13, b"\2"),
    "fats-differ": _second_table,
    "chain-loop": _chain(_AA64, 2),
    "chain-free": _chain(_AA64, 2, 0),
    "chain-bad": _chain(_AA64, 2, 0x0FFFFFF7),
    "chain-range": _chain(_AA64, 2, 0x00F00000),
    "chain-short": _slot(_AA64, 28, struct.pack("<I", 5000)),
    "chain-long": _slot(_AA64, 28, struct.pack("<I", 100)),
    "cross-link": _cross_link,
    "dot-entries": _wrong_parent,
    "duplicate-name": _twice,
    "illegal-name": _slot(_ARM, 3, b"*"),
}
"""For each serious problem, by its code, a maker of a FAT32 file system that has it."""

BLEMISHED: Mapping[str, Callable[[], Disk]] = {
    "fat-count": _one_table,
    "too-large-to-verify": _fragments,
    "dirty": _fat_entry(1, 0x07FFFFFF),
    "disk-errors": _fat_entry(1, 0x0BFFFFFF),
    "fat-media": _fat_entry(0, 0x0FFFFFF0),
    "folder-size": _slot(_BOOT_FOLDER, 28, struct.pack("<I", 512)),
    "orphan-long-name": _orphan,
    "beyond-end-mark": _beyond,
    "lost-clusters": _fat_entry(5000, 0x0FFFFFFF),
    "fsinfo-free-count": _raw(512 + 488, struct.pack("<I", 7)),
}
"""For each problem that is not serious, by its code, a maker of a FAT32 file system that has it."""
