"""Where the sockets of a running instance stand: in its folder, or elsewhere when that path is too long for them.

A unix socket's path has at most 107 bytes (unix(7), ``sun_path``; one more is the final zero).
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

from armvm.errors import OutputError
from armvm.instance.store import Instance

MOST_PATH_BYTES = 107
MOST_NAME_BYTES = 24
"""The longest name that a socket in the folder may have."""


def folder(instance: Instance) -> Path:
    """The folder of the instance's sockets, which need not be there."""
    inside = instance.folder / "run"
    if len(os.fsencode(inside)) + 1 + MOST_NAME_BYTES <= MOST_PATH_BYTES:
        return inside
    return _base() / hashlib.sha256(os.fsencode(instance.folder)).hexdigest()[:16]


def make_folder(instance: Instance) -> Path:
    """The same folder, made private and ours. Raises OutputError when it cannot be, or somebody else made it."""
    path = folder(instance)
    private = (path,) if path.parent == instance.folder else (path.parent, path)
    for one in private:
        try:
            with suppress(FileExistsError):
                one.mkdir(mode=0o700)
            status = one.lstat()
        except OSError as error:
            raise OutputError(f"cannot make {one}: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise OutputError(
                f"{one} is no private folder of this user", hint="remove it: sockets of running machines stand there"
            )
    return path


def control(instance: Instance) -> Path:
    """The socket on which the supervisor of the instance listens."""
    return folder(instance) / "control.sock"


def remove(instance: Instance) -> None:
    """Take away what a run has left there, when nothing runs. Hold the lock."""
    path = folder(instance)
    if path.is_symlink():
        return
    with suppress(OSError):
        for entry in os.scandir(path):
            if not entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    os.unlink(entry.path)
        path.rmdir()


def _base() -> Path:
    """A folder with a short path for this user (the XDG Base Directory Specification, $XDG_RUNTIME_DIR)."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    short = Path(runtime) / "armvm"
    if runtime.startswith("/") and len(os.fsencode(short)) <= 48 and Path(runtime).is_dir():
        return short
    return Path(f"/tmp/armvm-{os.getuid()}")  # noqa: S108 - made private, and refused when it is somebody else's
