"""Files on squashfs 4 by path, through dissect.squashfs.

It finds inodes and blocks; unpacking them is ours, because its own has no limit.
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate

from dissect.squashfs.c_squashfs import c_squashfs
from dissect.squashfs.squashfs import INode, SquashFS

from armvm.disk.files import MOST_ENTRIES, MOST_FOLDER_BYTES, BaseFileSystem, FileEntry, FileKind
from armvm.disk.guarded import Guard
from armvm.disk.storage import BaseDisk, Disk
from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import KIB, MIB

_KINDS = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.FOLDER, stat.S_IFLNK: FileKind.LINK}
_LONGEST_LINK = 65536
_KEPT_FOLDERS = 8
_KEPT_BLOCKS = 32
_MOST_BLOCKS = 1 << 20
_MOST_XZ_MEMORY = 64 * MIB
_MOST_ZSTD_WINDOW = 8 * MIB
_SUPERBLOCK_BYTES = 96
_METADATA_BYTES = 8 * KIB


class SquashFileSystem(BaseFileSystem):
    """The squashfs on ``disk``. Raises InputError when it cannot be read."""

    def __init__(self, disk: Disk, *, name: str) -> None:
        super().__init__(name, "squashfs")
        self._guard = Guard(disk, subject=name)
        with self._guard.question() as stream:
            superblock = c_squashfs.squashfs_super_block(stream.read(_SUPERBLOCK_BYTES))
            if superblock.block_size not in [4 * KIB << shift for shift in range(9)]:
                raise InputError("has an impossible block size", subject=name, found=str(superblock.block_size))
            if superblock.block_size != 1 << superblock.block_log or superblock.s_major != 4:
                raise InputError("has an impossible squashfs superblock, or is older than version 4", subject=name)
            stream.seek(0)
            self._squashfs = SquashFS(stream)
            self._squashfs._compression = _Unpacker(superblock.compression)
            self._squashfs._read_block = lru_cache(maxsize=_KEPT_BLOCKS)(self._squashfs._read_block.__wrapped__)
        self._folder = lru_cache(maxsize=_KEPT_FOLDERS)(self._read_folder)

    def _root(self) -> FileEntry:
        return self._entry("/", self._squashfs.root)

    def _list(self, folder: FileEntry) -> Iterable[FileEntry]:
        return [self._entry(_join(folder, name), node) for name, node in self._names(folder).items()]

    def _child(self, folder: FileEntry, name: str) -> FileEntry | None:
        node = self._names(folder).get(name)
        return None if node is None else self._entry(_join(folder, name), node)

    def _identity(self, folder: FileEntry) -> object:
        node = self._node(folder)
        return node.block, node.offset

    def _open(self, entry: FileEntry) -> Disk:
        subject = self._subject(entry.path)
        block_size = int(self._squashfs.block_size)
        if entry.size_bytes > _MOST_BLOCKS * block_size:
            raise InputError("its size is impossible", subject=subject, found=f"{entry.size_bytes} bytes")
        node = self._node(entry)
        with self._guard.question(printable(entry.path)):
            sizes = [None if size is None else int(size) for size, _ in node.block_list]
        return _SquashFile(self._guard, self._squashfs, node, sizes, name=subject)

    def _names(self, folder: FileEntry) -> dict[str, INode]:
        return self._folder(self._node(folder), folder.path)

    def _read_folder(self, node: INode, path: str) -> dict[str, INode]:
        subject = self._subject(path)
        found: dict[str, INode] = {}
        with self._guard.question(printable(path)):
            if node.size > MOST_FOLDER_BYTES:
                raise InputError("the directory is too large", subject=subject, found=f"{node.size} bytes")
            for child in node.iterdir():
                name = child.name
                if not name or name in (".", "..") or "/" in name or "\0" in name or len(found) >= MOST_ENTRIES:
                    raise InputError("the directory has impossible names, or too many", subject=subject)
                found.setdefault(name, child)
        return found

    def _entry(self, path: str, node: INode) -> FileEntry:
        with self._guard.question(printable(path)):
            mode, size_bytes = int(node.mode), int(node.size or 0)
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


class _SquashFile(BaseDisk):
    """A file's content, along its blocks (the library's own stream takes the end of a small file once per byte).

    ``sizes`` are the packed blocks as their list has them: 0 is a hole, None at the end a place in a fragment.
    """

    def __init__(self, guard: Guard, squashfs: SquashFS, node: INode, sizes: list[int | None], *, name: str) -> None:
        super().__init__(name, "raw", int(node.size))
        self._guard = guard
        self._squashfs = squashfs
        self._header = header = node.header
        self._sizes = sizes
        self._block_size = int(squashfs.block_size)
        packed = ((size or 0) & ~c_squashfs.SQUASHFS_COMPRESSED_BIT_BLOCK for size in sizes)
        self._places = list(accumulate(packed, initial=int(header.start_block)))

    def _read(self, offset: int, length: int) -> bytes:
        parts = []
        end = offset + length
        while offset < end:
            index, inside = divmod(offset, self._block_size)
            step = min(self._block_size - inside, end - offset)
            with self._guard.question():
                part = self._block(index)[inside : inside + step]
            if len(part) != step:
                raise InputError(
                    "the content is shorter than its size", subject=self.name, found=f"{len(part)}", expected=f"{step}"
                )
            parts.append(part)
            offset += step
        return b"".join(parts)

    def _block(self, index: int) -> bytes:
        size = self._sizes[index]
        if size is None:
            fragment = self._squashfs._lookup_fragment(self._header.fragment)
            _, content = self._squashfs._read_block(fragment.start_block, fragment.size)
            return bytes(content[self._header.offset :])
        if not size:
            return bytes(self._block_size)
        return bytes(self._squashfs._read_block(self._places[index], size)[1])


class _Unpacker:
    """Unpacks one block, never to more than it may hold; stands where the library's own ``Compression`` stood."""

    def __init__(self, kind: int) -> None:
        self._kind = kind

    def decompress(self, packed: bytes, expected: int) -> bytes:
        """At most ``expected`` bytes. Raises whatever the decompressor raises (under a guard)."""
        most = max(expected, _METADATA_BYTES)
        if self._kind == c_squashfs.ZLIB_COMPRESSION:
            return zlib.decompressobj().decompress(packed, most)
        if self._kind in (c_squashfs.XZ_COMPRESSION, c_squashfs.LZMA_COMPRESSION):
            import lzma

            return lzma.LZMADecompressor(memlimit=_MOST_XZ_MEMORY).decompress(packed, most)
        if self._kind == c_squashfs.ZSTD_COMPRESSION:
            import zstandard

            with zstandard.ZstdDecompressor(max_window_size=_MOST_ZSTD_WINDOW).stream_reader(packed) as reader:
                return reader.read(most)
        from dissect.util.compression import lz4, lzo

        if self._kind == c_squashfs.LZ4_COMPRESSION:
            return bytes(lz4.decompress(packed, uncompressed_size=most))
        return bytes(lzo.decompress(packed, False, most))


def _join(folder: FileEntry, name: str) -> str:
    return f"{folder.path.rstrip('/')}/{name}"
