"""Devices that are added to a machine or taken from it: the same value for one that runs and one that does not.

Nothing is done here: a Machine in, a Machine out. What sits in a port, or behind the SCSI controller, keeps its address
whatever comes and goes around it; what has a place of its own stands before all that, for its place is its rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.instance.addresses import new_mac
from armvm.machine.definition import Bus, Machine, disk_names, nic_names
from armvm.machine.devices import (
    BridgeNetwork,
    DiskCache,
    DiskDevice,
    DiskInterface,
    LinkNetwork,
    Nic,
    PortForward,
    TapNetwork,
    UserNetwork,
    Writes,
)

DEFAULT_SECONDS = 30.0
_MOST_SCSI_UNITS = 256
_NIC_KINDS: dict[str, type[Nic]] = {
    "user": UserNetwork,
    "tap": TapNetwork,
    "bridge": BridgeNetwork,
    "link": LinkNetwork,
}

_Device = TypeVar("_Device", bound=DiskDevice | Nic)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A device to be added. ``new_bytes``: the disk's image is to be made, of that size.

    ``interface_given``: the disk's interface was asked for; otherwise it is chosen by what the machine has room for.
    """

    device: DiskDevice | Nic
    new_bytes: int | None = None
    interface_given: bool = False
    persist: bool = False
    timeout_seconds: float = DEFAULT_SECONDS

    @property
    def what(self) -> str:
        """A word for it."""
        return "disk" if isinstance(self.device, DiskDevice) else "network card"


def serialise(attachment: Attachment) -> dict[str, Any]:
    """The attachment as a request's fields (JSON)."""
    device = attachment.device
    kind = "disk" if isinstance(device, DiskDevice) else _kind_of(device)
    told: dict[str, Any] = {"kind": kind}
    for field in fields(device):
        value = getattr(device, field.name)
        if field.name == "forwards":
            told["forwards"] = [[forward.host_port, forward.guest_port] for forward in value]
        elif isinstance(value, Path):
            told[field.name] = str(value)
        else:
            told[field.name] = getattr(value, "value", value)
    return {
        "device": told,
        "new_bytes": attachment.new_bytes,
        "interface_given": attachment.interface_given,
        "persist": attachment.persist,
        "timeout": attachment.timeout_seconds,
    }


