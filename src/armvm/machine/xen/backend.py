"""Xen as a backend: whether this host's control domain is at hand, and the start of what was planned."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.errors import MissingError, UsageError
from armvm.execution import ExecutionState
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.capabilities import Capabilities
from armvm.machine.definition import Machine, problems, require_sound
from armvm.machine.xen import config
from armvm.machine.xen.config import XenHost
from armvm.printable import printable
from armvm.process import require_program, run

if TYPE_CHECKING:
    from armvm.machine.xen.session import XenSession

_CAPABILITIES = Path("/proc/xen/capabilities")
_CONTROL = "control_d"
_MOST_CAPABILITIES_BYTES = 4096
_VERSION = Path("/sys/hypervisor/version")


@dataclass(frozen=True, slots=True)
class Xen:
    """The Xen that this host runs, seen from its control domain; ``host`` is how it connects its domains.

    ``firmware`` takes the place of the machine's own where that is QEMU's.
    """

    firmware: Path | None = None
    host: XenHost = field(default_factory=XenHost)
    name: str = "Xen"

    def capabilities(self) -> Capabilities:
        """What its domains can be."""
        if self.host.block_script is not None:
            return replace(config.CAPABILITIES, disk_formats=frozenset({"raw"}))
        return config.CAPABILITIES

    def problems(self, machine: Machine) -> tuple[str, ...]:
        """Why a domain of this Xen cannot be ``machine``, one sentence each."""
        return config.problems(machine, self.capabilities())

    def describe(self, machine: Machine) -> str:
        """The xl configuration that makes a domain be ``machine``, to be started by hand."""
        return config.render(self._with_firmware(machine), name="armvm", host=self.host)

    def start(self, machine: Machine, *, hold: Sequence[int] = ()) -> XenSession:
        """Start ``machine`` as a domain of a name of its own. It is gone when its session is, or this process.

        The descriptors ``hold`` stay open in the watchdog that sees to that. Raises UsageError for a machine that
        cannot be, MachineError with xl's words when it does not start.
        """
        require_sound(problems(machine) + self.problems(machine))
        from armvm.machine.xen.session import XenSession

        name = f"armvm-{secrets.token_hex(6)}"
        text = config.render(self._with_firmware(machine), name=name, host=self.host, standalone=False)
        return XenSession(name, text, self.host, first_free=len(machine.disks), hold=hold)

    def _with_firmware(self, machine: Machine) -> Machine:
        return machine if self.firmware is None else replace(machine, firmware=config.xen_firmware(self.firmware))


def find(_state: ExecutionState, *, accelerator: AcceleratorKind | None = None, cpu: str | None = None) -> Xen:
    """The Xen whose control domain this is; $ARMVM_XEN_FIRMWARE names the firmware of its domains.

    Raises UsageError for what Xen never has, MissingError elsewhere, or when xl or the firmware is not there.
    """
    if cpu is not None or accelerator is not None:
        raise UsageError("Xen runs its domains on the host's own CPU")
    require_control_domain()
    named = os.environ.get("ARMVM_XEN_FIRMWARE")
    place = Path(named) if named else config.FIRMWARE_PLACE
    if not place.is_file():
        raise MissingError(
            f"the UEFI firmware of Xen domains is not at {place}",
            component="xen-firmware",
            hint="`armvm lab up xen` builds EDK2's ArmVirtXen; name it in ARMVM_XEN_FIRMWARE",
        )
    return Xen(place)


def require_control_domain() -> None:
    """Raise MissingError when this is not the control domain of a Xen host, or xl is not installed."""
    try:
        said = _CAPABILITIES.read_text(encoding="ascii", errors="replace")[:_MOST_CAPABILITIES_BYTES]
    except OSError:
        said = ""
    if _CONTROL not in said:
        raise MissingError(
            "this is not the control domain of a Xen host",
            component="xen",
            hint="`armvm lab run xen IMAGE` boots an image on a Xen of its own, emulated where there is none",
        )
    require_program("xl")


def version() -> str:
    """The version of Xen that runs here. Raises MissingError elsewhere."""
    require_control_domain()
    said = run("xl", ["info", "xen_version"], timeout_seconds=60).stdout.decode(errors="replace")
    return f"Xen {printable(said.strip())}"
