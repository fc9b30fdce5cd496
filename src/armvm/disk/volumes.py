"""The volumes of a disk: its partitions, and the logical volumes and RAID arrays that are made of them.

Nothing is read before it is asked for; what cannot be read says why, and stands in nobody's way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

from armvm.disk.files import FileSystem
from armvm.disk.filesystems import Content, detect_content, open_files
from armvm.disk.gpt_format import Partition
from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import ArmvmError, InputError

WHOLE_DISK = "whole disk"
"""The name of the volume that a disk without partitions is."""


class Volume:
    """A partition, logical volume or RAID array. ``name`` is what evidence calls it; ``partition`` is the first kind's.

    ``mapped_name`` is a logical volume's name under ``/dev/mapper``, as device-mapper spells it.
    """

    def __init__(
        self,
        name: str,
        disk: Disk | None,
        *,
        partition: Partition | None = None,
        mapped_name: str | None = None,
        problem: ArmvmError | None = None,
    ) -> None:
        self.name = name
        self.disk = disk if disk is not None else MemoryDisk(b"", name=name)
        self.partition = partition
        self.mapped_name = mapped_name
        self._problem = problem

    def __repr__(self) -> str:
        return f"<Volume {self.name}>"

    @cached_property
    def _detected(self) -> tuple[Content | None, ArmvmError | None]:
        if self._problem is not None:
            return None, self._problem
        try:
            return detect_content(self.disk), None
        except ArmvmError as error:
            return None, error

    @property
    def content(self) -> Content | None:
        """What stands on it: kind, label, UUID; None when that is not recognised, or cannot be read."""
        return self._detected[0]

    @cached_property
    def _opened(self) -> tuple[FileSystem | None, ArmvmError | None]:
        _, problem = self._detected
        if problem is not None:
            return None, problem
        try:
            return self.open_files(), None
        except ArmvmError as error:
            return None, error

    @property
    def files(self) -> FileSystem | None:
        """Its file system, opened when first asked for; None when there is none that can be read."""
        return self._opened[0]

    @property
    def problem(self) -> ArmvmError | None:
        """Why ``files`` is None: an InputError, or a MissingError that names the extra to install."""
        return self._opened[1]

    def open_files(self, subvolume: str | None = None) -> FileSystem:
        """Open its file system anew; ``subvolume`` is a btrfs subvolume to take as the root, ``/`` its top level.

        Raises InputError and MissingError as ``filesystems.open_files`` does.
        """
        if self._problem is not None:
            raise self._problem
        return open_files(self.disk, name=self.name, content=self.content, subvolume=subvolume)


class Volumes:
    """All volumes of ``disk``. Without ``partitions`` the whole disk is one volume, when it holds anything known.

    Partitions come first, then RAID arrays, then logical volumes. The disk stays the caller's to close.
    """

    def __init__(self, disk: Disk, partitions: Iterable[Partition]) -> None:
        self.disk = disk
        self.partitions = tuple(_of_partition(disk, partition) for partition in partitions)
        if not self.partitions:
            whole = Volume(WHOLE_DISK, disk)
            self.partitions = (whole,) if whole.content is not None else ()

    def __iter__(self) -> Iterator[Volume]:
        yield from self.partitions
        yield from self._assembled

    @cached_property
    def _assembled(self) -> tuple[Volume, ...]:
        """What is made of several partitions, or of a part of one."""
        made = list(_of_arrays([v.disk for v in self.partitions if _holds(v, "linux_raid_member")]))
        members = [v.disk for v in (*self.partitions, *made) if _holds(v, "LVM2_member")]
        return (*made, *_of_groups(members))

    def find(
        self,
        *,
        uuid: str | None = None,
        label: str | None = None,
        partuuid: str | None = None,
        partlabel: str | None = None,
    ) -> Volume | None:
        """The first volume that fits everything given, as root=UUID=…, fstab or GRUB's ``search`` would have it.

        UUIDs are compared without regard to case, labels exactly. A member of an array or group is never an answer.
        """
        return next((v for v in self if _fits(v, uuid, label, partuuid, partlabel)), None)

    def find_mapped(self, path: str) -> Volume | None:
        """The logical volume that a guest calls ``/dev/mapper/vg-root`` or ``/dev/vg/root``."""
        parts = path.strip("/").split("/")
        if parts[:1] == ["dev"]:
            parts = parts[1:]
        wanted = parts[1] if len(parts) == 2 and parts[0] == "mapper" else "-".join(_doubled(part) for part in parts)
        return next((volume for volume in self._assembled if volume.mapped_name == wanted), None)


def _of_partition(disk: Disk, partition: Partition) -> Volume:
    name = f"partition {partition.number}"
    try:
        return Volume(name, partition.slice(disk), partition=partition)
    except InputError as error:
        return Volume(name, None, partition=partition, problem=error)


def _of_arrays(members: list[Disk]) -> Iterator[Volume]:
    if not members:
        return
    from armvm.disk.raid import arrays

    try:
        for array in arrays(members):
            yield Volume(array.name, array.disk, problem=array.problem)
    except InputError as error:
        yield Volume("RAID array", None, problem=error)


def _of_groups(members: list[Disk]) -> Iterator[Volume]:
    if not members:
        return
    from armvm.disk.lvm import logical_volumes

    try:
        for found in logical_volumes(members):
            mapped_name = f"{_doubled(found.group)}-{_doubled(found.name)}"
            name = f"logical volume {found.path}"
            yield Volume(name, found.disk, mapped_name=mapped_name, problem=found.problem)
    except InputError as error:
        yield Volume("logical volumes", None, problem=error)


def _doubled(name: str) -> str:
    """A name as device-mapper has it: its own hyphens doubled, for a single one stands between group and volume."""
    return name.replace("-", "--")


def _holds(volume: Volume, kind: str) -> bool:
    return volume.content is not None and volume.content.kind == kind


_MEMBERS = frozenset({"LVM2_member", "linux_raid_member"})


def _fits(volume: Volume, uuid: str | None, label: str | None, partuuid: str | None, partlabel: str | None) -> bool:
    partition = volume.partition
    if partuuid is not None and (partition is None or str(partition.unique_guid) != partuuid.casefold()):
        return False
    if partlabel is not None and (partition is None or partition.name != partlabel):
        return False
    if uuid is None and label is None:
        return partuuid is not None or partlabel is not None
    content = volume.content
    if content is None or content.kind in _MEMBERS:
        return False
    if uuid is not None and (content.uuid or "").casefold() != uuid.casefold():
        return False
    return label is None or content.label == label