def parse(request: Mapping[str, Any]) -> Attachment:
    """What a request asks for. Raises UsageError when it is none."""
    try:
        told = dict(request["device"])
        kind = told.pop("kind")
        device = _disk(told) if kind == "disk" else _nic(_NIC_KINDS[kind], told)
        new_bytes = request.get("new_bytes")
        return Attachment(
            device,
            None if new_bytes is None else int(new_bytes),
            bool(request.get("interface_given")),
            bool(request.get("persist")),
            float(request.get("timeout", DEFAULT_SECONDS)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"no request to attach a device: {type(error).__name__} {error}") from error


def named(machine: Machine) -> Machine:
    """The same machine, every device of which has its name and, behind the SCSI controller, its unit written down."""
    disks = tuple(
        replace(disk, name=name, port=index if _is_scsi(disk) and disk.port is None else disk.port)
        for index, (name, disk) in enumerate(zip(disk_names(machine), machine.disks, strict=True))
    )
    nics = tuple(replace(nic, name=name) for name, nic in zip(nic_names(machine), machine.nics, strict=True))
    return replace(machine, disks=disks, nics=nics)


def placed(
    machine: Machine, attachment: Attachment, *, running: bool, taken: frozenset[str] = frozenset()
) -> Attachment:
    """The attachment with a name and a port for its device in ``machine``; ``taken`` are names not to be chosen.

    A machine that is ``running`` takes a device in a port or behind the SCSI controller only. Raises UsageError when
    there is no room, which says what would do.
    """
    machine = named(machine)
    names = {*disk_names(machine), *nic_names(machine)}
    device = attachment.device
    stem = "disk" if isinstance(device, DiskDevice) else "net"
    free = next(f"{stem}{i}" for i in range(len(names | taken) + 1) if f"{stem}{i}" not in names | taken)
    if device.name in names:
        raise UsageError(f"the machine has a device {device.name} already", hint="choose another --name")
    device = replace(device, name=device.name or free)
    if isinstance(device, DiskDevice):
        device = _placed_disk(machine, device, attachment, running=running)
    else:
        port = _port_for(machine, attachment.what, running=running)
        device = replace(device, mac=device.mac or new_mac(), port=port)
    return replace(attachment, device=device)


def with_device(machine: Machine, device: DiskDevice | Nic) -> Machine:
    """``machine`` with ``device``, which has its name and place (``placed``)."""
    machine = named(machine)
    if isinstance(device, DiskDevice):
        return replace(machine, disks=_inserted(machine.disks, device))
    return replace(machine, nics=_inserted(machine.nics, device))


def without(machine: Machine, name: str) -> Machine:
    """``machine`` without the device of that name. Raises UsageError when it has none, or boots from it."""
    machine = named(machine)
    disks = tuple(disk for disk in machine.disks if disk.name != name)
    nics = tuple(nic for nic in machine.nics if nic.name != name)
    if len(disks) == len(machine.disks) and len(nics) == len(machine.nics):
        known = ", ".join((*disk_names(machine), *nic_names(machine)))
        raise UsageError(f"the machine has no disk and no network card {name}", hint=f"it has {known}")
    if machine.disks and machine.disks[0].name == name:
        raise UsageError(f"{name} is the disk that the machine boots from", hint="it goes with the instance only")
    return replace(machine, disks=disks, nics=nics)


def device_of(machine: Machine, name: str) -> DiskDevice | Nic:
    """The device of that name. Raises UsageError when there is none."""
    machine = named(machine)
    found = next((one for one in (*machine.disks, *machine.nics) if one.name == name), None)
    if found is None:
        known = ", ".join((*disk_names(machine), *nic_names(machine)))
        raise UsageError(f"the machine has no disk and no network card {name}", hint=f"it has {known}")
    return found


def _placed_disk(machine: Machine, disk: DiskDevice, attachment: Attachment, *, running: bool) -> DiskDevice:
    interface = disk.interface
    if not attachment.interface_given and machine.scsi_controller:
        # 32-bit kernels have no PCI hotplug, and virtio-mmio has none at all: there, this is what comes and goes.
        no_ports = machine.state is ExecutionState.AARCH32 or machine.bus is Bus.MMIO or not _free_ports(machine)
        interface = DiskInterface.VIRTIO_SCSI if running and no_ports else interface
    disk = replace(disk, interface=interface)
    if _is_scsi(disk):
        if running and not machine.scsi_controller and not any(map(_is_scsi, machine.disks)):
            raise UsageError(
                "the machine has no SCSI controller",
                hint="scsi_controller = true in machine.toml, before it is started",
            )
        units = {one.port for one in machine.disks if _is_scsi(one)}
        return replace(disk, port=next(unit for unit in range(1, _MOST_SCSI_UNITS) if unit not in units))
    return replace(disk, port=_port_for(machine, attachment.what, running=running))


def _port_for(machine: Machine, what: str, *, running: bool) -> int | None:
    """A free port; None for a place of the device's own, which only a machine that is not running can give it."""
    free = _free_ports(machine)
    if free:
        return free[0]
    if not running:
        return None
    if machine.bus is Bus.MMIO:
        raise UsageError(
            f"a machine on virtio-mmio takes no {what} while it runs",
            hint="stop it first; disks come and go behind a SCSI controller (scsi_controller = true in machine.toml)",
        )
    raise UsageError(
        f"the machine has no free hotplug port for a {what}: it has {machine.hotplug_ports}",
        hint="detach something, or stop the machine first; hotplug_ports in machine.toml gives it more",
    )


def _free_ports(machine: Machine) -> list[int]:
    if machine.bus is Bus.MMIO:
        return []
    taken = {one.port for one in (*machine.disks, *machine.nics) if not _is_scsi(one)}
    return [port for port in range(machine.hotplug_ports) if port not in taken]


def _is_scsi(device: DiskDevice | Nic) -> bool:
    return isinstance(device, DiskDevice) and device.interface is DiskInterface.VIRTIO_SCSI


def _inserted(devices: tuple[_Device, ...], device: _Device) -> tuple[_Device, ...]:
    first, rest = list(devices[:1]), devices[1:]  # what is booted stays first
    own = [one for one in rest if one.port is None]
    others = [one for one in rest if one.port is not None]
    return tuple([*first, *own, device, *others] if device.port is None else [*first, *own, *others, device])


def _kind_of(nic: Nic) -> str:
    return next(kind for kind, one in _NIC_KINDS.items() if isinstance(nic, one))


def _disk(told: dict[str, Any]) -> DiskDevice:
    return DiskDevice(
        path=Path(str(told["path"])),
        format=str(told["format"]),
        sector_size=int(told["sector_size"]),
        writes=Writes(told["writes"]),
        interface=DiskInterface(told["interface"]),
        serial=_text(told.get("serial")),
        cache=DiskCache(told["cache"]),
        discard=bool(told["discard"]),
        name=_text(told.get("name")),
    )


def _nic(kind: type[Nic], told: dict[str, Any]) -> Nic:
    common: dict[str, Any] = {"mac": _text(told.get("mac")), "name": _text(told.get("name"))}
    if kind is UserNetwork:
        return UserNetwork(tuple(PortForward(int(host), int(guest)) for host, guest in told["forwards"]), **common)
    if kind is TapNetwork:
        return TapNetwork(str(told["interface"]), **common)
    if kind is BridgeNetwork:
        return BridgeNetwork(str(told["bridge"]), **common)
    return LinkNetwork(Path(str(told["folder"])), int(told["end"]), **common)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
