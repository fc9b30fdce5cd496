"""Files on btrfs by path, through dissect.btrfs: its default subvolume, or any that is named.

The library walks the trees; file extents we read and unpack ourselves, because it unpacks without a limit.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dissect.btrfs.btrfs import Btrfs, INode
from dissect.btrfs.c_btrfs import c_btrfs

from armvm.disk.files import FileEntry
from armvm.disk.files_nodes import NodeFileSystem
from armvm.disk.guarded import Guard
from armvm.disk.storage import BaseDisk, Disk, Extent, MemoryDisk
from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import KIB, MIB

_KEPT_NODES = 512
_KEPT_EXTENTS = 8
_MOST_SUBVOLUMES = 4096
_MOST_PACKED_BYTES = 1 * MIB
"""How large a compressed extent may be, packed or not; btrfs itself writes 128 KiB."""
_STEP_BYTES = 4 * MIB
_EXTENT_HEAD = struct.Struct("<QQBBHB")
_EXTENT_PLACE = struct.Struct("<4Q")
_INLINE, _REGULAR, _PREALLOCATED = 0, 1, 2
_ROOT_INODE = 256
_MOST_ZSTD_WINDOW = 8 * MIB


class BtrfsFileSystem(NodeFileSystem[INode]):
    """The btrfs on ``disk``; its root is that of the default subvolume. Raises InputError when it cannot be read."""

    NODE = INode
    LONGEST_LINK = 4096

    def __init__(self, disk: Disk, *, name: str) -> None:
        super().__init__(disk, name=name, kind="btrfs")
        with self._guard.question() as stream:
            stream.seek(64 * KIB)
            _require_possible(c_btrfs.btrfs_super_block(stream), name)
            self._btrfs = Btrfs(stream)
            _keep_few(self._btrfs._root_tree)
            self._top = self._btrfs.root

    def subvolume(self, path: str) -> BtrfsFileSystem:
        """The same file system with the root of a subvolume as its root; ``/`` is the top level (id 5).

        Raises InputError when there is no such subvolume.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._keep_folders()
        with self._guard.question():
            other._top = self._btrfs.fs_tree.root
        entry = other.lookup(path)
        if entry is None or other._node(entry).inum != _ROOT_INODE:
            raise InputError(f"has no subvolume {printable(path)}", subject=self.name)
        other._top = other._node(entry)
        if entry.path != "/":
            other.name = f"{self.name}, subvolume {printable(entry.path.strip('/'))}"
        return other

    def subvolumes(self) -> tuple[str, ...]:
        """The paths of all subvolumes from the top level, sorted; the top level itself is not among them."""
        with self._guard.question():
            paths: list[str] = []
            for subvolume in self._btrfs.subvolumes():
                if len(paths) >= _MOST_SUBVOLUMES:
                    raise InputError(f"has more than {_MOST_SUBVOLUMES} subvolumes", subject=self.name)
                if subvolume.path:
                    paths.append(str(subvolume.path))
            return tuple(sorted(paths))

    def _start(self) -> INode:
        return self._top

    def _children(self, node: INode) -> Iterator[tuple[str, INode]]:
        _keep_few(node.subvolume.tree)
        children: Iterator[tuple[str, INode]] = node.iterdir()
        return children

    def _mode(self, node: INode) -> tuple[int, int]:
        return int(node.mode), int(node.size)

    def _names_bytes(self, node: INode) -> int:
        return int(node.size) // 2  # the size of a btrfs directory is twice the length of its names

    def _link(self, node: INode, path: str, size_bytes: int) -> str:
        return self._content(node, path, size_bytes).read(0, size_bytes).decode("utf-8", "surrogateescape")

    def _identity(self, folder: FileEntry) -> object:
        node = self._node(folder)
        return node.subvolume.objectid, node.inum

    def _open(self, entry: FileEntry) -> Disk:
        return self._content(self._node(entry), entry.path, entry.size_bytes)

    def _content(self, node: INode, path: str, size_bytes: int) -> Disk:
        subject = self._subject(path)
        runs: list[_Run] = []
        end = 0
        with self._guard.question(printable(path)):
            cursor = node.subvolume.tree.cursor()
            for item, data in cursor.iter(node.inum, c_btrfs.BTRFS_EXTENT_DATA_KEY, 0, ignore_offset=True):
                _, unpacked, compression, encryption, _, kind = _EXTENT_HEAD.unpack_from(data)
                if encryption:
                    raise InputError("is encrypted", subject=subject)
                if kind == _INLINE:
                    content = _unpack(
                        bytes(data[_EXTENT_HEAD.size :]), compression, int(self._btrfs.sector_size), unpacked
                    )
                    return MemoryDisk(content[:size_bytes].ljust(min(size_bytes, MIB), b"\0"), name=subject)
                place, packed, skipped, length = _EXTENT_PLACE.unpack_from(data, _EXTENT_HEAD.size)
                start = int(item.key.offset)
                if start < end or not length or kind not in (_REGULAR, _PREALLOCATED):
                    raise InputError("its extents are out of order, or of a kind not known", subject=subject)
                end = start + length
                if place and kind == _REGULAR:
                    runs.append(_Run(start, length, place, packed, skipped, unpacked, compression))
        return _BtrfsFile(self._guard, self._btrfs, runs, size_bytes, name=subject)


