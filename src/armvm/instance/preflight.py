"""What must be so before an instance is started: each that is not is said before anything runs."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armvm.disk.qcow2_header import MAX_CLUSTER_SIZE, parse_header
from armvm.errors import BusyError, InputError, MissingError
from armvm.instance.definition import Definition
from armvm.instance.store import Instance, require_unchanged
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import DiskDevice, UserNetwork, disk_names, problems, require_sound
from armvm.machine.qemu.backend import Qemu, find_qemu
from armvm.printable import printable

_MOST_CHAIN = 16


def checked(instance: Instance, options: Mapping[str, Any]) -> tuple[Definition, Qemu]:
    """What is to be started, and by what. Hold the lock.

    ``options`` are ``accelerator``, ``cpu`` and ``snapshot``, each None for the default. Raises ArmvmError for whatever
    is in the way: a broken machine.toml, an image or firmware that is gone, a port that is in use.
    """
    from armvm.instance.snapshots import definition_of, require_settled

    require_settled(instance)
    snapshot = options.get("snapshot")
    definition = instance.definition() if snapshot is None else definition_of(instance, str(snapshot))
    machine = definition.machine
    accelerator = options.get("accelerator")
    cpu = options.get("cpu")
    qemu = find_qemu(
        machine.state,
        accelerator=None if accelerator is None else AcceleratorKind(accelerator),
        cpu=None if cpu is None else str(cpu),
    )
    require_sound(problems(machine) + qemu.problems(machine))
    for image in definition.images:
        require_unchanged(instance.name, image)
    if not machine.firmware.code.is_file():
        raise MissingError(f"the firmware {machine.firmware.code} is gone", component=machine.firmware.name)
    for name, disk in zip(disk_names(machine), machine.disks, strict=True):
        check_chain(instance, definition, name, disk)
    if machine.variables is not None and not machine.variables.path.is_file():
        raise InputError(
            f"the variable store of instance {instance.name} is gone",
            subject=str(machine.variables.path),
            hint=f"armvm vars reset {instance.name} makes a new one",
        )
    check_ports(instance, definition)
    return definition, qemu


def check_chain(instance: Instance, definition: Definition, name: str, disk: DiskDevice) -> None:
    """Raise InputError when what stands under a disk is not what machine.toml says stands there.

    QEMU opens whatever file the overlay's header names. A user's image may be an overlay too: that is followed, as long
    as it leads to plain files.
    """
    image = definition.image(name)
    header_backing = _backing(disk.path, disk.format, what=f"disk {name} of instance {instance.name}")
    if image is None:
        if header_backing is not None:
            raise InputError(
                f"disk {name} of instance {instance.name} stands on a file that machine.toml does not name",
                subject=str(disk.path),
                found=printable(header_backing[0]),
                expected="a disk of its own",
            )
        return
    backing, form = header_backing or ("nothing", image.format)
    if header_backing is None or not _same(disk.path.parent / backing, image.path) or form != image.format:
        raise InputError(
            f"disk {name} of instance {instance.name} does not stand on the image that machine.toml names",
            subject=str(disk.path),
            found=printable(f"{backing} ({form})"),
            expected=f"{image.path} ({image.format})",
        )
    path, form = image.path, image.format
    for _ in range(_MOST_CHAIN):
        below = _backing(path, form, what=f"the image of instance {instance.name}")
        if below is None:
            return
        if ":" in below[0].partition("/")[0]:
            raise InputError("its backing file is no plain file", subject=str(path), found=printable(below[0]))
        path, form = path.parent / below[0], below[1]
    raise InputError(f"stands on more than {_MOST_CHAIN} images", subject=str(image.path))


def check_ports(instance: Instance, definition: Definition) -> None:
    """Raise BusyError when a port that is forwarded to the guest is somebody else's."""
    for nic in definition.machine.nics:
        for forward in nic.forwards if isinstance(nic, UserNetwork) else ():
            with socket.socket() as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    trial.bind(("127.0.0.1", forward.host_port))
                    trial.listen()
                except OSError as error:
                    if error.errno == errno.EACCES:
                        why = "may not be used by this user"
                    else:
                        why = "is in use by another program"
                    raise BusyError(
                        f"port {forward.host_port} of this host {why}, and instance {instance.name} forwards it to port"
                        f" {forward.guest_port} of its guest",
                        hint=f"end that program, or give another port in {instance.description}",
                    ) from error


def _backing(path: Path, form: str, *, what: str) -> tuple[str, str] | None:
    """The name and format of the file that the image at ``path`` stands on; None when it stands on none."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CLUSTER_SIZE) if form == "qcow2" else b""
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error.strerror}", subject=str(path)) from error
    if form != "qcow2":
        return None
    header = parse_header(content, name=str(path), file_size=size)
    return None if header.backing_file is None else (header.backing_file, header.backing_format or "raw")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False
