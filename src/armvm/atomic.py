"""Files written so that a crash at any moment loses nothing: beside, fsync, rename."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from armvm.errors import OutputError

_DESCRIPTORS = "/proc/self/fd"


@contextmanager
def replacing(path: Path, *, mode: int = 0o666, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A new binary file (readable and writable) that takes the place of ``path`` when the block ends without an error.

    Where the system can, the file has no name while it is written, so that even a killed process leaves nothing behind;
    elsewhere it stands beside ``path`` as ``.NAME.XXXXXXXX.part``. At the end it is flushed to the disk and put at
    ``path``; then the folder is flushed. On any error the new file is gone and what stood at ``path`` is untouched.
    Without ``overwrite``, an existing ``path`` is refused, also one that appears meanwhile.
    Raises OutputError when the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    if not overwrite and path.exists():
        raise OutputError(f"{path} is already there", hint="choose another name, or allow it to be replaced")
    try:
        descriptor, nameless = _open_new(beside, mode)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if nameless:
                _give_name(file.fileno(), beside if overwrite else path)
        if overwrite:
            os.replace(beside, path)
        elif not nameless:
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


def _open_new(beside: Path, mode: int) -> tuple[int, bool]:
    """A new file in the folder of ``beside``, and whether it has no name (Linux, open(2), O_TMPFILE)."""
    nameless = getattr(os, "O_TMPFILE", None)
    if nameless is not None and os.path.isdir(_DESCRIPTORS):  # noqa: PTH112 - a plain string, nothing to be gained
        # Not every file system has it, and those that lack it say so in many ways: whatever the reason, use a name.
        with suppress(OSError):
            return os.open(beside.parent, os.O_RDWR | nameless | os.O_CLOEXEC, mode), True
    return os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode), False


def _give_name(descriptor: int, path: Path) -> None:
    """Put the nameless file at ``path``, where nothing may be yet."""
    folder = os.open(_DESCRIPTORS, os.O_RDONLY)
    try:
        # With a folder's descriptor, Python calls linkat(2), which follows the link in /proc to the file itself.
        os.link(str(descriptor), path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


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
