"""Decompression in a stream and within bounds: what Linux packs kernels, initial RAM disks and modules with.

Formats are known by their magic numbers (Linux, lib/decompress.c), never by a file's name. Nothing here holds more than
a few MiB of output at a time; whoever wants all of it says how much that may be. LZO has no library of a free licence
and goes through the program ``lzop``.
"""

from __future__ import annotations

import enum
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Protocol

from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import KIB, MIB

_READ_BYTES = 256 * KIB
_PIECE_BYTES = MIB
_MOST_MEMORY = 128 * MIB
"""Window of a zstd frame, dictionary of an xz or lzma stream: Linux's own limit for an initial RAM disk packed so."""
_LZ4_BLOCK_BYTES = 8 * MIB  # Linux, lib/decompress_unlz4.c: LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE
_LZ4_MOST_PACKED = _LZ4_BLOCK_BYTES + _LZ4_BLOCK_BYTES // 255 + 16
_LZOP_TIMEOUT_SECONDS = 60
_LZOP_HEADER_BYTES = 1024


class Compression(enum.Enum):
    """A compressed format."""

    GZIP = "gzip"
    XZ = "xz"
    LZMA = "lzma"
    ZSTD = "zstd"
    LZ4 = "lz4"
    LZ4_LEGACY = "lz4 (legacy)"
    BZIP2 = "bzip2"
    LZO = "lzo"


_MAGICS = (
    (b"\x1f\x8b\x08", Compression.GZIP),
    (b"\xfd7zXZ\0", Compression.XZ),
    (b"\x28\xb5\x2f\xfd", Compression.ZSTD),
    (b"\x04\x22\x4d\x18", Compression.LZ4),
    (b"\x02\x21\x4c\x18", Compression.LZ4_LEGACY),
    (b"BZh", Compression.BZIP2),
    (b"\x89LZO\0\r\n\x1a\n", Compression.LZO),
    (b"\x5d\0\0", Compression.LZMA),
)
MAGICS = {compression: magic for magic, compression in _MAGICS}
"""How the members of each format begin."""


def recognise(head: bytes) -> Compression | None:
    """The format that begins with ``head`` (nine bytes are enough), or None when it is none of ours."""
    return next((compression for magic, compression in _MAGICS if head.startswith(magic)), None)


def unpack(disk: Disk, compression: Compression | None = None, *, most_bytes: int, offset: int = 0) -> bytes:
    """The whole content of the compressed member at ``offset``.

    Raises InputError when it is damaged, cut off, of no known format, or larger than ``most_bytes``.
    """
    member = Member(disk, offset, compression)
    content = bytearray()
    for piece in member:
        content += piece
        if len(content) > most_bytes:
            raise InputError(
                "unpacks to too much", subject=disk.name, offset_bytes=offset, expected=f"at most {most_bytes} bytes"
            )
    return bytes(content)


def unpack_bytes(packed: bytes, *, most_bytes: int, name: str) -> bytes:
    """As ``unpack``, of bytes in memory; ``name`` is what messages call them."""
    return unpack(MemoryDisk(packed, name=name), most_bytes=most_bytes)


