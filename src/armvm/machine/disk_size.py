"""How large a disk is for the guest, whatever its image stands on."""

from __future__ import annotations

from armvm.machine.definition import DiskDevice


def size_bytes(disk: DiskDevice) -> int:
    """The size that the guest sees. Raises InputError when the image cannot be read."""
    if disk.format == "qcow2":  # the header says it, and what is under the image need not be there
        from armvm.disk.qcow2 import read_header
        from armvm.disk.raw import RawDisk

        with RawDisk(disk.path) as file:
            return read_header(file).size_bytes
    from armvm.disk.detect import open_disk

    with open_disk(disk.path, sector_size=disk.sector_size, format=disk.format, in_place=True) as content:
        return content.size_bytes
