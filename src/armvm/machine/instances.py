"""Kept machines: one folder each, made whole or not at all, and used by one process at a time.

$ARMVM_HOME or $XDG_DATA_HOME/armvm
└── instances/NAME/
    ├── machine.toml   what the machine is, and which image it stands on
    ├── disk.qcow2     what the guest wrote, over the image
    ├── vars.qcow2     its UEFI variables (qcow2, since snapshots need it)
    ├── console.log    what it said
    └── lock           held (flock) by armvm and the hypervisor as long as either lives; names the process
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from armvm.atomic import sync_folder
from armvm.disk.storage import Disk
from armvm.errors import BusyError, InputError, OutputError, UsageError
from armvm.machine import machine_file
from armvm.machine.definition import Machine
from armvm.machine.machine_file import BackingImage
from armvm.printable import printable
from armvm.units import MIB

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LOG_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True)
class Instance:
    """A kept machine, by its name and folder."""

    name: str
    folder: Path

    @property
    def disk(self) -> Path:
        """What the guest wrote, over the image."""
        return self.folder / "disk.qcow2"

    @property
    def variables(self) -> Path:
        """Its UEFI variable store."""
        return self.folder / "vars.qcow2"

    @property
    def log(self) -> Path:
        """What it said on its console."""
        return self.folder / "console.log"

    @property
    def exists(self) -> bool:
        """Whether it has been made."""
        return self.description.exists()

    @property
    def description(self) -> Path:
        """What the machine is, and which image it stands on."""
        return self.folder / "machine.toml"

    def image(self) -> BackingImage:
        """The image that it stands on, as it was when the instance was made."""
        return machine_file.parse_image(machine_file.read_text(self.description), self.description)

    def machine(self) -> Machine:
        """The machine that it is. Raises InputError when its files are broken, or its image has changed since."""
        fields = machine_file.read_text(self.description)
        _require_unchanged(self.name, machine_file.parse_image(fields, self.description))
        return machine_file.parse_machine(fields, self.description, disk=self.disk, variables=self.variables)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the instance within the block; the yielded descriptor is for the hypervisor to hold too.

        Raises BusyError, which names the process, when another one holds it.
        """
        descriptor = _open(self.folder / "lock", os.O_RDWR)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = printable(os.pread(descriptor, 20, 0).decode(errors="replace").strip())
                raise BusyError(f"instance {self.name} is in use by process {holder or 'unknown'}") from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def logging(self) -> Iterator[int]:
        """The console log, open to be appended to; what is older than its last 16 MiB or so is dropped first."""
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > _LOG_BYTES:
                os.replace(self.log, self.log.with_suffix(".log.1"))
        descriptor = _open(self.log, os.O_WRONLY | os.O_APPEND)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def find(name: str) -> Instance:
    """The instance ``name``, which may not have been made yet. Raises UsageError when that is no name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"not a name for an instance: {name!r}",
            hint="letters, digits, and after the first character . _ - (64 characters at most)",
        )
    return Instance(name, home() / "instances" / name)


def home() -> Path:
    """The folder of everything that armvm keeps."""
    own = os.environ.get("ARMVM_HOME")
    if own:
        return Path(own).absolute()
    data = os.environ.get("XDG_DATA_HOME", "")
    # The XDG Base Directory Specification: a relative path is to be ignored.
    return (Path(data) if data.startswith("/") else Path.home() / ".local/share") / "armvm"


def create(instance: Instance, machine: Machine, disk: Disk, *, firmware_file: Path | None = None) -> None:
    """Make ``instance``: ``machine``, with a disk of its own over its first one (which ``disk`` reads), and a store.

    Raises UsageError when it is there already, OutputError when it cannot be written.
    """
    image = machine.disks[0].path.absolute()
    status = image.stat()
    description = machine_file.serialise(
        machine, BackingImage(image, machine.disks[0].format, status.st_size, status.st_mtime_ns), firmware_file
    )
    beside = instance.folder.with_name(f".{instance.name}.{secrets.token_hex(4)}.part")
    try:
        instance.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside.mkdir(mode=0o700)
        try:
            _fill(Instance(instance.name, beside), description, image, machine.disks[0].format, disk.size_bytes)
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


def _fill(instance: Instance, description: bytes, image: Path, form: str, size_bytes: int) -> None:
    from armvm.atomic import replacing, write_file
    from armvm.disk.composed import ComposedDisk
    from armvm.disk.qcow2_write import write_overlay, write_qcow2
    from armvm.disk.storage import MemoryDisk
    from armvm.firmware.variables import FLASH_SIZE_BYTES
    from armvm.firmware.varstore import new_instance_store

    with replacing(instance.disk, mode=0o600) as file:
        write_overlay(file, backing_path=str(image), backing_format=form, size_bytes=size_bytes)
    with replacing(instance.variables, mode=0o600) as file:
        write_qcow2(file, ComposedDisk("variables", FLASH_SIZE_BYTES, [(0, MemoryDisk(new_instance_store()))]))
    write_file(instance.description, description, mode=0o600)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _require_unchanged(name: str, image: BackingImage) -> None:
    try:
        status = image.path.stat()
    except OSError as error:
        raise InputError(f"the image of instance {name} is gone: {error.strerror}", subject=str(image.path)) from error
    if (status.st_size, status.st_mtime_ns) != (image.size_bytes, image.modified_ns):
        raise InputError(
            f"the image has changed since instance {name} was made on it",
            subject=str(image.path),
            hint="what the instance wrote belongs to the image as it was: put that back, or make another instance",
        )
