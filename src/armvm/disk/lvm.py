"""Logical volumes of LVM2: linear and striped ones, of volume groups whose physical volumes are all at hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from armvm.disk.lvm_format import SECTOR_BYTES, PhysicalVolume, Section, Value, parse_text, read_physical_volume
from armvm.disk.mapped import MappedDisk, Place, Segment
from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.printable import printable

_MOST_VOLUMES = 4096
_MOST_SEGMENTS = 65536


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """A visible logical volume; ``disk`` is None when it cannot be put together, and ``problem`` then says why."""

    group: str
    name: str
    disk: Disk | None
    problem: InputError | None = None

    @property
    def path(self) -> str:
        """Group and name as LVM's commands write them: ``vg/root``."""
        return f"{self.group}/{self.name}"


def logical_volumes(members: Sequence[Disk]) -> Iterator[LogicalVolume]:
    """The visible logical volumes of all groups that ``members``, physical volumes, belong to.

    Raises InputError when a group's metadata cannot be read at all.
    """
    found: dict[str, Disk] = {}
    texts: dict[str, tuple[int, str, Section]] = {}
    unreadable: InputError | None = None
    for member in members:
        try:
            volume = read_physical_volume(member, subject=member.name)
            identity, sequence, name, group = _group(volume, member.name)
        except InputError as error:
            unreadable = unreadable or error
            continue
        found[volume.uuid] = member
        if identity not in texts or texts[identity][0] < sequence:
            texts[identity] = (sequence, name, group)
    if unreadable is not None and not texts:
        raise unreadable
    for _, name, group in texts.values():
        yield from _volumes(name, group, found)


def _group(volume: PhysicalVolume, subject: str) -> tuple[str, int, str, Section]:
    """Identity, sequence number, name and description of the group in a physical volume's metadata."""
    root = parse_text(volume.metadata, subject=subject)
    groups = [(name, section) for name, section in root.items() if isinstance(section, dict)]
    if len(groups) != 1:
        raise InputError("its LVM2 metadata describe no group", subject=subject, found=f"{len(groups)} sections")
    name, group = groups[0]
    return str(group.get("id")), _number(group, "seqno", subject), printable(name), group


def _volumes(name: str, group: Section, disks: Mapping[str, Disk]) -> Iterator[LogicalVolume]:
    volumes = _section(group, "logical_volumes")
    if len(volumes) > _MOST_VOLUMES:
        raise InputError(f"has more than {_MOST_VOLUMES} logical volumes", subject=f"volume group {name}")
    for volume_name, volume in volumes.items():
        status = volume.get("status") if isinstance(volume, dict) else None
        if not isinstance(volume, dict) or not (isinstance(status, list) and "VISIBLE" in status):
            continue
        shown = printable(volume_name)
        subject = f"logical volume {name}/{shown}"
        try:
            disk: Disk | None = MappedDisk(_segments(group, volume, disks, subject), name=subject)
            problem = None
        except InputError as error:
            disk, problem = None, error
        yield LogicalVolume(name, shown, disk, problem)


def _segments(group: Section, volume: Section, disks: Mapping[str, Disk], subject: str) -> list[Segment]:
    extent_bytes = _number(group, "extent_size", subject) * SECTOR_BYTES
    count = _number(volume, "segment_count", subject)
    if not 0 < count <= _MOST_SEGMENTS or extent_bytes <= 0:
        raise InputError("has an impossible number of segments, or extents of no size", subject=subject)
    segments, extents = [], 0
    for number in range(1, count + 1):
        section = _section(volume, f"segment{number}")
        kind = section.get("type")
        if kind not in ("striped", "linear"):
            raise InputError(
                "is no linear or striped volume, which are all that is read here",
                subject=subject,
                found=printable(str(kind)),
            )
        if _number(section, "start_extent", subject) != extents:
            raise InputError("its segments are not in order", subject=subject)
        length = _number(section, "extent_count", subject)
        extents += length
        places = _stripes(group, section.get("stripes"), disks, extent_bytes, subject)
        stripe_bytes = _number(section, "stripe_size", subject) * SECTOR_BYTES if len(places) > 1 else 0
        segments.append(Segment(length * extent_bytes, places, stripe_bytes))
    return segments


def _stripes(
    group: Section, stripes: Value | Section | None, disks: Mapping[str, Disk], extent_bytes: int, subject: str
) -> list[Place]:
    if not isinstance(stripes, list) or not stripes or len(stripes) % 2:
        raise InputError("a segment has no stripes", subject=subject)
    places = []
    for name, extent in zip(stripes[::2], stripes[1::2], strict=True):
        physical = _section(_section(group, "physical_volumes"), str(name))
        disk = disks.get(str(physical.get("id")).replace("-", ""))
        if disk is None:
            raise InputError(
                "needs a physical volume that is not in this image", subject=subject, found=printable(str(name))
            )
        if not isinstance(extent, int):
            raise InputError("a stripe starts nowhere", subject=subject)
        places.append(Place(disk, _number(physical, "pe_start", subject) * SECTOR_BYTES + extent * extent_bytes))
    return places


def _section(section: Section, name: str) -> Section:
    inner = section.get(name)
    return inner if isinstance(inner, dict) else {}


def _number(section: Section, name: str, subject: str) -> int:
    value = section.get(name)
    if not isinstance(value, int) or value < 0:
        raise InputError(f"{name} is no number", subject=subject, found=printable(str(value))[:100])
    return value
