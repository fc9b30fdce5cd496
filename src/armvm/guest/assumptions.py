"""Everything that a guest takes for granted: what its command lines, mounts, consoles and network assume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from armvm.disk.files import FileSystem
from armvm.guest.assumptions_boot import entry_assumptions, initrd_assumptions, source_assumptions
from armvm.guest.devices import Disks, Volume, Volumes
from armvm.guest.facts import Assumption, AssumptionKind, BootEntry
from armvm.guest.mounted import GuestFiles, GuestText
from armvm.guest.system import GuestSystem
from armvm.printable import printable
from armvm.spec.verdict import Evidence

_MOST_ASSUMPTIONS = 500
_MOST_INITRDS = 16


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What was found, each once; and what could not be looked into, with the reason."""

    found: tuple[Assumption, ...]
    unread: tuple[Evidence, ...] = ()

    @property
    def serious(self) -> tuple[Assumption, ...]:
        """Those that break the requirement."""
        return tuple(each for each in self.found if each.serious)


def find_assumptions(
    system: GuestSystem | None,
    entries: Sequence[BootEntry],
    volumes: Volumes,
    *,
    initrds: Sequence[FileSystem] = (),
) -> Assumptions:
    """Look through the guest ``system`` and the boot ``entries`` that start it.

    ``initrds`` are the entries' initial RAM disks, unpacked, under names that evidence can use.
    """
    disks = Disks(volumes, system.root if system is not None else None)
    found, untold = entry_assumptions(entries, disks)
    every, unread = list(found), list(untold)
    for files in initrds[:_MOST_INITRDS]:
        inside = GuestText(GuestFiles(files))
        every += initrd_assumptions(inside, disks)
        unread += inside.unread
    if system is not None:
        from armvm.guest.assumptions_login import login_assumptions
        from armvm.guest.assumptions_mounts import crypttab_assumptions, fstab_assumptions, unit_assumptions
        from armvm.guest.assumptions_network import network_assumptions

        text = GuestText(system.files)
        every += source_assumptions(text, disks)
        every += fstab_assumptions(system.fstab, disks)
        every += crypttab_assumptions(text, disks)
        every += unit_assumptions(text, disks)
        every += login_assumptions(text, system)
        every += network_assumptions(text, entries)
        unread += [*system.unread, *text.unread]
    else:
        unread += [_unread(volume) for volume in volumes if volume.problem is not None and not _is_swap(volume)]
    once: dict[tuple[AssumptionKind, str, str], Assumption] = {}
    for each in every:
        once.setdefault((each.kind, each.where, each.found), each)
    return Assumptions(tuple(once.values())[:_MOST_ASSUMPTIONS], tuple(dict.fromkeys(unread)))


def _is_swap(volume: Volume) -> bool:
    return volume.content is not None and volume.content.kind == "swap"


def _unread(volume: Volume) -> Evidence:
    """A volume that may be the root, and why it cannot be read."""
    problem = volume.problem
    hint = f" ({problem.hint})" if problem is not None and problem.hint else ""
    return Evidence(volume.name, printable(f"{problem.message if problem is not None else 'unreadable'}{hint}"))
