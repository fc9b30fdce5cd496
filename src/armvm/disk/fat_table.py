"""The allocation table of a FAT file system: read in pieces, chains followed only as far as somebody asks."""

from __future__ import annotations

import enum
import re
import sys
from array import array
from dataclasses import dataclass
from functools import cache

from armvm.disk.fat_boot import BootSector, FatKind
from armvm.disk.storage import Disk
from armvm.errors import InputError

PIECE_ENTRIES = 8192
"""Entries read at once: even, so that a piece of FAT12 starts on a whole byte."""
CACHED_PIECES = 512
"""How many pieces are kept: 4 Mi entries, 32 MB."""
MOST_RUNS = 65536
"""In how many pieces a file may lie. No boot volume comes near; a hostile one must not cost minutes."""

_FAT32_MASK = 0x0FFFFFFF
"""The upper four bits of a FAT32 entry are reserved and ignored (fatgen103)."""
_NOT_ZERO = re.compile(rb"[^\0]")


class ChainFault(enum.Enum):
    """Why a chain of clusters cannot be followed. RUNS is a limit of ours, the others are problems by their codes."""

    LOOP = "chain-loop"
    FREE = "chain-free"
    BAD = "chain-bad"
    RANGE = "chain-range"
    RUNS = "chain-fragments"


class ChainError(InputError):
    """A chain of clusters that cannot be followed: ``fault`` says in which way, ``what`` in words."""

    def __init__(self, fault: ChainFault, owner: str, what: str, *, subject: str) -> None:
        super().__init__(f"the cluster chain of {owner} {what}", subject=subject)
        self.fault = fault
        self.what = what


@dataclass(frozen=True, slots=True)
class TablePiece:
    """Decoded entries from entry ``first`` on. ``breaks`` has a zero word where an entry names its neighbour."""

    first: int
    entries: array[int]
    breaks: bytes
    empty: bool


