"""What makes no sense about the devices of a machine, on any hypervisor: which one, why, and what would do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from armvm.machine.devices import (
    BridgeNetwork,
    DiskDevice,
    DiskInterface,
    Graphics,
    LinkNetwork,
    Nic,
    SharedFolder,
    ShareDriver,
    TapNetwork,
    UserNetwork,
    Writes,
)
from armvm.printable import printable
from armvm.units import SECTOR_SIZES

if TYPE_CHECKING:
    from armvm.machine.definition import Machine

MOST_DISKS = 16
MOST_NICS = 6
MOST_SCSI_UNITS = 256
MOST_SHARES = {"pci": 16, "mmio": 3, "xen": 0}
MOST_MORE_CONSOLES = 8
DISK_FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc")
"""The formats of images, as QEMU spells them: no protocol, no filter driver."""
SOCKET_PATH_BYTES = 107
"""What fits into sockaddr_un (unix(7))."""
LEAST_CID, MOST_CID = 3, 0xFFFF_FFFE
"""The context identifiers of guests (vsock(7)): 0 to 2 and the greatest have meanings of their own."""
LEAST_VNC_PORT = 5900

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,19}")
_RESERVED = re.compile(
    r"(port|scsi|share|console)[0-9]+(-9p)?|(rng|balloon|watchdog|screen|usb|vsock|tpm)0|variables|agent|tpm|password"
)
_SERIAL_BYTES = {DiskInterface.VIRTIO_BLK: 20, DiskInterface.NVME: 20, DiskInterface.VIRTIO_SCSI: 36}
# What few machines have: compiled when it is met.
_SERIAL = r"[!-~]([ -~]*[!-~])?"
_MAC = r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"
_HOST_INTERFACE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}"
_TAG = r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}"


def device_problems(machine: Machine, disk_names: tuple[str, ...], nic_names: tuple[str, ...]) -> list[str]:
    """Everything that makes no sense about the devices of ``machine``, one sentence each."""
    found = list(_name_problems((*disk_names, *nic_names)))
    found += _disk_problems(machine, disk_names)
    found += _network_problems(machine.nics, nic_names)
    found += _port_problems(machine, disk_names, nic_names)
    found += _share_problems(machine)
    found += _transport_problems(machine)
    found += _graphics_problems(machine.graphics)
    if not 0 <= machine.more_consoles <= MOST_MORE_CONSOLES:
        found.append(f"{machine.more_consoles} more consoles: a machine has at most {MOST_MORE_CONSOLES}")
    if machine.vsock_cid is not None and not LEAST_CID <= machine.vsock_cid <= MOST_CID:
        found.append(f"vsock CID {machine.vsock_cid}: a guest's is {LEAST_CID} to {MOST_CID}, and no other guest's")
    return found


def _name_problems(names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        if not _NAME.fullmatch(name):
            shown = printable(name)[:40]
            yield (
                f"a device called '{shown}': a name is a small letter and up to 19 small letters, digits, _ and -"
                " (for example data or net-1)"
            )
        elif _RESERVED.fullmatch(name):
            yield f"a device called {name!r}: the machine has one of that name itself; choose another"
    for name in _twice(names):
        yield f"two devices called '{printable(name)[:40]}': give one another name"


def _disk_problems(machine: Machine, names: tuple[str, ...]) -> Iterator[str]:
    disks = machine.disks
    if len(disks) > MOST_DISKS:
        yield f"{len(disks)} disks: a machine has at most {MOST_DISKS}"
    for name, disk in zip(names, disks, strict=True):
        what = f"disk {printable(name)[:40]}"
        if disk.sector_size not in SECTOR_SIZES:
            yield (
                f"{printable(str(disk.path))}: sectors of {disk.sector_size} bytes; a disk has sectors of 512 or 4096"
            )
        if disk.format not in DISK_FORMATS:
            yield f"{what}: no format of images: '{printable(disk.format)[:40]}'; there are {', '.join(DISK_FORMATS)}"
        if "\0" in str(disk.path):
            yield f"{what}: a path cannot hold the character NUL"
        most = _SERIAL_BYTES[disk.interface]
        if disk.serial is not None and (len(disk.serial) > most or not re.fullmatch(_SERIAL, disk.serial)):
            shown = printable(disk.serial)[:60]
            yield (
                f"{what}: serial '{shown}': a disk on {disk.interface.value} has one of 1 to {most} printable ASCII"
                " characters, no space at its ends"
            )
    yield from _shared_images(disks, names)
    scsi = [disk.port if disk.port is not None else index for index, disk in enumerate(disks) if _is_scsi(disk)]
    for unit in _twice(map(str, scsi)):
        yield f"two SCSI disks are unit {unit}: give one another port"


def _shared_images(disks: tuple[DiskDevice, ...], names: tuple[str, ...]) -> Iterator[str]:
    """Two disks on one image, one of which writes to it: they would destroy each other's data."""
    first: dict[str, int] = {}
    for index, disk in enumerate(disks):
        earlier = first.setdefault(str(disk.path.absolute()), index)
        if earlier != index and Writes.KEPT in {disk.writes, disks[earlier].writes}:
            one, other = printable(names[earlier])[:40], printable(names[index])[:40]
            yield f"disks {one} and {other} are the same file, and one of them writes to it: give each its own"


