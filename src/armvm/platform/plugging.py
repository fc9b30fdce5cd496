"""Hotplug, from the host's side: a disk and a network card are added to the running guest, and taken away again.

The guest has to say that they came, that they work, and that they went: what the hypervisor answers is only half of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.errors import MachineError
from armvm.execution import ExecutionState
from armvm.machine.definition import Bus, Machine
from armvm.machine.qemu.command import hotplug_port
from armvm.machine.qemu.hotplug import HotDisk, HotNic, attach, request_detach
from armvm.machine.qemu.session import QemuSession
from armvm.platform.host import HotplugAttempt, HotplugKind, HotplugRecord
from armvm.platform.listening import Ear
from armvm.probe.wire import Speaker
from armvm.units import MIB

if TYPE_CHECKING:
    from armvm.machine.xen.config import XenHost
    from armvm.machine.xen.session import XenSession

_SECONDS = 30.0
"""How long a guest may take, under emulation, to take a device in or to let it go."""
_DISK_BYTES = 4 * MIB
_HASHED_BYTES = 4096
_MAC = "52:54:00:ac:e0:01"
_SERIAL = "armvm-hotplug"
_SUBSYSTEMS = {HotplugKind.BLOCK: "block", HotplugKind.NETWORK: "net"}
_XEN_BUS = "Xen PV bus"


@dataclass(frozen=True, slots=True)
class _Plug:
    """How one device is added and asked back, and whether the hypervisor says that it is gone."""

    attach: Callable[[], None]
    detach: Callable[[], None]
    gone: Callable[[], bool]


def plug_xen(session: XenSession, ear: Ear, host: XenHost, machine: Machine, folder: Path) -> HotplugRecord:
    """Add a disk and a network card to a Xen domain, take them away, and say what was done.

    ``folder`` takes the image of the disk. xl waits for the guest itself, so that what it took away is gone.
    """
    from armvm.machine.xen import hotplug as xen

    image, digest = _image(folder)
    disk = xen.HotDisk(image, len(machine.disks))
    nic = xen.HotNic(_MAC)
    block = HotplugAttempt(HotplugKind.BLOCK, _XEN_BUS, sha256_hex=digest)
    network = HotplugAttempt(HotplugKind.NETWORK, _XEN_BUS, mac=_MAC)
    attempts = []
    for device, attempt in ((disk, block), (nic, network)):
        plug = _Plug(
            partial(xen.attach, session, device, host), partial(xen.detach, session, device), gone=lambda: True
        )
        attempts.append(_attempt(ear, plug, attempt))
    return HotplugRecord(tuple(attempts))


def plug(session: QemuSession, ear: Ear, machine: Machine, folder: Path) -> HotplugRecord:
    """Add and remove what ``machine`` has room for, one after the other, and say what was done.

    ``folder`` takes the image of the disk that is added.
    """
    image, digest = _image(folder)
    ports = machine.hotplug_ports if machine.bus is Bus.PCI else 0
    block = HotplugAttempt(HotplugKind.BLOCK, "PCIe root port", serial=_SERIAL, sha256_hex=digest)
    network = HotplugAttempt(HotplugKind.NETWORK, "PCIe root port", mac=_MAC)
    if not ports:
        reason = "the machine has no hotplug port"
        if machine.bus is Bus.MMIO:
            reason = "the machine's bus is virtio-mmio, which takes no devices at run time"
        attempts = [replace(attempt, added=False, error=reason) for attempt in (block, network)]
        return HotplugRecord(tuple(attempts))
    lacks = None
    if machine.state is ExecutionState.AARCH32 and machine.scsi_controller:
        # 32-bit ARM kernels have no PCI hotplug: QEMU would answer ok to what the guest can never see.
        lacks = "32-bit ARM kernels as distributions build them have no PCI hotplug"
        block = replace(block, bus="virtio-scsi")
    disk = HotDisk("hot-disk", image, _SERIAL, None if machine.scsi_controller else hotplug_port(0))
    nic = HotNic("hot-nic", _MAC, hotplug_port(min(1, ports - 1)))
    attempts = [_attempt(ear, _qemu_plug(session, ear, disk), block)]
    attempts.append(_attempt(ear, _qemu_plug(session, ear, nic), network, seen_by_guest=lacks is None))
    return HotplugRecord(tuple(attempts), lacks)


def _qemu_plug(session: QemuSession, ear: Ear, device: HotDisk | HotNic) -> _Plug:
    return _Plug(
        partial(attach, session, device), partial(request_detach, session, device), lambda: device.name in ear.gone
    )


def _image(folder: Path) -> tuple[Path, str]:
    """The image of the disk that is added, and by what its content is known."""
    image = folder / "hotplug.img"
    content = os.urandom(_HASHED_BYTES)
    image.write_bytes(content.ljust(_DISK_BYTES, b"\0"))
    return image, hashlib.sha256(content).hexdigest()


def _attempt(ear: Ear, plug: _Plug, attempt: HotplugAttempt, *, seen_by_guest: bool = True) -> HotplugAttempt:
    try:
        plug.attach()
    except MachineError as error:
        return replace(attempt, added=False, error=error.message)
    attempt = replace(attempt, added=True)
    if not seen_by_guest:
        return attempt  # nobody would answer: there is nothing to wait for
    came = ear.listen(lambda: _said(ear, attempt, "add"), seconds=_SECONDS, patient=True)
    if not came:
        return attempt
    try:
        plug.detach()
    except MachineError as error:
        return replace(attempt, removed=False, error=error.message)
    gone = ear.listen(lambda: plug.gone() and _said(ear, attempt, "remove"), seconds=_SECONDS, patient=True)
    if gone or plug.gone():
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
