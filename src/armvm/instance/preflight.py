"""What must be so before an instance is started: each that is not is said before anything runs."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from typing import Any

from armvm.errors import BusyError, InputError, MissingError
from armvm.instance.chain import check_chain
from armvm.instance.definition import Definition
from armvm.instance.store import Instance, require_unchanged
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import UserNetwork, problems, require_sound
from armvm.machine.qemu.backend import Qemu, find_qemu


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
    check_chain(definition)
    if machine.variables is not None and not machine.variables.path.is_file():
        raise InputError(
            f"the variable store of instance {instance.name} is gone",
            subject=str(machine.variables.path),
            hint=f"armvm vars reset {instance.name} makes a new one",
        )
    check_ports(instance, definition)
    return definition, qemu


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
