"""The machine that an instance is by default: one that people live with, rather than one that is thrown away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from armvm.disk.storage import Disk
from armvm.execution import ExecutionState
from armvm.firmware.discovery import find_firmware
from armvm.image.contents import bootable_state
from armvm.machine.definition import (
    DEFAULT_MEMORY_BYTES,
    Bus,
    DiskDevice,
    Machine,
    Writes,
    problems,
    require_sound,
)

HOTPLUG_PORTS = 4


def kept_machine(
    disk: Disk,
    path: Path,
    *,
    state: ExecutionState | None = None,
    firmware_file: Path | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Machine:
    """The machine that boots the image at ``path``, which ``disk`` reads; ``fields`` are what it is to have otherwise.

    It has a source of randomness, room for a guest agent, and spare ports; ``disks`` among the fields are further ones.
    Raises InputError when nothing on the image boots, UsageError when such a machine cannot be, MissingError when this
    host lacks what it needs.
    """
    from armvm.machine.qemu.backend import find_qemu

    state = state or bootable_state(disk)
    chosen: dict[str, Any] = {"rng": True, "guest_agent": True, "hotplug_ports": HOTPLUG_PORTS, **(fields or {})}
    if chosen.get("bus") is Bus.MMIO:
        chosen["hotplug_ports"] = 0
    own = DiskDevice(path, disk.format, disk.sector_size, Writes.KEPT)
    machine = Machine(
        state=state,
        firmware=find_firmware(state, override=firmware_file, secure_boot=bool(chosen.get("secure_boot"))),
        disks=(own, *chosen.pop("disks", ())),
        memory_bytes=DEFAULT_MEMORY_BYTES[state],
    )
    machine = replace(machine, **chosen)
    require_sound(problems(machine) + find_qemu(state).problems(machine))
    return machine
