"""The facts about an image's guest, without verdicts: which system, its boot loader, kernels and command lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from armvm.execution import ExecutionState
from armvm.guest.facts import BootEntry
from armvm.guest.system import GuestSystem, OsRelease
from armvm.spec.verdict import Evidence


@dataclass(frozen=True, slots=True)
class BootFacts:
    """One way to start a kernel, as far as it can be told."""

    title: str
    state: ExecutionState
    kernel: str
    initrds: tuple[str, ...]
    command_line: str | None
    default: bool


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """What is known of the guest. ``bootloader`` is the first program that leads to a kernel, and where it stands."""

    os: OsRelease | None
    hostname: str | None
    root: str | None
    """Which file system is the root, and how that was told."""
    bootloader: Evidence | None
    boots: tuple[BootFacts, ...]
    mounts: tuple[tuple[str, str], ...] = ()

    @property
    def kernels(self) -> tuple[str, ...]:
        """Where the kernels stand, each once."""
        return tuple(dict.fromkeys(boot.kernel for boot in self.boots))


def guest_facts(system: GuestSystem | None, entries: Sequence[BootEntry]) -> GuestFacts:
    """Gather the facts from what the audit has read."""
    steps = [entry.steps[0] for entry in entries if entry.steps]
    return GuestFacts(
        os=system.os if system is not None else None,
        hostname=system.hostname if system is not None else None,
        root=f"{system.files.name} ({system.files.kind}), by {system.found_by}" if system is not None else None,
        bootloader=steps[0] if steps else None,
        boots=tuple(
            BootFacts(
                entry.title,
                entry.state,
                entry.kernel_where,
                tuple(where for where, _ in entry.initrds),
                entry.command_line,
                entry.default,
            )
            for entry in entries
        ),
        mounts=tuple((place, volume.name) for place, volume in system.mounts) if system is not None else (),
    )
