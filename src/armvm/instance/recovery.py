"""Puts an instance in order whose process was killed, or whose host went down: at the next command, under the lock."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from armvm.errors import ArmvmError, BusyError, OutputError
from armvm.instance import events, sockets
from armvm.instance.lock import Holder, HolderKind
from armvm.instance.store import Instance
from armvm.printable import printable

_CHECK_SECONDS = 3600.0
_IN_USE_SECONDS = 30.0
_PAUSE_SECONDS = 0.1


def recover(instance: Instance, crashed: Holder) -> None:
    """Clean up after ``crashed``, who died holding the instance. Hold the lock.

    Half-written files and stale sockets go, its own disks are checked and put right, what a snapshot was at is settled,
    and the event is noted. Raises BusyError while a program that was left behind still uses a disk.
    """
    from armvm.instance.snapshots import settle

    litter(instance)
    sockets.remove(instance)
    damaged = check_disks(instance)
    settle(instance)
    what = "the machine" if crashed.kind is HolderKind.MACHINE else "a command"
    with suppress(OutputError):  # on a disk that is full, the instance must still be usable, or it could not be deleted
        events.record(instance.events, "crashed", what=what, process=str(crashed), damaged=damaged)


def litter(instance: Instance) -> None:
    """Take away what was half written (see ``atomic``)."""
    for folder in (instance.folder, instance.snapshots):
        with suppress(OSError):
            for path in list(folder.glob(".*.part")):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def check_disks(instance: Instance) -> str | None:
    """Put the bookkeeping of its own qcow2 files right; the names of those that cannot be, or None."""
    files = [path for path in sorted(instance.folder.glob("*.qcow2")) if path.is_file() and not path.is_symlink()]
    return ", ".join(printable(path.name) for path in files if not _checked(path)) or None


def _checked(path: Path) -> bool:
    """Whether the image at ``path`` is sound, or was made so. True also where there is no program to check it with."""
    import json

    from armvm import process

    if process.find_program("qemu-img") is None:
        return True
    # Without its backing file, which may be gone, and is nobody's business here.
    file = {"driver": "file", "filename": os.fspath(path)}
    name = "json:" + json.dumps({"driver": "qcow2", "backing": None, "file": file})
    deadline = time.monotonic() + _IN_USE_SECONDS
    while True:
        try:
            done = process.run(
                "qemu-img", ["check", "-q", "-r", "all", name], timeout_seconds=_CHECK_SECONDS, check=False
            )
        except ArmvmError:
            return False
        if done.returncode == 0:
            return True
        if "lock" not in done.stderr:
            return False
        if time.monotonic() >= deadline:
            raise BusyError(f"{path} is still in use by a program that was left behind")
        time.sleep(_PAUSE_SECONDS)  # QEMU's own locks cannot be waited for
