"""Writes qcow2 images of version 3: a disk's copy, and the empty overlay on a backing file. Same input, same bytes.

Layout: header · L1 table · for each L2 table its data clusters and then the table · refcount blocks · refcount table.
Everything is written once and in order but the L1 table and the header, which come last: a file that was cut short is
no image. Compressed clusters are packed one behind the other into clusters of their own.
Source: docs/interop/qcow2.txt of QEMU; section names in quotes below are its own.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from typing import BinaryIO

from armvm.disk.qcow2_header import MAX_CLUSTER_SIZE, MAX_L1_BYTES, Compression, Qcow2Header
from armvm.disk.storage import Disk
from armvm.disk.write import data_runs
from armvm.errors import UsageError
from armvm.units import align_up

_COPIED = 1 << 63  # the reference count is exactly one: may be written in place
_COMPRESSED = 1 << 62


def write_qcow2(
    file: BinaryIO,
    source: Disk,
    *,
    cluster_size: int = 65536,
    compression: Compression | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write ``source`` as a qcow2 image into the regular file ``file``, replacing what it holds.

    Clusters that are all zero are left out, and with ``compression`` the others are compressed where that saves room
    (QEMU has known zstd since 5.1). ``progress`` is told how many bytes of the disk are done.
    Raises UsageError when ``cluster_size`` is no power of two from 512 to 2 MiB or too small for a disk of this size.
    """
    image = _NewImage(file, source.size_bytes, cluster_size, compression or Compression.ZLIB)
    runs = data_runs(source, block_bytes=cluster_size, progress=progress)
    if compression is None:
        for offset, content in runs:
            image.add(offset, content)
    else:
        from armvm.disk.qcow2_compress import packed_runs

        for offset, clusters in packed_runs(runs, cluster_size, compression):
            for number, (content, packed) in enumerate(clusters):
                if packed is None:
                    image.add(offset + number * cluster_size, content)
                else:
                    image.add_packed(offset + number * cluster_size, packed)
    image.finish()


def write_overlay(
    file: BinaryIO, *, backing_path: str, backing_format: str, size_bytes: int, cluster_size: int = 65536
) -> None:
    """Write an empty qcow2 image of ``size_bytes`` on top of ``backing_path``, replacing what ``file`` holds.

    A relative ``backing_path`` starts from the folder of the image. Raises UsageError as write_qcow2 does, and when the
    path does not fit into the header.
    """
    image = _NewImage(file, size_bytes, cluster_size)
    # QEMU takes what stands before a colon for a protocol, unless a slash comes first.
    plain = f"./{backing_path}" if ":" in backing_path.partition("/")[0] else backing_path
    image.finish(backing_file=plain, backing_format=backing_format)


