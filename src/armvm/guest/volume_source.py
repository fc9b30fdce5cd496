"""The image's file systems as the boot chain needs them: what a volume is called, what it holds, and its files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from armvm.disk.files import FileSystem
from armvm.disk.filesystems import Content
from armvm.disk.gpt_format import Partition
from armvm.errors import ArmvmError
from armvm.printable import printable

_CONTAINERS = frozenset({"LVM2_member", "linux_raid_member", "crypto_LUKS", "zfs_member", "bcache"})
"""Contents that are no file system and may hold one."""


class BootVolume(Protocol):
    """A partition, logical volume or array that may hold a file system (``armvm.disk.volumes.Volume`` is one)."""

    @property
    def name(self) -> str:
        """How evidence calls it: ``partition 2``, ``logical volume vg/root``."""
        ...

    @property
    def partition(self) -> Partition | None:
        """The partition that it is; None for everything else."""
        ...

    @property
    def content(self) -> Content | None:
        """What is on it, as far as magic numbers tell."""
        ...

    @property
    def files(self) -> FileSystem | None:
        """Its files; None when they cannot be read."""
        ...

    @property
    def problem(self) -> ArmvmError | None:
        """Why its files cannot be read."""
        ...


class VolumeSource(Protocol):
    """All volumes of an image, in the order of its partitions."""

    def __iter__(self) -> Iterator[BootVolume]: ...


def why_unreadable(volume: BootVolume) -> str:
    """Why ``files`` is None, in words."""
    if volume.problem is not None:
        hint = f" ({volume.problem.hint})" if volume.problem.hint else ""
        return printable(f"{volume.problem.message}{hint}")
    if volume.content is None:
        return "holds no file system that is known"
    return f"holds {volume.content.kind}, which is not read"


def may_hide_files(volume: BootVolume) -> bool:
    """Whether there may be a file system in or on it that nobody here can see."""
    if volume.files is not None:
        return False
    return volume.content is not None and (volume.content.kind in _CONTAINERS) and volume.problem is not None
