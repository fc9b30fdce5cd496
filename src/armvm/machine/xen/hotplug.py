"""Devices that come and go while a Xen domain runs. What the guest makes of them only the guest can tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from armvm.errors import MachineError
from armvm.machine.definition import DiskDevice, Writes
from armvm.machine.xen.config import XenHost, device_name, disk_specification, nic_specification
from armvm.machine.xen.session import XenSession, xl
from armvm.process import ProgramError


@dataclass(frozen=True, slots=True)
class HotDisk:
    """A raw image to be added as a read-only disk, the ``index``-th of the domain."""

    path: Path
    index: int


@dataclass(frozen=True, slots=True)
class HotNic:
    """A network card to be added, by its MAC address in lower case."""

    mac: str


def attach(session: XenSession, device: HotDisk | HotNic, host: XenHost) -> None:
    """Add ``device``. Raises MachineError when xl does not take it; that it does says nothing about the guest."""
    if isinstance(device, HotDisk):
        disk = DiskDevice(device.path, "raw", writes=Writes.REFUSED)
        _tell("block-attach", session.name, disk_specification(disk, device.index, host))
    else:
        words = nic_specification(host, mac=device.mac)
        _tell("network-attach", session.name, *words.split(","))


def detach(session: XenSession, device: HotDisk | HotNic) -> None:
    """Have the guest give ``device`` up, and wait until it has. Raises MachineError when it does not."""
    if isinstance(device, HotDisk):
        _tell("block-detach", session.name, device_name(device.index))
    else:
        _tell("network-detach", session.name, device.mac)


def _tell(*words: str) -> None:
    try:
        xl(*words)
    except ProgramError as error:
        raise MachineError(error.message, output_tail=error.stderr) from error
