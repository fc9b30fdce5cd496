"""The machine as an OVF 1.1 envelope (DMTF DSP0243 1.1.0), its disks as stream-optimised VMDK files beside it."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from armvm.execution import ExecutionState
from armvm.machine.capabilities import ALL, Capabilities, Feature, NicKind
from armvm.machine.definition import Bus, DiskInterface, nic_names
from armvm.machine.export.source import Exported, Source, conversion, file_of, left_out
from armvm.units import MIB

CAPABILITIES = Capabilities(
    hypervisor="an OVF envelope",
    buses=frozenset({Bus.PCI}),
    sector_sizes=frozenset({512}),
    nics=frozenset(NicKind),
    features=ALL
    - {
        Feature.PORT_FORWARD,
        Feature.MORE_CONSOLES,
        Feature.RNG,
        Feature.BALLOON,
        Feature.SHARED_FOLDERS,
        Feature.TPM,
        Feature.VSOCK,
        Feature.GUEST_AGENT,
        Feature.CLOCK,
        Feature.VARIABLES,
        Feature.GRAPHICS,
        Feature.USB_KEYBOARD,
    },
    why={Feature.VARIABLES: "whoever imports it makes a new store: what must boot stands on the removable path"},
)
"""What an envelope can say of a machine."""

_OVF = "http://schemas.dmtf.org/ovf/envelope/1"
_CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2"
_RASD = f"{_CIM}/CIM_ResourceAllocationSettingData"
_VSSD = f"{_CIM}/CIM_VirtualSystemSettingData"
_VMW = "http://www.vmware.com/schema/ovf"
_STREAM_OPTIMIZED = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
_LINUX = {ExecutionState.AARCH64: ("101", "arm-other-64"), ExecutionState.AARCH32: ("36", "arm-other")}
"""CIM_OperatingSystem.OsType (101: Linux 64-Bit, 36: LINUX), and VMware's name of the guest."""
_PROCESSOR, _MEMORY, _CONTROLLER, _NIC, _DISK, _SERIAL = 3, 4, 20, 10, 17, 21
"""CIM_ResourceAllocationSettingData.ResourceType."""


def export(source: Source) -> Exported:
    """The envelope. It cannot say that its processor is an ARM one: a warning says so."""
    warnings = [
        *left_out(CAPABILITIES, source.machine),
        "OVF has no word for the processor's architecture: import it on an ARM host",
        "OVF leaves it to the importer whether the hardware is described by a device tree: most offer ACPI alone",
    ]
    files = [file_of(source, index, "vmdk") for index in range(len(source.machine.disks))]
    steps = [conversion(source, index, file, subformat="streamOptimized") for index, file in enumerate(files)]
    for prefix, uri in (("ovf", _OVF), ("rasd", _RASD), ("vssd", _VSSD), ("vmw", _VMW)):
        ET.register_namespace(prefix, uri)
    root = ET.Element(_ovf("Envelope"))
    for line in ("made by armvm vm export", *warnings, "Disks first:", *steps):
        root.append(ET.Comment(f" {line.replace('--', '- -')} "))
    _references(root, source, files)
    _system(root, source)
    ET.indent(root)
    text = '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
    return Exported(text, (*warnings, *(f"make a disk of it first: {step}" for step in steps)))


def _ovf(name: str) -> str:
    return f"{{{_OVF}}}{name}"


def _element(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, _ovf(tag), {_ovf(key): value for key, value in attributes.items()})
    element.text = text
    return element


def _references(root: ET.Element, source: Source, files: list[str]) -> None:
    references = _element(root, "References")
    for index, file in enumerate(files):
        _element(references, "File", href=file, id=f"file{index}")
    disks = _element(root, "DiskSection")
    _element(disks, "Info", "The disks")
    for index, size in enumerate(source.disk_bytes):
        _element(
            disks, "Disk", capacity=str(size), diskId=f"disk{index}", fileRef=f"file{index}", format=_STREAM_OPTIMIZED
        )
    if source.machine.nics:
        networks = _element(root, "NetworkSection")
        _element(networks, "Info", "The networks")
        for name in nic_names(source.machine):
            _element(_element(networks, "Network", name=name), "Description", "whatever the importer connects it to")


def _system(root: ET.Element, source: Source) -> None:
    machine = source.machine
    number, vmware = _LINUX[machine.state]
    system = _element(root, "VirtualSystem", id=source.name)
    _element(system, "Info", f"An {machine.state.label} machine with UEFI")
    _element(system, "Name", source.name)
    guest = _element(system, "OperatingSystemSection", id=number)
    guest.set(f"{{{_VMW}}}osType", vmware)
    _element(guest, "Info", "The guest")
    hardware = _element(system, "VirtualHardwareSection")
    _element(hardware, "Info", "The hardware")
    family = _element(hardware, "System")
    for name, value in (
        ("ElementName", "Virtual Hardware Family"),
        ("InstanceID", "0"),
        ("VirtualSystemIdentifier", source.name),
        ("VirtualSystemType", "vmx-20"),
    ):
        ET.SubElement(family, f"{{{_VSSD}}}{name}").text = value
    _items(hardware, source)
    for key, value in (("firmware", "efi"), ("uefi.secureBoot.enabled", str(machine.secure_boot).lower())):
        config = ET.SubElement(hardware, f"{{{_VMW}}}Config")
        config.set(_ovf("required"), "false")
        config.set(f"{{{_VMW}}}key", key)
        config.set(f"{{{_VMW}}}value", value)


def _items(hardware: ET.Element, source: Source) -> None:
    machine = source.machine
    megabytes = machine.memory_bytes // MIB
    numbers = iter(range(1, 1000))

    def item(kind: int, name: str, **fields: str) -> str:
        identity = str(next(numbers))
        element = _element(hardware, "Item")
        every = {"ElementName": name, "InstanceID": identity, "ResourceType": str(kind), **fields}
        for key in sorted(every):  # the schema wants them in the order of their names
            ET.SubElement(element, f"{{{_RASD}}}{key}").text = every[key]
        return identity

    item(_PROCESSOR, f"{machine.vcpus} virtual CPUs", VirtualQuantity=str(machine.vcpus))
    item(_MEMORY, f"{megabytes} MB of memory", AllocationUnits="byte * 2^20", VirtualQuantity=str(megabytes))
    nvme = any(disk.interface is DiskInterface.NVME for disk in machine.disks)
    sort = ("NVMe controller", "vmware.nvme.controller") if nvme else ("SCSI controller", "VirtualSCSI")
    controller = item(_CONTROLLER if nvme else 6, sort[0], Address="0", ResourceSubType=sort[1])
    for index in range(len(machine.disks)):
        item(
            _DISK, f"Disk {index}", AddressOnParent=str(index), HostResource=f"ovf:/disk/disk{index}", Parent=controller
        )
    for name, nic in zip(nic_names(machine), machine.nics, strict=True):
        address = {"Address": nic.mac} if nic.mac else {}
        item(
            _NIC,
            f"Network card {name}",
            AutomaticAllocation="true",
            Connection=name,
            ResourceSubType="VmxNet3",
            **address,
        )
    item(_SERIAL, "Serial port", AutomaticAllocation="false")
