"""Files added, replaced and deleted in a FAT file system where it stands, with everything else left as it is.

Sources: Microsoft "FAT: General Overview of On-Disk Format" 1.03 (fatgen103); UEFI 2.10 §13.3.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise

from armvm.disk.fat import FatVolume
from armvm.disk.fat_boot import FatKind
from armvm.disk.fat_directory import (
    DOT_NAMES,
    LONG_NAME,
    MOST_SLOTS,
    SLOT_BYTES,
    Attribute,
    FatEntry,
    fold_name,
    long_name_checksum,
)
from armvm.disk.fat_names import name_fault, needs_long_name, short_aliases
from armvm.disk.fat_table import PIECE_ENTRIES, Chain
from armvm.disk.fat_tree import serialise_long_name, serialise_slot, serialise_time
from armvm.disk.fat_verify import verify
from armvm.disk.patched import WritableDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import MIB

_SEPARATORS = re.compile(r"[\\/]+")
_FREE = 0xE5
_UNKNOWN_COUNT = 0xFFFFFFFF
_FREE_COUNT_OFFSET, _NEXT_FREE_OFFSET = 488, 492
_SIZE_OFFSET, _CLUSTER_HIGH_OFFSET, _CLUSTER_LOW_OFFSET = 28, 20, 26
_COPIED_AT_ONCE = MIB
_MOST_FILE_BYTES = 0xFFFFFFFF


class FatEditor:
    """Edits the FAT file system on ``disk``, a partition. ``timestamp`` (seconds since 1970) is when it was.

    Raises InputError when it is no FAT file system, or one with faults: nobody may allocate by a table that lies.
    Every edit either happens whole or raises InputError before it has changed anything.
    """

    def __init__(self, disk: WritableDisk, *, timestamp: int) -> None:
        self._disk = disk
        self._stamp = serialise_time(timestamp)
        self.volume = FatVolume(disk)
        serious = [problem for problem in verify(self.volume) if problem.serious]
        if serious:
            raise InputError(
                f"the file system is damaged, nothing is written to it: {serious[0].message}", subject=disk.name
            )

    def write(self, path: str, content: Disk | bytes) -> None:
        """Put a file at ``path`` (parts separated by slashes of either kind), making the folders on its way.

        A file that stands there gets the new content and keeps its name and attributes. Raises InputError when the
        name is illegal, a folder stands there, or the volume is full.
        """
        source = MemoryDisk(content) if isinstance(content, bytes) else content
        if source.size_bytes > _MOST_FILE_BYTES:
            raise self._refused(path, "is too large for FAT")
        parts = self._parts(path)
        folder, missing = self._deepest(parts)
        plan = self._room(folder, missing, source.size_bytes, path)
        existing = None if missing else self._find(folder, parts[-1])
        if existing is not None:
            if existing.is_directory:
                raise self._refused(path, "is a folder")
            self._replace(folder, existing, source, plan)
            return
        for name in missing[:-1]:
            folder = self._add_folder(folder, name, plan)
        clusters = plan.take(self._clusters(source.size_bytes))
        self._link([], clusters)
        self._copy(source, clusters)
        first = clusters[0] if clusters else 0
        self._add(folder, missing[-1], Attribute.ARCHIVE, (first, source.size_bytes), plan)

    def delete(self, path: str) -> None:
        """Take the file at ``path`` away. Raises InputError when there is none, or it is a folder."""
        entry, folder = self._existing(path)
        slots = self._slots(folder)
        start, stop = self._span(slots, entry)
        chain = self._chain(entry)
        for index in range(start, stop):
            self._disk.write(self._slot_offset(folder, index), bytes([_FREE]))
        self._link(chain, [])

    # Finding

    def _parts(self, path: str) -> list[str]:
        parts = [part for part in _SEPARATORS.split(path) if part]
        if not parts:
            raise self._refused(path, "is no file's name")
        for part in parts:
            fault = name_fault(part)
            if fault is not None:
                raise self._refused(path, f"cannot be written to FAT: {printable(part)} {fault}")
        return parts

    def _find(self, folder: FatEntry, name: str) -> FatEntry | None:
        wanted = fold_name(name)
        for entry in self.volume.entries(folder):
            if wanted in (fold_name(entry.name), fold_name(entry.short_name)):
                return entry
        return None

    def _deepest(self, parts: Sequence[str]) -> tuple[FatEntry, list[str]]:
        """The last folder on the way that is there, and the parts that are not: none when the file itself is."""
        folder = self.volume.root
        for index, part in enumerate(parts):
            entry = self._find(folder, part)
            if entry is None:
                return folder, list(parts[index:])
            if index == len(parts) - 1:
                return folder, []
            if not entry.is_directory:
                raise self._refused("/".join(parts), f"cannot be: {printable(part)} is a file")
            folder = entry
        return folder, []

    def _existing(self, path: str) -> tuple[FatEntry, FatEntry]:
        parts = self._parts(path)
        folder, missing = self._deepest(parts)
        entry = None if missing else self._find(folder, parts[-1])
        if entry is None:
            raise self._refused(path, "is not there")
        if entry.is_directory:
            raise self._refused(path, "is a folder")
        return entry, folder

    def _refused(self, path: str, why: str) -> InputError:
        return InputError(f"{printable(path)} {why}", subject=self._disk.name)

    # Room: everything that an edit will take is found before the first byte is written

    def _room(self, folder: FatEntry, missing: Sequence[str], size_bytes: int, path: str) -> _Plan:
        """The free clusters that putting a file of ``size_bytes`` below ``folder`` can take. Raises when too few."""
        needed = self._clusters(size_bytes)
        if missing:
            # Each new folder takes a cluster (or as many as one long name asks for), and the one it goes into may grow.
            needed += (len(missing) - 1) * self._clusters(24 * SLOT_BYTES)
            slots = self._slots(folder)
            wanted = 1 + len(self._long_slots(missing[0], b"X" * 11))
            if self._is_fixed(folder):
                if self._gap(slots, wanted) is None:
                    raise self._refused(path, "does not fit: the root directory is full")
            else:
                if len(slots) + wanted > MOST_SLOTS:
                    raise self._refused(path, "does not fit: its folder is full")
                needed += self._clusters(wanted * SLOT_BYTES)
        else:
            entry = self._find(folder, self._parts(path)[-1])
            needed = max(needed - len(self._chain(entry)), 0) if entry is not None else needed
        free: list[int] = []
        for cluster in self._free_clusters():
            if len(free) == needed:
                break
            free.append(cluster)
        if len(free) < needed:
            raise self._refused(path, f"does not fit: {len(free)} clusters are free, and it takes {needed}")
        return _Plan(free)

    def _free_clusters(self) -> Iterator[int]:
        table = self.volume.table
        for index in range(-(-table.entry_count // PIECE_ENTRIES)):
            piece = table.piece(index)
            for place, value in enumerate(piece.entries):
                if value == 0 and piece.first + place >= 2:
                    yield piece.first + place

    def _clusters(self, size_bytes: int) -> int:
        return -(-size_bytes // self.volume.cluster_bytes)

    def _chain(self, entry: FatEntry) -> list[int]:
        """Every cluster of a file or folder."""
        if not entry.first_cluster:
            return []
        chain = Chain(self.volume.table, entry.first_cluster, printable(entry.name))
        chain.follow(self.volume.cluster_count + 1)
        return [cluster for first, count in chain.runs for cluster in range(first, first + count)]

    # Directories

    def _is_fixed(self, folder: FatEntry) -> bool:
        """Whether it is the root of FAT12 or FAT16, which cannot grow."""
        return folder is self.volume.root and self.volume.boot.layout is not FatKind.FAT32

    def _slots(self, folder: FatEntry) -> list[bytes]:
        content = self.volume.directory_content(folder)
        return [content[start : start + SLOT_BYTES] for start in range(0, len(content), SLOT_BYTES)]

    def _slot_offset(self, folder: FatEntry, index: int) -> int:
        """Where a slot of a folder stands on the volume."""
        offset = index * SLOT_BYTES
        if self._is_fixed(folder):
            return self.volume.boot.first_root_sector * self.volume.bytes_per_sector + offset
        cluster = self._chain(folder)[offset // self.volume.cluster_bytes]
        return self.volume.cluster_offset(cluster) + offset % self.volume.cluster_bytes

    @staticmethod
    def _span(slots: Sequence[bytes], entry: FatEntry) -> tuple[int, int]:
        """The first slot of an entry, its long name's included, and the one behind it."""
        last = slots.index(entry.slot)
        first = last
        checksum = long_name_checksum(entry.slot[:11])
        ordinal = 1
        while first and slots[first - 1][11] & 0x3F == LONG_NAME and slots[first - 1][13] == checksum:
            if slots[first - 1][0] & 0x3F != ordinal:
                break
            first -= 1
            ordinal += 1
            if slots[first][0] & 0x40:
                break
        return first, last + 1

    @staticmethod
    def _gap(slots: Sequence[bytes], wanted: int) -> int | None:
        """The first of ``wanted`` neighbouring slots that are free; None when the folder has to grow."""
        length = 0
        ended = False
        for index, slot in enumerate(slots):
            ended = ended or slot[0] == 0
            length = length + 1 if ended or slot[0] == _FREE else 0
            if length == wanted:
                return index - wanted + 1
        return None

    @staticmethod
    def _long_slots(name: str, alias: bytes) -> list[bytes]:
        return serialise_long_name(name, alias) if needs_long_name(name, alias) else []

    def _add(self, folder: FatEntry, name: str, attributes: Attribute, place: tuple[int, int], plan: _Plan) -> FatEntry:
        """A new entry in a folder, its ``place`` the first cluster and size; the volume is read anew afterwards."""
        names = [text for entry in self.volume.entries(folder) for text in (entry.name, entry.short_name)]
        alias = short_aliases([*names, name])[-1]
        new = [*self._long_slots(name, alias), serialise_slot(alias, attributes, *place, self._stamp)]
        slots = self._slots(folder)
        start = self._gap(slots, len(new))
        if start is None:
            trailing = 0
            while trailing < len(slots) and slots[-1 - trailing][0] in (0, _FREE):
                trailing += 1
            start = len(slots) - trailing
            self._grow(folder, plan.take(self._clusters((start + len(new) - len(slots)) * SLOT_BYTES)))
            slots += [bytes(SLOT_BYTES)] * (self._count_slots(folder) - len(slots))
        ended = next((index for index, slot in enumerate(slots) if slot[0] == 0), len(slots))
        after = start + len(new)
        if ended < after < len(slots):  # what stands behind the end mark means nothing, and has to stay so
            self._disk.write(self._slot_offset(folder, after), bytes(SLOT_BYTES))
        for index, slot in enumerate(new):
            self._disk.write(self._slot_offset(folder, start + index), slot)
        self._reload()
        added = self._find(folder, name)
        assert added is not None  # noqa: S101 - it was just written
        return added

    def _add_folder(self, folder: FatEntry, name: str, plan: _Plan) -> FatEntry:
        clusters = plan.take(1)
        self._link([], clusters)
        above = 0 if folder is self.volume.root else folder.first_cluster
        dots = [
            serialise_slot(dot, Attribute.DIRECTORY, cluster, 0, self._stamp)
            for dot, cluster in zip(DOT_NAMES, (clusters[0], above), strict=True)
        ]
        content = b"".join(dots).ljust(self.volume.cluster_bytes, b"\0")
        self._disk.write(self.volume.cluster_offset(clusters[0]), content)
        return self._add(folder, name, Attribute.DIRECTORY, (clusters[0], 0), plan)

    def _grow(self, folder: FatEntry, clusters: list[int]) -> None:
        chain = self._chain(folder)
        for cluster in clusters:
            self._disk.write(self.volume.cluster_offset(cluster), bytes(self.volume.cluster_bytes))
        self._link(chain, [*chain, *clusters])

    def _count_slots(self, folder: FatEntry) -> int:
        return len(self._chain(folder)) * self.volume.cluster_bytes // SLOT_BYTES

    def _reload(self) -> None:
        root = self.volume.root
        self.volume = FatVolume(self._disk)
        self.volume.root = root  # which folder is the root goes by identity

    # Content

    def _replace(self, folder: FatEntry, entry: FatEntry, source: Disk, plan: _Plan) -> None:
        old = self._chain(entry)
        needed = self._clusters(source.size_bytes)
        clusters = old[:needed] + plan.take(max(needed - len(old), 0))
        self._link(old, clusters)
        self._copy(source, clusters)
        first = clusters[0] if clusters else 0
        slot = bytearray(entry.slot)
        date, clock, _ = self._stamp
        struct.pack_into("<HH", slot, 22, clock, date)
        if self.volume.wide_clusters:
            struct.pack_into("<H", slot, _CLUSTER_HIGH_OFFSET, first >> 16)
        struct.pack_into("<H", slot, _CLUSTER_LOW_OFFSET, first & 0xFFFF)
        struct.pack_into("<I", slot, _SIZE_OFFSET, source.size_bytes)
        index = self._slots(folder).index(entry.slot)
        self._disk.write(self._slot_offset(folder, index), bytes(slot))
        self._reload()

    def _copy(self, source: Disk, clusters: Sequence[int]) -> None:
        """The content into its clusters; the rest of the last one becomes zeros."""
        cluster_bytes = self.volume.cluster_bytes
        for number, cluster in enumerate(clusters):
            start = number * cluster_bytes
            content = source.read(start, min(cluster_bytes, source.size_bytes - start))
            self._disk.write(self.volume.cluster_offset(cluster), content.ljust(cluster_bytes, b"\0"))

    # The allocation table

    def _link(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Make ``new`` a chain, set free what only ``old`` had, and keep FSInfo's count."""
        marks = dict.fromkeys(old, 0)
        for cluster, following in pairwise(new):
            marks[cluster] = following
        if new:
            marks[new[-1]] = self.volume.table.end_mark | 7
        boot = self.volume.boot
        tables = range(boot.fat_count) if boot.mirrored else (boot.active_fat,)
        for cluster, value in marks.items():
            for index in tables:
                table = (boot.reserved_sectors + index * boot.fat_sectors) * boot.bytes_per_sector
                self._set_entry(table, cluster, value)
        self._count_free(len(old) - len(new), new)
        self._reload()

    def _set_entry(self, table: int, cluster: int, value: int) -> None:
        kind = self.volume.boot.layout
        if kind is FatKind.FAT32:
            offset = table + 4 * cluster
            (word,) = struct.unpack("<I", self._disk.read(offset, 4))
            self._disk.write(offset, struct.pack("<I", word & 0xF0000000 | value))  # the upper bits are not ours
        elif kind is FatKind.FAT16:
            self._disk.write(table + 2 * cluster, struct.pack("<H", value))
        else:
            offset = table + cluster * 3 // 2
            (word,) = struct.unpack("<H", self._disk.read(offset, 2))
            word = word & 0x000F | value << 4 if cluster % 2 else word & 0xF000 | value
            self._disk.write(offset, struct.pack("<H", word))

    def _count_free(self, freed: int, new: Sequence[int]) -> None:
        fsinfo = self.volume.fsinfo()
        if fsinfo is None or not fsinfo.signatures_right:
            return
        offset = self.volume.boot.fsinfo_sector * self.volume.bytes_per_sector
        if fsinfo.free_clusters != _UNKNOWN_COUNT:
            count = fsinfo.free_clusters + freed
            if not 0 <= count <= self.volume.cluster_count:
                count = _UNKNOWN_COUNT  # it was wrong before: better none than a wrong one
            self._disk.write(offset + _FREE_COUNT_OFFSET, struct.pack("<I", count))
        if new:
            self._disk.write(offset + _NEXT_FREE_OFFSET, struct.pack("<I", new[-1]))


class _Plan:
    """The free clusters that an edit may take, in order."""

    def __init__(self, clusters: list[int]) -> None:
        self._clusters = clusters

    def take(self, count: int) -> list[int]:
        """The next ``count`` of them."""
        taken, self._clusters = self._clusters[:count], self._clusters[count:]
        assert len(taken) == count  # noqa: S101 - reckoned before the edit began
        return taken
