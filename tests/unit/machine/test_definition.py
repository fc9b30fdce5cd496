from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.machine.definition import (
    BridgeNetwork,
    Bus,
    DiskDevice,
    DiskInterface,
    GicVersion,
    Graphics,
    HardwareDescription,
    LinkNetwork,
    PortForward,
    SharedFolder,
    ShareDriver,
    TapNetwork,
    UserNetwork,
    WatchdogAction,
    Writes,
    problems,
    require_sound,
)
from armvm.units import GIB, MIB
from tools.machines import firmware_of, machine_of


def test_the_default_machine_makes_sense() -> None:
    for state in ExecutionState:
        assert problems(machine_of(state)) == ()


def test_a_gicv2_has_at_most_eight_cpus_and_the_clause_is_named() -> None:
    eight = replace(machine_of(), gic=GicVersion.V2, vcpus=8)
    assert problems(eight) == ()
    (problem,) = problems(replace(eight, vcpus=9))
    assert "9 vCPUs" in problem
    assert "VM System Specification v1.0, VM Platform" in problem
    assert problems(replace(eight, vcpus=9, gic=GicVersion.V3)) == ()
    assert problems(replace(eight, vcpus=9, gic=None)) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vcpus": 0}, "0 vCPUs"),
        ({"vcpus": -1}, "-1 vCPUs"),
        ({"vcpus": 513}, "513 vCPUs"),
        ({"memory_bytes": 127 * MIB}, "127 MiB of memory"),
        ({"memory_bytes": 0}, "0 B of memory"),
        ({"memory_bytes": GIB + 1}, "whole MiB"),
        ({"disks": (DiskDevice(Path("a"), "raw", sector_size=520),)}, "sectors of 520 bytes"),
        ({"disks": (DiskDevice(Path("a"), "raw"),) * 25}, "25 disks"),
        ({"nics": (UserNetwork(),) * 7}, "7 network cards"),
        ({"nics": (UserNetwork((PortForward(0, 22),)),)}, "no TCP port: 0"),
        ({"nics": (UserNetwork((PortForward(2222, 65536),)),)}, "no TCP port: 65536"),
        ({"nics": (UserNetwork((PortForward(2222, 22), PortForward(2222, 80))),)}, "forwarded twice"),
        ({"state": ExecutionState.AARCH32, "description": HardwareDescription.ACPI}, "ACPI on an AArch32 machine"),
    ],
)
def test_what_makes_no_sense_is_said(change: dict[str, Any], said: str) -> None:
    (problem,) = problems(replace(machine_of(), **change))
    assert said in problem


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"0 vCPUs.*1 MiB of memory"):
        require_sound(problems(replace(machine_of(), vcpus=0, memory_bytes=MIB)))
    require_sound(())


def disks(*changed: dict[str, Any]) -> tuple[DiskDevice, ...]:
    return tuple(DiskDevice(Path(f"/d{index}"), "raw", **one) for index, one in enumerate(changed))


