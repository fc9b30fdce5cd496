"""How a guest names a block device, and whether that name holds in another VM.

Sources: Linux, init/do_mounts.c (root=) and Documentation/admin-guide/devices.rst; udev's 60-persistent-storage.rules
(/dev/disk/by-*); fstab(5).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from armvm.disk.storage import Disk
from armvm.guest.volume_source import BootVolume


class Volume(BootVolume, Protocol):
    """What can hold a file system, with its bytes."""

    @property
    def disk(self) -> Disk:
        """Its bytes."""
        ...


class Volumes(Protocol):
    """All volumes of an image."""

    def __iter__(self) -> Iterator[Volume]:
        """Each of them."""
        ...

    def find(
        self,
        *,
        uuid: str | None = None,
        label: str | None = None,
        partuuid: str | None = None,
        partlabel: str | None = None,
    ) -> Volume | None:
        """The volume of that name."""
        ...


class Tag(enum.Enum):
    """The stable ways to name a file system or a partition."""

    UUID = "UUID"
    LABEL = "LABEL"
    PARTUUID = "PARTUUID"
    PARTLABEL = "PARTLABEL"


class Naming(enum.Enum):
    """What a device is named by."""

    TAG = "content"
    MAPPED = "device mapper or md, which read it from the disk"
    KERNEL = "driver and order of the disks"
    PLACE = "place on a bus or serial number"
    NUMBER = "device numbers"
    OTHER = "no disk"


@dataclass(frozen=True, slots=True)
class DeviceName:
    """A device as a guest's configuration names it.

    ``tag`` and ``value`` belong to TAG. ``partition`` is the partition's number on the first disk, where the name of a
    KERNEL or NUMBER device says it: that disk is the image.
    """

    text: str
    naming: Naming
    tag: Tag | None = None
    value: str = ""
    partition: int | None = None

    @property
    def assumes(self) -> bool:
        """Whether the name can be another one in another VM."""
        return self.naming in (Naming.KERNEL, Naming.PLACE, Naming.NUMBER)


_TAGGED = re.compile(r"(UUID|LABEL|PARTUUID|PARTLABEL)=(.+)", re.DOTALL)
_BY_TAG = re.compile(r"/dev/disk/by-(uuid|label|partuuid|partlabel)/(.+)", re.DOTALL)
_BY_PLACE = re.compile(r"/dev/(?:disk/by-(?:path|id|diskseq|loop-\w+)|block)/.+", re.DOTALL)
_LETTERED = re.compile(r"/dev/(?:sd|vd|xvd|hd|ub)([a-z]{1,3})(\d{0,3})")
_NUMBERED = re.compile(r"/dev/(?:nvme(\d+)n\d+|mmcblk(\d+)|nbd(\d+)|pmem(\d+)|vblk(\d+))(?:p(\d{1,3}))?")
_DEVICE_NUMBERS = re.compile(r"\d+:\d+|(?:0x)?[0-9a-fA-F]{3,5}")
_NOT_HERE = frozenset({"none", "auto", "sysfs", "proc", "tmpfs"})
_HIDING = frozenset({"crypto_LUKS", "LVM2_member", "linux_raid_member"})


def parse_device(text: str, *, kernel: bool = False) -> DeviceName:
    """What ``text`` names. ``kernel``: as root= does, where bare device numbers count too."""
    bare = text.strip().strip("\"'")
    tagged = _TAGGED.fullmatch(bare) or _BY_TAG.fullmatch(bare)
    if tagged is not None:
        value = tagged[2].strip("\"'")
        if "/by-" in bare:  # udev writes what cannot stand in a name as \xNN
            value = re.sub(r"\\x([0-9a-fA-F]{2})", lambda found: chr(int(found[1], 16)), value)
        return DeviceName(bare, Naming.TAG, Tag[tagged[1].upper()], value.partition("/PARTNROFF=")[0])
    if _BY_PLACE.fullmatch(bare):
        return DeviceName(bare, Naming.PLACE)
    lettered = _LETTERED.fullmatch(bare)
    if lettered is not None:
        here = lettered[1] == "a" and lettered[2]
        return DeviceName(bare, Naming.KERNEL, partition=int(lettered[2]) if here else None)
    numbered = _NUMBERED.fullmatch(bare)
    if numbered is not None:
        here = numbered[6] and any(group is not None and int(group) == 0 for group in numbered.groups()[:5])
        return DeviceName(bare, Naming.KERNEL, partition=int(numbered[6]) if here else None)
    if kernel and _DEVICE_NUMBERS.fullmatch(bare) and bare.lower() not in _NOT_HERE:
        return DeviceName(bare, Naming.NUMBER)
    if bare.startswith(("/dev/mapper/", "/dev/md", "/dev/dm-")) or re.fullmatch(r"/dev/[^/]+/[^/]+", bare):
        return DeviceName(bare, Naming.MAPPED)
    return DeviceName(bare, Naming.OTHER)


def find_device(name: DeviceName, volumes: Volumes) -> Volume | None:
    """The volume that ``name`` leads to on this image; for the name of a disk, what it would be on its first disk."""
    if name.tag is not None:
        return _find_tagged(name.tag, name.value, volumes)
    if name.partition is not None:
        return next((each for each in volumes if each.partition and each.partition.number == name.partition), None)
    if name.naming is Naming.MAPPED:
        return next((each for each in volumes if each.partition is None and _same_volume(each.name, name.text)), None)
    return None


def _same_volume(volume_name: str, device: str) -> bool:
    """Whether ``logical volume vg/root`` is /dev/vg/root or /dev/mapper/vg-root (device mapper doubles hyphens)."""
    path = volume_name.rpartition(" ")[2]
    group, _, logical = path.partition("/")
    mapped = f"/dev/mapper/{group.replace('-', '--')}-{logical.replace('-', '--')}"
    return device in (f"/dev/{path}", mapped)


def _find_tagged(tag: Tag, value: str, volumes: Volumes) -> Volume | None:
    for spelling in dict.fromkeys((value, value.lower(), value.upper())):
        if tag is Tag.UUID:
            found = volumes.find(uuid=spelling)
        elif tag is Tag.LABEL:
            found = volumes.find(label=spelling)
        elif tag is Tag.PARTUUID:
            found = volumes.find(partuuid=spelling)
        else:
            found = volumes.find(partlabel=spelling)
        if found is not None or tag in (Tag.LABEL, Tag.PARTLABEL):
            return found
    return None


def stable_name(volume: Volume, *, by_partition: bool = False) -> str | None:
    """A name for ``volume`` that holds in every VM: by its file system, or by its partition; None when it has none."""
    content, partition = volume.content, volume.partition
    if content is not None and content.uuid and not by_partition:
        return f"UUID={content.uuid}"
    return f"PARTUUID={partition.unique_guid}" if partition is not None else None


@dataclass(frozen=True, slots=True)
class Disks:
    """What the names of disks are judged by: the image's volumes, and which of them is the root where that is known."""

    volumes: Volumes
    root: Volume | None = None

    def stable(self, name: DeviceName, *, root: bool = False, by_partition: bool = False) -> str | None:
        """A name that holds everywhere for what ``name`` means on this image."""
        volume = self.root if root and self.root is not None else find_device(name, self.volumes)
        return stable_name(volume, by_partition=by_partition) if volume is not None else None


def may_be_hidden(name: DeviceName, volumes: Volumes) -> bool:
    """Whether the tag ``name``, which is on no volume, may be one that could not be looked into."""
    if name.tag is Tag.PARTUUID:
        return not _is_guid(name.value)  # an MBR's signature: nothing says what it will be
    if name.tag is Tag.PARTLABEL:
        return False
    every = tuple(volumes)
    # The serial number of a FAT is no UUID, and may not have been read.
    unread = any(each.content is not None and each.content.kind == "vfat" and not each.content.uuid for each in every)
    if name.tag is Tag.UUID and not _is_guid(name.value) and unread:
        return True
    nested = any(each.partition is None for each in every)
    for each in every:
        kind = each.content.kind if each.content is not None else None
        if kind is None or kind == "crypto_LUKS" or (kind in _HIDING and not nested):
            return True
    return False


def _is_guid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
