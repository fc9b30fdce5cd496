"""Devices that come and go while a QEMU runs. What the guest makes of them only the guest can tell.

What there is to see of that from outside: the state of a virtio device, which the guest's driver sets (VIRTIO 1.2
§2.1; QEMU 7.2 and later tell it), and what has been read from a disk, which nobody but the guest does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armvm.errors import MachineError
from armvm.machine.devices import BridgeNetwork, DiskDevice, DiskInterface, LinkNetwork, Nic, UserNetwork, Writes
from armvm.machine.qemu.bridges import open_tap
from armvm.machine.qemu.devices import (
    SCSI_CONTROLLER,
    backend_name,
    blockdev_of,
    device_of_disk,
    device_of_nic,
    hotplug_port,
    netdev_of,
    node_name,
)
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
    if isinstance(device, HotNic):
        add_nic(session, UserNetwork(mac=device.mac), device.name, place={"bus": device.port})
        return
    interface, bus = DiskInterface.VIRTIO_BLK, device.port
    if bus is None:
        interface, bus = DiskInterface.VIRTIO_SCSI, f"{SCSI_CONTROLLER}.0"
    disk = DiskDevice(device.path, "raw", writes=Writes.REFUSED, interface=interface, serial=device.serial)
    add_disk(session, disk, device.name, place={"bus": bus})


def request_detach(session: QemuSession, device: HotDisk | HotNic) -> None:
    """Ask the guest to give ``device`` up; a DeviceGone event follows when it has. Raises MachineError on refusal."""
    request_removal(session, device.name)


def add_disk(session: QemuSession, disk: DiskDevice, name: str, *, place: Mapping[str, Any]) -> None:
    """Add ``disk`` at ``place`` (see ``places``). Raises MachineError, with all as before, when QEMU refuses."""
    session.qmp.execute("blockdev-add", blockdev_of(disk, name), timeout_seconds=_SECONDS)
    try:
        session.qmp.execute("device_add", device_of_disk(disk, name, place=place), timeout_seconds=_SECONDS)
    except MachineError:
        with suppress(MachineError):
            drop_disk(session, name)
        raise


def add_nic(session: QemuSession, nic: Nic, name: str, *, place: Mapping[str, Any]) -> None:
    """Add ``nic`` at ``place``. Raises MachineError, with all as before, when QEMU refuses."""
    if isinstance(nic, LinkNetwork):
        from armvm.machine.qemu.companions import prepare_link

        prepare_link(nic)
    if isinstance(nic, BridgeNetwork):
        tap = f"{name}-tap"
        descriptor = open_tap(nic.bridge)
        try:
            session.qmp.give(tap, descriptor, timeout_seconds=_SECONDS)
        finally:
            os.close(descriptor)
        backend = netdev_of(nic, name, tap=tap)
    else:
        backend = netdev_of(nic, name)
    session.qmp.execute("netdev_add", backend, timeout_seconds=_SECONDS)
    try:
        session.qmp.execute("device_add", device_of_nic(nic, name, place=place), timeout_seconds=_SECONDS)
    except MachineError:
        with suppress(MachineError):
            drop_nic(session, name)
        raise


def request_removal(session: QemuSession, name: str) -> None:
    """Ask the guest to give the device up; a DeviceGone event follows when it has. Raises MachineError on refusal."""
    session.qmp.execute("device_del", {"id": name}, timeout_seconds=_SECONDS)


def drop_disk(session: QemuSession, name: str) -> None:
    """Close the image of a disk that is gone. Raises MachineError while a device uses it."""
    session.qmp.execute("blockdev-del", {"node-name": node_name(name)}, timeout_seconds=_SECONDS)


def drop_nic(session: QemuSession, name: str) -> None:
    """Close the backend of a network card that is gone. Raises MachineError while a device uses it."""
    session.qmp.execute("netdev_del", {"id": backend_name(name)}, timeout_seconds=_SECONDS)


def driver_is_up(session: QemuSession, name: str) -> bool | None:
    """Whether the guest's driver of a virtio device has set DRIVER_OK; None where QEMU (before 7.2) cannot tell.

    Raises MachineError when there is no QEMU to ask.
    """
    path = f"/machine/peripheral/{name}/virtio-backend"
    try:
        told = session.qmp.execute("x-query-virtio-status", {"path": path}, timeout_seconds=_SECONDS)
    except MachineError:
        if session.qmp.closed:
            raise
        return None
    # Names with an explanation each: "VIRTIO_CONFIG_S_DRIVER_OK: Driver setup and ready"
    states = told["status"]["statuses"]
    return any("DRIVER_OK" in str(state) for state in states)


def reads(session: QemuSession, name: str) -> int:
    """How many times the guest has read from the disk. Raises MachineError when there is no QEMU to ask."""
    for block in session.qmp.execute("query-blockstats", timeout_seconds=_SECONDS):
        device = str(block.get("qdev", "")).removesuffix("/virtio-backend")
        if device in {name, f"/machine/peripheral/{name}"}:
            return int(block["stats"]["rd_operations"])
    return 0
