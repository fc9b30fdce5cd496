"""What a trial needs of a hypervisor besides starting a VM: disks of an instance's own, hotplug, and a name."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from armvm.disk.qcow2_write import write_overlay
from armvm.machine.backend import Session
from armvm.machine.definition import DiskDevice, Machine, Writes
from armvm.machine.qemu.backend import Qemu
from armvm.machine.qemu.session import QemuSession
from armvm.platform.host import HotplugRecord
from armvm.platform.listening import Ear
from armvm.platform.plugging import plug, plug_xen

if TYPE_CHECKING:
    from armvm.machine.xen.backend import Xen
    from armvm.machine.xen.session import XenSession


class TrialHost(Protocol):
    """A hypervisor, as a trial sees it."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def start(self, machine: Machine) -> Session:
        """Start ``machine``. Raises as the backend does."""
        ...

    def own_disk(self, image: Path, stem: Path) -> DiskDevice:
        """A disk of an instance's own that begins as ``image``, which is never written to; ``stem`` names its file."""
        ...

    def passing_disk(self, image: Path) -> DiskDevice:
        """``image`` as a disk that is thrown away after one start."""
        ...

    def plug(self, session: Session, ear: Ear, machine: Machine, folder: Path) -> HotplugRecord:
        """Add a disk and a network card to the running VM, take them away, and say what was done."""
        ...


@dataclass(frozen=True, slots=True)
class QemuHost:
    """QEMU in a trial."""

    qemu: Qemu

    @property
    def name(self) -> str:
        """The program's name."""
        return self.qemu.program.rsplit("/", 1)[-1]

    def start(self, machine: Machine) -> QemuSession:
        """Start ``machine``."""
        return self.qemu.start(machine)

    def own_disk(self, image: Path, stem: Path) -> DiskDevice:
        """An overlay beside the image."""
        overlay = stem.with_suffix(".qcow2")
        with overlay.open("xb") as file:
            write_overlay(file, backing_path=image.name, backing_format="raw", size_bytes=image.stat().st_size)
        return DiskDevice(overlay, "qcow2", writes=Writes.KEPT)

    def passing_disk(self, image: Path) -> DiskDevice:
        """The image itself: QEMU discards what is written to it."""
        return DiskDevice(image, "raw", writes=Writes.DISCARDED)

    def plug(self, session: Session, ear: Ear, machine: Machine, folder: Path) -> HotplugRecord:
        """On PCIe root ports, or behind the SCSI controller."""
        assert isinstance(session, QemuSession)  # noqa: S101 - we started it
        return plug(session, ear, machine, folder)


@dataclass(frozen=True, slots=True)
class XenTrialHost:
    """Xen in a trial, from its control domain."""

    xen: Xen
    name: str = "Xen"

    def start(self, machine: Machine) -> XenSession:
        """Start ``machine``."""
        return self.xen.start(machine)

    def own_disk(self, image: Path, stem: Path) -> DiskDevice:
        """A copy: the probe's images are small."""
        copy = stem.with_suffix(".raw")
        shutil.copyfile(image, copy)
        return DiskDevice(copy, "raw", writes=Writes.KEPT)

    def passing_disk(self, image: Path) -> DiskDevice:
        """The image itself, which nobody needs afterwards."""
        return DiskDevice(image, "raw", writes=Writes.KEPT)

    def plug(self, session: Session, ear: Ear, machine: Machine, folder: Path) -> HotplugRecord:
        """On the Xen PV bus."""
        from armvm.machine.xen.session import XenSession

        assert isinstance(session, XenSession)  # noqa: S101 - we started it
        return plug_xen(session, ear, self.xen.host, machine, folder)


def trial_host(backend: Qemu | Xen) -> TrialHost:
    """The trial's view of ``backend``."""
    return QemuHost(backend) if isinstance(backend, Qemu) else XenTrialHost(backend)
