"""The image's file systems as the boot chain needs them: what a volume is called, what it holds, and its files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from armvm.disk.files import FileSystem
from armvm.disk.filesystems import Content
from armvm.disk.gpt_format import Partition
from armvm.errors import ArmvmError
from armvm.printable import printable

_ASSEMBLED = frozenset({"LVM2_member", "linux_raid_member"})
"""Contents that other volumes are made of."""
_SEALED = frozenset({"crypto_LUKS", "zfs_member", "bcache"})
"""Contents that may hold a file system which is never seen here."""


class BootVolume(Protocol):
    """A partition, logical volume or array that may hold a file system (``armvm.disk.volumes.Volume`` is one)."""

    @property
    def name(self) -> str:
        """How evidence calls it: ``partition 2``, ``logical volume vg/root``."""
        ...

    @property
    def mapped_name(self) -> str | None:
        """A logical volume's name under ``/dev/mapper``; None for everything else."""
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


def hidden_in(volumes: Iterable[BootVolume]) -> tuple[BootVolume, ...]:
    """The volumes that may hold file systems which nobody here can see: encrypted, or of an array that is not read."""
    everything = tuple(volumes)
    assembled = any(volume.partition is None for volume in everything)
    return tuple(volume for volume in everything if volume.files is None and _may_hide(volume, assembled=assembled))


def _may_hide(volume: BootVolume, *, assembled: bool) -> bool:
    if volume.content is None:
        return volume.partition is None and volume.problem is not None
    if volume.content.kind in _ASSEMBLED:
        return not assembled
    return volume.content.kind in _SEALED
