"""What is to be written to a FAT32 file system: files and folders, and the bytes of their directories."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from armvm.disk.fat_directory import (
    DOT_NAMES,
    LAST_LONG_SLOT,
    LONG_NAME,
    MOST_SLOTS,
    SLOT_BYTES,
    UNITS_PER_SLOT,
    Attribute,
    fold_name,
    long_name_checksum,
)
from armvm.disk.fat_names import ILLEGAL_SHORT_CHARACTERS, name_fault, needs_long_name, short_aliases
from armvm.disk.storage import Disk
from armvm.errors import UsageError
from armvm.printable import printable
from armvm.units import align_up, format_size

MOST_FILE_BYTES = 0xFFFFFFFF
EARLIEST_TIME = 315532800
LATEST_TIME = 4354819198
"""1980-01-01 00:00:00 and 2107-12-31 23:59:58 UTC, in seconds since 1970: the times that FAT can say."""

_KEPT_ATTRIBUTES = Attribute.READ_ONLY | Attribute.HIDDEN | Attribute.SYSTEM | Attribute.ARCHIVE

_SEPARATORS = re.compile(r"[\\/]")


@dataclass(frozen=True, slots=True)
class FatFile:
    """A file to be written at ``path``, whose parts slashes of either kind separate; read only when it is copied.

    ``slot`` is the directory slot of another volume (``FatEntry.slot``) whose times and attributes it keeps.
    """

    path: str
    content: Disk
    slot: bytes = b""


@dataclass(frozen=True, slots=True)
class FatFolder:
    """A folder to be made at ``path``; the folders that a file stands in need no mention. ``slot``: see FatFile."""

    path: str
    slot: bytes = b""


@dataclass(slots=True)
class FileNode:
    """A file on its way to the disk."""

    name: str
    content: Disk
    size_bytes: int
    first_cluster: int = 0
    slot: bytes = b""


@dataclass(slots=True)
class FolderNode:
    """A folder on its way to the disk. ``children`` are by folded name; ``parent`` is None for the root."""

    name: str
    parent: FolderNode | None
    children: dict[str, FileNode | FolderNode] = field(default_factory=dict)
    aliases: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    first_cluster: int = 0
    slot: bytes = b""


def collect_tree(tree: Sequence[FatFile | FatFolder], label: bytes) -> list[FileNode | FolderNode]:
    """All folders, the root first, then all files: in the order in which they get their clusters."""
    root = FolderNode("", None)
    for item in tree:
        _add(root, item)
    folders = list(_folders(root))
    for folder in folders:
        names = [child.name for child in folder.children.values()]
        folder.aliases = short_aliases(names)
        slots = bool(label) if folder is root else len(DOT_NAMES)
        slots += sum(1 + _long_slots(name, alias) for name, alias in zip(names, folder.aliases, strict=True))
        if slots > MOST_SLOTS:
            raise UsageError(f"{printable(folder.name) or 'the root'} would hold more than FAT32 allows in one folder")
        folder.size_bytes = slots * SLOT_BYTES
    files = [child for folder in folders for child in folder.children.values() if isinstance(child, FileNode)]
    return [*folders, *files]


def _add(root: FolderNode, item: FatFile | FatFolder) -> None:
    parts = [part for part in _SEPARATORS.split(item.path) if part]
    for part in parts:
        fault = name_fault(part)
        if fault is not None:
            raise UsageError(f"{printable(item.path)} cannot be written to FAT: {printable(part)} {fault}")
    folder = root
    for part in parts[:-1] if isinstance(item, FatFile) else parts:
        child = folder.children.setdefault(fold_name(part), FolderNode(part, folder))
        if isinstance(child, FileNode):
            raise UsageError(f"{printable(item.path)}: {printable(part)} is a file and a folder")
        folder = child
    if isinstance(item, FatFolder):
        folder.slot = item.slot
    else:
        if not parts:
            raise UsageError("a file needs a name")
        if fold_name(parts[-1]) in folder.children:
            raise UsageError(f"{printable(item.path)} is there twice (FAT does not tell upper from lower case)")
        size_bytes = item.content.size_bytes
        if size_bytes > MOST_FILE_BYTES:
            raise UsageError(f"{printable(item.path)} has {format_size(size_bytes)}, a file on FAT32 less than 4 GiB")
        folder.children[fold_name(parts[-1])] = FileNode(parts[-1], item.content, size_bytes, slot=item.slot)


def _folders(root: FolderNode) -> Iterator[FolderNode]:
    pending = [root]
    while pending:
        folder = pending.pop()
        yield folder
        pending.extend(child for child in reversed(folder.children.values()) if isinstance(child, FolderNode))


def _long_slots(name: str, alias: bytes) -> int:
    units = len(name.encode("utf-16-le")) // 2
    return -(-units // UNITS_PER_SLOT) if needs_long_name(name, alias) else 0


def serialise_directory(folder: FolderNode, label: bytes, stamp: tuple[int, int, int]) -> bytes:
    """The slots of a folder whose children have their clusters; ``label`` stands in the root only."""
    slots = []
    if folder.parent is None:
        if label:
            slots.append(serialise_slot(label, Attribute.VOLUME_LABEL, 0, 0, stamp))
    else:
        # A parent that is the root goes by cluster 0, wherever it is (fatgen103).
        above = folder.parent.first_cluster if folder.parent.parent else 0
        for name, cluster in zip(DOT_NAMES, (folder.first_cluster, above), strict=True):
            slots.append(serialise_slot(name, Attribute.DIRECTORY, cluster, 0, stamp, kept=folder.slot))
    for child, alias in zip(folder.children.values(), folder.aliases, strict=True):
        if needs_long_name(child.name, alias):
            slots.extend(serialise_long_name(child.name, alias))
        is_file = isinstance(child, FileNode)
        attributes = Attribute.ARCHIVE if is_file else Attribute.DIRECTORY
        slots.append(
            serialise_slot(
                alias, attributes, child.first_cluster, child.size_bytes if is_file else 0, stamp, kept=child.slot
            )
        )
    return b"".join(slots)


def serialise_slot(
    name: bytes, attributes: Attribute, cluster: int, size_bytes: int, stamp: tuple[int, int, int], *, kept: bytes = b""
) -> bytes:
    """One entry of a directory: the 11 bytes of its short name, where its content starts, and when it was written.

    ``kept`` is another slot, whose times and attributes it takes over (which makes no folder of a file).
    """
    date, clock, tenths = stamp
    slot = struct.pack(
        "<11sBBBHHHHHHHI",
        name,
        attributes,
        0,
        tenths,
        clock,
        date,
        date,
        cluster >> 16,
        clock,
        date,
        cluster & 0xFFFF,
        size_bytes,
    )
    if len(kept) != SLOT_BYTES:
        return slot
    if name not in DOT_NAMES:
        attributes = attributes & Attribute.DIRECTORY | Attribute(kept[11]) & _KEPT_ATTRIBUTES
    times = slice(13, 20), slice(22, 26)  # created, accessed; written
    return slot[:11] + bytes([attributes, 0]) + kept[times[0]] + slot[20:22] + kept[times[1]] + slot[26:]


def serialise_long_name(name: str, alias: bytes) -> list[bytes]:
    """The slots of a long name, its last part first (fatgen103, "FAT Long Directory Entries")."""
    checksum = long_name_checksum(alias)
    part_bytes = 2 * UNITS_PER_SLOT
    units = name.encode("utf-16-le")
    if len(units) % part_bytes:
        units = (units + b"\0\0").ljust(align_up(len(units), part_bytes), b"\xff")
    parts = [units[start : start + part_bytes] for start in range(0, len(units), part_bytes)]
    return [
        struct.pack(
            "<B10sBBB12sH4s",
            ordinal | (LAST_LONG_SLOT if ordinal == len(parts) else 0),
            parts[ordinal - 1][:10],
            LONG_NAME,
            0,
            checksum,
            parts[ordinal - 1][10:22],
            0,
            parts[ordinal - 1][22:],
        )
        for ordinal in range(len(parts), 0, -1)
    ]


def serialise_time(timestamp: int) -> tuple[int, int, int]:
    """The date, the time, and the hundredths of a second past it, as FAT writes them."""
    moment = time.gmtime(min(max(timestamp, EARLIEST_TIME), LATEST_TIME))
    date = moment.tm_year - 1980 << 9 | moment.tm_mon << 5 | moment.tm_mday
    clock = moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2
    return date, clock, moment.tm_sec % 2 * 100


def serialise_label(label: str) -> bytes:
    """The 11 bytes of a volume label, upper case as Windows makes it; none for an empty one."""
    text = label.upper()
    illegal = not text.isascii() or text.startswith(" ") or any(c in ILLEGAL_SHORT_CHARACTERS or c == "." for c in text)
    if illegal or len(text) > 11:
        raise UsageError(f"{printable(label)!r} cannot be a FAT label: at most 11 plain ASCII characters")
    return text.encode("ascii").ljust(11) if text else b""
