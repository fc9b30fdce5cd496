"""Files on FAT by path, with ``/`` between its parts as everywhere else; names in any case, long or short."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from armvm.disk.fat import FatEntry, FatVolume
from armvm.disk.fat_directory import fold_name
from armvm.disk.files import BaseFileSystem, FileEntry, FileKind
from armvm.disk.storage import Disk
from armvm.errors import InputError

_KEPT_FOLDERS = 64


class FatFileSystem(BaseFileSystem):
    """The FAT file system on ``disk``, or an open ``volume`` that others look at too.

    Raises InputError when there is no FAT file system. Paths come back spelled as the directory has them.
    """

    def __init__(self, disk: Disk | FatVolume, *, name: str) -> None:
        super().__init__(name, "vfat")
        self.volume = disk if isinstance(disk, FatVolume) else FatVolume(disk)
        self._read_folder = lru_cache(maxsize=_KEPT_FOLDERS)(self.volume.entries)

    def _root(self) -> FileEntry:
        return FileEntry("/", FileKind.FOLDER, node=self.volume.root)

    def _list(self, folder: FileEntry) -> Iterable[FileEntry]:
        return [_entry(folder, found) for found in self._read_folder(self._node(folder)) if _is_usable(found)]

    def _child(self, folder: FileEntry, name: str) -> FileEntry | None:
        wanted = fold_name(name)
        for found in self._read_folder(self._node(folder)):
            if wanted in (fold_name(found.name), fold_name(found.short_name)):
                return _entry(folder, found)
        return None

    def _identity(self, folder: FileEntry) -> object:
        return self._node(folder).first_cluster

    def _open(self, entry: FileEntry) -> Disk:
        return self.volume.open(self._node(entry))

    def _node(self, entry: FileEntry) -> FatEntry:
        if not isinstance(entry.node, FatEntry):
            raise InputError("is an entry of another file system", subject=self._subject(entry.path))
        return entry.node


def _entry(folder: FileEntry, found: FatEntry) -> FileEntry:
    path = f"{folder.path.rstrip('/')}/{found.name}"
    if found.is_directory:
        return FileEntry(path, FileKind.FOLDER, node=found)
    return FileEntry(path, FileKind.FILE, found.size_bytes, node=found)


def _is_usable(found: FatEntry) -> bool:
    """Whether a path can name it: no driver opens a file with a separator in its name."""
    return bool(found.name) and "/" not in found.name
