"""Domains of others: what they become, what is left out, which requirements they break, and hostile XML."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import Firmware
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import (
    BridgeNetwork,
    Bus,
    Console,
    DiskCache,
    DiskDevice,
    DiskInterface,
    GicVersion,
    HardwareDescription,
    Machine,
    PortForward,
    TapNetwork,
    UserNetwork,
    VariablesFile,
    WatchdogAction,
    Writes,
)
from armvm.machine.libvirt.domain_xml import Domain, domain_xml
from armvm.machine.libvirt.imported import Imported, read_domain
from armvm.machine.libvirt.xml_reader import parse_xml
from armvm.units import GIB
from tools.machines import firmware_of, machine_of


def find(_state: ExecutionState, *, override: Path | None = None) -> Firmware:
    return replace(firmware_of(), code=override or Path("/fw/code.fd"))


def read(xml: str) -> Imported:
    return read_domain(xml.encode(), subject="web.xml", find=find)


def domain(inside: str = "", devices: str = "<serial type='pty'/>", system: str = "") -> str:
    loader = "<loader type='pflash'>/fw/code.fd</loader><nvram>/fw/vars.fd</nvram>"
    ports = "".join(f"<controller type='pci' index='{index}' model='pcie-root-port'/>" for index in (1, 2))
    return (
        f"<domain type='kvm'><name>web</name><memory unit='GiB'>2</memory><vcpu>4</vcpu>"
        f"<os><type arch='aarch64' machine='virt'>hvm</type>{system or loader}</os>{inside}"
        f"<devices>{ports}{devices}</devices></domain>"
    )


EVERYTHING = replace(
    machine_of(),
    disks=(
        DiskDevice(Path("/i/a.qcow2"), "qcow2", 4096, Writes.KEPT, serial="s1", cache=DiskCache.NONE, name="disk0"),
        DiskDevice(Path("/i/b.raw"), "raw", 512, Writes.REFUSED, DiskInterface.VIRTIO_SCSI, discard=False),
    ),
    nics=(
        UserNetwork((PortForward(2222, 22),), "52:54:00:00:00:01"),
        BridgeNetwork("br0", "52:54:00:00:00:02"),
        TapNetwork("tap0", "52:54:00:00:00:03"),
    ),
    memory_bytes=2 * GIB,
    vcpus=4,
    gic=GicVersion.V2,
    variables=VariablesFile(Path("/i/vars.fd"), "raw"),
    clock=datetime(2020, 1, 2, 3, 4, 5),
    scsi_controller=True,
    rng=True,
    balloon=True,
    tpm=True,
    watchdog=WatchdogAction.POWER_OFF,
    usb_keyboard=True,
    vsock_cid=7,
    guest_agent=True,
)


@pytest.mark.parametrize("machine", [machine_of(), EVERYTHING, replace(machine_of(), bus=Bus.MMIO, hotplug_ports=0)])
def test_what_was_exported_comes_back(machine: Machine) -> None:
    xml = domain_xml(machine, Domain("web", AcceleratorKind.KVM))
    found = read(xml).machine
    expected = replace(
        machine,
        variables=None,
        gic=machine.gic,
        disks=tuple(
            replace(disk, name=None, discard=disk.discard and disk.writes is not Writes.REFUSED)
            for disk in machine.disks
        ),
    )
    assert found == expected


def test_a_good_domain_breaks_nothing() -> None:
    found = read(domain())
    assert found.name == "web"
    assert found.findings == ()
    assert found.loader == Path("/fw/code.fd")
    assert found.machine.hotplug_ports == 2
    assert [line for line in found.left_out if "variables" in line]


@pytest.mark.parametrize(
    ("xml", "broken"),
    [
        (domain("<features><acpi/></features>"), {"description.fdt"}),
        (domain("<features><gic version='2'/></features>").replace(">4<", ">9<"), {"platform.gic"}),
        (domain(devices=""), {"platform.console"}),
        (domain(system="<boot dev='hd'/>"), {"firmware.uefi"}),
        (domain(system="<loader>/fw/code.fd</loader>"), {"firmware.variables-persist"}),
        (
            domain(system="<kernel>/boot/vmlinuz</kernel>"),
            {"firmware.first-software", "firmware.uefi"},
        ),
        (domain().replace("pcie-root-port", "pcie-root"), {"platform.hotplug-block", "platform.hotplug-network"}),
    ],
)
def test_what_a_domain_breaks(xml: str, broken: set[str]) -> None:
    found = read(xml)
    assert {finding.requirement for finding in found.findings} == broken
    assert all(finding.remedy and finding.evidence for finding in found.findings)


def test_what_has_no_place_is_said() -> None:
    disk = "<disk type='file' device='disk'><source file='/i/a.img'/><target dev='hda' bus='ide'/></disk>"
    cdrom = "<disk type='file' device='cdrom'><source file='/i/a.iso'/><target dev='sda'/></disk>"
    nic = "<interface type='network'><source network='default'/><model type='e1000'/></interface>"
    more = "<console type='pty'><target type='virtio'/></console><hostdev/>\x1b".replace("\x1b", "")
    found = read(domain(devices=disk + cdrom + nic + more))
    said = "\n".join(found.left_out)
    for part in ("bus ide of the disk hda", "disk sda", "network network default", "e1000", "<hostdev>"):
        assert part in said
    assert found.machine.disks == (DiskDevice(Path("/i/a.img"), "raw", writes=Writes.KEPT),)
    assert found.machine.nics == (UserNetwork(),)
    assert found.machine.console is Console.VIRTIO
    assert found.machine.description is HardwareDescription.DT


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("", "no XML"),
        ("<domain", "no XML"),
        ("<network/>", "no libvirt domain"),
        (domain().replace("aarch64", "x86_64"), "no ARM machine"),
        (domain().replace("unit='GiB'", "unit='moles'"), "no unit"),
        (domain().replace(">2<", ">2e9<"), "no number"),
        (domain().replace(">2<", f">{'9' * 5000}<"), "no number"),
        (domain().replace(">4<", ">-4<"), "no number"),
        (domain("<features><gic version='9'/></features>"), "GIC"),
        (f"<!DOCTYPE domain [<!ENTITY e 'x'>]>{domain()}", "entities"),
        (f"<!DOCTYPE domain SYSTEM 'file:///etc/passwd'>{domain()}", "document type"),
        ("<domain>" + "<a>" * 100, "too deeply"),
        ("<domain>" + "<a/>" * 30_000, "too many elements"),
        ("<domain>" + " " * (1 << 20), "too large"),
        (domain().replace("web", "&e;"), "no XML"),
        ("<?xml version='1.0' encoding='klingon'?><domain/>", "no XML"),
    ],
)
def test_hostile_xml_is_refused(xml: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read(xml)


def test_namespaces_are_kept_apart() -> None:
    root = parse_xml(b"<a xmlns:q='urn:q'><q:b q:c='d'/></a>", subject="x")
    assert [(element.tag, element.attrib) for element in root] == [("{urn:q}b", {"{urn:q}c": "d"})]
