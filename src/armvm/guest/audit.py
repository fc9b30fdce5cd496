"""What is known of the guests on an image: how they boot, their kernels, their systems, what they take for granted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from armvm.disk.files import FileSystem
from armvm.disk.filesystems import open_files
from armvm.disk.storage import Disk
from armvm.disk.volumes import Volumes
from armvm.execution import ExecutionState
from armvm.guest.assumptions import Assumptions, find_assumptions
from armvm.guest.bootable import BootableKernel, KernelCache, load_kernel
from armvm.guest.bootchain import BootChain, find_boot
from armvm.guest.facts import BootEntry
from armvm.guest.system import GuestSystem, find_system, read_system
from armvm.image.contents import ImageContents

if TYPE_CHECKING:
    from armvm.guest.inspect import GuestFacts


class GuestAudit:
    """The guests on ``contents``, each part read when it is first asked for. The disk stays the caller's to close.

    ``states`` are the execution states whose guests count (default: all that the image boots).
    """

    def __init__(self, contents: ImageContents, states: Collection[ExecutionState] = ()) -> None:
        self.contents = contents
        self.volumes = Volumes(contents.disk, contents.table.partitions)
        self._states = states

    @cached_property
    def chain(self) -> BootChain:
        """From the removable path to every kernel."""
        return find_boot(self.contents, self.volumes, open_files=lambda disk, name: open_files(disk, name=name))

    @property
    def entries(self) -> tuple[BootEntry, ...]:
        """The ways in which the image starts a kernel of the states that count."""
        return tuple(entry for entry in self.chain.entries if not self._states or entry.state in self._states)

    def entries_for(self, state: ExecutionState | None) -> tuple[BootEntry, ...]:
        """Those of one execution state."""
        return tuple(entry for entry in self.entries if entry.state is state)

    @cached_property
    def systems(self) -> Mapping[ExecutionState | None, GuestSystem | None]:
        """The guest's root and what it mounts, by execution state: an image for both can hold two systems.

        Where nothing boots, the one system that is there stands under None.
        """
        states: tuple[ExecutionState | None, ...] = tuple({entry.state: entry for entry in self.entries}) or (None,)
        return {
            state: find_system(self.entries_for(state), self.volumes, open_subvolume=_open_subvolume)
            for state in states
        }

    @cached_property
    def kernels(self) -> tuple[BootableKernel, ...]:
        """What the entries start."""
        cache = KernelCache()
        boot = [volume.files for volume in self.volumes if volume.files is not None]
        loaded = []
        for entry in self.entries:
            system = self.systems[entry.state]
            root = system.files if system is not None else None
            loaded.append(load_kernel(entry, root=root, boot=boot, cache=cache))
        return tuple(loaded)

    @cached_property
    def installed(self) -> Mapping[ExecutionState | None, GuestSystem | None]:
        """As ``systems``; where a guest has no other root, its initial RAM disk is the system (an installer's)."""
        found = dict(self.systems)
        for entry, kernel in zip(self.entries, self.kernels, strict=True):
            if found[entry.state] is None and kernel.whole_system and kernel.initramfs is not None:
                found[entry.state] = read_system(kernel.initramfs, self.volumes, found_by="initial RAM disk")
        return found

    @cached_property
    def assumptions(self) -> Mapping[ExecutionState | None, Assumptions]:
        """What the guest of each execution state takes for granted, by the keys of ``systems``."""
        return {state: self._assumptions(state, system) for state, system in self.installed.items()}

    def facts(self) -> tuple[GuestFacts, ...]:
        """The facts about each guest, without verdicts."""
        from armvm.guest.inspect import guest_facts

        return tuple(guest_facts(system, self.entries_for(state)) for state, system in self.installed.items())

    def _assumptions(self, state: ExecutionState | None, system: GuestSystem | None) -> Assumptions:
        initrds = {
            id(kernel.initramfs): kernel.initramfs
            for entry, kernel in zip(self.entries, self.kernels, strict=True)
            if entry.state is state and kernel.initramfs is not None
        }
        return find_assumptions(system, self.entries_for(state), self.volumes, initrds=tuple(initrds.values()))


def _open_subvolume(disk: Disk, name: str, subvolume: str) -> FileSystem:
    return open_files(disk, name=name, subvolume=subvolume)
