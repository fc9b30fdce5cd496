"""Tar archives as streams, whatever they are compressed with, with limits on what their headers may ask for."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, cast

from armvm.errors import InputError, OutputError
from armvm.units import MIB

if TYPE_CHECKING:
    from lzma import LZMADecompressor

_MOST_HEADER_BYTES = MIB
_DECODER_BYTES = 256 * MIB
"""What a decompressor may take of memory for its window: ``xz -9`` takes 65 MiB, ``zstd --ultra --long=27`` 128."""


class Readable(Protocol):
    """What gives bytes in order."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        ...


@contextmanager
def open_tar(raw: BufferedReader) -> Iterator[tarfile.TarFile]:
    """A tar archive as a stream, decompressed by what its first bytes say."""
    fileobj = cast("IO[bytes]", open_stream(raw))  # tarfile wants no more than to read it
    with tarfile.open(fileobj=fileobj, mode="r|", errors="surrogateescape", tarinfo=BoundedTarInfo) as archive:
        yield archive


@contextmanager
def reading_archive(source: Path) -> Iterator[None]:
    """Turns what goes wrong while the archive ``source`` is read in the block into errors of ours."""
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise InputError(f"cannot be read as a tar archive: {error}", subject=str(source)) from error
    except OSError as error:
        if error.filename is None:  # what the decompressors say of corrupt data
            raise InputError(f"cannot be read as a tar archive: {error}", subject=str(source)) from error
        raise OutputError(f"cannot unpack {source}: {error.strerror}: {error.filename}") from error


def open_stream(raw: BufferedReader) -> Readable:
    """The bytes of ``raw``, decompressed (gzip, bzip2, xz, zstd) by what the first of them say.

    Corrupt data raise tarfile.ReadError where they are met.
    """
    magic = raw.peek(6)[:6]
    for start, decoder in _DECODERS.items():
        if magic.startswith(start):
            return decoder(raw)
    return raw


class _Checked:
    """A decompressor whose complaints, of whatever kind, are tarfile.ReadError."""

    def __init__(self, source: Readable, *complaints: type[Exception]) -> None:
        self._source = source
        self._complaints: tuple[type[Exception], ...] = (EOFError, OSError, ValueError, *complaints)

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes."""
        try:
            return self._source.read(size)
        except self._complaints as error:
            raise tarfile.ReadError(f"corrupt or cut off: {error}") from error


class _Xz:
    """Decompresses xz, one stream behind another, with a limit on memory (which lzma.LZMAFile has not)."""

    def __init__(self, raw: Readable) -> None:
        self._raw = raw
        self._decoder = _xz_decoder()

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes."""
        while True:
            if self._decoder.eof:
                rest = self._decoder.unused_data.lstrip(b"\0") or self._raw.read(MIB).lstrip(b"\0")
                if not rest:
                    return b""
                self._decoder = _xz_decoder()
                data = self._decoder.decompress(rest, max_length=size)
            else:
                more = self._raw.read(MIB) if self._decoder.needs_input else b""
                if self._decoder.needs_input and not more:
                    raise EOFError("it ends too early")
                data = self._decoder.decompress(more, max_length=size)
            if data:
                return data


def _xz_decoder() -> LZMADecompressor:
    import lzma

    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_DECODER_BYTES)


def _gzip(raw: BufferedReader) -> Readable:
    import gzip
    import zlib

    return _Checked(gzip.GzipFile(fileobj=raw), zlib.error)


def _bzip2(raw: BufferedReader) -> Readable:
    import bz2

    return _Checked(bz2.BZ2File(raw))


def _xz(raw: BufferedReader) -> Readable:
    import lzma

    return _Checked(_Xz(raw), lzma.LZMAError)


def _zstd(raw: BufferedReader) -> Readable:
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=_DECODER_BYTES)
    return _Checked(decoder.stream_reader(raw, read_across_frames=True), zstandard.ZstdError)


_DECODERS: dict[bytes, Callable[[BufferedReader], Readable]] = {
    b"\x1f\x8b": _gzip,
    b"BZh": _bzip2,
    b"\xfd7zXZ\0": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
}


class BoundedTarInfo(tarfile.TarInfo):
    """A header whose name, link or attributes are not read when they are longer than any real ones."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> BoundedTarInfo:
        """Read a header (``tarfile`` calls this). Raises tarfile.ReadError for one that asks for too much."""
        header = super().frombuf(buf, encoding, errors)
        if not header.isreg() and header.size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header