def _is_scsi(disk: DiskDevice) -> bool:
    return disk.interface is DiskInterface.VIRTIO_SCSI


def _network_problems(nics: tuple[Nic, ...], names: tuple[str, ...]) -> Iterator[str]:
    if len(nics) > MOST_NICS:
        yield f"{len(nics)} network cards: a machine has at most {MOST_NICS}"
    yield from _forward_problems(nics)
    for name, nic in zip(names, nics, strict=True):
        what = f"network card {printable(name)[:40]}"
        yield from (f"{what}: {problem}" for problem in _nic_problems(nic))
    for mac in _twice(nic.mac.lower() for nic in nics if nic.mac is not None and re.fullmatch(_MAC, nic.mac)):
        yield f"two network cards with the address {mac}: give one another, or none"
    ends = _twice(f"{nic.folder.absolute()}/{nic.end}" for nic in nics if isinstance(nic, LinkNetwork))
    for end in ends:
        yield f"two network cards at the same end of a link, {printable(end)}: give one the other end, or another link"


def _forward_problems(nics: tuple[Nic, ...]) -> Iterator[str]:
    taken: set[int] = set()
    for forward in (forward for nic in nics if isinstance(nic, UserNetwork) for forward in nic.forwards):
        yield from (f"no TCP port: {port}" for port in (forward.host_port, forward.guest_port) if not 0 < port < 65536)
        if forward.host_port in taken:
            yield f"port {forward.host_port} of this host is forwarded twice"
        taken.add(forward.host_port)


def _nic_problems(nic: Nic) -> Iterator[str]:
    if nic.mac is not None:
        if not re.fullmatch(_MAC, nic.mac):
            yield f"no MAC address: '{printable(nic.mac)[:40]}'; write for example 52:54:00:12:34:56"
        elif int(nic.mac[:2], 16) & 1:
            yield f"mac {nic.mac}: its first byte is odd, that of a group; a card's is even (52:54:00:12:34:56)"
        elif not nic.mac.strip("0:"):
            yield f"mac {nic.mac}: no card has that; write for example 52:54:00:12:34:56"
    if isinstance(nic, TapNetwork | BridgeNetwork):
        device = nic.interface if isinstance(nic, TapNetwork) else nic.bridge
        if not re.fullmatch(_HOST_INTERFACE, device):
            yield f"no name of a network interface: '{printable(device)[:40]}'; it has at most 15 letters and digits"
    if isinstance(nic, LinkNetwork):
        if nic.end not in {0, 1}:
            yield f"end {nic.end} of a link: a cable has the ends 0 and 1"
        yield from _socket_problems(f"{nic.folder.absolute()}/0", "the link's folder")


