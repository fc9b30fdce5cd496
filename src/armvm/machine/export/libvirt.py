"""The machine as a libvirt domain, to be defined by ``virsh define``."""

from __future__ import annotations

from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.capabilities import ALL, Capabilities, NicKind
from armvm.machine.definition import DiskInterface, Machine, UserNetwork, Writes
from armvm.machine.export.source import Exported, Source, left_out
from armvm.machine.libvirt.domain_xml import Domain, domain_xml

CAPABILITIES = Capabilities(
    hypervisor="libvirt",
    disk_interfaces=frozenset(DiskInterface) - {DiskInterface.NVME},
    nics=frozenset(NicKind) - {NicKind.LINK},
    features=ALL,
)


def export(source: Source) -> Exported:
    """The domain. Raises UsageError for a machine that libvirt cannot be."""
    machine = source.machine
    warnings = [*left_out(CAPABILITIES, machine), *_needs(machine)]
    if source.new_variables and machine.variables is not None:
        warnings.append(f"the variable store is made by: truncate -s 64M {machine.variables.path}")
    if source.accelerator is not AcceleratorKind.TCG:
        warnings.append("type='kvm' is right on ARM hosts with KVM; elsewhere write type='qemu' and a CPU model")
    comments = ("made by armvm vm export", *warnings)
    return Exported(domain_xml(machine, Domain(source.name, source.accelerator, comments=comments)), tuple(warnings))


def _needs(machine: Machine) -> list[str]:
    found = []
    if machine.variables is not None and machine.variables.format != "raw":
        found.append(
            f"a {machine.variables.format} variable store needs libvirt 9.2; for an older one make it raw"
            f" (qemu-img convert -O raw {machine.variables.path} …) and drop nvram's attribute"
        )
    if any(isinstance(nic, UserNetwork) and nic.forwards for nic in machine.nics):
        found.append("the port forwards need libvirt 9.0 and the program passt")
    if any(disk.writes is Writes.DISCARDED for disk in machine.disks):
        found.append(
            "what the guest writes to a <transient/> disk is gone when it ends; libvirt keeps it beside the disk"
        )
    return found
