"""Folders of instances on their way in or out: whole under their name, or hidden under one that tells their maker.

``.NAME.HOST.BOOT.PID.STARTED.RANDOM.part``: who makes or deletes an instance does it there. When that process is dead,
the folder is garbage, and the next command that makes, deletes or lists takes it away. The name says it all, for a file
in the folder could not be there from its first moment on.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from armvm.atomic import sync_folder
from armvm.errors import OutputError, UsageError
from armvm.instance.lock import Holder, HolderKind, this_process

_NAME = re.compile(r"\.[^/]+\.([0-9a-f]{8})\.([0-9a-f]{8})\.([0-9]{1,10})\.([0-9]{1,20})\.[0-9a-f]{8}\.part")


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A new private folder that takes the place of ``folder``, where nothing may be, when the block ends well.

    On any error, and on a crash, there is no such folder. Raises UsageError when it is there already, OutputError when
    it cannot be written.
    """
    beside = _beside(folder)
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(folder.parent)
        beside.mkdir(mode=0o700)
        try:
            yield beside
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync_folder(folder.parent)
    except OSError as error:
        if folder.exists():
            raise UsageError(f"instance {folder.name} is there already") from error
        raise OutputError(
            f"cannot make instance {folder.name} in {folder.parent}: {error.strerror or error}"
        ) from error


def move(folder: Path, to: Path) -> None:
    """Give an instance's ``folder`` the name ``to``, at once. Raises UsageError when that is taken, OutputError."""
    try:
        folder.rename(to)  # a folder that is not empty is never replaced (rename(2))
        sync_folder(to.parent)
    except OSError as error:
        if to.exists():
            raise UsageError(f"instance {to.name} is there already") from error
        raise OutputError(f"cannot rename {folder}: {error.strerror}") from error


def remove(folder: Path) -> None:
    """Take away an instance's ``folder`` for good: after the first step, which is one rename, there is no instance.

    Raises OutputError when it cannot be removed; what is left of it then is taken away later.
    """
    beside = _beside(folder)
    try:
        folder.rename(beside)
        sync_folder(folder.parent)
        shutil.rmtree(beside)
    except OSError as error:
        raise OutputError(f"cannot delete {folder}: {error.strerror}") from error


def sweep(parent: Path) -> None:
    """Take away what processes that are dead have left of instances half made or half deleted."""
    with suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith(".") and _is_garbage(entry.name):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_garbage(name: str) -> bool:
    """Whether a folder's maker is dead for certain: what another host makes on a shared folder is left alone."""
    match = _NAME.fullmatch(name)
    if match is None:
        return False
    here = this_process(HolderKind.COMMAND)
    host, boot = _short(here)
    if match[1] != host:
        return False
    return match[2] != boot or Holder(here.kind, int(match[3]), int(match[4]), here.host).alive is False


def _beside(folder: Path) -> Path:
    here = this_process(HolderKind.COMMAND)
    marks = (*_short(here), str(here.pid), str(here.started), secrets.token_hex(4))
    return folder.with_name(f".{folder.name}.{'.'.join(marks)}.part")


def _short(here: Holder) -> tuple[str, str]:
    """This host, and this boot of it, in a few characters each."""
    name, _, boot = here.host.partition(" ")
    host, boot = (hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8] for text in (name, boot))
    return host, boot
