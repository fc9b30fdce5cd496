"""Hotplug, from the host's side: a disk and a network card are added to the running guest, and taken away again.

The guest has to say that they came, that they work, and that they went: what the hypervisor answers is only half of it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from armvm.errors import MachineError
from armvm.execution import ExecutionState
from armvm.machine.backend import ControlledSession
from armvm.machine.definition import Bus, DiskDevice, DiskInterface, Machine, Nic, UserNetwork, Writes
from armvm.platform.host import HotplugAttempt, HotplugKind, HotplugRecord
from armvm.platform.listening import Ear
from armvm.probe.wire import Speaker
from armvm.units import MIB

_SECONDS = 30.0
"""How long a guest may take, under emulation, to take a device in or to let it go."""
_DISK_BYTES = 4 * MIB
_HASHED_BYTES = 4096
_MAC = "52:54:00:ac:e0:01"
_SERIAL = "armvm-hotplug"
_XEN_BUS, _XEN_PLACES = "Xen PV bus", 2
"""Every device of a domain can come and go: it needs no port."""
_SUBSYSTEMS = {HotplugKind.BLOCK: "block", HotplugKind.NETWORK: "net"}


def plug(session: ControlledSession, ear: Ear, machine: Machine, folder: Path) -> HotplugRecord:
    """Add and remove what ``machine`` has room for, one after the other, and say what was done.

    ``folder`` takes the image of the disk that is added.
    """
    image = folder / "hotplug.img"
    content = os.urandom(_HASHED_BYTES)
    image.write_bytes(content.ljust(_DISK_BYTES, b"\0"))
    digest = hashlib.sha256(content).hexdigest()
    ports = {Bus.PCI: machine.hotplug_ports, Bus.XEN: _XEN_PLACES}.get(machine.bus, 0)
    block = HotplugAttempt(HotplugKind.BLOCK, "PCIe root port", serial=_SERIAL, sha256_hex=digest)
    network = HotplugAttempt(HotplugKind.NETWORK, "PCIe root port", mac=_MAC)
    if not ports:
        reason = "the machine has no hotplug port"
        if machine.bus is Bus.MMIO:
            reason = "the machine's bus is virtio-mmio, which takes no devices at run time"
        attempts = [replace(attempt, added=False, error=reason) for attempt in (block, network)]
        return HotplugRecord(tuple(attempts))
    lacks = None
    if machine.bus is Bus.XEN:  # whose disks have no serial number
        block, network = (replace(attempt, bus=_XEN_BUS, serial=None) for attempt in (block, network))
    elif machine.state is ExecutionState.AARCH32 and machine.scsi_controller:
        # 32-bit ARM kernels have no PCI hotplug: QEMU would answer ok to what the guest can never see.
        lacks = "32-bit ARM kernels as distributions build them have no PCI hotplug"
        block = replace(block, bus="virtio-scsi")
    disk = DiskDevice(image, "raw", writes=Writes.REFUSED, serial=_SERIAL, name="hot-disk", port=0)
    if machine.scsi_controller and machine.bus is not Bus.XEN:
        disk = replace(disk, interface=DiskInterface.VIRTIO_SCSI, port=None)
    nic = UserNetwork(mac=_MAC, name="hot-nic", port=min(1, ports - 1))
    attempts = [_attempt(session, ear, disk, block)]
    attempts.append(_attempt(session, ear, nic, network, seen_by_guest=lacks is None))
    return HotplugRecord(tuple(attempts), lacks)


def _attempt(
    session: ControlledSession,
    ear: Ear,
    device: DiskDevice | Nic,
    attempt: HotplugAttempt,
    *,
    seen_by_guest: bool = True,
) -> HotplugAttempt:
    try:
        session.attach(device)
    except MachineError as error:
        return replace(attempt, added=False, error=error.message)
    attempt = replace(attempt, added=True)
    if not seen_by_guest:
        return attempt  # nobody would answer: there is nothing to wait for
    came = ear.listen(lambda: _said(ear, attempt, "add"), seconds=_SECONDS, patient=True)
    if not came:
        return attempt
    try:
        session.request_detach(device)
    except MachineError as error:
        return replace(attempt, removed=False, error=error.message)
    gone = ear.listen(lambda: device.name in ear.gone and _said(ear, attempt, "remove"), seconds=_SECONDS, patient=True)
    if gone or device.name in ear.gone:
        return replace(attempt, removed=True)
    return replace(attempt, removed=False, error=f"the guest did not let go within {_SECONDS:g} s")


def _said(ear: Ear, attempt: HotplugAttempt, action: str) -> bool:
    """Whether the guest reported that ``action`` on the kind of device; which one it was, the judge finds out."""
    return any(
        record.type == "hotplug"
        and record.fields.get("action") == action
        and record.fields.get("subsystem") == _SUBSYSTEMS[attempt.kind]
        for record in ear.records(Speaker.LINUX)
    )
