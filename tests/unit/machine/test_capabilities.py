"""Capabilities: what a backend lacks is said, one sentence each, with the reason; and the registry of backends."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.machine.backends import BACKENDS, find_backend, survey
from armvm.machine.capabilities import Capabilities, Feature, problems
from armvm.machine.definition import (
    Bus,
    Console,
    DiskDevice,
    DiskInterface,
    GicVersion,
    Graphics,
    HardwareDescription,
    PortForward,
    SharedFolder,
    TapNetwork,
    UserNetwork,
    VariablesFile,
    WatchdogAction,
)
from armvm.machine.devices import Writes
from armvm.units import GIB
from tools.machines import machine_of

NOTHING = Capabilities(
    "Nothing",
    states=frozenset({ExecutionState.AARCH64}),
    gics=frozenset(),
    descriptions=frozenset({HardwareDescription.DT}),
    consoles=frozenset({Console.PL011}),
    buses=frozenset({Bus.PCI}),
    disk_formats=frozenset({"raw"}),
    disk_interfaces=frozenset({DiskInterface.VIRTIO_BLK}),
    sector_sizes=frozenset({512}),
    writes=frozenset({Writes.DISCARDED}),
    nics=frozenset(),
    watchdog_actions=frozenset(),
    variables_formats=frozenset(),
    features=frozenset(),
    most_memory_bytes={ExecutionState.AARCH64: GIB},
    why={Feature.TPM: "it has no room"},
)
DISK = DiskDevice(Path("/d.raw"), "raw")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": ExecutionState.AARCH32}, "AArch32"),
        ({"gic": GicVersion.V3}, "GICv3"),
        ({"description": HardwareDescription.ACPI}, "acpi"),
        ({"console": Console.VIRTIO}, "virtio console"),
        ({"bus": Bus.MMIO}, "mmio"),
        ({"memory_bytes": 2 * GIB}, "2048 MiB"),
        ({"disks": (replace(DISK, format="vhdx"),)}, "vhdx"),
        ({"disks": (replace(DISK, sector_size=4096),)}, "4096"),
        ({"disks": (replace(DISK, interface=DiskInterface.NVME),)}, "nvme"),
        ({"disks": (replace(DISK, writes=Writes.KEPT),)}, "kept"),
        ({"nics": (TapNetwork("tap0"),)}, "tap device"),
        ({"watchdog": WatchdogAction.RESET}, "watchdog"),
        ({"tpm": True}, "a TPM: it has no room"),
        ({"secure_boot": True}, "Secure Boot"),
        ({"scsi_controller": True}, "virtio-scsi"),
        ({"more_consoles": 2}, "further consoles"),
        ({"rng": True}, "random"),
        ({"balloon": True}, "balloon"),
        ({"shares": (SharedFolder(Path("/s"), "s"),)}, "shared folders"),
        ({"graphics": Graphics()}, "screen"),
        ({"usb_keyboard": True}, "keyboard"),
        ({"vsock_cid": 3}, "vsock"),
        ({"guest_agent": True}, "agent"),
        ({"clock": datetime(2020, 1, 1)}, "clock"),
    ],
)
def test_each_lack_is_one_sentence(changes: dict[str, object], said: str) -> None:
    machine = replace(machine_of(), nics=())
    assert problems(NOTHING, machine) == ()
    (problem,) = problems(NOTHING, replace(machine, **changes))  # type: ignore[arg-type] # the fields of a Machine
    assert said in problem


def test_several_lacks_are_several_sentences() -> None:
    machine = replace(
        machine_of(), nics=(UserNetwork((PortForward(2222, 22),)),), variables=VariablesFile(Path("/v"), "raw")
    )
    assert len(problems(NOTHING, machine)) == 4


def test_the_registry() -> None:
    assert [one.name for one in survey()] == list(BACKENDS)
    assert find_backend("qemu", ExecutionState.AARCH64).capabilities().hypervisor == "QEMU"
    with pytest.raises(UsageError, match="vmware"):
        find_backend("vmware", ExecutionState.AARCH64)
    with pytest.raises(UsageError, match="connect"):
        find_backend("qemu", ExecutionState.AARCH64, uri="qemu:///session")
