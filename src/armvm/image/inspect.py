"""The facts about an image, without verdicts: container, partitions, file systems, boot programs, kernels."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from armvm.disk.filesystems import Content, detect_content
from armvm.disk.gpt_format import Partition, TableKind
from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.guid import ESP_TYPE, LINUX_DATA_TYPE, LINUX_ROOT_ARM64_TYPE, LINUX_ROOT_ARM_TYPE, XBOOTLDR_TYPE
from armvm.image.bootprogram import BootProgram
from armvm.image.contents import EfiProgram, Esp, ImageContents

PARTITION_TYPES = {
    ESP_TYPE: "EFI System Partition",
    XBOOTLDR_TYPE: "extended boot loader",
    LINUX_DATA_TYPE: "Linux file system",
    LINUX_ROOT_ARM64_TYPE: "Linux root (64-bit ARM)",
    LINUX_ROOT_ARM_TYPE: "Linux root (32-bit ARM)",
    UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"): "Linux swap",
    UUID("e6d6d379-f507-44c2-a23c-238f2a3df928"): "Linux LVM",
    UUID("a19d880f-05fc-4d3b-a006-743f0f84911e"): "Linux RAID",
    UUID("933ac7e1-2eb4-4f13-b844-0e14e2aef915"): "Linux home",
    UUID("21686148-6449-6e6f-744e-656564454649"): "BIOS boot",
    UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"): "Microsoft basic data",
}
_MOST_PROGRAMS = 256


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """A partition and what it holds; ``content`` is None when that is not recognised or cannot be read."""

    partition: Partition
    size_bytes: int
    content: Content | None

    @property
    def type_name(self) -> str:
        """Its type in words where it is well known, else its GUID."""
        return PARTITION_TYPES.get(self.partition.type_guid, str(self.partition.type_guid))


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """An EFI program on an ESP. ``boots`` is the execution state that starts it from the removable path."""

    partition: int
    path: str
    size_bytes: int
    state: ExecutionState | None
    boots: ExecutionState | None
    program: BootProgram | None


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Everything that can be said about an image at rest. Sizes are in bytes."""

    name: str
    format: str
    size_bytes: int
    sector_size: int
    table: TableKind
    disk_guid: UUID | None
    partitions: tuple[PartitionFacts, ...]
    programs: tuple[ProgramFacts, ...]
    notes: tuple[str, ...]
    """What could not be read, and why."""

    @property
    def os_name(self) -> str | None:
        """The operating system's name, where a unified kernel image says it."""
        return next((p.program.os_name for p in self.programs if p.program and p.program.os_name), None)


def inspect_image(disk: Disk, *, name: str | None = None) -> ImageFacts:
    """Gather the facts about ``disk``; what is broken becomes a note.

    Raises InputError when it cannot be read at all.
    """
    contents = ImageContents(disk)
    notes: list[str] = []
    partitions = tuple(_partition(contents, partition, notes) for partition in contents.table.partitions)
    programs: list[ProgramFacts] = []
    for esp in contents.esps:
        if esp.error is not None:
            notes.append(esp.error.message)
        try:
            programs += _programs(contents, esp)
        except InputError as error:
            notes.append(error.message)
    header = contents.table.header
    return ImageFacts(
        name=name or disk.name,
        format=disk.format,
        size_bytes=disk.size_bytes,
        sector_size=disk.sector_size,
        table=contents.table.kind,
        disk_guid=header.disk_guid if header else None,
        partitions=partitions,
        programs=tuple(programs),
        notes=tuple(notes),
    )


def _partition(contents: ImageContents, partition: Partition, notes: list[str]) -> PartitionFacts:
    content: Content | None = None
    try:
        content = detect_content(partition.slice(contents.disk))
    except InputError as error:
        notes.append(error.message)
    return PartitionFacts(partition, partition.size_bytes(contents.disk.sector_size), content)


def _programs(contents: ImageContents, esp: Esp) -> list[ProgramFacts]:
    found: list[ProgramFacts] = []
    for path, _ in contents.files(esp):
        if len(found) == _MOST_PROGRAMS:
            break
        boots = next((state for state in ExecutionState if state.removable_path == path.upper()), None)
        if boots is None and not path.lower().endswith(".efi"):
            continue
        program = contents.efi_program(esp, path)
        if program is not None:
            found.append(_facts(program, boots))
    return found


def _facts(program: EfiProgram, boots: ExecutionState | None) -> ProgramFacts:
    return ProgramFacts(
        partition=program.esp.partition.number,
        path=program.path,
        size_bytes=program.entry.size_bytes,
        state=program.pe.state if program.pe else None,
        boots=boots,
        program=program.program,
    )
