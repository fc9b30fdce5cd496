from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from armvm.execution import ExecutionState
from armvm.firmware.discovery import FirmwareKind
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import (
    Bus,
    Console,
    DiskDevice,
    GicVersion,
    HardwareDescription,
    Machine,
    PortForward,
    UserNetwork,
    VariablesFile,
    Writes,
)
from armvm.machine.qemu.command import Channels, plan, problems
from armvm.units import MIB
from tools.machines import firmware_of, machine_of

TCG, KVM, HVF = AcceleratorKind.TCG, AcceleratorKind.KVM, AcceleratorKind.HVF
CHANNELS = Channels(control=11, variables=12)


def planned(machine: Machine, accelerator: AcceleratorKind = TCG, **keywords: Any) -> list[str]:
    return plan(machine, program="qemu-system-aarch64", accelerator=accelerator, **keywords)


def values(arguments: list[str], option: str) -> list[str]:
    return [after for before, after in itertools.pairwise(arguments) if before == option]


def value(arguments: list[str], option: str) -> str:
    (only,) = values(arguments, option)
    return only


def test_planning_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "stat", "getenv"):
        monkeypatch.setattr(f"os.{name}", lambda *_: pytest.fail("a plan is pure"))
    assert planned(machine_of()) == planned(machine_of())


def test_the_default_is_a_device_tree_gicv3_machine_without_anything_unasked() -> None:
    arguments = planned(machine_of())
    assert value(arguments, "-machine") == "virt,gic-version=3,acpi=off"
    assert {"-nodefaults", "-no-user-config"} < set(arguments)
    assert value(arguments, "-display") == "none"
    assert value(arguments, "-boot") == "menu=on,splash-time=0"
    assert value(arguments, "-cpu") == "cortex-a72"
    assert value(arguments, "-accel") == "tcg,thread=multi"
    assert value(arguments, "-m") == "1024M"
    assert value(arguments, "-smp") == "2"


@pytest.mark.parametrize(
    ("accelerator", "state", "narrow", "cpu"),
    [
        (TCG, ExecutionState.AARCH64, False, "cortex-a72"),
        (TCG, ExecutionState.AARCH32, False, "cortex-a15"),
        (KVM, ExecutionState.AARCH64, False, "host"),
        (KVM, ExecutionState.AARCH32, True, "host,aarch64=off"),
        (KVM, ExecutionState.AARCH32, False, "host"),
        (HVF, ExecutionState.AARCH64, False, "host"),
    ],
)
def test_the_cpu_follows_the_accelerator(
    accelerator: AcceleratorKind, state: ExecutionState, narrow: bool, cpu: str
) -> None:
    arguments = planned(machine_of(state), accelerator, narrow=narrow)
    assert value(arguments, "-cpu") == cpu
    assert value(arguments, "-accel").startswith(accelerator.value)
    assert value(planned(machine_of(state), accelerator, cpu="max"), "-cpu") == "max"


@pytest.mark.parametrize(
    ("gic", "vcpus", "accelerator", "version"),
    [
        (None, 2, TCG, "3"),
        (None, 2, KVM, "host"),
        (None, 8, HVF, "2"),
        (None, 9, HVF, "3"),
        (GicVersion.V2, 2, KVM, "2"),
        (GicVersion.V3, 2, HVF, "3"),
    ],
)
def test_the_gic(gic: GicVersion | None, vcpus: int, accelerator: AcceleratorKind, version: str) -> None:
    machine = replace(machine_of(), gic=gic, vcpus=vcpus)
    assert f"gic-version={version}," in value(planned(machine, accelerator), "-machine")


def test_acpi_is_on_only_when_asked_for() -> None:
    machine = replace(machine_of(), description=HardwareDescription.ACPI)
    assert value(planned(machine), "-machine").endswith("acpi=on")


def test_code_is_read_only_and_a_fresh_store_comes_by_descriptor() -> None:
    code, variables, _disk = values(planned(machine_of(), channels=CHANNELS), "-drive")
    assert code == "if=pflash,unit=0,readonly=on,driver=raw,file.driver=file,file.filename=/fw/code.fd"
    assert "unit=1" in variables
    assert "file.filename=/dev/fdset/1" in variables
    assert value(planned(machine_of(), channels=CHANNELS), "-add-fd") == "fd=12,set=1"


def test_a_kept_store_is_a_file() -> None:
    machine = replace(machine_of(), variables=VariablesFile(Path("/i/vars.qcow2"), "qcow2"))
    drives = values(planned(machine, channels=Channels(11)), "-drive")
    assert (
        drives[1]
        == "if=pflash,unit=1,node-name=variables-node,driver=qcow2,file.driver=file,file.filename=/i/vars.qcow2"
    )


def test_a_firmware_of_the_bios_kind_has_no_flash_but_may_keep_variables() -> None:
    u_boot = replace(machine_of(), firmware=firmware_of(FirmwareKind.BIOS, keeps_variables=False))
    arguments = planned(u_boot, channels=CHANNELS)
    assert value(arguments, "-bios") == "/fw/code.fd"
    assert not any("pflash" in drive for drive in values(arguments, "-drive"))
    assert "-add-fd" not in arguments
    short_edk2 = replace(machine_of(), firmware=firmware_of(FirmwareKind.BIOS))
    assert "unit=1" in values(planned(short_edk2, channels=CHANNELS), "-drive")[0]


