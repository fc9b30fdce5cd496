"""From a file's blocks to those of the file system: extent trees (ext4) and indirect blocks (ext2, ext3).

Both give runs: ``(first block of the file, how many, first block on the disk)``, the last None where there is a hole.
Only the nodes that lead to the wanted blocks are read; levels are counted down, so that no tree has a loop.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Protocol

from armvm.errors import InputError

Run = tuple[int, int, int | None]
ReadBlock = Callable[[int], bytes]

_HEADER = struct.Struct("<4H4x")
_EXTENT = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIH2x")
_MAGIC = 0xF30A
_MOST_LEVELS = 5
_LONGEST_WRITTEN = 32768
_DIRECT_BLOCKS = 12
_MOST_KEPT = 64


class BlockMap(Protocol):
    """Where a file's blocks are."""

    most_blocks: int
    """How many blocks a file of this kind can have."""

    def runs(self, first: int, count: int) -> Iterator[Run]:
        """The blocks from ``first``, in order, all ``count`` of them. Raises InputError where the map is damaged."""
        ...


class ExtentMap:
    """An ext4 extent tree, rooted in the 60 bytes of an inode. ``block_count`` is the file system's size."""

    most_blocks = 1 << 32

    def __init__(self, root: bytes, read_block: ReadBlock, *, block_count: int, subject: str) -> None:
        self._root = root
        self._read_block = read_block
        self._block_count = block_count
        self._subject = subject
        self._nodes: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        self._levels = int.from_bytes(root[6:8], "little")
        if self._levels > _MOST_LEVELS:
            raise self._fault(f"the extent tree has {self._levels} levels", f"at most {_MOST_LEVELS}")

    def runs(self, first: int, count: int) -> Iterator[Run]:
        """The blocks from ``first``; see BlockMap."""
        position, end = first, first + count
        root = self._parse(self._root, self._levels)
        for logical, length, physical in self._extents(root, self._levels, first, end):
            start, stop = max(logical, position), min(logical + length, end)
            if stop <= start:
                continue
            if start > position:
                yield position, start - position, None
            yield start, stop - start, None if physical is None else physical + start - logical
            position = stop
        if position < end:
            yield position, end - position, None

    def _extents(
        self, node: tuple[list[int], list[tuple[int, int]]], level: int, first: int, end: int
    ) -> Iterator[Run]:
        starts, rest = node
        for index in range(max(bisect_right(starts, first) - 1, 0), len(starts)):
            logical = starts[index]
            if logical >= end:
                return
            length, physical = rest[index]
            if level:
                yield from self._extents(self._node(physical, level - 1), level - 1, first, end)
            elif length > _LONGEST_WRITTEN:
                yield logical, length - _LONGEST_WRITTEN, None  # allocated, never written: reads as zeros
            else:
                yield logical, length, physical

    def _node(self, block: int, level: int) -> tuple[list[int], list[tuple[int, int]]]:
        key = block << 3 | level
        if key not in self._nodes:
            if len(self._nodes) >= _MOST_KEPT:
                self._nodes.clear()
            self._nodes[key] = self._parse(self._read_block(block), level)
        return self._nodes[key]

    def _parse(self, raw: bytes, level: int) -> tuple[list[int], list[tuple[int, int]]]:
        """A node: where its entries start, and length and place of each (an index has no length)."""
        magic, entries, _most, depth = _HEADER.unpack_from(raw)
        if magic != _MAGIC or depth != level or entries * 12 + 12 > len(raw):
            raise self._fault(f"a node of the extent tree is damaged, level {level}")
        body = raw[12 : 12 + entries * 12]
        starts, rest = [], []
        end = 0
        if level:
            for logical, low, high in _INDEX.iter_unpack(body):
                if logical < end:
                    raise self._fault("the extent tree is not in order")
                starts.append(logical)
                rest.append((0, high << 32 | low))
                end = logical + 1
            return starts, rest
        for logical, length, high, low in _EXTENT.iter_unpack(body):
            blocks = length - _LONGEST_WRITTEN if length > _LONGEST_WRITTEN else length
            physical = high << 32 | low
            if logical < end or not blocks:
                raise self._fault("the extents are not in order, or one is empty")
            if not physical or physical + blocks > self._block_count:
                raise self._fault(f"an extent of {blocks} blocks at block {physical} is outside the file system")
            starts.append(logical)
            rest.append((length, physical))
            end = logical + blocks
        return starts, rest

    def _fault(self, message: str, expected: str | None = None) -> InputError:
        return InputError(message, subject=self._subject, expected=expected)


class IndirectMap:
    """The block map of ext2 and ext3: twelve blocks, then blocks of block numbers in one, two and three levels."""

    def __init__(self, root: bytes, read_block: ReadBlock, *, block_size: int, block_count: int, subject: str) -> None:
        self._root = struct.unpack("<15I", root)
        self._read_block = read_block
        self._per_block = block_size // 4
        self._unpack = struct.Struct(f"<{self._per_block}I").unpack
        self._block_count = block_count
        self._subject = subject
        self._tables: dict[int, tuple[int, ...]] = {}
        self.most_blocks = _DIRECT_BLOCKS + sum(self._per_block**level for level in (1, 2, 3))

    def runs(self, first: int, count: int) -> Iterator[Run]:
        """The blocks from ``first``; see BlockMap."""
        position, end = first, min(first + count, self.most_blocks)
        while position < end:
            physical, length = self._locate(position)
            length = min(length, end - position)
            if physical is not None and physical + length > self._block_count:
                raise InputError(f"block {physical} is outside the file system", subject=self._subject)
            yield position, length, physical
            position += length

    def _locate(self, logical: int) -> tuple[int | None, int]:
        """The block on the disk, and for how many blocks that goes on."""
        if logical < _DIRECT_BLOCKS:
            return _stretch(self._root[:_DIRECT_BLOCKS], logical)
        logical -= _DIRECT_BLOCKS
        level = 1
        while logical >= self._per_block**level:
            logical -= self._per_block**level
            level += 1
        table = self._root[_DIRECT_BLOCKS + level - 1]
        while True:
            span = self._per_block**level  # how many blocks of the file this table stands for
            if not table:
                return None, span - logical
            numbers = self._table(table)
            level -= 1
            if not level:
                return _stretch(numbers, logical)
            index, logical = divmod(logical, span // self._per_block)
            table = numbers[index]

    def _table(self, block: int) -> tuple[int, ...]:
        if block not in self._tables:
            if len(self._tables) >= _MOST_KEPT:
                self._tables.clear()
            self._tables[block] = self._unpack(self._read_block(block))
        return self._tables[block]


def _stretch(numbers: tuple[int, ...], index: int) -> tuple[int | None, int]:
    """The block number at ``index``, and how many follow it in a row."""
    first = numbers[index]
    length = 1
    while index + length < len(numbers) and numbers[index + length] == (first + length if first else 0):
        length += 1
    return first or None, length
