"""Where each device of a machine sits: an address of its own, whatever else is there.

Adding one device moves no other, so that what the firmware remembered of the disk still holds, and so does what the
guest made of the addresses of its network cards.

| PCI slot | MMIO transport | device |
| 1        | 1              | virtio-serial: consoles, the guest agent's port |
| 2-7      | 2-7            | network cards |
| 8-15     | 8-23           | disks; on PCI the ninth and later ones are the second functions of the same slots |
| 16 17    | 24 25          | rng, balloon |
| 18-21    |                | watchdog, screen, USB, vsock |
| 22 23    | 28-30          | shared folders: on PCI eight functions a slot |
| 24-30    |                | hotplug ports |
| 31       | 31             | SCSI controller |
"""

from __future__ import annotations

import enum
from typing import Any

from armvm.machine.definition import Bus, Machine
from armvm.machine.devices import DiskInterface
from armvm.machine.qemu.devices import MMIO_BUS, SCSI_CONTROLLER, hotplug_port

MOST_MMIO_SHARES = 3
_FIRST_NIC_SLOT = 2
_FIRST_DISK_SLOT = 8
_DISK_SLOTS = 8
_SHARE_SLOTS = (22, 23)
_FIRST_MMIO_SHARE = 28
_FIRST_PORT_SLOT = 24
_FUNCTIONS = 8


class Slot(enum.Enum):
    """The devices of which a machine has one at most: PCI slot, virtio-mmio transport (None: not on MMIO)."""

    SERIAL = (1, 1)
    RNG = (16, 24)
    BALLOON = (17, 25)
    WATCHDOG = (18, None)
    SCREEN = (19, None)
    USB = (20, None)
    VSOCK = (21, None)
    SCSI = (31, 31)


def place_of(slot: Slot, bus: Bus) -> dict[str, Any]:
    """Where the one device of that kind sits."""
    pci, transport = slot.value
    return _pci(pci) if bus is Bus.PCI else _mmio(transport)


def place_of_port(index: int) -> dict[str, Any]:
    """Where an empty root port sits."""
    return _pci(_FIRST_PORT_SLOT + index)


def place_of_disk(machine: Machine, index: int) -> dict[str, Any]:
    """Where the disk at ``index`` sits: in its port, behind the SCSI controller, or in a place of its own."""
    disk = machine.disks[index]
    if disk.interface is DiskInterface.VIRTIO_SCSI:
        return {
            "bus": f"{SCSI_CONTROLLER}.0",
            "channel": 0,
            "scsi-id": index if disk.port is None else disk.port,
            "lun": 0,
        }
    if disk.port is not None:
        return {"bus": hotplug_port(disk.port)}
    if machine.bus is Bus.MMIO:
        return _mmio(_FIRST_DISK_SLOT + index)
    slot = _FIRST_DISK_SLOT + index % _DISK_SLOTS
    if index >= _DISK_SLOTS and _in_slot(machine, index - _DISK_SLOTS):
        return _pci(slot, 1)
    return _pci(slot, shared=_in_slot(machine, index + _DISK_SLOTS))


def _in_slot(machine: Machine, index: int) -> bool:
    """Whether the disk at ``index`` is there and in a place of its own on PCI."""
    disk = machine.disks[index] if index < len(machine.disks) else None
    return disk is not None and disk.port is None and disk.interface is not DiskInterface.VIRTIO_SCSI


def place_of_nic(machine: Machine, index: int) -> dict[str, Any]:
    """Where the network card at ``index`` sits."""
    port = machine.nics[index].port
    if port is not None:
        return {"bus": hotplug_port(port)}
    slot = _FIRST_NIC_SLOT + index
    return _pci(slot) if machine.bus is Bus.PCI else _mmio(slot)


def place_of_share(machine: Machine, index: int) -> dict[str, Any]:
    """Where the shared folder at ``index`` sits."""
    if machine.bus is Bus.MMIO:
        return _mmio(_FIRST_MMIO_SHARE + index)
    slot, function = divmod(index, _FUNCTIONS)
    alone = len(machine.shares) <= slot * _FUNCTIONS + 1
    return _pci(_SHARE_SLOTS[slot], function, shared=function == 0 and not alone)


def _pci(slot: int, function: int = 0, *, shared: bool = False) -> dict[str, Any]:
    """A PCI address; ``shared`` says that there are more functions in the slot."""
    place: dict[str, Any] = {"addr": f"{slot:#x}.{function:#x}" if function else f"{slot:#x}"}
    return place | {"multifunction": "on"} if shared else place


def _mmio(transport: int | None) -> dict[str, Any]:
    if transport is None:
        raise ValueError("no such device on virtio-mmio")  # ``definition.problems`` has said so
    return {"bus": f"{MMIO_BUS}{transport}"}
