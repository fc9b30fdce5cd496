"""The FAT file system, read: FAT12, FAT16 and FAT32 as Microsoft describes them and UEFI 2.10 §13.3 asks for.

Lazy: opening a volume reads one sector, finding a file reads the directories on its way, reading it the parts of the
allocation table that its clusters are in. Judging a whole volume is ``fat_verify``'s work, writing one ``fat_write``'s.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

from armvm.disk.fat_boot import BOOT_SECTOR_BYTES, BootSector, FatKind, FsInfo, parse_boot_sector, parse_fsinfo
from armvm.disk.fat_directory import (
    MOST_SLOTS,
    SLOT_BYTES,
    Attribute,
    FatEntry,
    Listing,
    decode_oem,
    fold_name,
    parse_directory,
)
from armvm.disk.fat_table import AllocationTable, Chain
from armvm.disk.storage import BaseDisk, Disk
from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import MIB

__all__ = ["Attribute", "BootSector", "FatEntry", "FatKind", "FatVolume", "FsInfo", "Listing"]

_SEPARATORS = re.compile(r"[\\/]+")
_MOST_WALKED_SLOTS = 16 * MOST_SLOTS
_NO_LABEL = "NO NAME"


class FatVolume:
    """The FAT file system on ``disk``, a partition or a whole disk. The disk stays the caller's to close.

    Raises InputError when there is no BPB on it at all.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.boot = parse_boot_sector(disk)
        self.kind = self.boot.kind
        self.cluster_count = self.boot.cluster_count
        self.bytes_per_sector = self.boot.bytes_per_sector
        self.sectors_per_cluster = self.boot.sectors_per_cluster
        self.cluster_bytes = self.boot.cluster_bytes
        self.serial = self.boot.volume_id
        self.root = FatEntry("", "", Attribute.DIRECTORY, self.boot.root_cluster, 0)
        self.table = AllocationTable(disk, self.boot)

    @property
    def label(self) -> str:
        """The volume's label: the root directory's, else the boot sector's; empty when it has none."""
        try:
            label = self.list_directory(self.root).label
        except InputError:
            label = None
        if label is None:
            label = decode_oem(self.boot.label).rstrip("\0 ")
        return "" if label == _NO_LABEL else label

    def fsinfo(self) -> FsInfo | None:
        """The FSInfo sector; None when the boot sector names none."""
        sector = self.boot.fsinfo_sector
        if self.boot.layout is not FatKind.FAT32 or sector in (0, 0xFFFF):
            return None
        return parse_fsinfo(self.disk.read(sector * self.bytes_per_sector, BOOT_SECTOR_BYTES))

    def entries(self, folder: str | FatEntry = "") -> tuple[FatEntry, ...]:
        """The files and folders in ``folder``, in the order of the disk, without ``.`` and ``..``.

        Raises InputError when there is no such folder, or it cannot be read.
        """
        if isinstance(folder, str):
            found = self.lookup(folder)
            if found is None:
                raise InputError(f"there is no {printable(folder)}", subject=self.disk.name)
            folder = found
        return self.list_directory(folder).entries

    def lookup(self, path: str) -> FatEntry | None:
        r"""The entry at ``path``, or None: parts are separated by ``/`` or ``\``, long or short names, in any case."""
        entry: FatEntry | None = self.root
        for part in _SEPARATORS.split(path.strip("\\/")):
            if entry is None or not entry.is_directory:
                return None
            if part:
                wanted = fold_name(part)
                found = (e for e in self.entries(entry) if wanted in (fold_name(e.name), fold_name(e.short_name)))
                entry = next(found, None)
        return entry

    def walk(self, *, max_entries: int = 65536, max_depth: int = 64) -> Iterator[tuple[str, FatEntry]]:
        """Every file and folder with its path (``/EFI/BOOT``), folders before what is in them.

        A folder that was walked already is not walked again. Raises InputError past ``max_entries`` or ``max_depth``,
        and at a folder that cannot be read.
        """
        walked = {self.root.first_cluster}
        count = slots = 0
        pending: list[tuple[str, int, FatEntry]] = [("", 0, self.root)]
        while pending:
            parent, depth, entry = pending.pop()
            path = f"{parent}/{entry.name}" if entry is not self.root else ""
            if path:
                yield path, entry
                if not entry.is_directory or entry.first_cluster in walked:
                    continue
                walked.add(entry.first_cluster)
            content = self.directory_content(entry, path)
            children = parse_directory(content, wide_clusters=self.wide_clusters).entries
            count += len(children)
            slots += len(content) // SLOT_BYTES
            if count > max_entries or slots > _MOST_WALKED_SLOTS:
                raise InputError(
                    f"more than {max_entries} files and folders, or far too many slots", subject=self.disk.name
                )
            if children and depth >= max_depth:
                raise InputError(f"folders are nested deeper than {max_depth}", subject=self.disk.name)
            pending.extend((path, depth + 1, child) for child in reversed(children))

    def read(self, entry: FatEntry, *, max_bytes: int = 64 * MIB) -> bytes:
        """The whole content of a file.

        Raises InputError when it is larger than ``max_bytes``, or its chain of clusters is broken, shorter or longer
        than its size asks for.
        """
        if entry.size_bytes > max_bytes:
            raise InputError(
                f"{printable(entry.name)} is too large to be read whole",
                subject=self.disk.name,
                found=f"{entry.size_bytes} bytes",
                expected=f"at most {max_bytes}",
            )
        file = self._open(entry)
        file.require_exact_chain()
        return file.read(0, entry.size_bytes)

    def read_at(self, entry: FatEntry, offset: int, length: int) -> bytes:
        """``length`` bytes of a file from ``offset``; of its cluster chain only what leads there is looked at."""
        return self._open(entry).read(offset, length)

    def open(self, entry: FatEntry) -> Disk:
        """A file as a disk, read lazily. Closing it leaves the volume open."""
        return self._open(entry)

    def _open(self, entry: FatEntry) -> _File:
        if entry.is_directory:
            raise InputError(f"{printable(entry.name) or 'the root'} is a folder", subject=self.disk.name)
        return _File(self, entry)

    def list_directory(self, folder: FatEntry) -> Listing:
        """What a folder holds, its volume label and orphaned long names included."""
        return parse_directory(self.directory_content(folder), wide_clusters=self.wide_clusters)

    def directory_content(self, folder: FatEntry, path: str = "") -> bytes:
        """The raw slots of a folder, at most 65536 of them. ``path`` is what messages call it."""
        shown = printable(path or folder.name) or "the root directory"
        if not folder.is_directory:
            raise InputError(f"{shown} is not a folder", subject=self.disk.name)
        boot = self.boot
        if folder is self.root and boot.layout is not FatKind.FAT32:
            size_bytes = boot.root_entry_count * SLOT_BYTES
            return self.disk.read(boot.first_root_sector * boot.bytes_per_sector, size_bytes)
        chain = Chain(self.table, folder.first_cluster, shown)
        most_clusters = max(MOST_SLOTS * SLOT_BYTES // self.cluster_bytes, 1)
        chain.follow(most_clusters + 1)
        if chain.length > most_clusters:
            raise InputError(f"{shown} has more than {MOST_SLOTS} slots", subject=self.disk.name)
        return b"".join(
            self.disk.read(self.cluster_offset(first), count * self.cluster_bytes) for first, count in chain.runs
        )

    def cluster_offset(self, cluster: int) -> int:
        """Where a cluster starts, in bytes from the start of the volume."""
        return self.boot.first_data_sector * self.bytes_per_sector + (cluster - 2) * self.cluster_bytes

    @property
    def wide_clusters(self) -> bool:
        """Whether directories hold 32 bits of a cluster's number."""
        return self.boot.layout is FatKind.FAT32


class _File(BaseDisk):
    """A file's bytes, along its chain of clusters."""

    def __init__(self, volume: FatVolume, entry: FatEntry) -> None:
        self._shown = printable(entry.name)
        super().__init__(f"{volume.disk.name}, {self._shown}", "raw", entry.size_bytes, volume.disk.sector_size)
        self._volume = volume
        self._chain = Chain(volume.table, entry.first_cluster, self._shown)
        self._needed = -(-entry.size_bytes // volume.cluster_bytes)
        self._has_chain = entry.first_cluster != 0 or self._needed > 0

    def require_exact_chain(self) -> None:
        """Raises InputError unless the chain has as many clusters as the size asks for."""
        if self._has_chain:
            self._chain.follow(self._needed + 1)
            if self._chain.length > self._needed:
                raise self._wrong_length(f"more than {self._needed} clusters")
            self._require_clusters(self._needed)

    def _require_clusters(self, clusters: int) -> None:
        self._chain.follow(clusters)
        if self._chain.length < clusters:
            raise self._wrong_length(f"{self._chain.length} clusters")

    def _wrong_length(self, found: str) -> InputError:
        return InputError(
            f"the cluster chain of {self._shown} does not fit its size of {self.size_bytes} bytes",
            subject=self._volume.disk.name,
            found=found,
            expected=f"{self._needed} of {self._volume.cluster_bytes} bytes",
        )

    def _read(self, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        volume, chain = self._volume, self._chain
        end = offset + length
        self._require_clusters(-(-end // volume.cluster_bytes))
        parts = []
        index = bisect_right(chain.starts, offset // volume.cluster_bytes) - 1
        while offset < end:
            first, count = chain.runs[index]
            skipped = offset - chain.starts[index] * volume.cluster_bytes
            taken = min(end - offset, count * volume.cluster_bytes - skipped)
            parts.append(volume.disk.read(volume.cluster_offset(first) + skipped, taken))
            offset += taken
            index += 1
        return b"".join(parts)
