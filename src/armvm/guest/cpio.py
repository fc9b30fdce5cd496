"""A cpio archive as Linux unpacks it into the root of an initial RAM disk, read as a stream.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst and init/initramfs.c.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from armvm.errors import InputError
from armvm.printable import printable

MAGICS = (b"070701", b"070702")
"""How the header of an entry begins in the two layouts that Linux reads (newc, and crc with a sum)."""
_OTHER_MAGICS = (b"070707", b"\xc7\x71", b"\x71\xc7")
HEADER_BYTES = 110
_FIELDS = 13
_TRAILER = "TRAILER!!!"
_MOST_NAME_BYTES = 4096  # PATH_MAX
KEPT_WHOLE = 4096
"""A link's target is never longer (PATH_MAX)."""


@dataclass(frozen=True, slots=True)
class CpioEntry:
    """One entry of an archive. ``data_offset`` is where its content begins in the unpacked stream, in bytes.

    ``content`` is there when it was asked for, and always for a symbolic link (its target). ``link_id`` is the same for
    all names of a file that has several, None for a file that has one.
    """

    name: str
    mode: int
    size_bytes: int
    data_offset: int
    content: bytes | None = None
    link_id: tuple[int, int, int] | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)


class ByteStream:
    """A run of pieces as one stream that knows where it is. ``position`` counts bytes from its beginning.

    Past ``most_bytes`` it raises InputError, with ``name``: no more of it is ever asked for.
    """

    def __init__(self, pieces: Iterator[bytes], *, name: str, most_bytes: int) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0
        self._name = name
        self._most_bytes = most_bytes
        self._before = 0  # the bytes of all pieces before this one

    @property
    def position(self) -> int:
        """How many bytes have been taken or skipped."""
        return self._before + self._at

    def _next_piece(self) -> bool:
        self._before += len(self._piece)
        self._piece = b""
        self._at = 0
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._piece = piece
        if self._before + len(piece) > self._most_bytes:
            raise InputError("unpacks to too much", subject=self._name, expected=f"at most {self._most_bytes} bytes")
        return True

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer where the stream ends."""
        end = self._at + count
        if end <= len(self._piece):
            content = self._piece[self._at : end]
            self._at = end
            return content
        parts = [self._piece[self._at :]]
        missing = count - len(parts[0])
        self._at = len(self._piece)
        while missing and self._next_piece():
            part = self._piece[:missing]
            self._at = len(part)
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)

    def skip(self, count: int) -> bool:
        """Go on by ``count`` bytes; False where the stream ends before."""
        left = len(self._piece) - self._at
        while count > left:
            count -= left
            if not self._next_piece():
                return False
            left = len(self._piece)
        self._at += count
        return True

    def skip_zeros(self) -> bytes:
        """Go on past all zeros, and look at the six bytes behind them without taking them."""
        while True:
            rest = self._piece[self._at :].lstrip(b"\0")
            self._at = len(self._piece) - len(rest)
            if rest:
                return self._peek(6)
            if not self._next_piece():
                return b""

    def _peek(self, count: int) -> bytes:
        if len(self._piece) - self._at < count:
            held = self._piece[self._at :]
            before = self.position
            while len(held) < count and self._next_piece():
                held += self._piece
            self._piece, self._at, self._before = held, 0, before
        return self._piece[self._at : self._at + count]


def read_archives(stream: ByteStream, keep: Callable[[str, int], bool], *, name: str) -> Iterator[CpioEntry]:
    """The entries of all archives in ``stream``, one behind another with zeros between them.

    ``keep`` says of a file's name and size whether its content is wanted; the rest is skipped. It ends where the stream
    ends, or before the first bytes that are no entry (``stream.position`` then says where). Raises InputError at an
    entry that is damaged or cut off.
    """
    while True:
        magic = stream.skip_zeros()
        if magic not in MAGICS or stream.position % 4:
            if magic.startswith(_OTHER_MAGICS):
                raise InputError(
                    "a cpio archive of a layout that Linux does not read",
                    subject=name,
                    offset_bytes=stream.position,
                    hint="make it with `cpio -H newc`",
                )
            return
        yield from _archive(stream, keep, name)


def _archive(stream: ByteStream, keep: Callable[[str, int], bool], name: str) -> Iterator[CpioEntry]:
    """The entries of one archive, up to its trailer or the end of the stream."""
    while True:
        stream.skip(-stream.position % 4)
        start = stream.position
        header = stream.take(HEADER_BYTES)
        if not header:
            return  # Linux does without a trailer too
        if len(header) < HEADER_BYTES or header[:6] not in MAGICS or not header.isalnum():
            raise _damaged("the header of an entry is damaged or cut off", name, start, header)
        try:
            fields = [int(header[at : at + 8], 16) for at in range(6, 6 + 8 * _FIELDS, 8)]
        except ValueError:
            raise _damaged("the header of an entry has a field that is no number", name, start, header) from None
        inode, mode, _, _, links, _, size, major, minor, _, _, name_size, _ = fields
        if not 0 < name_size <= _MOST_NAME_BYTES:
            raise _damaged("a name is empty or longer than 4096 bytes", name, start, header)
        raw = stream.take(name_size)
        stream.skip(-stream.position % 4)
        if len(raw) < name_size:
            raise _damaged("a name is cut off", name, start, header)
        path = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
        if path == _TRAILER:
            return
        offset = stream.position
        content = None
        if stat.S_ISLNK(mode) or (size and stat.S_ISREG(mode) and keep(path, size)):
            content = stream.take(min(size, KEPT_WHOLE) if stat.S_ISLNK(mode) else size)
        if not stream.skip(size - (len(content) if content is not None else 0)):
            raise InputError(
                f"{printable(path)} is cut off",
                subject=name,
                offset_bytes=start,
                expected=f"{size} bytes of content",
            )
        link_id = (inode, major, minor) if links > 1 and stat.S_ISREG(mode) else None
        yield CpioEntry(path, mode, size, offset, content, link_id)


def _damaged(why: str, name: str, offset: int, header: bytes) -> InputError:
    return InputError(why, subject=name, offset_bytes=offset, found=printable(repr(header[:16])[2:-1]))
