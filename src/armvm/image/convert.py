"""Writing a disk in another format, with other sectors or of another size, and reading it back before it counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from armvm.atomic import replacing
from armvm.disk.compare import first_difference
from armvm.disk.detect import open_disk
from armvm.disk.formats import DiskFormat, OutputFormat, write_disk
from armvm.disk.scratch import own_path, visible_path
from armvm.disk.storage import Disk
from armvm.errors import InputError, OutputError, UsageError
from armvm.image.reshape import Reshape, plan_reshape
from armvm.units import MIB, align_up

_QEMU_SECTOR = 512

Progress = Callable[[str, int, int], None]
"""Takes the step, the bytes done, and the bytes in all."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written: the disk that a VM sees, the bytes that its file takes, and what the user should know."""

    size_bytes: int
    sector_size: int
    stored_bytes: int
    verified: bool
    notes: tuple[str, ...]


def convert_image(
    source: Disk,
    output: Path,
    format: OutputFormat,
    *,
    reshape: Reshape | None = None,
    overwrite: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> Converted:
    """Write ``source`` to ``output``, whole or not at all; the same input gives the same raw and qcow2 bytes.

    With ``verify`` the new file is opened and compared with what was planned before it gets its name.
    Raises what plan_reshape and write_disk do, UsageError when ``output`` is the source, OutputError when it is there
    already, cannot be written, or does not read back as it should.
    """
    _refuse_output(source, output, overwrite=overwrite)

    def step(name: str, total: int) -> Callable[[int], None] | None:
        return None if progress is None else lambda done: progress(name, done, total)

    if progress is not None:
        progress("planning", 0, 1)
    with plan_reshape(source, reshape or Reshape(), scratch_folder=output.parent) as planned:
        disk = planned.disk
        format.require_fits(disk.size_bytes)
        with replacing(output, overwrite=overwrite) as file:
            write_disk(file, disk, format, name=output.name, progress=step("writing", disk.size_bytes))
            file.flush()
            if verify:
                _verify(file, disk, format, output, step("verifying", disk.size_bytes))
            stored = os.fstat(file.fileno()).st_blocks * 512
        notes = planned.notes + _format_notes(disk, format)
        return Converted(disk.size_bytes, disk.sector_size, stored, verify, notes)


def _refuse_output(source: Disk, output: Path, *, overwrite: bool) -> None:
    if not output.parent.is_dir():
        raise OutputError(f"cannot write {output}: there is no folder {output.parent}")
    if not os.path.lexists(output):
        return
    if output.exists() and Path(source.name).exists() and output.samefile(source.name):
        raise UsageError(f"{output} is the image that is to be converted", hint="write to another name")
    if output.exists() and not output.is_file():
        raise OutputError(f"{output} is no regular file, and is left alone")
    if not overwrite:
        raise OutputError(f"{output} is already there", hint="--force replaces it")


def _verify(
    file: BinaryIO, planned: Disk, format: OutputFormat, output: Path, progress: Callable[[int], None] | None
) -> None:
    """Open what was written by what it says it is, and compare every byte that a VM would see."""
    foreign = format.format not in (DiskFormat.RAW, DiskFormat.QCOW2)
    path = visible_path(file) if foreign and os.path.exists(visible_path(file)) else own_path(file)  # noqa: PTH110
    # A raw disk is whatever its bytes are (one may hold a qcow2 image); every other format says what it is.
    said = "raw" if format.format is DiskFormat.RAW else None
    hint = "nothing was written; is there something wrong with the disk or the memory of this machine?"
    try:
        with open_disk(path, sector_size=planned.sector_size, format=said) as written:
            expected = planned.size_bytes
            if format.format is not DiskFormat.RAW:  # the others know whole sectors only
                expected = align_up(expected, _QEMU_SECTOR)
            if (written.format, written.size_bytes) != (format.format.qemu_name, expected):
                found = f"{written.format} of {written.size_bytes} bytes, not {expected}"
                raise OutputError(f"{output} would be another disk than was meant: {found}")
            different = first_difference(planned, written, progress=progress)
    except InputError as error:
        if error.subject is None or not error.subject.startswith(path):
            raise  # it is the source that cannot be read
        raise OutputError(
            f"{output} cannot be read back: {error.message.replace(path, output.name)}", hint=hint
        ) from error
    if different is not None:
        raise OutputError(f"{output} does not read back as it was written: byte {different} differs", hint=hint)


def _format_notes(disk: Disk, format: OutputFormat) -> tuple[str, ...]:
    notes = []
    if disk.sector_size != _QEMU_SECTOR and format.format not in (DiskFormat.RAW, DiskFormat.QCOW2):
        notes.append(
            f"hypervisors show a {format.format.value} as a disk of 512-byte sectors, but this one is laid out for"
            f" {disk.sector_size}: it boots only where they can be told otherwise"
        )
    if format.format is DiskFormat.VHD and disk.size_bytes % MIB:
        notes.append("Azure takes only a VHD of whole MiB: give it a --size of such")
    return tuple(notes)
