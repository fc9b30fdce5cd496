"""The formats that a disk can be written in, and the one door through which it is."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO

from armvm.disk.qcow2_header import Compression
from armvm.disk.storage import Disk
from armvm.errors import UsageError
from armvm.units import GIB, TIB, format_size


class DiskFormat(enum.Enum):
    """A container; its value is how users and file names call it."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VHDX = "vhdx"
    VHD = "vhd"
    VDI = "vdi"

    @property
    def qemu_name(self) -> str:
        """How QEMU and ``armvm.disk.detect`` call it."""
        return "vpc" if self is DiskFormat.VHD else self.value

    @classmethod
    def of_name(cls, path: PurePath) -> DiskFormat | None:
        """The format that a file's name asks for; None when it asks for none."""
        suffix = path.suffix.lower().removeprefix(".")
        by_suffix = {"img": cls.RAW, "vpc": cls.VHD, **{each.value: each for each in cls}}
        return by_suffix.get(suffix)


SUBFORMATS: dict[DiskFormat, tuple[str, ...]] = {
    DiskFormat.VMDK: ("monolithicSparse", "streamOptimized"),
    DiskFormat.VHDX: ("dynamic", "fixed"),
    DiskFormat.VHD: ("fixed", "dynamic"),
    DiskFormat.VDI: ("dynamic", "static"),
}
"""The kinds of a format, as QEMU spells them, the usual one first: a VHD is fixed, which Azure insists on."""

_MOST_BYTES = {DiskFormat.VHD: 2040 * GIB, DiskFormat.VMDK: 62 * TIB, DiskFormat.VHDX: 64 * TIB}


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How a disk is written. Raises UsageError for a combination that there is none of."""

    format: DiskFormat
    subformat: str | None = None
    compression: Compression | None = None

    def __post_init__(self) -> None:
        """Refuse what the format does not have."""
        kinds = SUBFORMATS.get(self.format, ())
        if self.subformat is not None and self.subformat not in kinds:
            hint = f"it has {' and '.join(kinds)}" if kinds else "it has only one kind"
            raise UsageError(f"{self.format.value} has no subformat {self.subformat}", hint=hint)
        if self.compression is not None and self.format is not DiskFormat.QCOW2:
            raise UsageError(
                f"{self.format.value} is not compressed by armvm",
                hint="qcow2 is, and a vmdk of the subformat streamOptimized always",
            )

    def require_fits(self, size_bytes: int) -> None:
        """Raises UsageError when the format holds no disk of this size."""
        most = _MOST_BYTES.get(self.format)
        if most is not None and size_bytes > most:
            raise UsageError(f"a {self.format.value} holds at most {format_size(most)}, not {format_size(size_bytes)}")


def write_disk(
    file: BinaryIO, source: Disk, output: OutputFormat, *, name: str, progress: Callable[[int], None] | None = None
) -> None:
    """Write ``source`` into the regular file ``file``, replacing what it holds; zeros take no room.

    ``name`` is the file's later name, which a vmdk has in it. ``progress`` is told how many bytes of the disk are done.
    Raises InputError when the source cannot be read, MissingError without qemu-img where the format needs it.
    """
    if output.format is DiskFormat.RAW:
        from armvm.disk.write import write_raw

        write_raw(file, source, progress=progress)
    elif output.format is DiskFormat.QCOW2:
        from armvm.disk.qcow2_write import write_qcow2

        write_qcow2(file, source, compression=output.compression, progress=progress)
    else:
        from armvm.disk.foreign_write import write_foreign

        output.require_fits(source.size_bytes)
        subformat = output.subformat or SUBFORMATS[output.format][0]
        write_foreign(file, source, output.format, subformat, name=name, progress=progress)
