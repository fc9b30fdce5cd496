"""The machine that an instance is by default: one that people live with, rather than one that is thrown away."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from armvm.disk.storage import Disk
from armvm.execution import ExecutionState
from armvm.firmware.discovery import find_firmware
from armvm.image.contents import bootable_state
from armvm.machine.definition import DEFAULT_MEMORY_BYTES, Bus, DiskDevice, Machine, Writes, problems, require_sound

_HOTPLUG_PORTS = 4


def lived_with(machine: Machine, *, given: Collection[str] = ()) -> Machine:
    """``machine`` with a source of randomness, room for a guest agent, and spare ports; fields ``given`` stay."""
    ports = _HOTPLUG_PORTS if machine.bus is Bus.PCI else 0
    expected: dict[str, Any] = {"rng": True, "guest_agent": True, "hotplug_ports": ports}
    return replace(machine, **{field: value for field, value in expected.items() if field not in given})


def kept_machine(
    disk: Disk,
    path: Path,
    *,
    state: ExecutionState | None = None,
    firmware_file: Path | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Machine:
    """The machine that boots the image at ``path``, which ``disk`` reads; ``fields`` are what it is to have otherwise.

    ``disks`` among the fields are further ones. Raises InputError when nothing on the image boots, UsageError when such
    a machine cannot be, MissingError when this host lacks what it needs.
    """
    from armvm.machine.qemu.backend import find_qemu

    state = state or bootable_state(disk)
    chosen = dict(fields or {})
    machine = Machine(
        state=state,
        firmware=find_firmware(state, override=firmware_file, secure_boot=bool(chosen.get("secure_boot"))),
        disks=(DiskDevice(path, disk.format, disk.sector_size, Writes.KEPT), *chosen.pop("disks", ())),
        memory_bytes=DEFAULT_MEMORY_BYTES[state],
    )
    machine = lived_with(replace(machine, **chosen), given=chosen)
    require_sound(problems(machine) + find_qemu(state).problems(machine))
    return machine