class AllocationTable:
    """The table that counts of a FAT file system, for the clusters that exist."""

    def __init__(self, disk: Disk, boot: BootSector) -> None:
        self.name = disk.name
        self.kind = boot.layout
        self.end_mark = {FatKind.FAT12: 0xFF8, FatKind.FAT16: 0xFFF8, FatKind.FAT32: 0x0FFFFFF8}[self.kind]
        self.bad_mark = self.end_mark - 1
        self.entry_count = min(boot.table_entry_count, self.bad_mark)
        self._disk = disk
        self._offset = (boot.reserved_sectors + boot.active_fat * boot.fat_sectors) * boot.bytes_per_sector
        self._cache: dict[int, TablePiece] = {}

    def piece(self, index: int) -> TablePiece:
        """The entries from ``index * PIECE_ENTRIES`` on."""
        found = self._cache.get(index)
        if found is None:
            if len(self._cache) >= CACHED_PIECES:
                del self._cache[next(iter(self._cache))]
            found = self._cache[index] = self._load(index * PIECE_ENTRIES)
        return found

    def _load(self, first: int) -> TablePiece:
        count = min(PIECE_ENTRIES, self.entry_count - first)
        bits = self.kind.entry_bits
        raw = self._disk.read(self._offset + first * bits // 8, -(-count * bits // 8))
        if raw == bytes(len(raw)):
            return TablePiece(first, array("I", bytes(4 * count)), b"\1" * (4 * count), empty=True)
        entries = _decode(raw, self.kind, count)
        counting, ones = _lanes()
        neighbours = _lowest(counting + first * ones, count)
        differences = int.from_bytes(_little_endian(entries).tobytes(), "little") ^ neighbours
        return TablePiece(first, entries, differences.to_bytes(4 * count, "little"), empty=False)

    def entry(self, cluster: int) -> int:
        """What the table says about ``cluster``: the next one, or a mark."""
        return self.piece(cluster // PIECE_ENTRIES).entries[cluster % PIECE_ENTRIES]

    def run(self, cluster: int) -> tuple[int, int]:
        """How many clusters follow each other from ``cluster`` on (in its piece), and the entry of the last of them."""
        piece = self.piece(cluster // PIECE_ENTRIES)
        start = cluster - piece.first
        end = _NOT_ZERO.search(piece.breaks, 4 * start)
        last = len(piece.entries) - 1 if end is None else end.start() // 4
        return last - start + 1, piece.entries[last]


class Chain:
    """A chain of clusters, followed only as far as somebody asks.

    ``runs`` are the (first cluster, count) known so far and ``starts`` their places in the file, in clusters;
    ``length`` is the clusters in them, ``ended`` whether that is all.
    """

    def __init__(self, table: AllocationTable, first: int, owner: str) -> None:
        self.runs: list[tuple[int, int]] = []
        self.starts: list[int] = []
        self.length = 0
        self.ended = False
        self._table = table
        self._owner = owner
        self._next = first
        self._seen: set[int] = set()

    def follow(self, clusters: int) -> None:
        """Know the first ``clusters`` clusters, or all when there are fewer. Raises ChainError on a broken chain."""
        if not self.runs:
            self._require(self._next, "starts at")
        while self.length < clusters and not self.ended:
            start = self._next
            if start in self._seen:
                raise self._fault(ChainFault.LOOP, f"runs in a loop through cluster {start}")
            if len(self._seen) >= MOST_RUNS:
                raise self._fault(ChainFault.RUNS, f"lies in more than {MOST_RUNS} pieces")
            count, following = self._table.run(start)
            last = start + count - 1
            self.ended = following >= self._table.end_mark
            if not self.ended:
                self._require(following, f"goes on after cluster {last} at")
            self._seen.add(start)
            self._next = following
            self._add(start, count)

    def _add(self, start: int, count: int) -> None:
        if self.runs and sum(self.runs[-1]) == start:
            self.runs[-1] = (self.runs[-1][0], self.runs[-1][1] + count)
        else:
            self.runs.append((start, count))
            self.starts.append(self.length)
        self.length += count

    def _require(self, cluster: int, verb: str) -> None:
        if 2 <= cluster < self._table.entry_count:
            return
        if cluster == 0:
            raise self._fault(ChainFault.FREE, f"{verb} cluster 0, the mark of a free cluster")
        if cluster == self._table.bad_mark:
            raise self._fault(ChainFault.BAD, f"{verb} {cluster:#x}, the mark of a bad cluster")
        raise self._fault(ChainFault.RANGE, f"{verb} cluster {cluster}, outside 2..{self._table.entry_count - 1}")

    def _fault(self, fault: ChainFault, what: str) -> ChainError:
        return ChainError(fault, self._owner, what, subject=self._table.name)


def _decode(raw: bytes, kind: FatKind, count: int) -> array[int]:
    entries = array("I")
    if kind is FatKind.FAT32:
        masked = int.from_bytes(raw, "little") & _lowest(_lanes()[1] * _FAT32_MASK, count)
        entries.frombytes(masked.to_bytes(len(raw), "little"))
        return _little_endian(entries)
    if kind is FatKind.FAT16:
        return array("I", _little_endian(array("H", raw)))
    for index in range(count):
        low = index * 3 // 2
        pair = raw[low] | raw[low + 1] << 8
        entries.append(pair >> 4 if index % 2 else pair & 0xFFF)
    return entries


def _little_endian(words: array[int]) -> array[int]:
    """The same words with their bytes in the order of the disk, or back."""
    if sys.byteorder == "big":
        words = words[:]
        words.byteswap()
    return words


@cache
def _lanes() -> tuple[int, int]:
    """A piece's worth of 32-bit words as one number: 1, 2, 3 … and 1, 1, 1 …, to reckon with all at once."""
    counting, ones = (array("I", words) for words in (range(1, PIECE_ENTRIES + 1), [1] * PIECE_ENTRIES))
    return (
        int.from_bytes(_little_endian(counting).tobytes(), "little"),
        int.from_bytes(_little_endian(ones).tobytes(), "little"),
    )


def _lowest(number: int, words: int) -> int:
    return number if words == PIECE_ENTRIES else number & ((1 << 32 * words) - 1)
