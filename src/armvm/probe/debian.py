"""Takes kernel and modules out of a Debian package, on any system: an ar archive with a compressed tar archive in it.

Source: deb(5), and the ar format as deb(5) describes it.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from armvm.errors import InputError, OutputError
from armvm.printable import printable
from armvm.units import GIB, MIB

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_AR_MAGIC = b"!<arch>\n"
_MEMBER_HEAD_BYTES = 60
_MEMBER_END = b"`\n"
_MOST_MEMBERS = 16
_MOST_UNPACKED_BYTES = 2 * GIB
_MOST_FILE_BYTES = 256 * MIB
_MOST_HEADER_BYTES = MIB
_MOST_FILES = 50_000
_DECODER_BYTES = 128 * MIB
_CHUNK_BYTES = MIB
_WANTED = re.compile(
    r"boot/vmlinu[xz]-[^/]+"
    r"|(?:usr/)?lib/modules/[^/]+/(?:modules\.(?:builtin|dep)|(?:[^/]+/)*[^/]+\.ko(?:\.(?:xz|gz|zst))?)"
)


def unpack_kernel_package(package: Path, folder: Path) -> None:
    """Unpack the kernel and the modules of a Debian package to ``folder``, which must not exist; whole or not at all.

    Raises InputError when the package is damaged or holds neither, OutputError when ``folder`` cannot be written.
    """
    try:
        file = package.open("rb")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(package)) from error
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    with file:
        try:
            beside.mkdir(parents=True)
            try:
                data = _Unpacked(_data(file, str(package)), str(package))
                _unpack(io.BufferedReader(data), beside, str(package))
                beside.rename(folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        except OSError as error:
            raise OutputError(f"cannot unpack {package} to {folder}: {error.strerror or error}") from error


def _unpack(data: io.BufferedReader, folder: Path, subject: str) -> None:
    count = 0
    try:
        with tarfile.open(fileobj=data, mode="r|", tarinfo=_TarInfo) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if not member.isreg() or not _WANTED.fullmatch(name) or ".." in name.split("/"):
                    continue
                count += 1
                if count > _MOST_FILES or member.size > _MOST_FILE_BYTES:
                    raise InputError("more than any kernel has", subject=subject, found=printable(name))
                _write(tar.extractfile(member), folder / name)
    except tarfile.TarError as error:
        raise InputError(f"the archive in it is damaged: {printable(str(error))}", subject=subject) from error
    if not count:
        raise InputError("neither a kernel nor modules in this package", subject=subject)


def _write(source: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, path.open("xb") as file:
        shutil.copyfileobj(source, file, _CHUNK_BYTES)


class _TarInfo(tarfile.TarInfo):
    """A header whose name, link or attributes are not read when they are longer than any real ones."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarInfo:
        header = super().frombuf(buf, encoding, errors)
        if not header.isreg() and header.size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def _data(file: BinaryIO, subject: str) -> Iterator[bytes]:
    """The member ``data.tar``, decompressed piece by piece."""
    for name, offset, size in _members(file, subject):
        base, _, compression = name.partition(".tar")
        if base == "data" and compression in _DECODERS:
            return _DECODERS[compression](io.BufferedReader(_Window(file, offset, size)))
        if base == "data":
            raise InputError("a compression that is not known", subject=subject, found=printable(name))
    raise InputError("no member data.tar", subject=subject, expected="a Debian package")


def _members(file: BinaryIO, subject: str) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the archive's members."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise InputError("no ar archive", subject=subject, expected="a Debian package")
    position = len(_AR_MAGIC)
    for _ in range(_MOST_MEMBERS):
        if position >= end:
            return
        file.seek(position)
        head = file.read(_MEMBER_HEAD_BYTES)
        size_text = head[48:58].rstrip(b" ")
        if len(head) < _MEMBER_HEAD_BYTES or head[58:60] != _MEMBER_END or not size_text.isdigit():
            raise InputError("no header of an archive's member", subject=subject, offset_bytes=position)
        size, start = int(size_text), position + _MEMBER_HEAD_BYTES
        if start + size > end:
            raise InputError("a member goes past the end: the package is cut off", subject=subject, offset_bytes=start)
        yield head[:16].decode("latin-1").rstrip(" /"), start, size
        position = start + size + size % 2


class _Window(io.RawIOBase):
    """A run of a file's bytes, read in order."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__()
        self._file = file
        self._left = size
        file.seek(offset)

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer`` as far as there are bytes."""
        view = memoryview(buffer)
        data = self._file.read(min(len(view), self._left))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)


class _Unpacked(io.RawIOBase):
    """Decompressed pieces as a stream: bounded, and damage comes as InputError."""

    def __init__(self, pieces: Iterator[bytes], subject: str) -> None:
        super().__init__()
        self._pieces = pieces
        self._subject = subject
        self._held = memoryview(b"")
        self._total = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer`` from the piece under way, or from the next."""
        view = memoryview(buffer)
        while not self._held:
            piece = self._next()
            if piece is None:
                return 0
            self._held = memoryview(piece)
        count = min(len(view), len(self._held))
        view[:count] = self._held[:count]
        self._held = self._held[count:]
        return count

    def _next(self) -> bytes | None:
        try:
            piece = next(self._pieces, None)
        except (ValueError, EOFError, OSError) as error:
            message = printable(str(error))
            raise InputError(f"the archive in it cannot be decompressed: {message}", subject=self._subject) from error
        self._total += len(piece or b"")
        if self._total > _MOST_UNPACKED_BYTES:
            raise InputError(f"unpacks to more than {_MOST_UNPACKED_BYTES // GIB} GiB", subject=self._subject)
        return piece


def _plain(window: io.BufferedReader) -> Iterator[bytes]:
    while data := window.read(_CHUNK_BYTES):
        yield data


def _gz(window: io.BufferedReader) -> Iterator[bytes]:
    import gzip
    import zlib

    try:
        with gzip.GzipFile(fileobj=window) as unpacked:
            while data := unpacked.read(_CHUNK_BYTES):
                yield data
    except zlib.error as error:
        raise ValueError(str(error)) from error


def _xz(window: io.BufferedReader) -> Iterator[bytes]:
    import lzma

    try:
        decoder = lzma.LZMADecompressor(memlimit=_DECODER_BYTES)
        while not decoder.eof:
            data = window.read(_CHUNK_BYTES) if decoder.needs_input else b""
            if decoder.needs_input and not data:
                raise EOFError("it is cut off")
            yield decoder.decompress(data, max_length=_CHUNK_BYTES)
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from error


def _zst(window: io.BufferedReader) -> Iterator[bytes]:
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=_DECODER_BYTES).stream_reader(window) as unpacked:
            while data := unpacked.read(_CHUNK_BYTES):
                yield data
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


_DECODERS: dict[str, Callable[[io.BufferedReader], Iterator[bytes]]] = {
    "": _plain,
    ".gz": _gz,
    ".xz": _xz,
    ".zst": _zst,
}
