"""The options that describe a virtual machine, and what of a Machine they choose."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.machine.definition import (
    DEFAULT_MEMORY_BYTES,
    Bus,
    Console,
    DiskDevice,
    GicVersion,
    HardwareDescription,
    Machine,
    Nic,
    PortForward,
    UserNetwork,
    WatchdogAction,
    Writes,
)
from armvm.units import SECTOR_SIZES, parse_size

if TYPE_CHECKING:
    from datetime import datetime

    from armvm.instance.toml_schema import Said
    from armvm.machine.backend import Backend

_FLAGS = {
    "rng": "an entropy source of virtio",
    "balloon": "a memory balloon of virtio",
    "tpm": "a TPM 2.0, by swtpm",
    "secure_boot": "firmware that refuses unsigned programs",
    "usb_keyboard": "a USB keyboard, for installers; with a screen a tablet too",
    "guest_agent": "the serial port that qemu-guest-agent listens on",
    "scsi_controller": "a SCSI controller, even with no disk behind it",
}
"""The fields of a Machine that are on or off, and what each is."""
_NUMBERS = ("more_consoles", "hotplug_ports")


def add_machine_arguments(parser: argparse.ArgumentParser, *, devices: bool = True) -> None:
    """Declare them. What is not given is None, so that a kept machine can keep what it has.

    Without ``devices`` only those of the platform itself: a probe brings its own.
    """
    group = parser.add_argument_group("the machine")
    if devices:
        group.add_argument(
            "--define",
            action=_Define,
            type=Path,
            metavar="FILE",
            help="a description in TOML, as an instance's machine.toml; other options override what it says",
        )
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
    group.add_argument(
        "--bus",
        choices=_values(Bus),
        help="what disks and network cards stand on: virtio over pci (default) or mmio, or xen",
    )
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
    if devices:
        _add_storage_and_network(parser)
        _add_devices(parser)


def _add_storage_and_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("disks, network cards and folders (a comma in a path is doubled)")
    group.add_argument(
        "--disk",
        action="append",
        metavar="PATH[,KEY=VALUE…]",
        help="a further disk: format=raw|qcow2|…, interface=virtio-blk|virtio-scsi|nvme, read-only,"
        " writes=kept|discarded|refused, serial=, cache=writeback|writethrough|none|unsafe, discard=on|off,"
        " sector-size=, name=, port=; repeatable",
    )
    group.add_argument(
        "--boot-disk", metavar="KEY=VALUE…", help="the same of the image's own disk, as in interface=nvme,serial=SYS"
    )
    group.add_argument(
        "--nic",
        action="append",
        metavar="KIND[,KEY=VALUE…]",
        help="a network card in place of the default one: user, tap=DEVICE, bridge=BRIDGE or link=NAME,end=0|1 (a cable"
        " to another machine's other end); mac=, name=, port=; repeatable. --forward goes to the first one of user",
    )
    group.add_argument(
        "--share",
        action="append",
        metavar="PATH:TAG[,KEY=VALUE…]",
        help="a folder of this host that the guest mounts by its tag: ro, driver=auto|virtiofs|9p; repeatable",
    )


def _add_devices(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("other devices (default: none but hotplug ports)")
    for field, what in _FLAGS.items():
        group.add_argument(f"--{field.replace('_', '-')}", action=argparse.BooleanOptionalAction, help=what)
    group.add_argument(
        "--watchdog", choices=_values(WatchdogAction), help="a watchdog, and what it does to a guest that hangs"
    )
    group.add_argument(
        "--vnc", metavar="unix|PATH|PORT", help="a screen: on a unix socket (of a kept machine: in its folder), or TCP"
    )
    group.add_argument("--vnc-password-file", type=Path, metavar="FILE", help="the password (8 bytes) for --vnc PORT")
    group.add_argument("--vsock", type=int, metavar="CID", help="the guest's address on vsock, 3 or more")
    group.add_argument("--more-consoles", type=int, metavar="N", help="virtio consoles beside the first (hvc0 …)")
    group.add_argument(
        "--hotplug-ports", type=int, metavar="N", help="empty PCIe root ports (default: those of a kept machine only)"
    )
    group.add_argument("--clock", type=_moment, metavar="TIME", help="what its clock starts at (default: this host's)")


def add_host_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Declare what says by what a machine is run; ``backend`` finds it."""
    from armvm.machine.backends import BACKENDS, DEFAULT

    host = parser.add_argument_group("how it is run")
    host.add_argument(
        "--backend", choices=tuple(BACKENDS), default=DEFAULT, help="hypervisor (default: qemu; see `armvm doctor`)"
    )
    host.add_argument(
        "--connect",
        metavar="URI",
        help="libvirt to connect to (default: $LIBVIRT_DEFAULT_URI, else qemu:///session, or root's qemu:///system)",
    )
    host.add_argument(
        "--accel", choices=("auto", "kvm", "hvf", "tcg"), default="auto", help="accelerator (default: auto)"
    )
    host.add_argument("--cpu", metavar="MODEL", help="QEMU's name of the CPU model")
    return host


