"""Writes qcow2 images of version 3: a disk's copy, and the empty overlay on a backing file. Same input, same bytes.

Layout: header · L1 table · for each L2 table its data clusters and then the table · refcount blocks · refcount table.
Everything is written once and in order but the L1 table and the header, which come last: a file that was cut short is
no image. Source: docs/interop/qcow2.txt of QEMU; section names in quotes below are its own.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from typing import BinaryIO

from armvm.disk.qcow2_header import MAX_CLUSTER_SIZE, MAX_L1_BYTES, Qcow2Header
from armvm.disk.storage import Disk
from armvm.disk.write import data_runs
from armvm.errors import UsageError
from armvm.units import align_up

_COPIED = 1 << 63  # the reference count is exactly one: may be written in place


def write_qcow2(
    file: BinaryIO,
    source: Disk,
    *,
    cluster_size: int = 65536,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write ``source`` as a qcow2 image into the regular file ``file``, replacing what it holds.

    Clusters that are all zero are left out. ``progress`` is told how many bytes of the disk are done.
    Raises UsageError when ``cluster_size`` is no power of two from 512 to 2 MiB or too small for a disk of this size.
    """
    image = _NewImage(file, source.size_bytes, cluster_size)
    for offset, content in data_runs(source, block_bytes=cluster_size, progress=progress):
        image.add(offset, content)
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

    def __init__(self, file: BinaryIO, size_bytes: int, cluster_size: int) -> None:
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
        file.truncate(0)
        # The next cluster to be written: behind the header and the L1 table.
        self._next = 1 + -(-8 * l1_entries // cluster_size)
        file.seek(self._next * cluster_size)

    def add(self, offset: int, content: bytes) -> None:
        """Append guest clusters; each call stands behind the one before. Only the disk's last cluster may be short."""
        position = 0
        while position < len(content):
            cluster = (offset + position) // self._cluster_size
            index, first = divmod(cluster, self._l2_entries)
            if index != self._l2_index:
                self._end_l2()
                self._l2_index = index
            room = (self._l2_entries - first) * self._cluster_size
            piece = content[position : position + room]
            count = -(-len(piece) // self._cluster_size)
            for number in range(count):
                self._l2[first + number] = (self._next + number) * self._cluster_size | _COPIED
            self._append(piece, count)
            position += len(piece)

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
            backing_file=backing_file,
            backing_format=backing_format,
        )
        try:
            first_cluster = header.serialise()
        except ValueError as error:
            raise UsageError(f"cannot name {backing_file}: {error}") from None
        self._file.truncate(self._next * self._cluster_size)
        self._file.seek(self._cluster_size)
        self._file.write(_big_endian(self._l1))
        self._file.seek(0)
        self._file.write(first_cluster)
        self._file.seek(0)

    def _append(self, content: bytes, clusters: int) -> None:
        self._file.write(content)
        self._file.write(bytes(clusters * self._cluster_size - len(content)))
        self._next += clusters

    def _end_l2(self) -> None:
        """Write the L2 table if it maps anything, and begin an empty one."""
        if not any(self._l2):
            return
        self._l1[self._l2_index] = self._next * self._cluster_size | _COPIED
        self._append(_big_endian(self._l2), 1)
        self._l2 = array("Q", bytes(self._cluster_size))

    def _write_refcounts(self) -> tuple[int, int]:
        """Count every cluster once, those that hold the counts too ("Host cluster management")."""
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
        self._append(_big_endian(counts), blocks)
        table = array("Q", [(first_block + number) * self._cluster_size for number in range(blocks)])
        table_offset = self._next * self._cluster_size
        self._append(_big_endian(table), tables)
        return table_offset, tables


def _big_endian(words: array[int]) -> bytes:
    if sys.byteorder == "little":
        words.byteswap()
    return words.tobytes()
