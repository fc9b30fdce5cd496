"""What a machine may have beside disks, network and consoles, as options of QEMU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armvm.machine.definition import Bus, Machine
from armvm.machine.devices import Graphics, SharedFolder, ShareDriver
from armvm.machine.qemu.devices import option
from armvm.machine.qemu.places import Slot, place_of, place_of_share
from armvm.units import MIB

FIRST_VNC_PORT = 5900
"""QEMU counts VNC's TCP ports from here (RFC 6143 §8)."""
TPM = "tpm"
PASSWORD = "password"  # noqa: S105 - a name, not one
_VNC_SOCKET = "run/vnc.sock"


def share_name(index: int) -> str:
    """QEMU's name of a shared folder, and of the descriptor that leads to its virtiofsd."""
    return f"share{index}"


def by_virtiofs(machine: Machine) -> bool:
    """Whether a folder is shared by virtiofs: then the machine's memory is shared too."""
    return any(share.driver is ShareDriver.VIRTIOFS for share in machine.shares)


def memory(machine: Machine) -> list[str]:
    """Memory that virtiofsd can reach, when there is one; else QEMU's own."""
    if not by_virtiofs(machine):
        return []
    size = f"{machine.memory_bytes // MIB}M"
    return ["-object", f"memory-backend-memfd,id=memory,size={size},share=on"]


def extras(machine: Machine, given: Mapping[str, int]) -> list[str]:
    """The options of all of them. ``given`` are descriptors that QEMU inherits, by name; without, sockets by path."""
    arguments: list[str] = []
    for wanted, slot, name, more in (
        (machine.rng, Slot.RNG, "virtio-rng", {"id": "rng0"}),
        (machine.balloon, Slot.BALLOON, "virtio-balloon", {"id": "balloon0", "deflate-on-oom": True}),
    ):
        if wanted:
            arguments += ["-device", device(name, place_of(slot, machine.bus), more)]
    for index, share in enumerate(machine.shares):
        arguments += _share(machine, share, index, given)
    if machine.tpm:
        arguments += ["-chardev", _socket(TPM, given), "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
        arguments += ["-device", "tpm-tis-device,tpmdev=tpm0"]
    if machine.watchdog is not None:
        watchdog = {"driver": "i6300esb", **place_of(Slot.WATCHDOG, machine.bus), "id": "watchdog0"}
        arguments += ["-device", option(watchdog, first="driver"), "-action", f"watchdog={machine.watchdog.value}"]
    arguments += _screen(machine, given)
    if machine.usb_keyboard:
        usb = {"driver": "qemu-xhci", **place_of(Slot.USB, machine.bus), "id": "usb0"}
        arguments += ["-device", option(usb, first="driver"), "-device", "usb-kbd,bus=usb0.0"]
        if machine.graphics is not None:
            arguments += ["-device", "usb-tablet,bus=usb0.0"]
    if machine.vsock_cid is not None:
        vsock = {"id": "vsock0", "guest-cid": machine.vsock_cid}
        arguments += ["-device", device("vhost-vsock", place_of(Slot.VSOCK, machine.bus), vsock)]
    return arguments


def device(name: str, place: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> str:
    """The option of a virtio device at its place: on PCI, or at a virtio-mmio transport."""
    driver = f"{name}-pci" if "addr" in place else f"{name}-device"
    return option({"driver": driver, **place, **(more or {})}, first="driver")


def screen_socket(machine: Machine) -> Path | None:
    """Where the screen is shown: the socket that was asked for, or one in the machine's own folder.

    None when there is no screen, when it is on a TCP port, or when the machine has no folder.
    """
    if machine.graphics is None or machine.graphics.port is not None:
        return None
    if machine.graphics.socket is not None:
        return machine.graphics.socket.absolute()
    return None if machine.variables is None else machine.variables.path.absolute().parent / _VNC_SOCKET


def _share(machine: Machine, share: SharedFolder, index: int, given: Mapping[str, int]) -> list[str]:
    name = share_name(index)
    place = place_of_share(machine, index)
    if share.driver is ShareDriver.VIRTIOFS:
        by_virtiofsd = {"id": name, "chardev": name, "tag": share.tag}
        return ["-chardev", _socket(name, given), "-device", device("vhost-user-fs", place, by_virtiofsd)]
    # "none": what the guest owns and may do stays in the guest, new files are plain files of the user who runs QEMU.
    backend = {
        "fsdriver": "local",
        "id": name,
        "path": str(share.path.absolute()),
        "security_model": "none",
        "multidevs": "remap",
        **({"readonly": True} if share.read_only else {}),
    }
    by_9p = {"id": f"{name}-9p", "fsdev": name, "mount_tag": share.tag}
    return ["-fsdev", option(backend, first="fsdriver"), "-device", device("virtio-9p", place, by_9p)]


def _socket(name: str, given: Mapping[str, int]) -> str:
    """A socket to a companion program; in a command that is run by hand, one by its name in the current folder."""
    where = f"fd={given[name]}" if name in given else f"path={name}.sock"
    return f"socket,id={name},{where}"


def _screen(machine: Machine, given: Mapping[str, int]) -> list[str]:
    graphics = machine.graphics
    if graphics is None:
        return []
    arguments = ["-device", device("virtio-gpu", place_of(Slot.SCREEN, Bus.PCI), {"id": "screen0"})]
    if graphics.port is None:
        socket = screen_socket(machine) or Path("vnc.sock")
        return [*arguments, "-vnc", option({"vnc": f"unix:{socket}"}, first="vnc")]
    file = f"/dev/fd/{given[PASSWORD]}" if PASSWORD in given else _password_file(graphics)
    secret = {"object": "secret", "id": "vnc", "file": file}
    where = f"127.0.0.1:{graphics.port - FIRST_VNC_PORT}"
    return [*arguments, "-object", option(secret, first="object"), "-vnc", f"{where},password-secret=vnc"]


def _password_file(graphics: Graphics) -> str:
    return str((graphics.password_file or Path("vnc-password")).absolute())
