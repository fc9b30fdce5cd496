"""The library's front door: what ``import armvm`` offers, each loading what it needs when it is called."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from armvm.disk.storage import Disk
    from armvm.execution import ExecutionState
    from armvm.spec.catalogue import Requirement
    from armvm.spec.verdict import Report


def open_image(
    path: str | os.PathLike[str], *, sector_size: int | None = None, allow_backing_files: bool = False
) -> Disk:
    """Open a disk image by its path or URL for reading; use it as a context manager.

    Raw, qcow2, vmdk, vhdx, vhd and vdi are found by content, also compressed with gzip, xz, zstd, bzip2 or lz4, or in a
    tar archive; a compressed image is unpacked into a temporary file in $TMPDIR. One on a server (http, https; s3, gs …
    with ``armvm[remote]``) is read by ranges, and ``traffic`` of the disk says what that cost.
    ``sector_size`` is 512 or 4096 bytes (default: found by where the GPT stands). A qcow2 image's backing file is
    refused unless ``allow_backing_files``, and must then lie below the image's own folder.
    Raises InputError when it is no image that can be read, MissingError when a program for its format is missing,
    OutputError when there is no room to unpack it, UsageError for a URL of an unknown scheme.
    """
    from armvm.disk.detect import open_disk

    return open_disk(path, sector_size=sector_size, allow_backing_files=allow_backing_files)


def check_image(
    image: str | os.PathLike[str] | Disk,
    *,
    profile: str = "vmspec-1.0",
    states: Collection[ExecutionState] = (),
) -> Report:
    """Judge an image, by its path or already open, by every requirement that ``profile`` has for images and guests.

    ``states`` are the execution states that it has to serve (default: at least one). A non-conforming image is a
    normal result: see the report's findings. Raises InputError when the image cannot be read at all.
    """
    from armvm.guest.check import check_image as check

    if not isinstance(image, str | os.PathLike):
        return check(image, profile=profile, states=states)
    with open_image(image) as disk:
        return check(disk, profile=profile, states=states)


def requirements() -> Mapping[str, Requirement]:
    """Every requirement of every profile by its id."""
    from armvm.spec.catalogue import requirements as catalogue

    return catalogue()
