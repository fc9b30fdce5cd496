"""The machine as a KubeVirt VirtualMachine, and the recipe of the container that brings its first disk.

Source: KubeVirt's user guide (Virtual machines, Disks and volumes, Interfaces and networks), API kubevirt.io/v1.
"""

from __future__ import annotations

import re
from typing import Any

from armvm.execution import ExecutionState
from armvm.machine.capabilities import ALL, Capabilities, Feature, NicKind
from armvm.machine.definition import (
    Bus,
    Console,
    DiskCache,
    DiskDevice,
    DiskInterface,
    GicVersion,
    HardwareDescription,
    Machine,
    Nic,
    UserNetwork,
    Writes,
    disk_names,
    nic_names,
)
from armvm.machine.export.source import Exported, Source, comment_lines, conversion, file_of, left_out
from armvm.units import MIB

CAPABILITIES = Capabilities(
    hypervisor="KubeVirt",
    states=frozenset({ExecutionState.AARCH64}),
    gics=frozenset({GicVersion.V3}),
    consoles=frozenset({Console.PL011}),
    buses=frozenset({Bus.PCI}),
    disk_interfaces=frozenset({DiskInterface.VIRTIO_BLK, DiskInterface.VIRTIO_SCSI}),
    nics=frozenset({NicKind.USER}),
    features=ALL
    - {
        Feature.PORT_FORWARD,
        Feature.MORE_CONSOLES,
        Feature.SHARED_FOLDERS,
        Feature.CLOCK,
        Feature.VARIABLES,
        Feature.USB_KEYBOARD,
        Feature.SECURE_BOOT,
    },
    why={
        ExecutionState.AARCH32: "its arm64 nodes run AArch64 guests",
        GicVersion.V2: "the interrupt controller is that of the node",
        Feature.PORT_FORWARD: "reach the guest by `virtctl port-forward`, or a Service",
        Feature.SHARED_FOLDERS: "it shares volumes, config maps and secrets, no folder of a host",
        Feature.SECURE_BOOT: "its arm64 firmware does not check signatures",
        Feature.VARIABLES: "it starts with a store of its own, which `persistent: true` keeps",
        NicKind.TAP: "networks are those of the cluster",
        NicKind.BRIDGE: "networks are those of the cluster",
    },
)
"""What KubeVirt on arm64 nodes can be."""

_QEMU_USER = 107


def export(source: Source) -> Exported:
    """The manifest, and the Dockerfile of its container disks. Raises UsageError for an AArch32 machine."""
    import yaml

    machine = source.machine
    name = _label(source.name)
    warnings = list(left_out(CAPABILITIES, machine))
    files = [file_of(source, index, "qcow2") for index in range(len(machine.disks))]
    steps = [conversion(source, index, file) for index, file in enumerate(files)]
    images = [f"registry.example/{name}-{_label(disk)}:latest" for disk in disk_names(machine)]
    if any(disk.writes is Writes.KEPT for disk in machine.disks):
        warnings.append(
            "a containerDisk forgets what the guest writes when the pod ends: for keeps, import it as a DataVolume"
        )
    warnings.append(
        "`persistent: true` wants a storage class for VM state; without it, variables are lost at each start"
    )
    manifest = yaml.safe_dump(_manifest(machine, name, images), sort_keys=False, width=110)
    builds = [
        f"docker build --build-arg DISK={file} --platform linux/arm64 -f {name}.Dockerfile -t {image} ."
        for file, image in zip(files, images, strict=True)
    ]
    first = ("made by armvm vm export", *warnings, "Disks first:", *(f"  {step}" for step in (*steps, *builds)))
    return Exported(f"{comment_lines(first)}---\n{manifest}", tuple(warnings), ((".Dockerfile", _dockerfile(files)),))


def _dockerfile(files: list[str]) -> str:
    """One recipe for every disk: a container whose only content is /disk/, for QEMU's user."""
    default = f"={files[0]}" if files else ""
    return f"FROM scratch\nARG DISK{default}\nADD --chown={_QEMU_USER}:{_QEMU_USER} ${{DISK}} /disk/\n"


def _manifest(machine: Machine, name: str, images: list[str]) -> dict[str, Any]:
    names = disk_names(machine)
    disks = [
        _disk(disk, _label(disk_name), index)
        for index, (disk_name, disk) in enumerate(zip(names, machine.disks, strict=True))
    ]
    nics = [
        (_label(nic_name), nic)
        for nic_name, nic in zip(nic_names(machine), machine.nics, strict=True)
        if isinstance(nic, UserNetwork)
    ]
    devices: dict[str, Any] = {
        "disks": disks,
        "interfaces": [_interface(nic_name, nic) for nic_name, nic in nics],
        "autoattachPodInterface": bool(nics),
        "autoattachSerialConsole": True,
        "autoattachGraphicsDevice": machine.graphics is not None,
        "autoattachMemBalloon": machine.balloon,
        **({"rng": {}} if machine.rng else {}),
        **({"tpm": {}} if machine.tpm else {}),
        **({"autoattachVSOCK": True} if machine.vsock_cid is not None else {}),
    }
    if machine.watchdog is not None:
        devices["watchdog"] = {"name": "watchdog", "i6300esb": {"action": machine.watchdog.value}}
    domain = {
        "machine": {"type": "virt"},
        "cpu": {"cores": machine.vcpus},
        "memory": {"guest": f"{machine.memory_bytes // MIB}Mi"},
        "firmware": {"bootloader": {"efi": {"secureBoot": False, "persistent": True}}},
        "features": {"acpi": {"enabled": machine.description is HardwareDescription.ACPI}},
        "devices": devices,
    }
    spec = {
        "architecture": "arm64",
        "nodeSelector": {"kubernetes.io/arch": "arm64"},
        "domain": domain,
        "networks": [{"name": nic_name, "pod": {}} for nic_name, _ in nics],
        "volumes": [
            {"name": _label(disk_name), "containerDisk": {"image": image}}
            for disk_name, image in zip(names, images, strict=True)
        ],
    }
    template = {"metadata": {"labels": {"kubevirt.io/vm": name}}, "spec": spec}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name},
        "spec": {"runStrategy": "Always", "template": template},
    }


def _disk(disk: DiskDevice, name: str, index: int) -> dict[str, Any]:
    bus = "scsi" if disk.interface is DiskInterface.VIRTIO_SCSI else "virtio"
    element: dict[str, Any] = {"name": name, "bootOrder": index + 1, "disk": {"bus": bus}}
    if disk.writes is Writes.REFUSED:
        element["disk"]["readonly"] = True
    if disk.serial:
        element["serial"] = disk.serial
    if disk.cache in {DiskCache.NONE, DiskCache.WRITETHROUGH, DiskCache.WRITEBACK}:
        element["cache"] = disk.cache.value
    if disk.sector_size != 512:
        element["blockSize"] = {"custom": {"logical": disk.sector_size, "physical": disk.sector_size}}
    return element


def _interface(name: str, nic: Nic) -> dict[str, Any]:
    interface: dict[str, Any] = {"name": name, "model": "virtio", "masquerade": {}}
    if nic.mac:
        interface["macAddress"] = nic.mac
    ports = (
        [{"port": pair.guest_port, "protocol": "TCP"} for pair in nic.forwards] if isinstance(nic, UserNetwork) else []
    )
    if ports:
        interface["ports"] = ports
    return interface


def _label(name: str) -> str:
    """A name as Kubernetes has them (RFC 1123): small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:63].strip("-") or "machine"
