"""Reads qcow2 images in process and lazily: versions 2 and 3, compressed and zero clusters, subclusters, backing files.

Source: docs/interop/qcow2.txt of QEMU; section names in quotes below are its own. Reference counts, snapshots and
bitmaps say nothing about what the guest's disk holds now, and are not looked at.
"""

from __future__ import annotations

import enum
import os
import sys
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from armvm.disk.qcow2_header import MAX_CLUSTER_SIZE, Compression, Qcow2Header, parse_header
from armvm.disk.raw import RawDisk
from armvm.disk.storage import BaseDisk, Disk, Extent
from armvm.errors import InputError
from armvm.printable import printable

MAX_CHAIN = 16
"""How many images a chain of backing files may have."""

_OFFSET = 0x00FFFFFFFFFFFE00  # bits 9 to 55 of an entry
_COMPRESSED = 1 << 62
_READS_AS_ZEROS = 1
_PAGE_WORDS = 8192  # tables are read and kept in pages of this size
_PAGES_KEPT = 64
_DECOMPRESSED_BYTES_KEPT = 1 << 20
_MAX_ZSTD_WINDOW = 8 << 20  # what RFC 8878 §3.1.1.1.2 asks a decoder to support


class _Kind(enum.Enum):
    """Where the bytes of a run come from."""

    DATA = enum.auto()
    COMPRESSED = enum.auto()
    ZEROS = enum.auto()
    BACKING = enum.auto()


_Run = tuple[_Kind, int, int]
"""Kind, length in bytes, and where: the host offset of DATA, the L2 entry of COMPRESSED."""


