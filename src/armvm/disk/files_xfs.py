"""Files on XFS by path, through dissect.xfs. It finds inodes and extents; content we read along the extents ourselves.

(The library gives preallocated extents as whatever was on the disk before; they read as zeros.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from dissect.xfs.c_xfs import c_xfs
from dissect.xfs.xfs import XFS, INode

from armvm.disk.files import FileEntry
from armvm.disk.files_nodes import NodeFileSystem
from armvm.disk.storage import BaseDisk, Disk, Extent, MemoryDisk
from armvm.errors import InputError
from armvm.printable import printable

_REALTIME_FLAG = 1
_MOST_RUNS = 1 << 20


class XfsFileSystem(NodeFileSystem[INode]):
    """The XFS on ``disk``. Raises InputError when it cannot be read."""

    NODE = INode
    LONGEST_LINK = 1024

    def __init__(self, disk: Disk, *, name: str) -> None:
        super().__init__(disk, name=name, kind="xfs")
        self.disk = disk
        with self._guard.question() as stream:
            superblock = c_xfs.xfs_sb(stream)
            _require_possible(superblock, name)
            self._xfs = XFS(stream)

    def _start(self) -> INode:
        root: INode = self._xfs.root
        return root

    def _children(self, node: INode) -> Iterator[tuple[str, INode]]:
        return ((child.filename, child) for child in node.iterdir())

    def _mode(self, node: INode) -> tuple[int, int]:
        return int(node.inode.di_mode), int(node.size)

    def _link(self, node: INode, path: str, _size_bytes: int) -> str:
        with self._guard.question(printable(path)):
            return str(node.link)

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
