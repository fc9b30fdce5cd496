"""Linux software RAID (md) whose members are all in one image: linear, RAID 0 and RAID 1 (Linux, md_p.h, raid0.c).

Other levels are named and not read. Our own reader, for the sake of the default install: a superblock of some twenty
fields is all there is to it, and the library that knows more is AGPL.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from armvm.disk.mapped import MappedDisk, Place, Segment
from armvm.disk.storage import Disk, Slice
from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import KIB

SECTOR_BYTES = 512
MAGIC = 0xA92B4EFC

_RESERVED_BYTES = 64 * KIB
_LINEAR, _RAID0, _RAID1 = -1, 0, 1
_MOST_ROLE = 0xFF00
_SUPERBLOCK_1 = struct.Struct("<III4x16s32s8xiIQII")  # up to raid_disks
_PLACE_1 = struct.Struct("<QQ")  # at 128: data_offset, data_size
_SUPERBLOCK_0_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Member:
    """What a member's superblock says. ``role`` is its place in the array, None for a spare; sizes are in bytes."""

    disk: Disk
    array: UUID
    name: str
    level: int
    members: int
    role: int | None
    chunk_bytes: int
    data_offset: int
    data_bytes: int
    array_bytes: int
    events: int


@dataclass(frozen=True, slots=True)
class Array:
    """A RAID array; ``disk`` is None when it cannot be put together, and ``problem`` then says why."""

    name: str
    disk: Disk | None
    problem: InputError | None = None


def arrays(disks: Sequence[Disk]) -> Iterator[Array]:
    """The arrays that ``disks``, each with an md superblock, belong to. Raises InputError when none can be read."""
    found: dict[UUID, list[Member]] = {}
    unreadable: InputError | None = None
    for disk in disks:
        try:
            member = parse_member(disk)
        except InputError as error:
            unreadable = unreadable or error
            continue
        found.setdefault(member.array, []).append(member)
    if unreadable is not None and not found:
        raise unreadable
    for array, members in found.items():
        name = f"RAID array {members[0].name or array}"
        try:
            yield Array(name, _assemble(name, members))
        except InputError as error:
            yield Array(name, None, error)


def parse_member(disk: Disk) -> Member:
    """Read a member's superblock, wherever its version puts it. Raises InputError when there is none."""
    for offset in (4096, 0, (disk.size_bytes - 8 * KIB) // 4096 * 4096):
        if 0 <= offset <= disk.size_bytes - 256:
            raw = disk.read(offset, min(4096, disk.size_bytes - offset))
            if struct.unpack_from("<II", raw) == (MAGIC, 1):
                return _version_1(disk, raw)
    offset = disk.size_bytes // _RESERVED_BYTES * _RESERVED_BYTES - _RESERVED_BYTES
    if offset >= 0:
        raw = disk.read(offset, _SUPERBLOCK_0_BYTES)
        if struct.unpack_from("<II", raw) == (MAGIC, 0):
            return _version_0(disk, raw, offset)
    raise InputError("has no md superblock", subject=disk.name)


def _version_1(disk: Disk, raw: bytes) -> Member:
    _, _, _, array, name, level, _layout, sectors, chunk, members = _SUPERBLOCK_1.unpack_from(raw)
    data_offset, data_sectors = _PLACE_1.unpack_from(raw, 128)
    number, events = struct.unpack_from("<I", raw, 160)[0], struct.unpack_from("<Q", raw, 200)[0]
    at = 256 + 2 * number
    role = int.from_bytes(raw[at : at + 2], "little") if at + 2 <= len(raw) else _MOST_ROLE
    return Member(
        disk,
        UUID(bytes=array),
        printable(name.split(b"\0", 1)[0].decode("utf-8", "replace")),
        level,
        members,
        role if role < _MOST_ROLE else None,
        chunk * SECTOR_BYTES,
        data_offset * SECTOR_BYTES,
        data_sectors * SECTOR_BYTES,
        sectors * SECTOR_BYTES,
        events,
    )


def _version_0(disk: Disk, raw: bytes, offset: int) -> Member:
    """The 0.90 superblock: 32-bit words, in the byte order of the machine that made it; ARM's is this one."""
    words = struct.unpack(f"<{_SUPERBLOCK_0_BYTES // 4}I", raw)
    level = words[7] - (1 << 32 if words[7] >> 31 else 0)
    array = b"".join(words[at].to_bytes(4, "big") for at in (5, 13, 14, 15))
    role = words[992 + 3]  # this_disk.raid_disk
    members = words[10]
    return Member(
        disk,
        UUID(bytes=array),
        "",
        level,
        members,
        role if role < members else None,
        words[65],
        0,
        offset,
        words[8] * KIB,
        words[40] << 32 | words[39],  # events_hi, events_lo on a little-endian machine
    )


def _assemble(name: str, members: list[Member]) -> Disk:
    newest = max(members, key=lambda member: member.events)
    current = {m.role: m for m in members if m.role is not None and m.events == newest.events}
    if newest.level == _RAID1:
        if not current:
            raise InputError("has no member that is up to date", subject=name)
        member = current[min(current)]
        size_bytes = newest.array_bytes or member.data_bytes
        return Slice(member.disk, member.data_offset, min(size_bytes, member.data_bytes), name=name)
    if newest.level not in (_LINEAR, _RAID0):
        raise InputError(
            "is of a level that is not read here", subject=name, found=f"{newest.level}", expected="linear, 0 or 1"
        )
    if not current or len(current) != newest.members or max(current) >= newest.members:
        raise InputError(
            "has members that are not in this image", subject=name, found=f"{len(current)} of {newest.members}"
        )
    ordered = [current[role] for role in range(newest.members)]
    if newest.level == _LINEAR:
        runs = [Segment(m.data_bytes, [Place(m.disk, m.data_offset)]) for m in ordered]
        return MappedDisk(runs, name=name)
    chunk_bytes = newest.chunk_bytes
    if chunk_bytes < SECTOR_BYTES:
        raise InputError("has an impossible chunk size", subject=name, found=f"{chunk_bytes} bytes")
    shares = {m.data_bytes // chunk_bytes for m in ordered}
    if len(shares) != 1:
        raise InputError("is a RAID 0 of members of different sizes, which is not read here", subject=name)
    length = shares.pop() * chunk_bytes * len(ordered)
    places = [Place(m.disk, m.data_offset) for m in ordered]
    return MappedDisk([Segment(length, places, chunk_bytes)], name=name)
