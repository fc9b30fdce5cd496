"""What stands on a disk image: its partition table, its ESPs, its boot programs. Read once, shared by all that look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from armvm.disk.fat import FatEntry, FatVolume
from armvm.disk.gpt import read_partition_table
from armvm.disk.gpt_format import Partition
from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.spec.verdict import Problem

if TYPE_CHECKING:
    from armvm.image.bootprogram import BootProgram
    from armvm.image.pe import PeImage

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Esp:
    """An EFI System Partition; ``volume`` is None when it cannot be read as FAT, and ``error`` then says why."""

    partition: Partition
    volume: FatVolume | None
    error: InputError | None = None

    @property
    def where(self) -> str:
        """How evidence calls it."""
        return f"partition {self.partition.number}"


@dataclass(frozen=True, slots=True)
class EfiProgram:
    """A file on an ESP that should be an EFI program.

    ``content`` is None when the file system does not give it out, ``pe`` and ``program`` when it is no EFI program;
    ``error`` then says why.
    """

    esp: Esp
    volume: FatVolume
    path: str
    entry: FatEntry
    content: Disk | None
    pe: PeImage | None = None
    program: BootProgram | None = None
    error: InputError | None = None

    @property
    def where(self) -> str:
        r"""Partition and path, as evidence has it: ``partition 1, \EFI\BOOT\BOOTAA64.EFI``."""
        return f"{self.esp.where}, {self.path}"


class ImageContents:
    """A disk image's contents, each part read when it is first asked for. The disk stays the caller's to close."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.table = read_partition_table(disk)
        self._volume_problems: dict[int, tuple[Problem, ...]] = {}

    @cached_property
    def esps(self) -> tuple[Esp, ...]:
        """The EFI System Partitions that the GPT names, in its order."""
        return tuple(self._esp(partition) for partition in self.table.partitions if partition.is_esp)

    @property
    def bootable_states(self) -> tuple[ExecutionState, ...]:
        """The execution states that have a file at the removable-media path; what kind of file, nobody looked.

        Raises InputError when there is none, and a folder on the way could not be read.
        """
        return tuple(self._at_removable_paths(self._boot_file))

    @cached_property
    def boot_programs(self) -> dict[ExecutionState, EfiProgram]:
        """What stands at the removable-media path, by execution state; of several ESPs, the first that has it.

        Raises InputError when there is none, and a folder on the way could not be read: then nobody knows.
        """
        return self._at_removable_paths(self.efi_program)

    def efi_program(self, esp: Esp, path: str) -> EfiProgram | None:
        """The program at ``path`` on ``esp``; None when there is no such file.

        Raises InputError when a folder on the way cannot be read.
        """
        entry = self._boot_file(esp, path)
        if esp.volume is None or entry is None:
            return None
        from armvm.image.bootprogram import identify
        from armvm.image.pe import parse_pe

        try:
            content = esp.volume.open(entry)
            content.read(0, min(1, entry.size_bytes))
        except InputError as error:
            return EfiProgram(esp, esp.volume, path, entry, None, error=error)
        try:
            pe = parse_pe(content)
            return EfiProgram(esp, esp.volume, path, entry, content, pe, identify(pe, content))
        except InputError as error:
            return EfiProgram(esp, esp.volume, path, entry, content, error=error)

    def _boot_file(self, esp: Esp, path: str) -> FatEntry | None:
        entry = esp.volume.lookup(path) if esp.volume is not None else None
        return None if entry is None or entry.is_directory else entry

    def _at_removable_paths(self, look: Callable[[Esp, str], _T | None]) -> dict[ExecutionState, _T]:
        found: dict[ExecutionState, _T] = {}
        unreadable: InputError | None = None
        for state in ExecutionState:
            for esp in self.esps:
                try:
                    thing = look(esp, state.removable_path)
                except InputError as error:
                    unreadable = unreadable or error
                    continue
                if thing is not None:
                    found[state] = thing
                    break
        if unreadable is not None and not found:
            raise unreadable
        return found

    def volume_problems(self, esp: Esp) -> tuple[Problem, ...]:
        """Everything wrong with the file system on ``esp``."""
        if esp.volume is None:
            return ()
        if esp.partition.number not in self._volume_problems:
            from armvm.disk.fat_verify import verify

            self._volume_problems[esp.partition.number] = verify(esp.volume, first_lba=esp.partition.first_lba)
        return self._volume_problems[esp.partition.number]

    def files(self, esp: Esp) -> Iterator[tuple[str, FatEntry]]:
        r"""Every file (no folder) on ``esp`` with its path (``\``-separated). Raises InputError where unreadable."""
        if esp.volume is None:
            return
        for path, entry in esp.volume.walk():
            if not entry.is_directory:
                yield path.replace("/", "\\"), entry

    def _esp(self, partition: Partition) -> Esp:
        try:
            return Esp(partition, FatVolume(partition.slice(self.disk)))
        except InputError as error:
            return Esp(partition, None, error)


def bootable_state(disk: Disk) -> ExecutionState:
    """The execution state that the image has a boot program for, AArch64 first. Raises InputError when for none."""
    for state in ImageContents(disk).bootable_states:
        return state
    paths = " and no ".join(state.removable_path for state in ExecutionState)
    raise InputError(
        f"nothing to boot: there is no {paths} on an EFI System Partition",
        subject=disk.name,
        hint="`armvm check` says what is missing; --arch boots it all the same",
    )
