"""The options that describe a virtual machine, and what of a Machine they choose."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.machine.definition import Bus, Console, GicVersion, HardwareDescription, PortForward, UserNetwork
from armvm.units import SECTOR_SIZES, parse_size


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them. What is not given is None, so that a kept machine can keep what it has."""
    group = parser.add_argument_group("the machine")
    group.add_argument(
        "--arch",
        choices=_values(ExecutionState),
        help="execution state (default: what the image has a boot program for, aarch64 before aarch32)",
    )
    group.add_argument("--vcpus", type=int, metavar="N", help="virtual CPUs (default: 2)")
    group.add_argument("--memory", type=_size, metavar="SIZE", help="memory (default: 2G for aarch64, 1G for aarch32)")
    group.add_argument(
        "--gic", type=int, choices=_values(GicVersion), help="interrupt controller (default: what suits the host)"
    )
    group.add_argument(
        "--hardware-description", choices=_values(HardwareDescription), help="device tree (default) or ACPI tables"
    )
    group.add_argument("--console", choices=_values(Console), help="serial console (default: pl011)")
    group.add_argument("--bus", choices=_values(Bus), help="what disks and network cards stand on: virtio over pci (default) or mmio, or xen")
    group.add_argument("--net", choices=("user", "none"), help="network: user-mode NAT (default) or none")
    group.add_argument(
        "--forward",
        type=_port_forward,
        action="append",
        metavar="HOST:GUEST",
        help="TCP port of this host, on 127.0.0.1 only, that leads to a port of the guest; repeatable",
    )
    group.add_argument(
        "--sector-size",
        type=int,
        choices=SECTOR_SIZES,
        help="logical sector size (default: what the image is made for)",
    )
    group.add_argument("--firmware", type=Path, metavar="FILE", help="UEFI firmware (default: EDK2 of this system)")


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a Machine that were given, apart from its execution state, firmware and disks."""
    fields: dict[str, Any] = {"vcpus": options.vcpus, "memory_bytes": options.memory}
    for field, kind, value in (
        ("gic", GicVersion, options.gic),
        ("description", HardwareDescription, options.hardware_description),
        ("console", Console, options.console),
        ("bus", Bus, options.bus),
    ):
        fields[field] = None if value is None else kind(value)
    if options.net == "none":
        if options.forward:
            raise UsageError("--forward needs a network, and --net none takes it away")
        fields["nics"] = ()
    elif options.forward or options.net:
        fields["nics"] = (UserNetwork(tuple(options.forward or ())),)
    return {field: value for field, value in fields.items() if value is not None}


def _values(kind: type[Any]) -> list[Any]:
    return [member.value for member in kind]


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def _port_forward(text: str) -> PortForward:
    host, _, guest = text.removeprefix("tcp:").partition(":")
    try:
        return PortForward(int(host), int(guest))
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a pair of TCP ports: {text!r} (write for example 2222:22)") from None
