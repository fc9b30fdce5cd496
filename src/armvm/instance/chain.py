"""Whether the disks of an instance stand on what they are recorded to stand on, looked at before they are used.

A qcow2 image names the image under it, and QEMU opens whatever it names. So that name must be the recorded image, which
itself has nothing under it: no edited or exchanged file leads the guest to another one of this host.
"""

from __future__ import annotations

import os
from pathlib import Path

from armvm.disk.qcow2_header import MAX_CLUSTER_SIZE, Qcow2Header, parse_header
from armvm.errors import InputError
from armvm.instance.definition import BackingImage, Definition
from armvm.machine.definition import disk_names
from armvm.printable import printable

_FEATURES_OFFSET = 72
_DIRTY = 1
_QCOW2 = "qcow2"


def check_chain(definition: Definition) -> None:
    """Raise InputError, which names the file, when a disk is gone, damaged, or not on the image that is recorded."""
    machine = definition.machine
    for name, disk in zip(disk_names(machine), machine.disks, strict=True):
        image = definition.image(name)
        _check_disk(disk.path, disk.format, image)
        if image is not None:
            _check_disk(image.path, image.format, None)


def image_under(path: Path, form: str, disk: str) -> BackingImage | None:
    """The image that the file at ``path`` stands on, to be recorded for the disk of that name; None for none.

    Raises InputError when it cannot be read, or does not say the format of what it stands on, or that has one under it.
    """
    header = _header(path, form)
    if header is None or header.backing_file is None:
        return None
    if header.backing_format is None:
        raise InputError(
            "does not say in which format the image under it is",
            subject=str(path),
            hint="qemu-img rebase -u -b IMAGE -F raw|qcow2 says it",
        )
    under = _absolute(path, header.backing_file)
    _check_disk(under, header.backing_format, None)
    status = under.stat()
    return BackingImage(disk, under, header.backing_format, status.st_size, status.st_mtime_ns)


def _check_disk(path: Path, form: str, image: BackingImage | None) -> None:
    header = _header(path, form)
    named = None if header is None else header.backing_file
    if named is None and image is None:
        return
    if named is None:
        assert image is not None  # noqa: S101 - the case before
        raise InputError(f"stands on no image, and should stand on {image.path}", subject=str(path))
    shown = printable(named)
    if image is None:
        raise InputError(
            f"stands on another image, {shown}, which is not recorded",
            subject=str(path),
            hint="qemu-img convert makes one file of both",
        )
    if not _same(_absolute(path, named), image.path):
        raise InputError(
            "stands on another image than recorded", subject=str(path), found=shown, expected=str(image.path)
        )
    if header is not None and header.backing_format not in {None, image.format}:
        raise InputError(
            f"takes the image under it, {shown}, for another format than recorded",
            subject=str(path),
            found=printable(str(header.backing_format)),
            expected=image.format,
        )


def _header(path: Path, form: str) -> Qcow2Header | None:
    """The header of a qcow2 image; None for a format that has nothing under it, but must be there."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_CLUSTER_SIZE) if form == _QCOW2 else b""
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(path)) from error
    if form != _QCOW2:
        return None
    header = parse_header(content, name=str(path), file_size=size)
    features = int.from_bytes(content[_FEATURES_OFFSET : _FEATURES_OFFSET + 8], "big")
    if header.version == 3 and features & _DIRTY:
        raise InputError(
            "was not closed in order, and its bookkeeping is not up to date",
            subject=str(path),
            hint=f"qemu-img check -r all {path} brings it up to date",
        )
    return header


def _absolute(path: Path, named: str) -> Path:
    """What a qcow2 image at ``path`` names: QEMU takes it relative to the image's own folder."""
    return path.absolute().parent / named


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return os.path.normpath(one) == os.path.normpath(other)
