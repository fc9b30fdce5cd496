"""Devices that come and go while a QEMU runs. What the guest makes of them only the guest can tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armvm.errors import MachineError
from armvm.machine.definition import DiskDevice, Nic, UserNetwork
from armvm.machine.qemu.command import SCSI_CONTROLLER, hotplug_port
from armvm.machine.qemu.session import QemuSession

_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class HotDisk:
    """A raw image to be added as a disk, read-only. ``port`` names a root port; None puts it behind the controller."""

    name: str
    path: Path
    serial: str
    port: str | None


@dataclass(frozen=True, slots=True)
class HotNic:
    """A network card behind user-mode NAT, to be added at the root port ``port``."""

    name: str
    mac: str
    port: str


def hot(device: DiskDevice | Nic) -> HotDisk | HotNic:
    """The device as it is added here. Raises MachineError for one that cannot be."""
    name = device.name or ""
    if isinstance(device, DiskDevice):
        port = None if device.port is None else hotplug_port(device.port)
        return HotDisk(name, device.path, device.serial or "", port)
    if not isinstance(device, UserNetwork) or device.port is None or device.mac is None:
        raise MachineError("only a network card with user-mode NAT, an address and a port is added to a probe's VM")
    return HotNic(name, device.mac, hotplug_port(device.port))


def attach(session: QemuSession, device: HotDisk | HotNic) -> None:
    """Add ``device``. Raises MachineError when QEMU does not take it; that it does says nothing about the guest."""
    backend = f"{device.name}-backend"
    if isinstance(device, HotDisk):
        file = {"driver": "file", "filename": str(device.path.absolute()), "read-only": True}
        node = {"driver": "raw", "node-name": backend, "read-only": True, "file": file}
        session.qmp.execute("blockdev-add", node, timeout_seconds=_SECONDS)
        place = {"driver": "virtio-blk-pci", "bus": device.port}
        if device.port is None:
            place = {"driver": "scsi-hd", "bus": f"{SCSI_CONTROLLER}.0"}
        options: dict[str, Any] = {**place, "drive": backend, "serial": device.serial}
    else:
        session.qmp.execute("netdev_add", {"type": "user", "id": backend}, timeout_seconds=_SECONDS)
        options = {"driver": "virtio-net-pci", "bus": device.port, "netdev": backend, "mac": device.mac, "romfile": ""}
    session.qmp.execute("device_add", {**options, "id": device.name}, timeout_seconds=_SECONDS)


def request_detach(session: QemuSession, device: HotDisk | HotNic) -> None:
    """Ask the guest to give ``device`` up; a DeviceGone event follows when it has. Raises MachineError on refusal."""
    session.qmp.execute("device_del", {"id": device.name}, timeout_seconds=_SECONDS)
