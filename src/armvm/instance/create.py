"""Makes instances: a folder that appears whole, or not at all."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import replace
from pathlib import Path

from armvm.atomic import sync_folder
from armvm.disk.storage import Disk
from armvm.errors import OutputError, UsageError
from armvm.instance import events, machine_toml
from armvm.instance.definition import BackingImage, Definition
from armvm.instance.store import Instance
from armvm.machine.definition import DiskDevice, Machine, VariablesFile, Writes


def create(instance: Instance, machine: Machine, disk: Disk, *, firmware_file: Path | None = None) -> None:
    """Make ``instance``: ``machine``, with a disk of its own over its first one (which ``disk`` reads), and a store.

    Raises UsageError when it is there already, OutputError when it cannot be written.
    """
    image = machine.disks[0].path.absolute()
    status = image.stat()
    own = DiskDevice(instance.disk, "qcow2", machine.disks[0].sector_size, Writes.KEPT)
    backing = BackingImage("disk0", image, machine.disks[0].format, status.st_size, status.st_mtime_ns)
    definition = Definition(
        replace(machine, disks=(own, *machine.disks[1:]), variables=VariablesFile(instance.variables, "qcow2")),
        (backing,),
        firmware_file,
    )
    beside = instance.folder.with_name(f".{instance.name}.{secrets.token_hex(4)}.part")
    try:
        instance.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside.mkdir(mode=0o700)
        try:
            _fill(Instance(instance.name, beside), instance.folder, definition, disk.size_bytes)
            beside.rename(instance.folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync_folder(instance.folder.parent)
    except OSError as error:
        if instance.exists:
            raise UsageError(f"instance {instance.name} is there already") from error
        raise OutputError(
            f"cannot make instance {instance.name} in {instance.folder.parent}: {error.strerror}"
        ) from error


def _fill(instance: Instance, final: Path, definition: Definition, size_bytes: int) -> None:
    from armvm.atomic import replacing, write_file
    from armvm.disk.composed import ComposedDisk
    from armvm.disk.qcow2_write import write_overlay, write_qcow2
    from armvm.disk.storage import MemoryDisk
    from armvm.firmware.variables import FLASH_SIZE_BYTES
    from armvm.firmware.varstore import new_instance_store

    (image,) = definition.images
    with replacing(instance.disk, mode=0o600) as file:
        write_overlay(file, backing_path=str(image.path), backing_format=image.format, size_bytes=size_bytes)
    with replacing(instance.variables, mode=0o600) as file:
        write_qcow2(file, ComposedDisk("variables", FLASH_SIZE_BYTES, [(0, MemoryDisk(new_instance_store()))]))
    write_file(instance.description, machine_toml.serialise(definition, final), mode=0o600)
    events.record(instance.events, "created", image=str(image.path))
