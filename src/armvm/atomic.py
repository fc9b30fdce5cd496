"""Files written so that a crash at any moment loses nothing: beside, fsync, rename."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from armvm.errors import OutputError


@contextmanager
def replacing(path: Path, *, mode: int = 0o666, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A new binary file (readable and writable) that takes the place of ``path`` when the block ends without an error.

    The bytes are written beside ``path`` under a name of their own, flushed to the disk, and renamed over it; then the
    folder is flushed. On any error the new file is removed and what stood at ``path`` is untouched. Without
    ``overwrite``, an existing ``path`` is refused, also one that appears meanwhile.
    Raises OutputError when the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    if not overwrite and path.exists():
        raise OutputError(f"{path} is already there", hint="choose another name, or allow it to be replaced")
    try:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(beside, path)
        else:
            os.link(beside, path)
            os.unlink(beside)
        sync_folder(path.parent)
    except FileExistsError as error:
        raise OutputError(f"{path} is already there") from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(beside)


def write_file(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace ``path`` by ``content``, whole or not at all. Raises OutputError when it cannot be written."""
    with replacing(path, mode=mode) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
