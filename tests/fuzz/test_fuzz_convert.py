"""Images with bytes turned, given other sectors and sizes: a sound disk comes out, or a clear error, in little time."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from armvm.disk.compare import data_bytes
from armvm.disk.fat import FatVolume
from armvm.disk.gpt import read_partition_table
from armvm.errors import InputError, UsageError
from armvm.image.reshape import LAST, Reshape, plan_reshape
from tools import gpt_images
from tools.disk_images import disk_image
from tools.fat_images import PatchedDisk
from tools.gpt_images import MIB

ESP_AREAS = ((MIB, MIB + 4096), (MIB + 32 * 512, MIB + 36 * 512), (MIB + 1074 * 512, MIB + 1100 * 512))
WISHES = (
    Reshape(sector_size=4096),
    Reshape(smallest=True),
    Reshape(extra_bytes=9 * MIB, grow=LAST),
    Reshape(sector_size=4096, size_bytes=1 << 40, grow=LAST),
)


@pytest.mark.parametrize("seed", range(40))
def test_turned_bytes(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    patches = []
    for _ in range(rng.choice((1, 2, 8, 32))):
        start, end = rng.choice(ESP_AREAS)
        patches.append((rng.randrange(start, end), rng.choice((b"\0", b"\xff", rng.randbytes(1), rng.randbytes(4)))))
    disk = PatchedDisk(disk_image(), *patches)
    started = time.process_time()
    try:
        with plan_reshape(disk, rng.choice(WISHES), scratch_folder=tmp_path) as planned:
            table = read_partition_table(planned.disk)
            assert not table.serious_problems
            assert data_bytes(planned.disk) <= 80 * MIB
            volume = FatVolume(table.partitions[0].slice(planned.disk))
            for _, entry in volume.walk():
                if not entry.is_directory:
                    volume.read(entry)
    except (InputError, UsageError):
        return
    finally:
        assert time.process_time() - started < 5, "a second on this kind of machine, with room for a slow one"


@pytest.mark.parametrize("seed", range(20))
def test_tables_of_any_content(seed: int, tmp_path: Path) -> None:
    """Entries turned, and the checksums made right again: what UEFI's rules let through must come out whole."""
    rng = random.Random(seed)
    image = gpt_images.good_gpt(8 * MIB)
    for header in gpt_images.header_offsets(image):
        array = gpt_images.array_offset(image, header)
        for _ in range(rng.choice((1, 3))):
            offset = array + rng.randrange(3 * 128)
            image[offset] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        rng = random.Random(seed)  # the same in both
    gpt_images.fix_crcs(image)
    disk = PatchedDisk(disk_image(esp=None), size_bytes=8 * MIB)
    disk = PatchedDisk(disk, (0, bytes(image)))
    for wish in WISHES:
        try:
            with plan_reshape(disk, wish, scratch_folder=tmp_path) as planned:
                assert not read_partition_table(planned.disk).serious_problems
        except (InputError, UsageError):
            continue
