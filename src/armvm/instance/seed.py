"""The NoCloud seed: a small FAT volume named CIDATA, from which cloud-init in the guest learns who it is.

Source: cloud-init's reference, "NoCloud", "Source 2: drive with labelled filesystem".
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from armvm.atomic import replacing
from armvm.disk.composed import ComposedDisk
from armvm.disk.fat import FatVolume
from armvm.disk.fat_write import FatFile, minimum_fat32_size, plan_fat32
from armvm.disk.raw import RawDisk
from armvm.disk.storage import MemoryDisk
from armvm.disk.write import write_raw
from armvm.errors import InputError
from armvm.instance.cloud_init import MOST_FILE_BYTES, SeedFiles
from armvm.machine.definition import DiskDevice, Writes
from armvm.units import MIB, align_up

FILE_NAME = "seed.img"
"""What it is called in an instance's folder."""
_LABEL = "CIDATA"
_NAMES = ("user-data", "meta-data", "network-config")
_SECTOR_SIZE = 512


def device(path: Path) -> DiskDevice:
    """The seed at ``path`` as a disk of the machine: never written by the guest."""
    return DiskDevice(path, "raw", _SECTOR_SIZE, Writes.REFUSED, name="seed")


def plan(files: SeedFiles, *, timestamp: int) -> ComposedDisk:
    """The volume that holds ``files``."""
    contents = dict(zip(_NAMES, (files.user_data, files.meta_data, files.network_config), strict=True))
    tree = [FatFile(name, MemoryDisk(content)) for name, content in contents.items() if content is not None]
    digest = hashlib.sha256(repr(files).encode()).digest()
    size_bytes = align_up(minimum_fat32_size(tree, _SECTOR_SIZE, label=_LABEL), MIB)
    return plan_fat32(
        size_bytes,
        _SECTOR_SIZE,
        tree,
        label=_LABEL,
        volume_id=int.from_bytes(digest[:4], "little"),
        timestamp=timestamp,
        hidden_sectors=0,
    )


def write(path: Path, files: SeedFiles) -> None:
    """Write the volume of ``files`` to ``path``, for its owner's eyes only. Raises OutputError."""
    with replacing(path, mode=0o600) as file, plan(files, timestamp=int(time.time())) as volume:
        write_raw(file, volume)


def read(path: Path) -> SeedFiles:
    """The files in the seed at ``path``. Raises InputError when that is none."""
    with RawDisk(path) as disk:
        volume = FatVolume(disk)
        found: dict[str, bytes] = {}
        for name in _NAMES:
            entry = volume.lookup(name)
            if entry is not None:
                found[name] = volume.read(entry, max_bytes=MOST_FILE_BYTES)
    if "user-data" not in found or "meta-data" not in found:
        raise InputError("is no seed of cloud-init: user-data and meta-data are not both there", subject=str(path))
    return SeedFiles(found["user-data"], found["meta-data"], found.get("network-config"))
