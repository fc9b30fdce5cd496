"""XFS, btrfs and squashfs by path, through dissect.* (AGPL-3.0-or-later, hence the optional extra ``filesystems``).

Nothing of it is imported before such a file system is met.
"""

from __future__ import annotations

from armvm.disk.files import FileSystem
from armvm.disk.storage import Disk
from armvm.errors import MissingError

INSTALL = "pip install 'armvm[filesystems]'"
"""The command that installs the extra."""


def open_extra(disk: Disk, kind: str, *, name: str, subvolume: str | None = None) -> FileSystem:
    """Open a file system of ``kind`` xfs, btrfs or squashfs.

    Raises MissingError without the extra, InputError when it cannot be read.
    """
    try:
        if kind == "xfs":
            from armvm.disk.files_xfs import XfsFileSystem

            return XfsFileSystem(disk, name=name)
        if kind == "btrfs":
            from armvm.disk.files_btrfs import BtrfsFileSystem

            files = BtrfsFileSystem(disk, name=name)
            return files if subvolume is None else files.subvolume(subvolume)
        from armvm.disk.files_squashfs import SquashFileSystem

        return SquashFileSystem(disk, name=name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("dissect"):
            raise
        raise MissingError(
            f"{name} holds {kind}, which is read through the optional extra 'filesystems', and that is not installed",
            component=f"dissect.{kind}",
            install=INSTALL,
        ) from None
