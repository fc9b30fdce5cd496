"""The console log of an instance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from armvm.errors import OutputError
from armvm.units import MIB

_MOST_BYTES = 16 * MIB


@contextmanager
def logging(path: Path) -> Iterator[int]:
    """The console log, open to be appended to; what is older than its last 16 MiB or so is dropped first."""
    with suppress(FileNotFoundError):
        if path.stat().st_size > _MOST_BYTES:
            os.replace(path, path.with_suffix(".log.1"))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
