"""What a nested host is made of, and what it can be asked: values and one protocol, for every hypervisor the same.

A host is an initial RAM disk over a kernel: files out of Debian's arm64 packages, armvm itself with Python, a few files
of our own. It is booted once under emulation, warmed, and frozen; every use resumes that. What is asked of it is a
``Task``: a command to be run inside, on an image that has been plugged in as a disk.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from armvm.execution import ExecutionState
from armvm.units import GIB

IMAGE_DISK = "/dev/armvm-image"
"""Inside a host: the image that was plugged in, as a block device that cannot be written to (a link to /dev/sdX)."""
PYTHON_FOLDER = "usr/lib/python3/dist-packages"
"""Where armvm stands inside a host: `python3 -m armvm …` runs it."""
PYTHON_PACKAGES = ("python3", "python3-lz4", "python3-zstandard", "python3-urllib3", "python3-yaml")
"""Debian's packages of what armvm is and stands on; every host has them, beside ``busybox-static``."""


class HostKind(enum.Enum):
    """A hypervisor that there is a nested host for; the values are the command line's words."""

    KVM = "kvm"
    XEN = "xen"


@dataclass(frozen=True, slots=True)
class HostFile:
    """A file of our own in a host's root: its content, and whether it is a program."""

    content: bytes
    program: bool = False


@dataclass(frozen=True, slots=True)
class HostFiles:
    """A built host on disk: the kernel, the initial RAM disk, and what else was taken out (``HostRecipe.beside``)."""

    kernel: Path
    initrd: Path
    beside: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class HostRecipe:
    """All that decides what a host will be. Equal recipes (and equal packages, and an equal armvm) give equal hosts.

    ``packages`` are Debian's, of ``release``, for arm64; they and what they depend on are extracted, never configured.
    ``kernel`` is the name of the kernel's package or metapackage among them.
    """

    kind: HostKind
    packages: tuple[str, ...]
    keep: tuple[str, ...]
    """Which of the packages' files go into the root: fnmatch patterns of paths without a leading slash (``*`` crosses
    slashes). What every host needs (shared libraries, Python, busybox) is kept besides: ``packages.KEPT``."""
    modules: tuple[str, ...]
    """Kernel modules that are loaded at boot, in this order, each after what it depends on; those that are built in are
    passed over. What every host needs (virtio, SCSI disks) is loaded besides: ``packages.MODULES``."""
    kept_modules: tuple[str, ...]
    """Kernel modules that are only to be there, below lib/modules, with what they depend on: for guests."""
    setup: str
    """Shell lines (busybox sh, run by /init as root with /proc, /sys, /dev, /tmp and /run mounted and the modules
    loaded) that make the hypervisor ready. A line that fails with ``fail "why"`` ends the boot with that reason."""
    warm: tuple[tuple[str, ...], ...]
    """Commands that are run once before the snapshot, so that what they load is in memory. They must succeed."""
    files: Mapping[str, HostFile] = field(default_factory=dict)
    """Files of our own, by path without a leading slash; one of a package under the same path gives way."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """What is taken out of the packages to stand beside the kernel, for ``arguments``: name → fnmatch pattern."""
    release: str = "bookworm"
    cpu: str = "cortex-a72"
    vcpus: int = 1
    """QEMU runs them in turns: more bring nothing."""
    memory_bytes: int = 3 * GIB
    boot_seconds: float = 1200.0
    """How long boot and warming may take together, on a slow machine."""


@dataclass(frozen=True, slots=True)
class GuestRequest:
    """An image that is to be booted by a host's hypervisor.

    ``format`` is the image's container as a hypervisor names it (``raw``, ``qcow2``). ``until`` is a regular expression
    that the guest's console is to say; without it the guest is to power off by itself.
    """

    image: Path
    format: str
    state: ExecutionState
    until: str | None = None
    timeout_seconds: float = 600.0
    memory_bytes: int = GIB
    sector_size: int = 512


@dataclass(frozen=True, slots=True)
class Task:
    """A command to be run inside a host. What it says on standard output is the guest's console, as it comes.

    ``timeout_seconds`` are the world's; inside, time goes slower where the emulation has to share the processor.
    ``collect`` names files inside the host that are wanted back when it has ended (each at most 16 MiB): name → path.
    Exit code 0: the guest did what was asked; 1: it did not (standard error says why); anything else: a fault.
    Standard error's lines come out as notes.
    """

    command: tuple[str, ...]
    timeout_seconds: float
    collect: Mapping[str, str] = field(default_factory=dict)


class LabHost(Protocol):
    """A nested host, as data: what it is made of, what it cannot do, and the commands that do the rest inside it.

    A host is one module beside ``kvm``; ``hosts.lab_host`` finds it. Everything here is pure.
    """

    @property
    def kind(self) -> HostKind:
        """Which one it is."""
        ...

    @property
    def states(self) -> tuple[ExecutionState, ...]:
        """The execution states that its guests can run in."""
        ...

    @property
    def required(self) -> tuple[str, ...]:
        """The requirements that an image must meet to boot on this hypervisor (``guest.virtio-pci``, ``guest.xen-pv``).

        Where a boot fails, these are looked at to say why.
        """
        ...

    def prepare(self, notes: Callable[[str], None]) -> None:
        """Make, once, what goes into it and no package holds; may take minutes, and says so.

        Raises MissingError for what that takes, InputError and ProgramError when it cannot be had.
        """
        ...

    def recipe(self) -> HostRecipe:
        """What it is made of. Raises MissingError when this machine lacks something that goes into it."""
        ...

    def arguments(self, files: HostFiles) -> tuple[str, ...]:
        """QEMU's arguments that boot it, after those that every host shares (``outer.machine_arguments``).

        The kernel's console is to be the pl011; the initial RAM disk's /init starts the agent.
        """
        ...

    def problems(self, request: GuestRequest) -> tuple[str, ...]:
        """Why this host cannot boot ``request``, one sentence each: said before anything is started."""
        ...

    def boot_task(self, request: GuestRequest) -> Task:
        """The task that boots ``request.image``, which is plugged in as ``IMAGE_DISK``."""
        ...

    def probe_problems(self, state: ExecutionState) -> tuple[str, ...]:
        """Why this host cannot run the probe in ``state``, one sentence each."""
        ...

    def probe_task(self, state: ExecutionState, *, profile: str, timeout_seconds: float) -> Task:
        """The task that judges the hypervisor with the probe. It is to collect ``report``: JSON, armvm.report/1.

        No image is plugged in.
        """
        ...