@pytest.mark.parametrize(
    ("writes", "word"),
    [(Writes.REFUSED, "read-only=on"), (Writes.KEPT, "read-only=off")],
)
def test_what_becomes_of_writes(writes: Writes, word: str) -> None:
    machine = replace(machine_of(), disks=(DiskDevice(Path("/a.qcow2"), "qcow2", writes=writes),))
    node = value(planned(machine), "-blockdev")
    trims = ",discard=unmap" if writes is Writes.KEPT else ""
    file = "file.driver=file,file.filename=/a.qcow2"
    assert node == f"driver=qcow2,node-name=disk0-node,{word},{file}{trims}"
    assert ",drive=disk0-node," in values(planned(machine), "-device")[2]


def test_writes_that_are_discarded_go_to_an_overlay() -> None:
    arguments = planned(machine_of(disk=Path("/a.raw")))
    assert values(arguments, "-drive")[-1] == ("if=none,id=disk0,driver=raw,file.filename=/a.raw,snapshot=on")
    assert ",drive=disk0," in values(arguments, "-device")[2]
    assert "-blockdev" not in arguments


def test_names_of_files_are_nothing_but_names() -> None:
    machine = machine_of(disk=Path("/a,snapshot=off/nbd:localhost:1,,"))
    assert "file.filename=/a,,snapshot=off/nbd:localhost:1,,,,,snapshot=on" in values(planned(machine), "-drive")[-1]
    relative = values(planned(machine_of(disk=Path("nbd:localhost:1"))), "-drive")[-1]
    assert f"file.filename={Path.cwd()}/nbd:localhost:1," in relative


def test_every_device_has_its_own_place_whatever_else_is_there() -> None:
    full = replace(
        machine_of(),
        console=Console.VIRTIO,
        disks=(DiskDevice(Path("/a"), "raw"), DiskDevice(Path("/b"), "raw", sector_size=4096)),
        nics=(UserNetwork(), UserNetwork()),
    )
    devices = values(planned(full), "-device")
    assert devices[:2] == [
        "pcie-root-port,id=port0,chassis=1,slot=1,addr=0x18",
        "pcie-root-port,id=port1,chassis=2,slot=2,addr=0x19",
    ]
    assert devices[2:4] == [
        "virtio-blk-pci,addr=0x8,id=disk0,drive=disk0,bootindex=0",
        "virtio-blk-pci,addr=0x9,id=disk1,drive=disk1,logical_block_size=4096,physical_block_size=4096,bootindex=1",
    ]
    assert devices[4:6] == [
        "virtio-net-pci,addr=0x2,id=net0,netdev=net0-backend,romfile=",
        "virtio-net-pci,addr=0x3,id=net1,netdev=net1-backend,romfile=",
    ]
    assert devices[2] == values(planned(replace(full, nics=(), console=Console.PL011)), "-device")[2]
    by_mmio = values(planned(replace(full, bus=Bus.MMIO)), "-device")
    assert by_mmio[0] == "virtio-blk-device,bus=virtio-mmio-bus.8,id=disk0,drive=disk0,bootindex=0"
    assert not any("pci" in device or "romfile" in device for device in by_mmio)


def test_ports_lead_in_from_this_host_only() -> None:
    machine = replace(machine_of(), nics=(UserNetwork((PortForward(2222, 22), PortForward(8080, 80))),))
    assert value(planned(machine), "-netdev") == (
        "user,id=net0-backend,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=tcp:127.0.0.1:8080-:80"
    )
    assert "-netdev" not in planned(replace(machine_of(), nics=()))


def test_consoles_and_channels() -> None:
    arguments = planned(machine_of(), channels=CHANNELS)
    assert values(arguments, "-chardev") == ["stdio,id=console,signal=off", "socket,id=control,fd=11"]
    assert value(arguments, "-mon") == "chardev=control,mode=control"
    assert value(arguments, "-serial") == "chardev:console"
    virtio = planned(replace(machine_of(), console=Console.VIRTIO), channels=CHANNELS)
    assert value(virtio, "-serial") == "none"
    assert values(virtio, "-device")[-2:] == ["virtio-serial-pci,addr=0x1", "virtconsole,chardev=console"]


def test_without_channels_the_console_is_on_standard_input_and_output() -> None:
    arguments = planned(machine_of())
    assert value(arguments, "-chardev") == "stdio,id=console,mux=on,signal=off"
    assert not any("fd=" in argument for argument in arguments)
    assert "-add-fd" not in arguments


def test_the_clock() -> None:
    assert value(planned(machine_of()), "-rtc") == "base=utc"
    fixed = replace(machine_of(), clock=datetime(2031, 2, 3, 4, 5, 6))
    assert value(planned(fixed), "-rtc") == "base=2031-02-03T04:05:06"


def test_the_sandbox_can_be_left_out() -> None:
    assert "-sandbox" in planned(machine_of())
    assert "-sandbox" not in planned(machine_of(), sandbox=False)


def test_what_qemu_cannot_be() -> None:
    (problem,) = problems(replace(machine_of(), gic=GicVersion.V4))
    assert "EL1" in problem
    narrow = machine_of(ExecutionState.AARCH32)
    assert problems(replace(narrow, memory_bytes=3071 * MIB)) == ()
    (problem,) = problems(replace(narrow, memory_bytes=3072 * MIB))
    assert "3072 MiB" in problem
    assert problems(replace(machine_of(), memory_bytes=8192 * MIB)) == ()
