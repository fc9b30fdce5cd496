"""Which instances stand on a file: before it is replaced, changed or deleted, they are named."""

from __future__ import annotations

import os
from pathlib import Path

from armvm.errors import UsageError
from armvm.instance.summary import summaries

_SHOWN = 5


def of(*paths: str | os.PathLike[str], besides: str | None = None) -> tuple[str, ...]:
    """The names of the instances of which a file of ``paths`` is a disk, or an image under one; without ``besides``.

    Files are told by what they are, not by what they are called; of one that is gone, the path has to do.
    """
    wanted = {_identity(path) for path in paths}
    return tuple(
        summary.instance.name
        for summary in summaries()
        if summary.instance.name != besides
        and any(_identity(file) in wanted for file in (*summary.images, *summary.disks))
    )


def require_none(path: str | os.PathLike[str], *, what: str, hint: str, besides: str | None = None) -> None:
    """Raise UsageError when instances stand on the file at ``path``, which ``what`` (to be replaced …) is to happen to.

    ``hint`` says how it is done all the same.
    """
    names = of(path, besides=besides)
    if not names:
        return
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    are = "instance stands" if len(names) == 1 else "instances stand"
    raise UsageError(
        f"{Path(path)} cannot be {what}: {len(names)} {are} on it ({shown}), and would be lost",
        hint=hint,
    )


def _identity(path: str | os.PathLike[str]) -> object:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return os.path.realpath(os.fspath(path).replace("\0", ""))
    return status.st_dev, status.st_ino
