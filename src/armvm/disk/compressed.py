"""Compressed images: recognised by content, decompressed once, with bounded memory, into a temporary sparse file."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator

from armvm.disk.decompress import Compression, Decoder, decoder
from armvm.disk.remote import RemoteDisk
from armvm.disk.storage import BaseDisk
from armvm.disk.temporary import PIECE_BYTES, TemporaryDisk, unpack
from armvm.disk.wrapping import Progress, Wrapping
from armvm.errors import InputError
from armvm.printable import printable
from armvm.units import MIB

_CHUNK_BYTES = MIB
_XZ_MEMORY_BYTES = 144 * MIB  # xz -9 needs 65 MiB, a dictionary of 128 MiB a little more than that
_ZSTD_WINDOW_BYTES = 128 * MIB  # what zstd itself accepts without being told to
_ZSTD_STEP_BYTES = 1024  # at most 128 KiB come out of four bytes of zstd (RFC 8878 §3.1.1.2): 32 MiB out of this


_PADDED = (Wrapping.GZIP, Wrapping.XZ)
"""Zeros may follow a stream: xz has them in its format, gzip is tolerated with them (written to tapes, once)."""
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)  # frames of zstd and lz4 that hold no data (RFC 8878 §3.1.2)


def decompress(file: BaseDisk, compression: Wrapping, *, progress: Progress | None = None) -> TemporaryDisk:
    """What ``file`` holds, in a temporary file that goes with the disk. ``progress`` counts the compressed bytes.

    Raises InputError when it is damaged, cut short, followed by something else, or too large; OutputError when there
    is no room for it.
    """
    return unpack(_Decompressor(file, compression, progress).pieces(), name=file.name)


class _Decompressor:
    """Goes through all the streams of a file, one behind the other."""

    def __init__(self, file: BaseDisk, compression: Wrapping, progress: Progress | None) -> None:
        self._file = file
        self._compression = compression
        self._progress = progress
        self._position = 0  # in the file: up to here it was read
        self._stream: Decoder | None = None
        self._streams = 0

    def pieces(self) -> Iterator[bytes]:
        """The content in pieces of at most PIECE_BYTES."""
        chunks = self._file.stream() if isinstance(self._file, RemoteDisk) else _chunks(self._file)
        for chunk in chunks:
            yield from self._decode(chunk)
            self._position += len(chunk)
            if self._progress is not None:
                self._progress("decompressing", self._position, self._file.size_bytes)
        if self._stream is not None:
            raise InputError(
                f"ends in the middle of what is compressed with {self._compression.value}",
                subject=self._file.name,
                offset_bytes=self._file.size_bytes,
                hint="was the image copied whole?",
            )

    def _decode(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._stream is None:
                if self._streams and self._compression in _PADDED:
                    data = data.lstrip(b"\0")
                if not data:
                    return
                self._begin(data)
                continue
            try:
                piece = self._stream.decompress(data, PIECE_BYTES)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError, MemoryError) as error:
                raise self._damaged(error) from error
            if piece:
                yield piece
            if self._stream.eof:
                data, self._stream = self._stream.unused_data or b"", None
            elif self._stream.needs_input:
                return
            else:
                data = b""

    def _begin(self, data: bytes) -> None:
        """Start the stream that begins with ``data``, which must look like one."""
        magic = self._compression.magic
        skippable = self._compression is Wrapping.ZSTD and int.from_bytes(data[:4], "little") in _SKIPPABLE
        if not skippable and not magic.startswith(data[: len(magic)]) and not data.startswith(magic):
            raise InputError(
                f"something else follows what is compressed with {self._compression.value}",
                subject=self._file.name,
                offset_bytes=self._position,
                found=data[:8].hex(" "),
            )
        self._stream = _new_stream(self._compression)
        self._streams += 1

    def _damaged(self, error: Exception) -> InputError:
        return InputError(
            f"cannot be decompressed with {self._compression.value}: {printable(str(error)) or 'no memory'}",
            subject=self._file.name,
            offset_bytes=self._position,
            hint="was the image copied whole? its publisher's checksum tells",
        )


def _chunks(file: BaseDisk) -> Iterator[bytes]:
    for offset in range(0, file.size_bytes, _CHUNK_BYTES):
        yield file.read(offset, min(_CHUNK_BYTES, file.size_bytes - offset))


def _new_stream(compression: Wrapping) -> Decoder:
    match compression:
        case Wrapping.GZIP | Wrapping.XZ | Wrapping.BZIP2:
            return decoder(Compression(compression.value), most_memory=_XZ_MEMORY_BYTES)
        case Wrapping.ZSTD:
            return _ZstdStream()
        case Wrapping.LZ4:
            from lz4.frame import LZ4FrameDecompressor

            stream: Decoder = LZ4FrameDecompressor()
            return stream
        case Wrapping.TAR:
            raise ValueError("an archive is not compressed")


class _ZstdStream:
    """zstandard's decompressor, which has no limit on what comes out, fed so little that what comes out is little."""

    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._inner = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
        self._waiting = memoryview(b"")  # fed later
        self._ready = memoryview(b"")  # come out, not yet given out

    @property
    def eof(self) -> bool:
        return self._inner.eof and not self._ready

    @property
    def needs_input(self) -> bool:
        return not self._waiting and not self._ready

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data + bytes(self._waiting)

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if data:
            self._waiting = memoryview(bytes(self._waiting) + data)
        while not self._ready and self._waiting and not self._inner.eof:
            step, self._waiting = self._waiting[:_ZSTD_STEP_BYTES], self._waiting[_ZSTD_STEP_BYTES:]
            try:
                self._ready = memoryview(self._inner.decompress(step))
            except self._error as error:
                raise ValueError(error) from None
        piece, self._ready = bytes(self._ready[:max_length]), self._ready[max_length:]
        return piece