def _port_problems(machine: Machine, disk_names: tuple[str, ...], nic_names: tuple[str, ...]) -> Iterator[str]:
    taken: dict[int, str] = {}
    names = (*disk_names, *nic_names)
    for name, device in zip(names, (*machine.disks, *machine.nics), strict=True):
        if device.port is None:
            continue
        what = printable(name)[:40]
        if isinstance(device, DiskDevice) and device.interface is DiskInterface.VIRTIO_SCSI:
            if not 0 <= device.port < MOST_SCSI_UNITS:
                yield f"{what}: port {device.port}: a SCSI disk's is its unit, 0 to {MOST_SCSI_UNITS - 1}"
        elif machine.bus.value == "mmio":
            yield f"{what}: port {device.port}: a machine on virtio-mmio has no ports; leave it out, or take bus pci"
        elif not 0 <= device.port < machine.hotplug_ports:
            yield (
                f"{what}: port {device.port}: the machine has {machine.hotplug_ports} hotplug ports, counted from 0;"
                " take another, or more hotplug_ports"
            )
        elif device.port in taken:
            yield f"{what}: port {device.port} is taken by {taken[device.port]}; take another"
        else:
            taken[device.port] = what


def _share_problems(machine: Machine) -> Iterator[str]:
    most = MOST_SHARES[machine.bus.value]
    if len(machine.shares) > most:
        yield f"{len(machine.shares)} shared folders: a machine on {machine.bus.value} has at most {most}"
    for share in machine.shares:
        shown = printable(share.tag)[:40]
        if not re.fullmatch(_TAG, share.tag):
            yield f"tag '{shown}' of a shared folder: up to 31 letters, digits and . _ - (for example work)"
        if "\0" in str(share.path):
            yield f"shared folder {shown}: a path cannot hold the character NUL"
    for tag in _twice(share.tag for share in machine.shares):
        yield f"two shared folders with the tag '{printable(tag)[:40]}': give one another"


def _transport_problems(machine: Machine) -> Iterator[str]:
    """What a machine on virtio-mmio cannot have: it has no PCI, and its transports are of virtio's first version."""
    if machine.bus.value != "mmio":
        return
    wanted = [
        ("an nvme disk (interface)", any(disk.interface is DiskInterface.NVME for disk in machine.disks)),
        ("a watchdog", machine.watchdog is not None),
        ("a screen (graphics)", machine.graphics is not None),
        ("a USB keyboard (usb_keyboard)", machine.usb_keyboard),
        ("vsock (vsock_cid)", machine.vsock_cid is not None),
        ("virtiofs (driver of a share)", any(_by_virtiofs(share) for share in machine.shares)),
    ]
    yield from (
        f"{what} needs PCI, and this machine is on virtio-mmio; take the bus pci" for what, is_so in wanted if is_so
    )


def _by_virtiofs(share: SharedFolder) -> bool:
    return share.driver is ShareDriver.VIRTIOFS


def _graphics_problems(graphics: Graphics | None) -> Iterator[str]:
    if graphics is None:
        return
    if graphics.port is None:
        if graphics.socket is not None:
            yield from _socket_problems(str(graphics.socket.absolute()), "the screen's socket")
        if graphics.password_file is not None:
            yield "graphics: a password is asked for on a TCP port only, and there is none; leave password_file out"
        return
    if graphics.socket is not None:
        yield "graphics: a screen is shown on a socket or on a port, not on both; leave one out"
    if not LEAST_VNC_PORT <= graphics.port < 65536:
        yield f"graphics: port {graphics.port}: a port for VNC is {LEAST_VNC_PORT} to 65535"
    if graphics.password_file is None:
        yield (
            f"graphics: port {graphics.port} without a password: everybody on this host could use the screen;"
            " name a password_file, or show it on a socket"
        )


def _socket_problems(path: str, what: str) -> Iterator[str]:
    if "\0" in path:
        yield f"{what}: a path cannot hold the character NUL"
    elif len(path.encode(errors="surrogateescape")) > SOCKET_PATH_BYTES:
        yield f"{what} has a path that is too long for a socket ({SOCKET_PATH_BYTES} bytes): {printable(path)}"


def _twice(values: Iterable[str]) -> list[str]:
    """The values that are there more than once, each once."""
    seen: dict[str, int] = {}
    for value in values:
        seen[value] = seen.get(value, 0) + 1
    return [value for value, count in seen.items() if count > 1]
