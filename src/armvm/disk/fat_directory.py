"""Directories of a FAT file system: 32-byte slots to entries and their long names (fatgen103, "FAT Directory")."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

SLOT_BYTES = 32
MOST_SLOTS = 65536
"""How many slots a directory may have (fatgen103: 2 MiB)."""
MOST_NAME_UNITS = 255
"""How many UTF-16 units a long name may have."""
UNITS_PER_SLOT = 13
LAST_LONG_SLOT = 0x40
LONG_NAME = 0x0F
DOT_NAMES = (b".          ", b"..         ")

_FREE = 0xE5
_UNUSED = b"\0\xe5"
_ATTRIBUTE_MASK = 0x3F
_LOWER_BASE = 0x08
_LOWER_EXTENSION = 0x10


class Attribute(enum.IntFlag):
    """The attribute bits of an entry."""

    READ_ONLY = 0x01
    HIDDEN = 0x02
    SYSTEM = 0x04
    VOLUME_LABEL = 0x08
    DIRECTORY = 0x10
    ARCHIVE = 0x20


@dataclass(frozen=True, slots=True)
class FatEntry:
    """A file or folder. ``name`` is as the disk has it: escape it before it is shown. ``slot`` are its raw 32 bytes.

    The root has no entry on disk: it is the one whose names are empty.
    """

    name: str
    short_name: str
    attributes: Attribute
    first_cluster: int
    size_bytes: int
    slot: bytes = field(default=b"", repr=False)

    @property
    def is_directory(self) -> bool:
        """Whether it is a folder."""
        return Attribute.DIRECTORY in self.attributes

    @property
    def modified(self) -> datetime | None:
        """When it was last written, by a clock whose time zone FAT does not record; None when that is no time."""
        from datetime import datetime

        time, date = struct.unpack_from("<HH", self.slot, 22) if self.slot else (0, 0)
        try:
            return datetime(1980 + (date >> 9), date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, (time & 31) * 2)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a directory holds.

    ``orphans`` counts slots of long names that belong to no entry, ``beyond`` slots in use after the end mark: both are
    ignored.
    """

    entries: tuple[FatEntry, ...]
    label: str | None
    orphans: int
    beyond: int


def fold_name(name: str) -> str:
    """What two names that FAT takes for the same have in common."""
    if name.isascii():
        return name.upper()
    return "".join(upper if len(upper := character.upper()) == 1 else character for character in name)


def long_name_checksum(short_name: bytes) -> int:
    """What ties the slots of a long name to their short entry (fatgen103, ChkSum)."""
    total = 0
    for byte in short_name:
        total = ((total & 1) << 7 | total >> 1) + byte & 0xFF
    return total


def parse_directory(content: bytes, *, wide_clusters: bool) -> Listing:
    """Read the slots of a directory up to the end mark. ``wide_clusters``: cluster numbers have 32 bits (FAT32)."""
    entries: list[FatEntry] = []
    label = None
    orphans = beyond = 0
    pending = _LongName()
    for start in range(0, len(content) - SLOT_BYTES + 1, SLOT_BYTES):
        first = content[start]
        if first == 0:
            beyond = len(content[start::SLOT_BYTES].translate(None, _UNUSED))
            break
        slot = content[start : start + SLOT_BYTES]
        attributes = slot[11] & _ATTRIBUTE_MASK
        if first != _FREE and attributes == LONG_NAME:
            orphans += pending.add(slot)
            continue
        name = pending.take(slot[:11]) if pending.slots else None
        if pending.slots and name is None:
            orphans += pending.drop()
        pending.drop()
        if first == _FREE or slot[:11] in DOT_NAMES:
            continue
        if attributes & Attribute.VOLUME_LABEL:
            label = label or decode_oem(slot[:11]).rstrip(" ")
            continue
        entries.append(parse_slot(slot, name, wide_clusters=wide_clusters))
    return Listing(tuple(entries), label, orphans + pending.drop(), beyond)


def parse_slot(slot: bytes, name: str | None, *, wide_clusters: bool) -> FatEntry:
    """Read one slot that is no part of a long name; ``name`` is the long name it has."""
    high, low, size_bytes = struct.unpack_from("<H4xHI", slot, 20)
    short, shown = _short_names(slot)
    return FatEntry(
        name=shown if name is None else name,
        short_name=short,
        attributes=Attribute(slot[11] & _ATTRIBUTE_MASK),
        first_cluster=high << 16 | low if wide_clusters else low,
        size_bytes=size_bytes,
        slot=slot,
    )


def _short_names(slot: bytes) -> tuple[str, str]:
    """The 8.3 name as it stands, and in the case that Windows NT's bits give it."""
    raw = b"\xe5" + slot[1:11] if slot[0] == 0x05 else slot[:11]
    base, extension = decode_oem(raw[:8]).rstrip(" "), decode_oem(raw[8:]).rstrip(" ")
    shown_base = base.lower() if slot[12] & _LOWER_BASE else base
    shown_extension = extension.lower() if slot[12] & _LOWER_EXTENSION else extension
    dot = "." if extension else ""
    return base + dot + extension, shown_base + dot + shown_extension


def decode_oem(text: bytes) -> str:
    """Text in the code page that FAT was born with."""
    return text.decode("ascii" if text.isascii() else "cp437")


class _LongName:
    """The slots of a long name while they come in, last part first."""

    def __init__(self) -> None:
        self.slots: list[bytes] = []
        self._due = 0
        self._checksum = 0

    def add(self, slot: bytes) -> int:
        """Take one more slot. Says how many slots that makes orphans."""
        ordinal = slot[0]
        if ordinal & LAST_LONG_SLOT:
            orphans = self.drop()
            self._due = ordinal & ~LAST_LONG_SLOT
            self._checksum = slot[13]
        else:
            orphans = 0
        if not 0 < ordinal & ~LAST_LONG_SLOT == self._due or slot[13] != self._checksum:
            return orphans + self.drop() + 1
        self.slots.append(slot)
        self._due -= 1
        return orphans

    def drop(self) -> int:
        """Forget the slots. Says how many there were."""
        count = len(self.slots)
        self.slots.clear()
        self._due = 0
        return count

    def take(self, short_name: bytes) -> str | None:
        """The name, if its slots are all there and belong to ``short_name``."""
        if self._due or self._checksum != long_name_checksum(short_name):
            return None
        units = b"".join(slot[1:11] + slot[14:26] + slot[28:32] for slot in reversed(self.slots))
        text = units.decode("utf-16-le", "surrogatepass")
        name = text.partition("\0")[0]
        return name if 0 < len(name.encode("utf-16-le", "surrogatepass")) <= 2 * MOST_NAME_UNITS else None
