"""Xen as a backend: whether this host's control domain is at hand, and the start of what was planned."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.errors import MissingError
from armvm.machine.definition import Machine, problems, require_sound
from armvm.machine.xen import config
from armvm.machine.xen.config import XenHost
from armvm.process import require_program

if TYPE_CHECKING:
    from armvm.machine.xen.session import XenSession

_CAPABILITIES = Path("/proc/xen/capabilities")
_CONTROL = "control_d"
_MOST_CAPABILITIES_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Xen:
    """The Xen that this host runs, seen from its control domain; ``host`` is how it connects its domains."""

    host: XenHost = field(default_factory=XenHost)

    def problems(self, machine: Machine) -> tuple[str, ...]:
        """Why a domain of this Xen cannot be ``machine``, one sentence each."""
        return config.problems(machine)

    def plan(self, machine: Machine, *, name: str) -> str:
        """The xl configuration that makes a domain be ``machine``."""
        return config.render(machine, name=name, host=self.host, standalone=False)

    def start(self, machine: Machine, *, hold: Sequence[int] = ()) -> XenSession:
        """Start ``machine`` as a domain of a name of its own. It is gone when its session is, or this process.

        The descriptors ``hold`` stay open in the watchdog that sees to that. Raises UsageError for a machine that
        cannot be, MachineError with xl's words when it does not start.
        """
        require_sound(problems(machine) + self.problems(machine))
        from armvm.machine.xen.session import XenSession

        name = f"armvm-{secrets.token_hex(6)}"
        return XenSession(name, self.plan(machine, name=name), hold=hold)


def find_xen(host: XenHost | None = None) -> Xen:
    """The Xen whose control domain this is. Raises MissingError elsewhere, or when xl is not installed."""
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
    return Xen(host or XenHost())