@dataclass(frozen=True, slots=True)
class _Run:
    """A file extent that holds data: where in the file, where in the file system's own addresses, how it is packed."""

    start: int
    length: int
    place: int
    packed: int
    skipped: int
    unpacked: int
    compression: int


class _BtrfsFile(BaseDisk):
    """A file's content, along its extents."""

    def __init__(self, guard: Guard, btrfs: Btrfs, runs: list[_Run], size_bytes: int, *, name: str) -> None:
        super().__init__(name, "raw", size_bytes)
        self._guard = guard
        self._logical = btrfs._logical_fh
        self._runs = runs
        self._starts = [run.start for run in runs]
        self._sector_bytes = int(btrfs.sector_size)
        self._unpacked = lru_cache(maxsize=_KEPT_EXTENTS)(self._unpack_run)

    def _read(self, offset: int, length: int) -> bytes:
        return b"".join(
            bytes(piece.length) if run is None else self._from(run, piece.offset - run.start, piece.length)
            for piece, run in self._pieces(offset, offset + length)
        )

    def _from(self, run: _Run, offset: int, length: int) -> bytes:
        if run.compression:
            inside = run.skipped + offset
            content = self._unpacked(run)[inside : inside + length]
        else:
            content = self._read_logical(run.place + run.skipped + offset, length)
        if len(content) != length:
            raise InputError(
                "an extent is shorter than it says", subject=self.name, found=f"{len(content)}", expected=f"{length}"
            )
        return content

    def _unpack_run(self, run: _Run) -> bytes:
        if max(run.packed, run.unpacked) > _MOST_PACKED_BYTES:
            raise InputError("a compressed extent is too large", subject=self.name, found=f"{run.packed} bytes")
        packed = self._read_logical(run.place, run.packed)
        with self._guard.question():
            return _unpack(packed, run.compression, self._sector_bytes, run.unpacked)

    def _read_logical(self, address: int, length: int) -> bytes:
        parts = []
        while length:
            step = min(length, _STEP_BYTES)
            with self._guard.question():
                self._logical.seek(address)
                part = self._logical.read(step)
            if len(part) != step:
                raise InputError("an extent is outside the file system", subject=self.name, found=f"{address:#x}")
            parts.append(part)
            address += step
            length -= step
        return b"".join(parts)

    def _pieces(self, offset: int, end: int) -> Iterator[tuple[Extent, _Run | None]]:
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            run = self._runs[index] if index < len(self._runs) else None
            if run is not None and run.start + run.length <= offset:
                index += 1
                continue
            inside = run is not None and run.start <= offset
            stop = end if run is None else min(end, run.start + run.length if inside else run.start)
            yield Extent(offset, stop - offset, data=inside), run if inside else None
            offset = stop

    def extents(self) -> Iterator[Extent]:
        """The file as runs of data and holes."""
        return (piece for piece, _ in self._pieces(0, self.size_bytes))


def _unpack(packed: bytes, compression: int, sector_bytes: int, size_bytes: int) -> bytes:
    """What an extent holds, never more than ``size_bytes``. Raises whatever its decompressor raises (under a guard)."""
    if size_bytes > _MOST_PACKED_BYTES:
        raise ValueError(f"an extent that unpacks to {size_bytes} bytes")
    if compression == c_btrfs.BTRFS_COMPRESS_NONE:
        return packed
    if compression == c_btrfs.BTRFS_COMPRESS_ZLIB:
        return zlib.decompressobj().decompress(packed, size_bytes) if size_bytes else b""
    if compression == c_btrfs.BTRFS_COMPRESS_ZSTD:
        import zstandard

        with zstandard.ZstdDecompressor(max_window_size=_MOST_ZSTD_WINDOW).stream_reader(packed) as reader:
            return reader.read(size_bytes)
    if compression == c_btrfs.BTRFS_COMPRESS_LZO:
        return _unpack_lzo(packed, sector_bytes, size_bytes)
    raise ValueError(f"compression {compression} is not known")


def _unpack_lzo(packed: bytes, sector_bytes: int, size_bytes: int) -> bytes:
    """Segments of at most a sector each, none of whose lengths straddles a sector's end (Linux, fs/btrfs/lzo.c)."""
    from dissect.util.compression import lzo

    total = min(int.from_bytes(packed[:4], "little"), len(packed))
    content = bytearray()
    at = 4
    while at + 4 <= total and len(content) < size_bytes:
        length = int.from_bytes(packed[at : at + 4], "little")
        if not length or at + 4 + length > total:
            break
        content += lzo.decompress(packed[at + 4 : at + 4 + length], False, sector_bytes)
        at += 4 + length
        left = sector_bytes - at % sector_bytes
        at += left if left < 4 else 0
    return bytes(content[:size_bytes])


def _keep_few(tree: Any) -> None:
    """Make a tree keep at most 512 nodes in memory; the library would keep 8192, of up to 64 KiB."""
    kept = tree._read_node
    if kept.cache_parameters()["maxsize"] != _KEPT_NODES:
        tree._read_node = lru_cache(maxsize=_KEPT_NODES)(kept.__wrapped__)


def _require_possible(superblock: Any, name: str) -> None:
    sizes = [4096 << shift for shift in range(5)]
    possible = (
        superblock.magic == c_btrfs.BTRFS_MAGIC
        and superblock.nodesize in sizes
        and superblock.sectorsize in sizes
        and 0 < superblock.sys_chunk_array_size <= 2048
    )
    if not possible:
        raise InputError("has an impossible btrfs superblock", subject=name)
