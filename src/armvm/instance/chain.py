"""Whether the disks of an instance stand on what they are recorded to stand on, looked at before they are used.

A qcow2 image names the image under it, and QEMU opens whatever it names. So that name must be the recorded image, and
all below that plain files: no edited or exchanged file leads the guest to something else of this host.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from armvm.disk.qcow2_header import MAX_CLUSTER_SIZE, Qcow2Header, parse_header
from armvm.errors import InputError
from armvm.instance.definition import BackingImage, Definition, LowerImage
from armvm.machine.definition import disk_names
from armvm.printable import printable

_FEATURES_OFFSET = 72
_DIRTY = 1
_QCOW2 = "qcow2"
_MOST_CHAIN = 16


def check_chain(definition: Definition) -> None:
    """Raise InputError, which names the file, when a disk is gone, damaged, or not on the image that is recorded."""
    machine = definition.machine
    for name, disk in zip(disk_names(machine), machine.disks, strict=True):
        image = definition.image(name)
        _check_disk(disk.path, disk.format, image)
        if image is not None:
            for _ in _follow(image.path, image.format):
                pass


def image_under(path: Path, form: str, disk: str) -> BackingImage | None:
    """The image that the file at ``path`` stands on, to be recorded for the disk of that name; None for none.

    Raises InputError when it cannot be read, or leads to what is no plain file.
    """
    header = _header(path, form)
    if header is None or header.backing_file is None:
        return None
    under, form = _below(path, header)
    return record_image(under, form, disk)


def record_image(path: Path, form: str, disk: str) -> BackingImage:
    """The image at ``path`` and those that it stands on, as they are now, to be recorded under the disk of that name.

    Raises InputError when one of them cannot be read, or is no plain file.
    """
    top, *below = (LowerImage(one, *_age(one)) for one in (path, *_follow(path, form)))
    return BackingImage(disk, top.path, form, top.size_bytes, top.modified_ns, tuple(below))


def _check_disk(path: Path, form: str, image: BackingImage | None) -> None:
    header = _header(path, form)
    named = None if header is None else header.backing_file
    if header is None or named is None:
        if image is not None:
            raise InputError(f"stands on no image, and should stand on {image.path}", subject=str(path))
        return
    shown = printable(named)
    if image is None:
        raise InputError(
            f"stands on another image, {shown}, which is not recorded",
            subject=str(path),
            hint="qemu-img convert makes one file of both",
        )
    under, form = _below(path, header)
    if not _same(under, image.path):
        raise InputError(
            "stands on another image than recorded", subject=str(path), found=shown, expected=str(image.path)
        )
    if form != image.format:
        raise InputError(
            f"takes the image under it, {shown}, for another format than recorded",
            subject=str(path),
            found=printable(form),
            expected=image.format,
        )


def _follow(path: Path, form: str) -> Iterator[Path]:
    """The images that an image leads to: a user's own may stand on others."""
    first = path
    for _ in range(_MOST_CHAIN):
        header = _header(path, form)
        if header is None or header.backing_file is None:
            return
        path, form = _below(path, header)
        yield path
    raise InputError(f"stands on more than {_MOST_CHAIN} images", subject=str(first))


def _below(path: Path, header: Qcow2Header) -> tuple[Path, str]:
    """The file that the image at ``path`` names, and its format: relative to the image's own folder, as QEMU has it."""
    named = header.backing_file or ""
    if ":" in named.partition("/")[0]:
        raise InputError("the image under it is no plain file", subject=str(path), found=printable(named))
    if header.backing_format is None:
        raise InputError(
            "does not say in which format the image under it is, which QEMU would have to guess",
            subject=str(path),
            hint="qemu-img rebase -u -b IMAGE -F raw|qcow2 says it",
        )
    return path.absolute().parent / named, header.backing_format


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


def _age(path: Path) -> tuple[int, int]:
    """By what a change of a file is known: its size in bytes, and when it was last written to, in nanoseconds."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(path)) from error
    return status.st_size, status.st_mtime_ns


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return os.path.normpath(one) == os.path.normpath(other)
