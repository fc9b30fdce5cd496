"""Every hypervisor backend by its name; a module is loaded when it is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from armvm.errors import ArmvmError, UsageError
from armvm.execution import ExecutionState
from armvm.machine.accelerators import AcceleratorKind

if TYPE_CHECKING:
    from armvm.machine.backend import Backend

DEFAULT = "qemu"


@dataclass(frozen=True, slots=True)
class Entry:
    """One backend: ``module`` has a function ``find`` that is called as ``find_backend`` calls it, and ``version``.

    ``connects`` says that it takes the URI of a daemon.
    """

    module: str
    purpose: str
    connects: bool = False


BACKENDS: dict[str, Entry] = {
    DEFAULT: Entry("armvm.machine.qemu.backend", "QEMU itself"),
    "libvirt": Entry("armvm.machine.libvirt.backend", "QEMU by way of libvirt", connects=True),
    "xen": Entry("armvm.machine.xen.backend", "Xen, from its control domain"),
    "cloud-hypervisor": Entry("armvm.machine.cloud_hypervisor.backend", "Cloud Hypervisor, on ARM hosts with KVM"),
}


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a backend is there, and its version or what is missing. Nothing is started to find out."""

    name: str
    purpose: str
    available: bool
    detail: str


def find_backend(
    name: str,
    state: ExecutionState,
    *,
    accelerator: AcceleratorKind | None = None,
    cpu: str | None = None,
    uri: str | None = None,
) -> Backend:
    """The backend ``name`` for machines of ``state``, with ``accelerator`` or the fastest that this host has.

    ``uri`` is that of a daemon, for a backend that connects to one. Raises UsageError when there is none of that name,
    MissingError when it, or the accelerator, is not there.
    """
    entry = BACKENDS.get(name)
    if entry is None:
        raise UsageError(f"there is no backend {name!r}", hint=f"there are {', '.join(BACKENDS)}")
    if uri is not None and not entry.connects:
        raise UsageError(f"the backend {name} connects to nothing, and --connect says to what")
    more = {"uri": uri} if entry.connects else {}
    found: Backend = import_module(entry.module).find(state, accelerator=accelerator, cpu=cpu, **more)
    return found


def survey() -> tuple[Availability, ...]:
    """Every backend, and whether it is there."""
    found = []
    for name, entry in BACKENDS.items():
        try:
            detail, available = str(import_module(entry.module).version()), True
        except ArmvmError as error:
            detail, available = error.message, False
        except OSError as error:  # a file of that name that is no program
            detail, available = f"cannot be run: {error.strerror}", False
        found.append(Availability(name, entry.purpose, available, detail))
    return tuple(found)
