"""Files that other programs work on and that nobody has to tidy up: where the system can, they have no name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from armvm.errors import OutputError


@contextmanager
def scratch_file(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """An empty file on the file system of ``folder``, and the path by which other programs reach it.

    It is gone when the block ends; on Linux also when this process is killed. Raises OutputError when it cannot be.
    """
    try:
        # Of a TemporaryFile, Linux never shows a name; through /proc it can still be opened by one.
        if os.path.isdir("/proc/self/fd"):  # noqa: PTH112
            with tempfile.TemporaryFile(dir=folder, prefix=".armvm-") as file:
                yield file, Path(visible_path(file))
        else:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".armvm-", suffix=".part") as named:
                yield cast("BinaryIO", named), Path(named.name)
    except OSError as error:
        raise OutputError(f"cannot work in {folder}: {error.strerror or error}") from error


def visible_path(file: BinaryIO) -> str:
    """The path by which other programs of this user reach an open file that may have no name (Linux, proc(5))."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def own_path(file: BinaryIO) -> str:
    """The path by which this process itself, and only it, can open the same file again."""
    return f"/dev/fd/{file.fileno()}"
