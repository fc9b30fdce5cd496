"""The devices of a Machine as values: what the guest sees, and what of this host stands behind it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path


class Writes(enum.Enum):
    """What becomes of what the guest writes to a disk."""

    KEPT = "kept"
    DISCARDED = "discarded"
    """The guest can write, and what it wrote is gone when the VM ends."""
    REFUSED = "refused"


class DiskInterface(enum.Enum):
    """How a disk is attached; the specification asks for virtio-blk at least."""

    VIRTIO_BLK = "virtio-blk"
    VIRTIO_SCSI = "virtio-scsi"
    NVME = "nvme"


class DiskCache(enum.Enum):
    """How the host's page cache is used; the names are those of QEMU's ``cache`` option."""

    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"
    NONE = "none"
    UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True)
class DiskDevice:
    """A disk of the machine: an image, its format (as QEMU spells it), and how the guest sees it.

    ``name`` is what it is detached by (default: disk and its place in the machine); ``port`` the number of the hotplug
    port that it sits in, or of its unit behind the SCSI controller, None for a place of its own. ``discard`` hands on
    to the image what the guest trims.
    """

    path: Path
    format: str
    sector_size: int = 512
    writes: Writes = Writes.DISCARDED
    interface: DiskInterface = DiskInterface.VIRTIO_BLK
    serial: str | None = None
    cache: DiskCache = DiskCache.WRITEBACK
    discard: bool = True
    name: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class PortForward:
    """A TCP port of this host, on its loopback address only, that leads to a port of the guest."""

    host_port: int
    guest_port: int


@dataclass(frozen=True, slots=True)
class UserNetwork:
    """A network card behind user-mode NAT: the guest reaches out, and only ``forwards`` lead in.

    ``mac``, ``name`` and ``port`` of every card: its address (None: the hypervisor's choice), what it is detached by
    (default: net and its place in the machine), and the number of the hotplug port that it sits in.
    """

    forwards: tuple[PortForward, ...] = ()
    mac: str | None = None
    name: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class TapNetwork:
    """A network card on a tap device of this host that is there already and belongs to the user."""

    interface: str
    mac: str | None = None
    name: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class BridgeNetwork:
    """A network card on a bridge of this host, by way of QEMU's setuid program qemu-bridge-helper."""

    bridge: str
    mac: str | None = None
    name: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class LinkNetwork:
    """One end (0 or 1) of a cable between two instances: a pair of sockets in ``folder``, named 0 and 1."""

    folder: Path
    end: int
    mac: str | None = None
    name: str | None = None
    port: int | None = None


Nic = UserNetwork | TapNetwork | BridgeNetwork | LinkNetwork


class ShareDriver(enum.Enum):
    """How a folder is shared. AUTO is virtiofs where this host has virtiofsd, else 9p."""

    AUTO = "auto"
    VIRTIOFS = "virtiofs"
    NINE_P = "9p"


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """A folder of this host that the guest mounts by its ``tag``."""

    path: Path
    tag: str
    read_only: bool = False
    driver: ShareDriver = ShareDriver.AUTO


class WatchdogAction(enum.Enum):
    """What happens when the guest does not feed its watchdog; the names are QEMU's."""

    RESET = "reset"
    POWER_OFF = "poweroff"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Graphics:
    """A screen, shown over VNC: on a unix socket (``port`` None), or a TCP port of the loopback address.

    On TCP a password is asked for; it stands in ``password_file`` and nowhere else.
    """

    socket: Path | None = None
    port: int | None = None
    password_file: Path | None = None