class Qcow2Disk(BaseDisk):
    """A qcow2 image that lies in ``file``, on top of ``backing`` where its header names a backing file.

    Owns both: they are closed with it, and when it cannot be made. Raises InputError when ``file`` is no qcow2 image
    that can be read.
    """

    def __init__(self, file: Disk, *, backing: Disk | None = None, sector_size: int = 512) -> None:
        with ExitStack() as undo:
            undo.enter_context(file)
            if backing is not None:
                undo.enter_context(backing)
            self.header = read_header(file)
            if self.header.backing_file is not None and backing is None:
                raise InputError(
                    "is only the difference to a backing file",
                    subject=file.name,
                    found=printable(self.header.backing_file),
                    hint="allow backing files, or make it one image: qemu-img convert -O qcow2 IMAGE ONE.qcow2",
                )
            undo.pop_all()
        super().__init__(file.name, "qcow2", self.header.size_bytes, sector_size)
        self._file = file
        self._backing = backing
        self._pages: OrderedDict[tuple[int, int], array[int]] = OrderedDict()
        self._decompressed: OrderedDict[int, bytes] = OrderedDict()

    def close(self) -> None:
        """Close the file and the backing disk."""
        self._file.close()
        if self._backing is not None:
            self._backing.close()

    def _read(self, offset: int, length: int) -> bytes:
        pieces = []
        position = offset
        for kind, run_length, where in self._runs(offset, offset + length):
            pieces.append(self._run_bytes(kind, run_length, where, position))
            position += run_length
        return b"".join(pieces)

    def _run_bytes(self, kind: _Kind, length: int, where: int, position: int) -> bytes:
        if kind is _Kind.DATA:
            # QEMU may leave the last cluster of a file short; what is missing reads as zeros.
            return _read_padded(self._file, where, length)
        if kind is _Kind.COMPRESSED:
            within = position % self.header.cluster_size
            return self._decompress(where)[within : within + length]
        if kind is _Kind.BACKING and self._backing is not None:
            return _read_padded(self._backing, position, length)
        return bytes(length)

    def extents(self) -> Iterator[Extent]:
        """Data and zeros as the tables have them; costs nothing for what is not allocated."""
        start, length, data = 0, 0, False
        for run_length, run_data in self._known_runs():
            if run_data is data:
                length += run_length
                continue
            if length:
                yield Extent(start, length, data)
            start, length, data = start + length, run_length, run_data
        if length:
            yield Extent(start, length, data)

    def _known_runs(self) -> Iterator[tuple[int, bool]]:
        """The whole disk as (length, whether it is data)."""
        below = _ExtentCursor(self._backing) if self._backing is not None else None
        position = 0
        for kind, length, _ in self._runs(0, self.size_bytes):
            if kind is _Kind.BACKING and below is not None:
                yield from below.within(position, position + length)
            else:
                yield length, kind in (_Kind.DATA, _Kind.COMPRESSED)
            position += length

    # The map: guest offset -> L1 entry -> L2 entry -> run ("Cluster mapping")

    def _runs(self, start: int, end: int) -> Iterator[_Run]:
        """The bytes from ``start`` to ``end`` as runs, neighbours joined."""
        size = self.header.cluster_size
        skip, left = start % size, end - start
        kind, length, where = _Kind.BACKING, 0, 0
        for next_kind, cluster_length, cluster_where in self._clusters(start // size, -(-end // size)):
            if skip >= cluster_length:
                skip -= cluster_length
                continue
            next_length = min(cluster_length - skip, left)
            next_where = cluster_where + skip if next_kind is _Kind.DATA else cluster_where
            skip = 0
            left -= next_length
            joins = next_kind is kind and kind is not _Kind.COMPRESSED
            if joins and (kind is not _Kind.DATA or next_where == where + length):
                length += next_length
            else:
                if length:
                    yield kind, length, where
                kind, length, where = next_kind, next_length, next_where
            if not left:
                break
        if length:
            yield kind, length, where

    def _clusters(self, first: int, end: int) -> Iterator[_Run]:
        """The guest clusters from ``first`` up to ``end`` as runs of whole clusters or subclusters."""
        header = self.header
        # Two L1 entries of a sound image never share an L2 table. A hostile one could make us walk one for ever.
        tables_left = self._file.size_bytes // header.cluster_size
        while first < end:
            index = first // header.l2_entries
            present = self._first_l1_present(index, -(-end // header.l2_entries))
            if present > index:
                stop = min(present * header.l2_entries, end)
                yield _Kind.BACKING, (stop - first) * header.cluster_size, 0
                first = stop
                continue
            if not tables_left:
                raise InputError("has more L2 tables than room for them", subject=self.name)
            tables_left -= 1
            table = self._l2_offset(index)
            stop = min((index + 1) * header.l2_entries, end)
            yield from self._mapped(table, first % header.l2_entries, stop - first)
            first = stop

    def _mapped(self, table: int, first: int, count: int) -> Iterator[_Run]:
        """The runs of ``count`` clusters from entry ``first`` of the L2 table at ``table`` ("L2 table entry")."""
        size, extended = self.header.cluster_size, self.header.extended_l2
        width = 2 if extended else 1
        words = chain.from_iterable(
            self._slices(table, first * width, (first + count) * width, self.header.l2_entries * width)
        )
        for entry in words:
            bitmap = next(words) if extended else 0
            if entry & _COMPRESSED:
                yield _Kind.COMPRESSED, size, entry
            elif extended:
                yield from self._subclusters(self._host_offset(entry, table), bitmap, table)
            elif not entry:
                yield _Kind.BACKING, size, 0
            elif entry & _READS_AS_ZEROS:
                if self.header.version < 3:
                    raise InputError("a zero cluster in an image of version 2", subject=self.name, offset_bytes=table)
                yield _Kind.ZEROS, size, 0
            else:
                host = self._host_offset(entry, table)
                yield (_Kind.DATA if host else _Kind.BACKING), size, host

    def _subclusters(self, host: int, bitmap: int, table: int) -> Iterator[_Run]:
        """The runs of a cluster that has 32 subclusters ("Extended L2 Entries")."""
        allocated, zeros = bitmap & 0xFFFFFFFF, bitmap >> 32
        if allocated & zeros or (allocated and not host):
            raise InputError("contradictory subclusters", subject=self.name, offset_bytes=table, found=f"{bitmap:#x}")
        size = self.header.cluster_size // 32
        for number in range(32):
            if allocated >> number & 1:
                yield _Kind.DATA, size, host + number * size
            else:
                yield (_Kind.ZEROS if zeros >> number & 1 else _Kind.BACKING), size, 0

    def _host_offset(self, entry: int, table: int) -> int:
        """Where the cluster of a standard entry stands in the file; 0 when it stands nowhere."""
        host = entry & _OFFSET
        if host % self.header.cluster_size or host >= self._file.size_bytes:
            raise self._misplaced("a cluster", host, table)
        return host

    def _first_l1_present(self, index: int, end: int) -> int:
        """The first L1 entry from ``index`` on that names an L2 table; ``end`` when there is none before it."""
        for words in self._slices(self.header.l1_offset, index, end, self.header.l1_entries_needed):
            if any(words):  # a sparse disk's L1 table is nearly all zeros: pass them quickly
                for number, entry in enumerate(words, index):
                    if entry & _OFFSET:
                        return number
            index += len(words)
        return end

    def _l2_offset(self, index: int) -> int:
        (words,) = self._slices(self.header.l1_offset, index, index + 1, self.header.l1_entries_needed)
        offset, size = words[0] & _OFFSET, self.header.cluster_size
        if offset % size or offset + size > self._file.size_bytes:
            raise self._misplaced("an L2 table", offset, self.header.l1_offset + 8 * index)
        return offset

    def _misplaced(self, what: str, offset: int, said_at: int) -> InputError:
        return InputError(
            f"{what} stands outside the file or on no cluster boundary",
            subject=self.name,
            offset_bytes=said_at,
            found=f"{offset:#x} in a file of {self._file.size_bytes} bytes",
            hint="was the image copied whole? qemu-img check tells more",
        )

    def _slices(self, table: int, first: int, end: int, entries: int) -> Iterator[array[int]]:
        """Words ``first`` up to ``end`` of the table of ``entries`` 64-bit words at file offset ``table``."""
        while first < end:
            number, within = divmod(first, _PAGE_WORDS)
            page = self._page(table + number * _PAGE_WORDS * 8, min(entries - number * _PAGE_WORDS, _PAGE_WORDS))
            words = page[within : within + end - first]
            yield words
            first += len(words)

    def _page(self, offset: int, count: int) -> array[int]:
        page = self._pages.get((offset, count))
        if page is not None:
            self._pages.move_to_end((offset, count))
            return page
        page = array("Q", self._file.read(offset, count * 8))
        if sys.byteorder == "little":
            page.byteswap()
        self._pages[offset, count] = page
        if len(self._pages) > _PAGES_KEPT:
            self._pages.popitem(last=False)
        return page

    # Compressed clusters ("Compressed Clusters Descriptor")

    def _decompress(self, entry: int) -> bytes:
        cluster = self._decompressed.get(entry)
        if cluster is not None:
            self._decompressed.move_to_end(entry)
            return cluster
        offset_bits = 62 - (self.header.cluster_bits - 8)
        offset = entry & ((1 << offset_bits) - 1)
        sectors = ((entry & (_COMPRESSED - 1)) >> offset_bits) + 1
        # The last sector may reach past the end of the file: only what stands in it counts.
        length = min(sectors * 512 - offset % 512, self._file.size_bytes - offset)
        if length <= 0:
            raise InputError("a compressed cluster stands outside the file", subject=self.name, offset_bytes=offset)
        packed = self._file.read(offset, length)
        unpack = _inflate if self.header.compression is Compression.ZLIB else _unpack_zstd
        try:
            cluster = unpack(packed, self.header.cluster_size)
        except ValueError as error:
            message = f"a compressed cluster cannot be decompressed: {error}"
            raise InputError(message, subject=self.name, offset_bytes=offset) from error
        self._decompressed[entry] = cluster
        if len(self._decompressed) * self.header.cluster_size > max(_DECOMPRESSED_BYTES_KEPT, self.header.cluster_size):
            self._decompressed.popitem(last=False)
        return cluster


def _read_padded(disk: Disk, offset: int, length: int) -> bytes:
    """What ``disk`` holds there, and zeros behind its end."""
    present = min(length, max(disk.size_bytes - offset, 0))
    return disk.read(offset, present).ljust(length, b"\0") if present else bytes(length)


def _inflate(packed: bytes, size: int) -> bytes:
    """``size`` bytes from a raw deflate stream, never more. Raises ValueError when they are not there."""
    try:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size)
    except zlib.error as error:
        raise ValueError(error) from None
    if len(content) != size:
        raise ValueError(f"{len(content)} bytes instead of {size}")
    return content


def _unpack_zstd(packed: bytes, size: int) -> bytes:
    """``size`` bytes from zstd frames, never more. Raises ValueError when they are not there."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
    try:
        with decompressor.stream_reader(packed, read_across_frames=True) as reader:
            content = reader.read(size)
    except zstandard.ZstdError as error:
        raise ValueError(error) from None
    if len(content) != size:
        raise ValueError(f"{len(content)} bytes instead of {size}")
    return content


class _ExtentCursor:
    """Walks a backing disk's extents once, forwards, a window at a time."""

    def __init__(self, disk: Disk) -> None:
        self._extents = disk.extents()
        self._current = Extent(0, 0, data=False)

    def within(self, start: int, end: int) -> Iterator[tuple[int, bool]]:
        """The window as (length, whether it is data); behind the disk's end there are zeros."""
        while start < end:
            current: Extent | None = self._current
            while current is not None and current.offset + current.length <= start:
                current = next(self._extents, None)
                if current is not None:
                    self._current = current
            stop = end if current is None else min(current.offset + current.length, end)
            yield stop - start, current is not None and current.data
            start = stop


def read_header(file: Disk) -> Qcow2Header:
    """The header of the qcow2 image that lies in ``file``. Raises InputError when there is none."""
    start = file.read(0, min(24, file.size_bytes))
    cluster_size = 1 << min(max(int.from_bytes(start[20:24], "big"), 9), MAX_CLUSTER_SIZE.bit_length() - 1)
    content = file.read(0, min(cluster_size, file.size_bytes))
    return parse_header(content, name=file.name, file_size=file.size_bytes)


def open_qcow2(path: str | os.PathLike[str], *, sector_size: int = 512, allow_backing_files: bool = False) -> Qcow2Disk:
    """Open the qcow2 image at ``path``.

    A backing file is refused (InputError), for its name is the image's to choose: a guest could name any file of this
    machine. ``allow_backing_files`` admits one that lies, symbolic links resolved, below the folder of the image.
    """
    return _open_chain(os.fspath(path), sector_size, allow_backing_files, ())


def _open_chain(path: str, sector_size: int, allow_backing_files: bool, above: tuple[Path, ...]) -> Qcow2Disk:
    """The image at ``path`` on top of its backing files; ``above`` are the real paths of the images that need it."""
    file = RawDisk(path)
    with ExitStack() as undo:
        undo.enter_context(file)
        header = read_header(file)
        backing: Disk | None = None
        if header.backing_file is not None and allow_backing_files:
            backing = _open_backing(path, header.backing_file, header.backing_format, sector_size, above)
        undo.pop_all()
    return Qcow2Disk(file, backing=backing, sector_size=sector_size)


def _open_backing(path: str, name: str, format: str | None, sector_size: int, above: tuple[Path, ...]) -> Disk:
    """The backing file that the image at ``path`` calls ``name``."""
    shown = printable(name)
    if ":" in name.partition("/")[0]:  # QEMU's rule of what is a protocol: json:, nbd:, https:, file: …
        raise InputError("its backing file is no plain path", subject=path, found=shown)
    # A relative name starts from the folder of the image as it was named, as for QEMU.
    folder = Path(path).absolute().parent
    try:
        real, resolved = Path(path).resolve(), (folder / name).resolve()
        below = resolved.is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # RuntimeError: symbolic links in a circle
        raise InputError("its backing file cannot be found", subject=path, found=shown) from error
    images = (*above, real)
    if not below:
        hint = "move it beside the image, or make it one image: qemu-img convert -O qcow2 IMAGE ONE.qcow2"
        raise InputError("its backing file lies outside its folder", subject=path, found=shown, hint=hint)
    if resolved in images:
        raise InputError("its backing files go round in a circle", subject=path, found=shown)
    if len(images) >= MAX_CHAIN:
        raise InputError(f"has more than {MAX_CHAIN - 1} backing files", subject=path, found=shown)
    if format == "raw":
        return RawDisk(resolved, sector_size=sector_size)
    if format == "qcow2":
        return _open_chain(str(resolved), sector_size, True, images)
    raise InputError(
        "does not say that its backing file is raw or qcow2",
        subject=path,
        found="no format" if format is None else printable(format),
        hint="say it with: qemu-img rebase -u -b BACKING -F FORMAT IMAGE",
    )
