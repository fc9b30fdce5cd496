"""Faults that real guests have, each seeded into the good guest in one place.

``SEEDED``: name → ``Fault``: the requirements that must fail, and no others, the edit, and whether ``armvm repair`` is
meant to mend it. Faults of the partition table and of the ESP's file system are made on the image only.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from uuid import UUID

from armvm.disk.gpt_write import serialise
from armvm.execution import ExecutionState
from armvm.units import MIB
from tools.guest_images import (
    COMMAND_LINE,
    ESP_BYTES,
    ROOT_UUID,
    SWAP_UUID,
    Guest,
    GuestImage,
    vendor_loader,
)
from tools.guest_parts import guest_kernel, initrd, lines_without, module_tree, shim, without_symbol

Edit = Callable[[Guest], None]
_MAC = "52:54:00:12:34:56"
_GRUB = "/boot/grub/grub.cfg"
_ASSUMES = frozenset({"guest.no-assumptions"})
_VIRTIO = frozenset({"guest.virtio-pci", "guest.virtio-mmio"})
_SELF = frozenset({"image.self-contained-boot"})


@dataclass(frozen=True)
class Fault:
    """``requirements`` must fail, and no others. ``on_image``: only a ``GuestImage`` can have it."""

    requirements: frozenset[str]
    edit: Edit
    repairable: bool
    on_image: bool = False


def _assumes(edit: Edit, *, repairable: bool = True) -> Fault:
    return Fault(_ASSUMES, edit, repairable)


def _replaced(path: str, old: str, new: str) -> Edit:
    def edit(guest: Guest) -> None:
        text = guest.read(path).decode()
        assert old in text, f"{old!r} is not in {path}"
        guest.write(path, text.replace(old, new).encode())

    return edit


def _written(path: str, text: str) -> Edit:
    return lambda guest: guest.write(path, text.encode())


def _appended(path: str, text: str) -> Edit:
    return lambda guest: guest.write(path, guest.read(path) + text.encode())


def _root(name: str) -> Edit:
    return _replaced(_GRUB, f"root=UUID={ROOT_UUID}", f"root={name}")


def _consoles(words: str) -> Edit:
    return _replaced(_GRUB, "console=ttyAMA0 console=hvc0", words)


def _both(*edits: Edit) -> Edit:
    def edit(guest: Guest) -> None:
        for each in edits:
            each(guest)

    return edit


# Drivers


def _initrd_path(guest: Guest) -> str:
    return f"/boot/initrd.img-{guest_kernel(guest.state).release}"


def _not_in_initrd(*names: str) -> Edit:
    return lambda guest: guest.write(_initrd_path(guest), initrd(guest.state, without=names))


def _nowhere(*names: str) -> Edit:
    def edit(guest: Guest) -> None:
        _not_in_initrd(*names)(guest)
        base = f"/usr/lib/modules/{guest_kernel(guest.state).release}"
        before, after = (module_tree(guest.state, root=True, without=without) for without in ((), names))
        for path in before.keys() - after.keys():
            guest.remove(f"{base}/{path}")
        guest.write(f"{base}/modules.dep", after["modules.dep"])

    return edit


def _not_configured(*symbols: str, builtin: Collection[str] = ()) -> Edit:
    """The kernel was built without: its configuration says so, and so does the list of what is built in."""

    def edit(guest: Guest) -> None:
        release = guest_kernel(guest.state).release
        config = f"/boot/config-{release}"
        guest.write(config, without_symbol(guest.read(config).decode(), *symbols).encode())
        if builtin:
            path = f"/usr/lib/modules/{release}/modules.builtin"
            guest.write(path, lines_without(guest.read(path).decode(), *builtin).encode())
            guest.write(_initrd_path(guest), _initrd_without_builtin(guest, builtin))

    return edit


def _initrd_without_builtin(guest: Guest, builtin: Collection[str]) -> bytes:
    path = f"usr/lib/modules/{guest_kernel(guest.state).release}/modules.builtin"
    listed = module_tree(guest.state, root=False)["modules.builtin"].decode()
    return initrd(guest.state, extra={path: lines_without(listed, *builtin).encode()})


def _lacks(requirement: str, edit: Edit) -> Fault:
    return Fault(frozenset({requirement}), edit, repairable=False)


# Boot chain, ESP and partition table


def _image(edit: Callable[[GuestImage], None]) -> Edit:
    def on_image(guest: Guest) -> None:
        assert isinstance(guest, GuestImage)
        edit(guest)

    return on_image


def _removed(path: Callable[[Guest], str]) -> Edit:
    return lambda guest: guest.remove(path(guest))


def _boot_path(guest: Guest) -> str:
    return f"EFI/BOOT/{guest.state.boot_file}"


def _other_architecture(guest: Guest) -> None:
    program = bytearray(guest.read(_boot_path(guest)))
    struct.pack_into("<H", program, struct.unpack_from("<I", program, 0x3C)[0] + 4, 0x8664)
    guest.write(_boot_path(guest), bytes(program))


def _shim_alone(guest: Guest) -> None:
    assert guest.state is ExecutionState.AARCH64
    guest.write(_boot_path(guest), shim())


def _esp_of_another_type(image: GuestImage) -> None:
    layout = image.layout
    data = UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
    changed = replace(layout, partitions=(replace(layout.partitions[0], type_guid=data), *layout.partitions[1:]))
    with image.path.open("r+b") as file:
        for offset, content in serialise(changed):
            file.seek(offset)
            file.write(content)


def _grown(image: GuestImage) -> None:
    with image.path.open("r+b") as file:
        file.truncate(image.path.stat().st_size + 64 * MIB)


def _esp_as_fat16(image: GuestImage) -> None:
    state = image.state
    paths = (f"EFI/BOOT/{state.boot_file}", vendor_loader(state), "EFI/debian/grub.cfg")
    contents = {path: image.read(path) for path in paths}
    sector = image.layout.partitions[0].first_lba
    with image.path.open("r+b") as file:
        file.seek(sector * 512)
        file.write(bytes(2 * MIB))
    command = ["mkfs.vfat", "-F", "16", "-s", "4", "--invariant", "-i", "1A2B3C4D", "-n", "ESP", "-h", str(sector)]
    subprocess.run(
        [*command, f"--offset={sector}", str(image.path), str(ESP_BYTES // 1024)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    for path, content in contents.items():
        image.write(path, content)


_NETPLAN_BY_MAC = f"""\
network:
  version: 2
  ethernets:
    eth0:
      match:
        macaddress: "{_MAC}"
      set-name: eth0
      dhcp4: true
