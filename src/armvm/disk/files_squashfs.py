"""Files on squashfs 4 by path, through dissect.squashfs.

It finds inodes and blocks; unpacking them is ours, because its own has no limit.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate

from dissect.squashfs.c_squashfs import c_squashfs
from dissect.squashfs.squashfs import INode, SquashFS

from armvm.disk.files import FileEntry
from armvm.disk.files_nodes import NodeFileSystem
from armvm.disk.guarded import Guard
from armvm.disk.storage import BaseDisk, Disk
from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import KIB, MIB

_KEPT_BLOCKS = 32
_MOST_BLOCKS = 1 << 20
_MOST_XZ_MEMORY = 64 * MIB
_MOST_ZSTD_WINDOW = 8 * MIB
_SUPERBLOCK_BYTES = 96
_METADATA_BYTES = 8 * KIB


class SquashFileSystem(NodeFileSystem[INode]):
    """The squashfs on ``disk``. Raises InputError when it cannot be read."""

    NODE = INode

    def __init__(self, disk: Disk, *, name: str) -> None:
        super().__init__(disk, name=name, kind="squashfs")
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

    def _start(self) -> INode:
        root: INode = self._squashfs.root
        return root

    def _children(self, node: INode) -> Iterator[tuple[str, INode]]:
        return ((child.name, child) for child in node.iterdir())

    def _mode(self, node: INode) -> tuple[int, int]:
        return int(node.mode), int(node.size or 0)

    def _link(self, node: INode, path: str, _size_bytes: int) -> str:
        with self._guard.question(printable(path)):
            return str(node.link)

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