class Member:
    """One compressed member of a disk, from ``offset`` on: iterating gives its content in pieces of at most 8 MiB.

    ``end`` is the offset behind it, known when the iteration has come to its end. Without ``compression`` the magic
    number tells. Iterating raises InputError when the member is damaged, cut off or needs more memory than 128 MiB,
    MissingError when only a program that is not installed can read it. How much may come out is the caller's to limit.
    """

    def __init__(self, disk: Disk, offset: int = 0, compression: Compression | None = None) -> None:
        self.disk = disk
        self.offset = offset
        found = compression or recognise(disk.read(offset, min(9, max(disk.size_bytes - offset, 0))))
        if found is None:
            raise InputError("of no compressed format that is known", subject=disk.name, offset_bytes=offset)
        self.compression = found
        self.end: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        import lzma

        try:
            yield from self._pieces()
        except (zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
            raise self._damaged(str(error)) from error

    def _pieces(self) -> Iterator[bytes]:
        match self.compression:
            case Compression.ZSTD:
                return self._zstd()
            case Compression.LZ4:
                return self._lz4()
            case Compression.LZ4_LEGACY:
                return self._lz4_legacy()
            case Compression.LZO:
                return self._lzo()
        return self._decoded(decoder(self.compression))

    def _damaged(self, why: str) -> InputError:
        return InputError(
            f"damaged {self.compression.value} data: {printable(why)[:200]}",
            subject=self.disk.name,
            offset_bytes=self.offset,
        )

    def _decoded(self, stream: Decoder) -> Iterator[bytes]:
        """Through one of the decoders that say themselves where a member ends."""
        position = self.offset
        packed = b""
        while not stream.eof:
            if stream.needs_input:
                packed = self.disk.read(position, min(_READ_BYTES, self.disk.size_bytes - position))
                if not packed:
                    raise EOFError("it is cut off")
                position += len(packed)
            else:
                packed = b""
            piece = stream.decompress(packed, _PIECE_BYTES)
            if piece:
                yield piece
        self.end = position - len(stream.unused_data or b"")

    def _lz4(self) -> Iterator[bytes]:
        import lz4.frame

        try:
            yield from self._decoded(lz4.frame.LZ4FrameDecompressor())
        except RuntimeError as error:
            raise self._damaged(str(error)) from error

    def _lz4_legacy(self) -> Iterator[bytes]:
        """Blocks of 8 MiB, each with its packed size before it (LZ4 Frame Format 1.6.4, "Legacy frame")."""
        import lz4.block

        position = self.offset + 4
        while self.disk.size_bytes - position >= 4:
            (size,) = struct.unpack("<I", self.disk.read(position, 4))
            if not 0 < size <= _LZ4_MOST_PACKED:
                break  # padding, another frame, or the size of the whole that Linux appends to its own kernels
            if size > self.disk.size_bytes - position - 4:
                raise EOFError("it is cut off")
            try:
                piece = lz4.block.decompress(self.disk.read(position + 4, size), uncompressed_size=_LZ4_BLOCK_BYTES)
            except lz4.block.LZ4BlockError as error:
                raise self._damaged(str(error)) from error
            yield piece
            position += 4 + size
            if len(piece) < _LZ4_BLOCK_BYTES:
                break
        self.end = position

    def _zstd(self) -> Iterator[bytes]:
        import zstandard

        end = _zstd_end(self.disk, self.offset)
        source = io.BufferedReader(_Stream(self.disk, self.offset, end), _READ_BYTES)
        try:
            decoder = zstandard.ZstdDecompressor(max_window_size=_MOST_MEMORY)
            with decoder.stream_reader(source, read_size=_READ_BYTES) as reader:
                while piece := reader.read(_PIECE_BYTES):
                    yield piece
        except zstandard.ZstdError as error:
            raise self._damaged(str(error)) from error
        self.end = end

    def _lzo(self) -> Iterator[bytes]:
        import tempfile
        from pathlib import Path

        from armvm.process import ProgramError, require_program, run

        end = _lzop_end(self.disk, self.offset)
        require_program("lzop")
        with tempfile.TemporaryDirectory(prefix="armvm-") as folder:
            packed, plain = Path(folder, "packed.lzo"), Path(folder, "plain")
            with packed.open("wb") as file:
                file.writelines(_Stream(self.disk, self.offset, end).pieces())
            try:
                run("lzop", ["-q", "-d", "-o", str(plain), str(packed)], timeout_seconds=_LZOP_TIMEOUT_SECONDS)
            except ProgramError as error:
                raise self._damaged(error.stderr or error.message) from error
            with plain.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    yield piece
        self.end = end


class Decoder(Protocol):
    """One compressed stream being decoded, as the standard library's decoders of bzip2 and xz have it."""

    @property
    def eof(self) -> bool:
        """Whether the stream has come to its end."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes out before more goes in."""
        ...

    @property
    def unused_data(self) -> bytes | None:
        """What went in and belongs to whatever follows the stream."""
        ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Take in ``data``, give out at most ``max_length`` bytes."""
        ...


def decoder(compression: Compression, *, most_memory: int = _MOST_MEMORY) -> Decoder:
    """A decoder of gzip, bzip2, xz or lzma that gives out no more than it is asked for."""
    if compression is Compression.GZIP:
        return _Gzip()
    if compression is Compression.BZIP2:
        import bz2

        return bz2.BZ2Decompressor()
    import lzma

    layout = lzma.FORMAT_ALONE if compression is Compression.LZMA else lzma.FORMAT_XZ
    return lzma.LZMADecompressor(layout, memlimit=most_memory)


class _Gzip:
    """zlib's decoder as the others are."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail and not self._full

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        piece = self._inflate.decompress(self._inflate.unconsumed_tail + data, max(max_length, 0))
        self._full = len(piece) == max_length  # there may be more in zlib's own window
        return piece


class _Stream(io.RawIOBase):
    """The bytes of ``disk`` from ``start`` up to ``end`` as a file."""

    def __init__(self, disk: Disk, start: int, end: int) -> None:
        super().__init__()
        self._disk = disk
        self._position = start
        self._end = end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's own is not named
        content = self._disk.read(self._position, min(len(buffer), self._end - self._position))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def pieces(self) -> Iterator[bytes]:
        while self._position < self._end:
            content = self._disk.read(self._position, min(_PIECE_BYTES, self._end - self._position))
            self._position += len(content)
            yield content


def _zstd_end(disk: Disk, offset: int) -> int:
    """The offset behind a zstd frame, by its header and its blocks' (RFC 8878 §3.1.1). Raises InputError."""
    head = disk.read(offset, min(18, disk.size_bytes - offset))
    if len(head) < 6:
        raise InputError("damaged zstd data: it is cut off", subject=disk.name, offset_bytes=offset)
    descriptor = head[4]
    single = descriptor >> 5 & 1
    position = offset + 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    position += (single, 2, 4, 8)[descriptor >> 6]
    while position + 3 <= disk.size_bytes:
        block = int.from_bytes(disk.read(position, 3), "little")
        position += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
        if block & 1:
            position += 4 * (descriptor >> 2 & 1)
            if position <= disk.size_bytes:
                return position
    raise InputError("damaged zstd data: it is cut off", subject=disk.name, offset_bytes=offset)


def _lzop_end(disk: Disk, offset: int) -> int:
    """The offset behind what lzop packed (lzop 1.04, src/lzop.c: header, then blocks with their sizes)."""
    size = min(_LZOP_HEADER_BYTES, disk.size_bytes - offset)
    head = disk.read(offset, size)
    position, flags = _lzop_header(head)
    total = 0
    position += offset
    while position + 4 <= disk.size_bytes:
        (plain,) = struct.unpack(">I", disk.read(position, 4))
        position += 4
        if not plain:
            return position
        if position + 4 > disk.size_bytes:
            break
        (packed,) = struct.unpack(">I", disk.read(position, 4))
        total += plain
        if plain > 64 * MIB or packed > plain or total > 512 * MIB:
            break
        checks = sum(bool(flags & flag) for flag in (0x1, 0x100))
        checks += sum(bool(flags & flag) for flag in (0x2, 0x200)) if packed < plain else 0
        position += 4 + 4 * checks + packed
    raise InputError("damaged lzo data: cut off, or too large", subject=disk.name, offset_bytes=offset)


def _lzop_header(head: bytes) -> tuple[int, int]:
    """Size and flags of an lzop header. One that is cut off gives a size past ``head``, where no block follows."""
    padded = head + bytes(64)
    newer = struct.unpack_from(">H", padded, 9)[0] >= 0x0940
    position = 16 if newer else 14  # behind the versions and the method
    position += newer  # the level
    (flags,) = struct.unpack_from(">I", padded, position)
    position += 4 + (4 if flags & 0x800 else 0)  # a filter
    position += 4 + 4 + (4 if newer else 0)  # mode and times
    return position + 1 + padded[position] + 4, flags
