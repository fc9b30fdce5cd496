"""Disks and network cards as QEMU has them: the arguments of QMP's commands, and the same as options.

One form serves both ways in. A device that is there from the start is written as an option, one that comes while the
VM runs is told by ``blockdev-add``, ``netdev_add`` and ``device_add``. So both have the same names, and leave the same
way:

* a disk NAME is the device NAME on the block node NAME-node; a card NAME the device NAME on the backend NAME-backend;
* the flash chip of the UEFI variables is the block node ``variables-node``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armvm.errors import UsageError
from armvm.machine.devices import (
    BridgeNetwork,
    DiskCache,
    DiskDevice,
    DiskInterface,
    LinkNetwork,
    Nic,
    TapNetwork,
    UserNetwork,
    Writes,
)

SCSI_CONTROLLER = "scsi0"
"""QEMU's name of the SCSI controller; its disks sit on the bus ``scsi0.0``."""

VARIABLES_NODE = "variables-node"
"""The block node of the UEFI variables' flash chip."""

MMIO_BUS = "virtio-mmio-bus."
"""The bus of a virtio-mmio transport, but for its number."""


def hotplug_port(index: int) -> str:
    """QEMU's name of an empty root port."""
    return f"port{index}"


def node_name(name: str) -> str:
    """The block node of the disk ``name``. QEMU allows 31 characters."""
    return f"{name}-node"


def backend_name(name: str) -> str:
    """The network backend of the card ``name``."""
    return f"{name}-backend"


def blockdev_of(disk: DiskDevice, name: str) -> dict[str, Any]:
    """The arguments of ``blockdev-add`` for ``disk``: its image, opened as what it is, as the node ``NAME-node``.

    Raises UsageError for ``Writes.DISCARDED``: only a disk that is there from the start has a temporary overlay.
    """
    if disk.writes is Writes.DISCARDED:
        raise UsageError(
            f"disk {name}: what a guest writes can be discarded only for a disk that is there from the start",
            hint="attach it read-only, or let its writes be kept",
        )
    arguments: dict[str, Any] = {
        "driver": disk.format,
        "node-name": node_name(name),
        "read-only": disk.writes is Writes.REFUSED,
        "file": {"driver": "file", "filename": str(disk.path.absolute())},
    }
    if disk.cache is DiskCache.NONE or disk.cache is DiskCache.UNSAFE:
        arguments["cache"] = {"direct": disk.cache is DiskCache.NONE, "no-flush": disk.cache is DiskCache.UNSAFE}
    if disk.discard and disk.writes is Writes.KEPT:
        arguments["discard"] = "unmap"
    return arguments


def device_of_disk(disk: DiskDevice, name: str, *, place: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``device_add`` for ``disk``, whose node is there already.

    ``place`` says where: {"bus": "port0"}, {"bus": "pcie.0", "addr": "0x8"}, {"bus": "scsi0.0"}.
    """
    arguments: dict[str, Any] = {"driver": _disk_driver(disk.interface, place), **place, "id": name}
    arguments["drive"] = node_name(name)
    serial = disk.serial
    if serial is None and disk.interface is DiskInterface.NVME:
        serial = name  # QEMU's nvme wants one
    if serial is not None:
        arguments["serial"] = serial
    if disk.cache is DiskCache.WRITETHROUGH:
        arguments["write-cache"] = "off"
    if disk.sector_size != 512:
        arguments |= {"logical_block_size": disk.sector_size, "physical_block_size": disk.sector_size}
    return arguments


def netdev_of(nic: Nic, name: str, *, tap: int | str | None = None) -> dict[str, Any]:
    """The arguments of ``netdev_add`` for what is behind the card ``name``: the backend ``NAME-backend``.

    ``tap`` is the descriptor of an open tap device that a bridge's helper has given (``bridges.open_tap``): a number
    that QEMU inherited, or what ``getfd`` named it. Without, QEMU would run the helper, which its sandbox denies.
    """
    arguments: dict[str, Any] = {"id": backend_name(name)}
    match nic:
        case UserNetwork():
            arguments["type"] = "user"
            if nic.forwards:
                arguments["hostfwd"] = [
                    {"str": f"tcp:127.0.0.1:{forward.host_port}-:{forward.guest_port}"} for forward in nic.forwards
                ]
        case TapNetwork():
            arguments |= {"type": "tap", "ifname": nic.interface, "script": "no", "downscript": "no"}
        case BridgeNetwork() if tap is not None:
            arguments |= {"type": "tap", "fd": str(tap)}
        case BridgeNetwork():
            arguments |= {"type": "bridge", "br": nic.bridge}
        case LinkNetwork():
            folder = nic.folder.absolute()
            arguments["type"] = "dgram"
            arguments["local"] = {"type": "unix", "path": str(folder / str(nic.end))}
            arguments["remote"] = {"type": "unix", "path": str(folder / str(1 - nic.end))}
    return arguments


def device_of_nic(nic: Nic, name: str, *, place: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``device_add`` for the card ``name``, whose backend is there already; ``place``: see disks."""
    on_mmio = str(place.get("bus", "")).startswith(MMIO_BUS)
    arguments: dict[str, Any] = {"driver": "virtio-net-device" if on_mmio else "virtio-net-pci", **place, "id": name}
    arguments["netdev"] = backend_name(name)
    mac = nic.mac or _link_mac(nic)
    if mac is not None:
        arguments["mac"] = mac
    if not on_mmio:
        arguments["romfile"] = ""
    return arguments


def option(arguments: Mapping[str, Any], *, first: str) -> str:
    """``arguments`` of a QMP command as the value of the option of that kind; ``first`` is the key that has no name.

    Nested keys are joined by dots, a comma in a value is doubled (QEMU, util/keyval.c and util/qemu-option.c).
    """
    words = [_value(arguments[first])]
    for key, value in arguments.items():
        if key != first:
            words += _words(key, value)
    return ",".join(words)


def _words(key: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [word for inner, content in value.items() for word in _words(f"{key}.{inner}", content)]
    if isinstance(value, list):  # of QAPI's String, as in hostfwd
        return [f"{key}={_value(each['str'])}" for each in value]
    return [f"{key}={_value(value)}"]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")


def file_options(path: Path, form: str) -> str:
    """A file as QEMU's option syntax has it: relative to nothing, no protocol, commas doubled."""
    return f"driver={_value(form)},file.driver=file,file.filename={_value(path.absolute())}"


def image_options(path: Path, form: str) -> str:
    """The same for a file or a block device: QEMU looks which. No part of ``file.filename`` is taken for a protocol."""
    return f"driver={_value(form)},file.filename={_value(path.absolute())}"


def _disk_driver(interface: DiskInterface, place: Mapping[str, Any]) -> str:
    if interface is DiskInterface.NVME:
        return "nvme"
    if interface is DiskInterface.VIRTIO_SCSI:
        return "scsi-hd"
    return "virtio-blk-device" if str(place.get("bus", "")).startswith(MMIO_BUS) else "virtio-blk-pci"


def _link_mac(nic: Nic) -> str | None:
    """An address for the end of a cable that has none: QEMU would give both ends the same."""
    if not isinstance(nic, LinkNetwork):
        return None
    import hashlib  # only a cable needs it

    digest = hashlib.sha256(f"{nic.folder.absolute()}/{nic.end}".encode(errors="surrogateescape")).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])
