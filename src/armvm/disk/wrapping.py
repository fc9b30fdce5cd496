"""What a disk image may be wrapped in, to be unpacked before anybody can use it: recognised by content."""

from __future__ import annotations

import enum
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Told how far something is that takes time: the step, bytes done, bytes in all."""


class Wrapping(enum.Enum):
    """A compression, by the name of its program, or an archive."""

    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    LZ4 = "lz4"
    TAR = "tar"

    @property
    def magic(self) -> bytes:
        """How it begins; tar archives have it in their first header."""
        return _MAGICS[self]

    @property
    def label(self) -> str:
        """What messages say that was found."""
        return "a tar archive (or an OVA)" if self is Wrapping.TAR else f"compressed with {self.value}"

    @property
    def remedy(self) -> str:
        """What the user can do to have the image itself."""
        if self is Wrapping.TAR:
            return "unpack it first, and take the disk image in it"
        return f"decompress it first: {self.value} -d"


_MAGICS = {
    Wrapping.GZIP: b"\x1f\x8b\x08",  # RFC 1952 §2.3.1
    Wrapping.XZ: b"\xfd7zXZ\0",  # The .xz File Format §2.1.1.1
    Wrapping.ZSTD: b"\x28\xb5\x2f\xfd",  # RFC 8878 §3.1.1
    Wrapping.BZIP2: b"BZh",
    Wrapping.LZ4: b"\x04\x22\x4d\x18",  # LZ4 Frame Format
    Wrapping.TAR: b"ustar",  # POSIX.1-1988
}
_TAR_OFFSET = 257


def detect_wrapping(head: bytes) -> Wrapping | None:
    """What a file that begins with ``head`` wraps its content in; None where it is nothing that is known."""
    for wrapping, magic in _MAGICS.items():
        if head.startswith(magic, _TAR_OFFSET if wrapping is Wrapping.TAR else 0):
            return wrapping
    return None