class _NewImage:
    """An image as it grows."""

    def __init__(
        self, file: BinaryIO, size_bytes: int, cluster_size: int, compression: Compression = Compression.ZLIB
    ) -> None:
        if not 512 <= cluster_size <= MAX_CLUSTER_SIZE or cluster_size & (cluster_size - 1):
            hint = "a power of two from 512 to 2097152"
            raise UsageError(f"not a cluster size of qcow2: {cluster_size}", hint=hint)
        self._file = file
        self._size_bytes = align_up(size_bytes, 512)  # QEMU would cut off what is no whole sector
        self._cluster_size = cluster_size
        self._l2_entries = cluster_size // 8
        l1_entries = -(-self._size_bytes // (cluster_size * self._l2_entries))
        if l1_entries * 8 > MAX_L1_BYTES:
            raise UsageError(f"clusters of {cluster_size} bytes are too small for a disk of {size_bytes} bytes")
        self._l1 = array("Q", bytes(8 * l1_entries))
        self._l2 = array("Q", bytes(cluster_size))
        self._l2_index = 0
        self._compression = compression
        self._free = 0  # where the next compressed cluster may begin, in bytes
        self._sharers = array("H")  # by cluster of the file: how many compressed clusters have bytes in it
        file.truncate(0)
        # The next cluster to be written: behind the header and the L1 table.
        self._next = 1 + -(-8 * l1_entries // cluster_size)
        self._position = 0
        file.seek(0)

    def add(self, offset: int, content: bytes) -> None:
        """Append guest clusters; each call stands behind the one before. Only the disk's last cluster may be short."""
        position = 0
        while position < len(content):
            first = self._turn_to((offset + position) // self._cluster_size)
            room = (self._l2_entries - first) * self._cluster_size
            piece = content[position : position + room]
            count = -(-len(piece) // self._cluster_size)
            for number in range(count):
                self._l2[first + number] = (self._next + number) * self._cluster_size | _COPIED
            self._append(piece, count)
            position += len(piece)

    def add_packed(self, offset: int, packed: bytes) -> None:
        """Append one guest cluster, compressed to less than its size ("Compressed Clusters Descriptor")."""
        entry = self._turn_to(offset // self._cluster_size)
        host = self._reserve(len(packed))
        self._write(host, packed)
        sectors = (host + len(packed) - 1) // 512 - host // 512
        offset_bits = 62 - (self._cluster_size.bit_length() - 1 - 8)
        self._l2[entry] = _COMPRESSED | sectors << offset_bits | host

    def _turn_to(self, cluster: int) -> int:
        """Begin the L2 table of a guest cluster where it is not at hand; the cluster's place in it."""
        index, entry = divmod(cluster, self._l2_entries)
        if index != self._l2_index:
            self._end_l2()
            self._l2_index = index
        return entry

    def _reserve(self, length: int) -> int:
        """Where the next ``length`` compressed bytes go: behind the last ones where there is room, or it can be made.

        They may lie across clusters, as long as these are neighbours.
        """
        size = self._cluster_size
        room = -self._free % size
        if length > room and self._free + room != self._next * size:
            self._free = self._next * size
            room = 0
        host, end = self._free, self._free + length
        self._next += -(-max(length - room, 0) // size)
        self._free = end
        self._sharers.extend([0] * (self._next - len(self._sharers)))
        for cluster in range(host // size, (end - 1) // size + 1):
            self._sharers[cluster] += 1
        return host

    def finish(self, *, backing_file: str | None = None, backing_format: str | None = None) -> None:
        """Write what remains: the last L2 table, the reference counts, the L1 table and the header."""
        self._end_l2()
        table_offset, table_clusters = self._write_refcounts()
        header = Qcow2Header(
            version=3,
            cluster_bits=self._cluster_size.bit_length() - 1,
            size_bytes=self._size_bytes,
            l1_entries=len(self._l1),
            l1_offset=self._cluster_size,
            refcount_table_offset=table_offset,
            refcount_table_clusters=table_clusters,
            compression=self._compression,
            backing_file=backing_file,
            backing_format=backing_format,
        )
        try:
            first_cluster = header.serialise()
        except ValueError as error:
            raise UsageError(f"cannot name {backing_file}: {error}") from None
        self._file.truncate(self._next * self._cluster_size)
        self._write(self._cluster_size, _big_endian(self._l1))
        self._write(0, first_cluster)
        self._file.seek(0)

    def _append(self, content: bytes, clusters: int) -> None:
        self._write(self._next * self._cluster_size, content)
        self._next += clusters

    def _write(self, position: int, content: bytes) -> None:
        """Write ``content`` at a place of the file; what was never written reads as zeros."""
        if position != self._position:  # a seek flushes Python's buffer: not where it would move nothing
            self._file.seek(position)
        self._file.write(content)
        self._position = position + len(content)

    def _end_l2(self) -> None:
        """Write the L2 table if it maps anything, and begin an empty one."""
        if not any(self._l2):
            return
        self._l1[self._l2_index] = self._next * self._cluster_size | _COPIED
        self._append(_big_endian(self._l2), 1)
        self._l2 = array("Q", bytes(self._cluster_size))

    def _write_refcounts(self) -> tuple[int, int]:
        """Count every cluster, those that hold the counts too ("Host cluster management").

        A cluster counts once, and once for each compressed one that has bytes in it.
        """
        per_block = self._cluster_size // 2  # 16-bit counts
        per_table = self._cluster_size // 8
        blocks = tables = 0
        while True:
            total = self._next + blocks + tables
            needed_blocks = -(-total // per_block)
            needed_tables = -(-needed_blocks // per_table)
            if (needed_blocks, needed_tables) == (blocks, tables):
                break
            blocks, tables = needed_blocks, needed_tables
        first_block = self._next
        counts = array("H", [1]) * total
        for cluster, sharers in enumerate(self._sharers):
            if sharers:
                counts[cluster] = sharers
        self._append(_big_endian(counts), blocks)
        table = array("Q", [(first_block + number) * self._cluster_size for number in range(blocks)])
        table_offset = self._next * self._cluster_size
        self._append(_big_endian(table), tables)
        return table_offset, tables


def _big_endian(words: array[int]) -> bytes:
    if sys.byteorder == "little":
        words.byteswap()
    return words.tobytes()
