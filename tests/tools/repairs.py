"""Images to be repaired, and what the repairing tests share."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from armvm.disk.patched import PatchedDisk
from armvm.disk.storage import Disk
from armvm.execution import ExecutionState
from armvm.guest.check import check_image
from armvm.guest.facts import Assumption
from armvm.repair.plan import RepairPlan, plan_repair
from armvm.units import MIB
from tools import fat_images
from tools.disk_images import AA64, ARM, disk_image, unified_kernel
from tools.fat_images import TIMESTAMP, save_sparse

REPAIRED = (
    "no protective MBR",
    "primary header wiped",
    "backup header wiped",
    "primary header CRC",
    "backup header CRC",
    "primary array CRC",
    "disk grown",
    "ESP of another type",
    "ESP hidden from firmware",
    *(
        f"fat {code}"
        for code in (
            *("boot-jump", "boot-signature", "media", "total-sectors", "root-entries", "version", "active-fat"),
            *("fsinfo-sector", "fsinfo-signature", "backup-sector", "backup-boot-sector", "fats-differ"),
        )
    ),
    "vendor path only",
    "U-Boot's variables",
    "EDK2's variables",
)
"""The broken images of ``disk_images`` that repair claims."""


def plan(
    disk: Disk,
    audit: Callable[[Disk], Iterable[Assumption]] = lambda _disk: (),
    *,
    states: tuple[ExecutionState, ...] = (),
    wants: Callable[[str], bool] = lambda _requirement: True,
) -> tuple[RepairPlan, PatchedDisk]:
    """The plan for ``disk`` with the checks of images."""
    return plan_repair(disk, check=check_image, audit=audit, timestamp=TIMESTAMP, states=states, wants=wants)


Record = tuple[int, int, int]


def mbr_disk(
    records: Iterable[Record] = ((0xEF, 2048, 33 * MIB // 512),),
    *,
    size_bytes: int = 36 * MIB,
    signature: int = 0xC0FFEE42,
    files: dict[str, bytes] | None = None,
    logical: Iterable[Record] = (),
) -> bytearray:
    """A disk with an MBR: (type, first LBA, sectors) each, and a FAT32 file system in the first.

    ``logical`` partitions go into an extended one; the extended boot record is in the 2048 sectors before each.
    """
    image = bytearray(size_bytes)
    records = list(records)
    logical = list(logical)
    if logical:
        first = logical[0][1] - 2048
        records.append((0x0F, first, logical[-1][1] + logical[-1][2] - first))
        for index, (kind, start, sectors) in enumerate(logical):
            place = (start - 2048) * 512
            struct.pack_into("<B3sB3s2I", image, place + 446, 0, b"\0\0\0", kind, b"\0\0\0", 2048, sectors)
            if index + 1 < len(logical):
                following = logical[index + 1]
                link = (following[1] - 2048 - first, following[2] + 2048)
                struct.pack_into("<B3sB3s2I", image, place + 462, 0, b"\0\0\0", 0x05, b"\0\0\0", *link)
            image[place + 510 : place + 512] = b"\x55\xaa"
    for index, (kind, start, sectors) in enumerate(records):
        struct.pack_into("<B3sB3s2I", image, 446 + 16 * index, 0, b"\0\0\0", kind, b"\0\0\0", start, sectors)
    struct.pack_into("<I", image, 440, signature)
    image[510:512] = b"\x55\xaa"
    volume = fat_images.fat32_disk(files or {AA64: unified_kernel(), ARM: unified_kernel(ExecutionState.AARCH32)})
    start = records[0][1] * 512
    image[start : start + volume.size_bytes] = volume.read(0, volume.size_bytes)
    return image


def much_to_repair(path: Path) -> Path:
    """An image with faults in its tables, its file system and its files, saved sparse."""
    disk = PatchedDisk(
        disk_image({"EFI/debian/grubaa64.efi": unified_kernel(), "ubootefi.var": bytes(9000), "NvVars": bytes(99)})
    )
    with disk:
        disk.write(0, bytes(512))
        disk.write(disk.size_bytes - 512, bytes(512))
        disk.write(MIB + 512, b"XXXX")
        return save_sparse(disk, path)