KEPT = Writes.KEPT
NVME, SCSI = DiskInterface.NVME, DiskInterface.VIRTIO_SCSI
TCP_SCREEN = Graphics(port=5901, password_file=Path("/p"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"disks": disks({"name": "Data"})}, "a device called 'Data': a name is a small letter"),
        ({"disks": disks({"name": "a,b"})}, "a device called 'a,b'"),
        ({"disks": disks({"name": "a" * 21})}, "a name is a small letter and up to 19"),
        ({"disks": disks({"name": "port1"})}, "'port1': the machine has one of that name itself"),
        ({"disks": disks({"name": "disk1"}, {})}, "two devices called 'disk1'"),
        ({"disks": disks({"name": "net0"})}, "two devices called 'net0'"),
        ({"disks": (DiskDevice(Path("/d"), "nbd"),)}, "disk disk0: no format of images: 'nbd'"),
        ({"disks": (DiskDevice(Path("/d\0"), "raw"),)}, "cannot hold the character NUL"),
        ({"disks": disks({"serial": "s" * 21})}, "a disk on virtio-blk has one of 1 to 20 printable ASCII"),
        ({"disks": disks({"serial": "s" * 37, "interface": SCSI})}, "one of 1 to 36"),
        ({"disks": disks({"serial": " s"})}, "no space at its ends"),
        ({"disks": disks({"serial": "\n"})}, r"serial '\x0a'"),
        ({"disks": disks({"serial": ""})}, "serial ''"),
        ({"disks": (DiskDevice(Path("/d"), "raw", writes=KEPT), DiskDevice(Path("/d"), "raw"))}, "are the same file"),
        ({"disks": disks({"port": 2})}, "disk0: port 2: the machine has 2 hotplug ports, counted from 0"),
        ({"disks": disks({"port": -1})}, "port -1"),
        ({"disks": disks({"port": 1}, {"port": 1})}, "disk1: port 1 is taken by disk0; take another"),
        ({"disks": disks({"port": 0}), "nics": (UserNetwork(port=0),)}, "net0: port 0 is taken by disk0"),
        ({"disks": disks({"port": 0, "interface": SCSI})}, "a SCSI disk sits behind the controller"),
        ({"disks": disks({"port": 0}), "bus": Bus.MMIO}, "on virtio-mmio has no ports"),
        ({"disks": disks({"interface": NVME}), "bus": Bus.MMIO}, "an nvme disk (interface) needs PCI"),
        ({"usb_keyboard": True, "bus": Bus.MMIO}, "(usb_keyboard) needs PCI"),
        ({"vsock_cid": 3, "bus": Bus.MMIO}, "(vsock_cid) needs PCI"),
        ({"watchdog": WatchdogAction.RESET, "bus": Bus.MMIO}, "a watchdog needs PCI"),
        ({"graphics": TCP_SCREEN, "bus": Bus.MMIO}, "(graphics) needs PCI"),
        (
            {"shares": (SharedFolder(Path("/s"), "t", driver=ShareDriver.VIRTIOFS),), "bus": Bus.MMIO},
            "virtiofs (driver of a share) needs PCI",
        ),
        ({"shares": tuple(SharedFolder(Path("/s"), f"t{n}") for n in range(4)), "bus": Bus.MMIO}, "at most 3"),
        ({"shares": tuple(SharedFolder(Path("/s"), f"t{n}") for n in range(17))}, "at most 16"),
        ({"shares": (SharedFolder(Path("/s"), "t"),) * 2}, "two shared folders with the tag 't'"),
        ({"shares": (SharedFolder(Path("/s"), "a,b"),)}, "tag 'a,b' of a shared folder"),
        ({"nics": (UserNetwork(mac="52:54:00:00:00"),)}, "no MAC address"),
        ({"nics": (UserNetwork(mac="53:54:00:00:00:01"),)}, "its first byte is odd, that of a group"),
        ({"nics": (UserNetwork(mac="00:00:00:00:00:00"),)}, "no card has that"),
        ({"nics": (UserNetwork(mac="52:54:00:00:00:0A"), UserNetwork(mac="52:54:00:00:00:0a"))}, "with the address"),
        ({"nics": (TapNetwork("a b"),)}, "no name of a network interface: 'a b'"),
        ({"nics": (BridgeNetwork("b" * 16),)}, "no name of a network interface"),
        ({"nics": (LinkNetwork(Path("/l"), 2),)}, "end 2 of a link"),
        ({"nics": (LinkNetwork(Path("/l"), 0), LinkNetwork(Path("/l"), 0))}, "at the same end of a link, /l/0"),
        ({"nics": (LinkNetwork(Path("/" + "l" * 107), 0),)}, "too long for a socket (107 bytes)"),
        ({"more_consoles": 9}, "9 more consoles: a machine has at most 8"),
        ({"hotplug_ports": 8}, "8 hotplug ports"),
        ({"vsock_cid": 2}, "vsock CID 2"),
        ({"graphics": Graphics(port=5901)}, "port 5901 without a password"),
        ({"graphics": Graphics(port=80, password_file=Path("/p"))}, "a port for VNC is 5900 to 65535"),
        ({"graphics": Graphics(Path("/s"), 5901, Path("/p"))}, "not on both"),
        ({"graphics": Graphics(Path("/s"), None, Path("/p"))}, "on a TCP port only"),
        ({"graphics": Graphics(Path("/" + "s" * 107))}, "too long for a socket"),
        ({"secure_boot": True}, "not known to refuse unsigned programs"),
        ({"secure_boot": True, "state": ExecutionState.AARCH32}, "Secure Boot on an AArch32 machine"),
    ],
)
def test_what_makes_no_sense_of_its_devices_is_said(change: dict[str, Any], said: str) -> None:
    (problem,) = problems(replace(machine_of(), **change))
    assert said in problem


def test_a_machine_with_everything_makes_sense() -> None:
    everything = replace(
        machine_of(),
        disks=disks({}, {"interface": NVME, "serial": "N 1"}, {"interface": SCSI, "port": None}, {"port": 0}),
        nics=(UserNetwork(), LinkNetwork(Path("/l"), 0), LinkNetwork(Path("/l"), 1), UserNetwork(port=1)),
        shares=(SharedFolder(Path("/s"), "t"),),
        more_consoles=8,
        rng=True,
        balloon=True,
        tpm=True,
        watchdog=WatchdogAction.PAUSE,
        graphics=TCP_SCREEN,
        usb_keyboard=True,
        vsock_cid=3,
        guest_agent=True,
    )
    assert problems(everything) == ()
    assert (
        problems(replace(everything, secure_boot=True, firmware=replace(firmware_of(), enforces_secure_boot=True)))
        == ()
    )