"""
_NETPLAN_BY_NAME = "network:\n  version: 2\n  ethernets:\n    enp0s1:\n      dhcp4: true\n"
_RULE = f'SUBSYSTEM=="net", ACTION=="add", ATTR{{address}}=="{_MAC}", ATTR{{type}}=="1", KERNEL=="eth*", NAME="eth0"\n'
_NM = "/etc/NetworkManager/system-connections"

SEEDED: dict[str, Fault] = {
    # What the guest takes for granted
    "root=/dev/vda2": _assumes(_root("/dev/vda2")),
    "root=/dev/vda1": _assumes(_root("/dev/vda1")),
    "root=/dev/sda2": _assumes(_root("/dev/sda2")),
    "root=/dev/mmcblk0p2": _assumes(_root("/dev/mmcblk0p2")),
    "root by path": _assumes(_root("/dev/disk/by-path/platform-a003e00.virtio_mmio-part2")),
    "root by device numbers": _assumes(_root("254:2")),
    "root on no file system": _assumes(_root("UUID=11111111-2222-4333-8444-555555555555")),
    "resume=/dev/vda3": _assumes(_replaced(_GRUB, " ro ", " ro resume=/dev/vda3 ")),
    "only console=ttyS0": _assumes(_consoles("console=ttyS0,115200n8")),
    "only console=ttyAMA0": _assumes(_consoles("console=tty0 console=ttyAMA0")),
    "only console=hvc0": _assumes(_consoles("console=hvc0")),
    "early console at an address": _assumes(_consoles("earlycon=pl011,0x9000000 console=ttyAMA0 console=hvc0")),
    "fstab by device name": _assumes(_replaced("/etc/fstab", f"UUID={ROOT_UUID}", "/dev/vda2")),
    "swap by device name": _assumes(_replaced("/etc/fstab", f"UUID={SWAP_UUID}", "/dev/sda3")),
    "ESP by device name": _assumes(_replaced("/etc/fstab", "UUID=1A2B-3C4D", "/dev/vda1")),
    "crypttab by device name": _assumes(
        _written("/etc/crypttab", "# <target> <source> <key> <options>\nswap\t/dev/vda3\t/dev/urandom\tswap,plain\n")
    ),
    "resume of the initial RAM disk": _assumes(
        _written("/etc/initramfs-tools/conf.d/resume", "RESUME=/dev/vda3\n"),
    ),
    "update-grub's console": _assumes(
        _replaced("/etc/default/grub", "console=ttyAMA0 console=hvc0", "net.ifnames=1 console=ttyS0"),
    ),
    "getty on ttyS0": _assumes(
        _replaced("/etc/inittab", "console::respawn:/sbin/getty -L console", "ttyS0::respawn:/sbin/getty -L ttyS0")
    ),
    "interfaces with ens3": _assumes(
        _both(
            _written("/etc/network/interfaces.d/wired", ""),
            _appended("/etc/network/interfaces", "\nallow-hotplug ens3\niface ens3 inet dhcp\n"),
        )
    ),
    "netplan by MAC": _assumes(_written("/etc/netplan/01-all.yaml", _NETPLAN_BY_MAC)),
    "netplan by name": _assumes(_written("/etc/netplan/50-more.yaml", _NETPLAN_BY_NAME)),
    "networkd by MAC": _assumes(
        _replaced("/etc/systemd/network/80-wired.network", "Name=en* eth*", f"MACAddress={_MAC}")
    ),
    "NetworkManager by name": _assumes(
        _replaced(f"{_NM}/wired.nmconnection", "type=ethernet", "type=ethernet\ninterface-name=enp1s0")
    ),
    "NetworkManager by MAC": _assumes(_appended(f"{_NM}/wired.nmconnection", f"\n[ethernet]\nmac-address={_MAC}\n")),
    "persistent names": _assumes(_written("/etc/udev/rules.d/70-persistent-net.rules", _RULE)),
    "ifcfg by MAC": _assumes(
        _written("/etc/sysconfig/network-scripts/ifcfg-wired", f"TYPE=Ethernet\nBOOTPROTO=dhcp\nHWADDR={_MAC}\n")
    ),
    # Drivers
    "no virtio-blk before the root": Fault(_VIRTIO, _not_in_initrd("virtio_blk"), repairable=False),
    "no xen-blkfront before the root": _lacks("guest.xen-pv", _not_in_initrd("xen_blkfront")),
    "no virtio-mmio before the root": _lacks("guest.virtio-mmio", _not_in_initrd("virtio_mmio")),
    "no virtio-pci before the root": _lacks("guest.virtio-pci", _not_in_initrd("virtio_pci")),
    "a dependency of virtio-pci left out": _lacks("guest.virtio-pci", _not_in_initrd("virtio_pci_modern_dev")),
    "no virtio-console anywhere": Fault(
        _VIRTIO | {"guest.console-virtio"}, _nowhere("virtio_console"), repairable=False
    ),
    "no virtio-net anywhere": Fault(_VIRTIO, _nowhere("virtio_net"), repairable=False),
    "no virtio-balloon anywhere": Fault(_VIRTIO, _nowhere("virtio_balloon"), repairable=False),
    "no xen-netfront anywhere": _lacks("guest.xen-pv", _nowhere("xen_netfront")),
    "kernel without GICv3": _lacks("guest.gic-newer", _not_configured("ARM_GIC_V3", "ARM_GIC_V3_ITS")),
    "kernel without GICv2": _lacks("guest.gicv2", _not_configured("ARM_GIC", "ARM_GIC_V2M")),
    "kernel without pl011": _lacks(
        "guest.console-pl011",
        _not_configured("SERIAL_AMBA_PL011", "SERIAL_AMBA_PL011_CONSOLE", builtin=["amba-pl011.ko"]),
    ),
    "kernel without Xen's console": Fault(
        frozenset({"guest.console-xen", "guest.xen-pv"}),
        _not_configured("HVC_XEN", "HVC_XEN_FRONTEND"),
        repairable=False,
    ),
    "kernel without UEFI's clock": _lacks(
        "guest.rtc-efi", _not_configured("RTC_DRV_EFI", builtin=["drivers/rtc/rtc-efi.ko"])
    ),
    # Boot chain
    "boot program under the vendor's path only": Fault(
        frozenset({"image.removable-path"}), _removed(_boot_path), repairable=True
    ),
    "boot program for another architecture": Fault(
        frozenset({"image.efi-application"}), _other_architecture, repairable=False
    ),
    "shim without its second stage": Fault(_SELF, _shim_alone, repairable=True),
    "no configuration of GRUB on the ESP": Fault(
        _SELF, lambda guest: guest.remove("EFI/debian/grub.cfg"), repairable=False
    ),
    "GRUB searches for a partition that is gone": Fault(
        _SELF,
        _replaced("EFI/debian/grub.cfg", str(ROOT_UUID), "99999999-8888-4777-8666-555555555555"),
        repairable=False,
    ),
    "no menu of GRUB on the root": Fault(_SELF, lambda guest: guest.remove(_GRUB), repairable=False),
    "GRUB names a kernel that is not there": Fault(
        _SELF, _replaced(_GRUB, "/boot/vmlinuz-", "/boot/vmlinuz-9."), repairable=False
    ),
    "no initial RAM disk": Fault(_SELF, _removed(_initrd_path), repairable=False),
    # The image
    "U-Boot's variables on the ESP": Fault(
        frozenset({"image.no-variables"}),
        lambda guest: guest.write("ubootefi.var", b"\0" * 0x18),
        repairable=True,
    ),
    "EDK2's variables on the ESP": Fault(
        frozenset({"image.no-variables"}), lambda guest: guest.write("NvVars", b"\0" * 64), repairable=True
    ),
    "ESP of another type": Fault(
        frozenset({"image.esp"}), _image(_esp_of_another_type), repairable=True, on_image=True
    ),
    "backup table not at the end": Fault(frozenset({"image.gpt"}), _image(_grown), repairable=True, on_image=True),
    "ESP as FAT16": Fault(frozenset({"image.esp-fat32"}), _image(_esp_as_fat16), repairable=False, on_image=True),
}
"""What is wrong, in words, to the fault."""

ASSUMPTION_FAULTS = {name: fault for name, fault in SEEDED.items() if fault.requirements == _ASSUMES}
"""Those that guest.no-assumptions must name, and no other requirement."""

assert COMMAND_LINE.endswith("console=ttyAMA0 console=hvc0"), "what the edits above look for"