def backend(options: argparse.Namespace, state: ExecutionState) -> Backend:
    """The backend that was chosen, for machines of ``state``."""
    from armvm.machine.accelerators import AcceleratorKind
    from armvm.machine.backends import find_backend

    accelerator = None if options.accel == "auto" else AcceleratorKind(options.accel)
    return find_backend(options.backend, state, accelerator=accelerator, cpu=options.cpu, uri=options.connect)


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a Machine that were given, apart from its execution state and firmware.

    ``disks`` are further ones, behind the image's own. Raises UsageError, which names the option, for what cannot be;
    InputError for a disk that cannot be read.
    """
    said = defined(options)
    fields: dict[str, Any] = {} if said is None else dict(said.machine)
    for taken in ("state", "variables"):
        fields.pop(taken, None)
    if "disks" in fields and _boots_from_file(options):
        fields["disks"] = fields["disks"][1:]
    given = {"vcpus": options.vcpus, "memory_bytes": options.memory}
    for field, kind, value in (
        ("gic", GicVersion, options.gic),
        ("description", HardwareDescription, options.hardware_description),
        ("console", Console, options.console),
        ("bus", Bus, options.bus),
        ("watchdog", WatchdogAction, getattr(options, "watchdog", None)),
    ):
        given[field] = None if value is None else kind(value)
    for field in (*_FLAGS, *_NUMBERS, "clock"):
        given[field] = getattr(options, field, None)
    given["vsock_cid"] = getattr(options, "vsock", None)
    given["nics"] = _nics(options, fields.get("nics"))
    fields |= {field: value for field, value in given.items() if value is not None}
    return fields | _devices(options, fields)


def _devices(options: argparse.Namespace, so_far: dict[str, Any]) -> dict[str, Any]:
    """The disks, shares and screen that were given; disks behind those of the file."""
    fields: dict[str, Any] = {}
    if getattr(options, "disk", None):
        from armvm.cli.device_options import parse_disk

        writes = Writes.KEPT if getattr(options, "writable", True) else Writes.DISCARDED
        more = tuple(parse_disk(one, writes=writes) for one in options.disk)
        fields["disks"] = (*so_far.get("disks", ()), *more)
    if getattr(options, "share", None):
        from armvm.cli.device_options import parse_share

        fields["shares"] = tuple(parse_share(one) for one in options.share)
    password_file = getattr(options, "vnc_password_file", None)
    if getattr(options, "vnc", None):
        from armvm.cli.device_options import parse_screen

        fields["graphics"] = parse_screen(options.vnc, password_file, kept=getattr(options, "name", None) is not None)
    elif password_file is not None:
        raise UsageError("--vnc-password-file: there is no screen to ask for it", hint="take --vnc PORT too")
    return fields


def _nics(options: argparse.Namespace, so_far: tuple[Nic, ...] | None) -> tuple[Nic, ...] | None:
    """The network cards that were given, with the forwards at the first one behind user-mode NAT; None for no wish."""
    wanted, forwards = getattr(options, "nic", None), tuple(options.forward or ())
    if options.net == "none":
        if forwards:
            raise UsageError("--forward needs a network, and --net none takes it away")
        if wanted:
            raise UsageError("--nic adds a network card, and --net none takes them all away", hint="leave one out")
        return ()
    if wanted:
        from armvm.cli.device_options import parse_nic

        if options.net:
            raise UsageError("--net user is the default card, and --nic takes its place", hint="write --nic user")
        nics: tuple[Nic, ...] = tuple(parse_nic(one) for one in wanted)
    elif options.net or (forwards and so_far is None):
        nics = (UserNetwork(),)
    elif forwards:
        nics = so_far or ()
    else:
        return None
    if not forwards:
        return nics
    first = next((index for index, nic in enumerate(nics) if isinstance(nic, UserNetwork)), None)
    if first is None:
        raise UsageError("--forward needs a card behind user-mode NAT, and there is none", hint="write --nic user too")
    return tuple(
        replace(nic, forwards=forwards) if index == first and isinstance(nic, UserNetwork) else nic
        for index, nic in enumerate(nics)
    )


def defined(options: argparse.Namespace) -> Said | None:
    """What the file of ``--define`` says, None without one."""
    said: Said | None = getattr(options, "defined", None)
    return said


def defined_image(options: argparse.Namespace) -> Path | None:
    """The image that the file of ``--define`` boots: its first disk. It counts when no other image is named."""
    said = defined(options)
    disks = () if said is None else said.machine.get("disks", ())
    return disks[0].path if disks else None


def machine_of(options: argparse.Namespace, state: ExecutionState, boot_disk: DiskDevice) -> Machine:
    """The machine that the options describe. ``boot_disk`` is its image's disk.

    Raises UsageError for what cannot be, MissingError without the firmware.
    """
    from armvm.firmware.discovery import find_firmware

    fields = chosen(options)
    if _boots_from_file(options):
        said = defined(options)
        first: DiskDevice = boot_disk if said is None else said.machine["disks"][0]
        writes = boot_disk.writes if getattr(options, "writable", False) else first.writes
        boot_disk = replace(first, format=boot_disk.format, sector_size=boot_disk.sector_size, writes=writes)
    if getattr(options, "boot_disk", None):
        from armvm.cli.device_options import parse_boot_disk

        boot_disk = parse_boot_disk(options.boot_disk, boot_disk)
    machine = Machine(
        state=state,
        firmware=find_firmware(state, override=options.firmware, secure_boot=bool(fields.get("secure_boot"))),
        disks=(boot_disk, *fields.pop("disks", ())),
        memory_bytes=DEFAULT_MEMORY_BYTES[state],
    )
    return replace(machine, **fields)


def _boots_from_file(options: argparse.Namespace) -> bool:
    """Whether the image is the first disk of the file of ``--define``."""
    image = getattr(options, "image", None)
    return image is not None and defined_image(options) is not None and Path(image) == defined_image(options)


class _Define(argparse.Action):
    """Read the file at once: what it says of the state and the firmware is as if it had been given by options."""

    def __call__(
        self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _option: str | None = None
    ) -> None:
        """Keep what the file says. Raises InputError, with file and line, when it is broken."""
        from armvm.instance.machine_toml import read_partial

        said = read_partial(values)
        namespace.define, namespace.defined = values, said
        state = said.machine.get("state")
        if namespace.arch is None and state is not None:
            namespace.arch = state.value
        if namespace.firmware is None:
            namespace.firmware = said.firmware_file


def _values(kind: type[Any]) -> list[Any]:
    return [member.value for member in kind]


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def _moment(text: str) -> datetime:
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a time: {text!r} (write for example 2031-02-03T04:05:06)") from None
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _port_forward(text: str) -> PortForward:
    host, _, guest = text.removeprefix("tcp:").partition(":")
    try:
        return PortForward(int(host), int(guest))
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a pair of TCP ports: {text!r} (write for example 2222:22)") from None
