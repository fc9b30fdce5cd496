"""Files on XFS by path, through dissect.xfs. It finds inodes and extents; content we read along the extents ourselves.

(The library gives preallocated extents as whatever was on the disk before; they read as zeros.)
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import lru_cache

from dissect.xfs.c_xfs import c_xfs
from dissect.xfs.xfs import XFS, INode

from armvm.disk.files import MOST_ENTRIES, MOST_FOLDER_BYTES, BaseFileSystem, FileEntry, FileKind
from armvm.disk.guarded import Guard
from armvm.disk.storage import BaseDisk, Disk, Extent, MemoryDisk
from armvm.errors import InputError
from armvm.printable import printable

_KINDS = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.FOLDER, stat.S_IFLNK: FileKind.LINK}
_LONGEST_LINK = 1024
_KEPT_FOLDERS = 8
_REALTIME_FLAG = 1
_MOST_RUNS = 1 << 20


class XfsFileSystem(BaseFileSystem):
    """The XFS on ``disk``. Raises InputError when it cannot be read."""

    def __init__(self, disk: Disk, *, name: str) -> None:
        super().__init__(name, "xfs")
        self.disk = disk
        self._guard = Guard(disk, subject=name)
        with self._guard.question() as stream:
            superblock = c_xfs.xfs_sb(stream)
            _require_possible(superblock, name)
            self._xfs = XFS(stream)
        self._folder = lru_cache(maxsize=_KEPT_FOLDERS)(self._read_folder)

    def _root(self) -> FileEntry:
        return self._entry("/", self._xfs.root)

    def _list(self, folder: FileEntry) -> Iterable[FileEntry]:
        return [self._entry(_join(folder, name), node) for name, node in self._names(folder).items()]

    def _child(self, folder: FileEntry, name: str) -> FileEntry | None:
        node = self._names(folder).get(name)
        return None if node is None else self._entry(_join(folder, name), node)

    def _identity(self, folder: FileEntry) -> object:
        return self._node(folder).inum

    def _open(self, entry: FileEntry) -> Disk:
        node = self._node(entry)
        subject = self._subject(entry.path)
        with self._guard.question(printable(entry.path)):
            if node.inode.di_flags & _REALTIME_FLAG:
                raise InputError("is on a realtime device, which is not in the image", subject=subject)
            if node.inode.di_format == c_xfs.xfs_dinode_fmt.XFS_DINODE_FMT_LOCAL:
                content = node.open().read()[: entry.size_bytes]
                return MemoryDisk(content, name=subject)
            return _XfsFile(self.disk, self._runs(node, subject), int(self._xfs.block_size), entry.size_bytes, subject)

    def _runs(self, node: INode, subject: str) -> list[tuple[int, int, int | None]]:
        """The file's extents: first block, how many, first block on the disk (None: not written yet)."""
        superblock = self._xfs.sb
        runs: list[tuple[int, int, int | None]] = []
        end = 0
        for first, block, count, unwritten in node._iter_blocks():
            group, inside = block >> superblock.sb_agblklog, block & (1 << superblock.sb_agblklog) - 1
            physical = group * superblock.sb_agblocks + inside
            if first < end or not count or physical + count > superblock.sb_dblocks or len(runs) >= _MOST_RUNS:
                raise InputError("its extents are out of order, or outside the file system", subject=subject)
            runs.append((first, count, None if unwritten else physical))
            end = first + count
        return runs

    def _names(self, folder: FileEntry) -> dict[str, INode]:
        return self._folder(self._node(folder), folder.path)

    def _read_folder(self, node: INode, path: str) -> dict[str, INode]:
        subject = self._subject(path)
        found: dict[str, INode] = {}
        with self._guard.question(printable(path)):
            if node.size > MOST_FOLDER_BYTES:
                raise InputError("the directory is too large", subject=subject, found=f"{node.size} bytes")
            for child in node.iterdir():
                name = child.filename
                if name in (".", ".."):
                    continue
                if not name or "/" in name or "\0" in name or len(found) >= MOST_ENTRIES:
                    raise InputError("the directory has impossible names, or too many", subject=subject)
                found.setdefault(name, child)
        return found

    def _entry(self, path: str, node: INode) -> FileEntry:
        with self._guard.question(printable(path)):
            mode, size_bytes = int(node.inode.di_mode), int(node.size)
            kind = _KINDS.get(stat.S_IFMT(mode), FileKind.OTHER)
            target = None
            if kind is FileKind.LINK:
                if not 0 < size_bytes <= _LONGEST_LINK:
                    raise InputError("a symbolic link's length is impossible", subject=self._subject(path))
                target = str(node.link)
        counted = size_bytes if kind in (FileKind.FILE, FileKind.LINK) else 0
        return FileEntry(path, kind, counted, target, stat.S_IMODE(mode), node)

    def _node(self, entry: FileEntry) -> INode:
        if not isinstance(entry.node, INode):
            raise InputError("is an entry of another file system", subject=self._subject(entry.path))
        return entry.node


class _XfsFile(BaseDisk):
    """A file's content, along its extents."""

    def __init__(
        self, disk: Disk, runs: list[tuple[int, int, int | None]], block_size: int, size_bytes: int, name: str
    ) -> None:
        super().__init__(name, "raw", size_bytes)
        self._disk = disk
        self._block_size = block_size
        self._runs = [(first * block_size, count * block_size, physical) for first, count, physical in runs]
        self._starts = [start for start, _, _ in self._runs]

    def _read(self, offset: int, length: int) -> bytes:
        return b"".join(
            bytes(run.length) if place is None else self._disk.read(place, run.length)
            for run, place in self._pieces(offset, offset + length)
        )

    def _pieces(self, offset: int, end: int) -> Iterator[tuple[Extent, int | None]]:
        """The runs and holes between two places of the file, each with its place on the disk."""
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            start, length, physical = self._runs[index] if index < len(self._runs) else (end, 0, None)
            if start > offset:
                hole = min(start, end) - offset
                yield Extent(offset, hole, data=False), None
                offset += hole
                continue
            stop = min(start + length, end)
            if stop > offset:
                place = None if physical is None else physical * self._block_size + offset - start
                yield Extent(offset, stop - offset, data=place is not None), place
                offset = stop
            index += 1

    def extents(self) -> Iterator[Extent]:
        """The file as runs of data and holes."""
        return (run for run, _ in self._pieces(0, self.size_bytes))


def _require_possible(superblock: c_xfs.xfs_sb, name: str) -> None:
    """Raises InputError when the numbers that everything is multiplied with cannot be."""
    block_size, inode_size = superblock.sb_blocksize, superblock.sb_inodesize
    possible = (
        superblock.sb_magicnum == c_xfs.XFS_SB_MAGIC
        and block_size in (512 << shift for shift in range(8))
        and inode_size in (256, 512, 1024, 2048)
        and superblock.sb_sectsize in (512 << shift for shift in range(7))
        and 0 < superblock.sb_agblocks <= 1 << 31
        and 0 < superblock.sb_agcount <= 1 << 20
        and superblock.sb_agblklog < 32
        and superblock.sb_inopblog < 16
    )
    if not possible:
        raise InputError("has an impossible XFS superblock", subject=name)
    if superblock.sb_dirblklog:
        raise InputError("has directory blocks larger than its blocks, which are not read here", subject=name)


def _join(folder: FileEntry, name: str) -> str:
    return f"{folder.path.rstrip('/')}/{name}"
