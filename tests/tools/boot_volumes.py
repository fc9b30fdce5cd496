"""Volumes for the boot chain's tests: the ESPs of a real image, and file systems in memory on its other partitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from armvm.disk.files import FileSystem, MemoryFileSystem
from armvm.disk.files_fat import FatFileSystem
from armvm.disk.filesystems import Content
from armvm.disk.gpt_format import Partition
from armvm.disk.storage import Disk
from armvm.errors import ArmvmError
from armvm.guest.bootchain import BootChain, find_boot
from armvm.guest.check_boot import check_self_contained
from armvm.guid import LINUX_DATA_TYPE
from armvm.image.contents import ImageContents
from armvm.spec.judgement import Judgement
from tools.disk_images import disk_image

BOOT_UUID = "0f4e3a52-6e0b-4d5c-9a7e-3f2b1c0d9e8f"
ROOT_UUID = "7b1a2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"


@dataclass(frozen=True)
class StandIn:
    """A volume as ``armvm.disk.volumes`` gives it, made by hand."""

    name: str
    files: FileSystem | None = None
    content: Content | None = None
    partition: Partition | None = None
    problem: ArmvmError | None = None
    mapped_name: str | None = None


def linux(
    number: int,
    files: Mapping[str, bytes] | None = None,
    links: Mapping[str, str] | None = None,
    *,
    kind: str = "ext4",
    uuid: str | None = None,
    label: str | None = None,
    problem: ArmvmError | None = None,
    type_guid: UUID = LINUX_DATA_TYPE,
) -> StandIn:
    """A partition with a file system of ``files``; with ``problem`` one that cannot be read."""
    name = f"partition {number}"
    partition = Partition(number, type_guid, UUID(int=number), 2048 * number, 2048 * number + 2047, 0, "")
    readable = None if problem is not None else MemoryFileSystem(files or {}, links, name=name)
    return StandIn(name, readable, Content(kind, label, uuid), partition, problem)


@dataclass(frozen=True)
class Audited:
    """An image's boot chain and what its check comes to."""

    chain: BootChain
    judgement: Judgement
    contents: ImageContents = field(repr=False)


def audit(files: Mapping[str, bytes] | Disk | None = None, *more: StandIn) -> Audited:
    """Follow the boot chain of an image whose ESP holds ``files``, beside the volumes ``more``."""
    disk = files if isinstance(files, Disk) else disk_image(files)
    contents = ImageContents(disk)
    esps = [
        StandIn(esp.where, FatFileSystem(esp.volume, name=esp.where), Content("vfat", None, "AAAA-BBBB"), esp.partition)
        for esp in contents.esps
        if esp.volume is not None
    ]
    chain = find_boot(contents, [*esps, *more])
    return Audited(chain, check_self_contained(contents, chain), contents)
