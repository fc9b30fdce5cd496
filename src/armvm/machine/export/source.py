"""What is exported, what comes of it, and every target by its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from armvm.errors import UsageError
from armvm.machine import capabilities
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.capabilities import Capabilities
from armvm.machine.definition import Machine, disk_names
from armvm.printable import printable


@dataclass(frozen=True, slots=True)
class Source:
    """A machine to be exported under ``name``. ``disk_bytes`` are the sizes of its disks, as the guest sees them.

    ``standing`` are the names of those disks that stand on a backing file, and cannot be taken anywhere without it.
    ``new_variables`` says that the machine's variable store is yet to be made.
    """

    name: str
    machine: Machine
    disk_bytes: tuple[int, ...]
    accelerator: AcceleratorKind = AcceleratorKind.TCG
    standing: frozenset[str] = frozenset()
    new_variables: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    """The text, what was left out or has to be done first, and further files by the end of their names."""

    text: str
    warnings: tuple[str, ...] = ()
    more: tuple[tuple[str, str], ...] = ()


Export = Callable[[Source], Exported]

TARGETS = {
    "libvirt": ("armvm.machine.export.libvirt", "a libvirt domain, for `virsh define`"),
    "xl": ("armvm.machine.export.xl", "a Xen domain, for `xl create`"),
    "kubevirt": ("armvm.machine.export.kubevirt", "a KubeVirt VirtualMachine and its containerDisk"),
    "script": ("armvm.machine.export.script", "a shell script that runs QEMU"),
    "cloud-hypervisor": ("armvm.machine.export.cloud_hypervisor", "a shell script that runs Cloud Hypervisor"),
    "ovf": ("armvm.machine.export.ovf", "an OVF envelope, for VMware and others"),
    "vagrant": ("armvm.machine.export.vagrant", "a Vagrantfile, for vagrant-qemu and vagrant-libvirt"),
    "packer": ("armvm.machine.export.packer", "a Packer template for its QEMU builder"),
}
"""Target to (module, one line). A module has ``export``, an ``Export``."""


def find_export(target: str) -> Export:
    """The export to ``target``. Raises UsageError when there is none of that name."""
    if target not in TARGETS:
        raise UsageError(f"there is no export to {target!r}", hint=f"there are {', '.join(TARGETS)}")
    found: Export = import_module(TARGETS[target][0]).export
    return found


def left_out(able: Capabilities, machine: Machine) -> tuple[str, ...]:
    """What the target cannot be of ``machine``. Raises UsageError when that is not even its processor."""
    if machine.state not in able.states:
        reason = able.why.get(machine.state)
        raise UsageError(f"{able.hypervisor} has no {machine.state.label} machines" + (f": {reason}" if reason else ""))
    return capabilities.problems(able, machine)


def file_of(source: Source, index: int, suffix: str) -> str:
    """What a disk is called in a package of its own: the machine's name, the disk's, and a suffix."""
    name = f"{source.name}-{disk_names(source.machine)[index]}.{suffix}"
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)


def conversion(source: Source, index: int, out: str, *, subformat: str | None = None) -> str:
    """The command that makes the file ``out`` of a disk. What stands on a backing file is QEMU's own to read."""
    import shlex

    disk = source.machine.disks[index]
    path, form = str(disk.path.absolute()), out.rpartition(".")[2]
    if disk_names(source.machine)[index] in source.standing:
        option = ["-o", f"subformat={subformat}"] if subformat else []
        return shlex.join(["qemu-img", "convert", "-f", disk.format, "-O", form, *option, path, out])
    return shlex.join(["armvm", "convert", path, out, *(["--subformat", subformat] if subformat else [])])


def comment_lines(lines: tuple[str, ...], sign: str = "#") -> str:
    """Lines as comments of the target's language; nothing in them can end the comment."""
    return "".join(f"{sign} {printable(line)}\n" for line in lines)
