"""Damaged FAT file systems: whatever is wrong comes out as an InputError or as problems, and soon."""

from __future__ import annotations

import random
import time
from contextlib import suppress

import pytest

from armvm.disk.fat import FatVolume
from armvm.disk.fat_verify import verify
from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import InputError
from tools.fat_images import PatchedDisk, fat32_disk, small_fat

ROUNDS = 250
MOST_SECONDS = 1.0
HOSTILE_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xE5, 0xF7, 0xFF)


def damage(disk: Disk, source: random.Random) -> Disk:
    """Change a few bytes where the metadata are: the boot sector, both ends of the tables, the directories."""
    boot = FatVolume(disk).boot
    table, data = boot.reserved_sectors * 512, boot.first_data_sector * 512
    areas = [(0, 96), (table, 128), (table + boot.fat_sectors * 512, 128), (data, 4096)]
    if boot.root_entry_count:
        areas.append((boot.first_root_sector * 512, 256))
    patches = []
    for _ in range(source.choice((1, 2, 3, 8, 40))):
        start, length = source.choice(areas)
        value = bytes([source.choice(HOSTILE_BYTES)]) if source.random() < 0.5 else source.randbytes(1)
        patches.append((start + source.randrange(length), value))
    size_bytes = source.randrange(disk.size_bytes) if source.random() < 0.1 else disk.size_bytes
    return PatchedDisk(disk, *patches, size_bytes=size_bytes)


def use(disk: Disk) -> None:
    """Everything that can be asked of a file system."""
    volume = FatVolume(disk)
    verify(volume, first_lba=2048)
    assert isinstance(volume.label, str)
    for question in (lambda: volume.lookup("EFI/BOOT/BOOTAA64.EFI"), volume.fsinfo, volume.entries):
        with suppress(InputError):
            question()
    for _, entry in volume.walk():
        assert entry.modified is None or entry.modified.year >= 1980
        if not entry.is_directory:
            with suppress(InputError):
                volume.read(entry, max_bytes=1 << 20)
            if entry.size_bytes:
                with suppress(InputError):
                    volume.read_at(entry, entry.size_bytes - 1, 1)


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_damage_comes_to_problems_or_an_input_error(bits: int) -> None:
    sound = fat32_disk() if bits == 32 else MemoryDisk(small_fat(bits))
    for seed in range(ROUNDS):
        disk = damage(sound, random.Random(seed * 100 + bits))
        start = time.process_time()
        with suppress(InputError):
            use(disk)
        assert time.process_time() - start < MOST_SECONDS, f"seed {seed}"


@pytest.mark.parametrize("seed", range(30))
def test_noise_after_a_sound_boot_sector(seed: int) -> None:
    source = random.Random(seed)
    content = small_fat(source.choice((12, 16)))
    noise = content[:512] + source.randbytes(len(content) - 512)
    volume = FatVolume(MemoryDisk(noise))
    assert any(problem.serious for problem in verify(volume))
    with suppress(InputError):
        use(MemoryDisk(noise))


@pytest.mark.parametrize("seed", range(30))
def test_noise_as_a_boot_sector(seed: int) -> None:
    source = random.Random(seed)
    boot = bytearray(source.randbytes(510) + b"\x55\xaa")
    boot[11:13] = (512 << source.randrange(4)).to_bytes(2, "little")
    with suppress(InputError):
        use(MemoryDisk(bytes(boot) + source.randbytes(100_000)))
