"""A foreign parser made safe: it reads a disk through a stream with a budget, and every call to it has a limit on time.

The libraries that read XFS, btrfs and squashfs believe what they read: counts, sizes, pointers back to where they came
from. Behind a ``Guard`` a damaged file system ends in an InputError all the same.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from armvm.disk.storage import Disk
from armvm.errors import ArmvmError, InputError
from armvm.printable import printable
from armvm.units import MIB

MOST_SECONDS = 2.0
"""How much processor time one question may take; waiting for a slow disk does not count."""
MOST_READS = 50_000
MOST_READ_BYTES = 64 * MIB
_CALLS_BETWEEN_LOOKS = 64


class DiskStream(io.RawIOBase):
    """A disk as a seekable binary file. Reads past the end come back short, reads past the budget raise InputError."""

    def __init__(self, disk: Disk, *, subject: str) -> None:
        super().__init__()
        self.size = disk.size_bytes
        self._disk = disk
        self._subject = subject
        self._position = 0
        self._reads = self._bytes = 0

    def renew(self) -> None:
        """Start a new question with a full budget."""
        self._reads = self._bytes = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read from anywhere."""
        return True

    def tell(self) -> int:
        """Where the next read starts."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go elsewhere; places past the end are allowed, as on files."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise InputError("a pointer leads before the start", subject=self._subject, found=str(base + offset))
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """At most ``size`` bytes, all that are left without it."""
        left = max(self.size - self._position, 0)
        length = left if size is None or size < 0 else min(size, left)
        self._reads += 1
        self._bytes += length
        if self._reads > MOST_READS or self._bytes > MOST_READ_BYTES:
            raise _Exhausted(f"asks for more than {MOST_READS} reads or {MOST_READ_BYTES} bytes")
        content = self._disk.read(self._position, length) if length else b""
        self._position += length
        return content


class _Exhausted(BaseException):
    """A limit was met. No ``Exception``: a library that goes on after any exception does not go on after this one."""


class Guard:
    """What a foreign parser of ``disk`` is called through. ``subject`` is what messages call the file system."""

    def __init__(self, disk: Disk, *, subject: str) -> None:
        self.stream = DiskStream(disk, subject=subject)
        self._subject = subject

    @contextmanager
    def question(self, where: str = "") -> Iterator[DiskStream]:
        """One question to the parser, which is over when the block is. ``where`` is the path that it is about.

        Raises InputError for whatever the parser raises, and when it takes too much time, memory, or reading.
        """
        subject = f"{self._subject}, {where}" if where else self._subject
        self.stream.renew()
        alone = sys.getprofile() is None  # somebody who measures us is left in peace
        if alone:
            sys.setprofile(_watch(time.thread_time() + MOST_SECONDS))
        try:
            yield self.stream
        except ArmvmError:
            raise
        except _Exhausted as error:
            raise InputError(f"is damaged, or made to keep readers busy: {error}", subject=subject) from None
        except (MemoryError, RecursionError) as error:
            raise InputError("is damaged: its structures have no end", subject=subject) from error
        except Exception as error:  # a foreign parser raises anything at all on a damaged file system
            shown = f"{type(error).__name__}: {error}"[:200]
            raise InputError(f"cannot be read: {printable(shown)}", subject=subject) from error
        finally:
            if alone:
                sys.setprofile(None)


def _watch(deadline: float) -> Any:
    """A profile function that ends whatever is running at the ``deadline``: parsers that loop call something."""
    calls = 0

    def watch(_frame: FrameType, _event: str, _argument: object) -> None:
        nonlocal calls
        calls += 1
        if not calls % _CALLS_BETWEEN_LOOKS and time.thread_time() > deadline:
            raise _Exhausted(f"takes more than {MOST_SECONDS:g} seconds")

    return watch
