"""Stand-ins for what the audit of a guest reads: a folder as a file system, volumes, boot entries of a GRUB menu."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from armvm.disk.files import BaseFileSystem, FileEntry, FileKind, FileSystem, MemoryFileSystem, join
from armvm.disk.filesystems import Content
from armvm.disk.gpt_format import Partition
from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import ArmvmError
from armvm.execution import ExecutionState
from armvm.guest.facts import BootEntry, PlacedFile, PlacedLine
from armvm.guid import LINUX_DATA_TYPE


class FolderFileSystem(BaseFileSystem):
    """A folder of this machine as the file system of a guest."""

    def __init__(self, folder: Path, *, name: str = "partition 2") -> None:
        super().__init__(name, "ext4")
        self._folder = folder

    def _root(self) -> FileEntry:
        return FileEntry("/", FileKind.FOLDER)

    def _list(self, folder: FileEntry) -> Iterable[FileEntry]:
        return [self._entry(path) for path in self._real(folder.path).iterdir()]

    def _child(self, folder: FileEntry, name: str) -> FileEntry | None:
        path = self._real(folder.path) / name
        return self._entry(path) if path.is_symlink() or path.exists() else None

    def _open(self, entry: FileEntry) -> Disk:
        return MemoryDisk(self._real(entry.path).read_bytes(), name=f"{self.name}, {entry.path}")

    def _real(self, path: str) -> Path:
        return self._folder / path.lstrip("/")

    def _entry(self, path: Path) -> FileEntry:
        place = join(path.relative_to(self._folder).as_posix())
        if path.is_symlink():
            return FileEntry(place, FileKind.LINK, link_target=path.readlink().as_posix())
        if path.is_dir():
            return FileEntry(place, FileKind.FOLDER)
        return FileEntry(place, FileKind.FILE, path.stat().st_size)


@dataclass(frozen=True)
class StandInVolume:
    """A volume with a file system, or without."""

    name: str
    partition: Partition | None = None
    content: Content | None = None
    files: FileSystem | None = None
    problem: ArmvmError | None = None
    disk: Disk = field(default_factory=lambda: MemoryDisk(b""))
    mapped_name: str | None = None


@dataclass(frozen=True)
class StandInVolumes:
    """The volumes of an image."""

    volumes: tuple[StandInVolume, ...] = ()

    def __iter__(self) -> Iterator[StandInVolume]:
        return iter(self.volumes)

    def find(
        self,
        *,
        uuid: str | None = None,
        label: str | None = None,
        partuuid: str | None = None,
        partlabel: str | None = None,
    ) -> StandInVolume | None:
        for each in self.volumes:
            content, partition = each.content, each.partition
            if content is not None and ((uuid and content.uuid == uuid) or (label and content.label == label)):
                return each
            if partition is not None and (
                (partuuid and str(partition.unique_guid) == partuuid) or (partlabel and partition.name == partlabel)
            ):
                return each
        return None


def volume(
    number: int,
    kind: str | None = "ext4",
    *,
    uuid: str | None = None,
    label: str | None = None,
    files: FileSystem | None = None,
    type_guid: UUID = LINUX_DATA_TYPE,
) -> StandInVolume:
    """Partition ``number``; its GUID ends in that number."""
    partition = Partition(number, type_guid, UUID(int=number), 2048 * number, 2048 * number + 2047, name=f"p{number}")
    content = Content(kind, label, uuid) if kind is not None else None
    return StandInVolume(f"partition {number}", partition, content, files)


def boot_entry(
    command_line: str | None,
    *,
    initrd: bool = True,
    line: PlacedLine | None = None,
    default: bool = True,
    placed: bool = True,
) -> BootEntry:
    """An entry that starts a kernel so; with ``placed``, a line of a GRUB menu says it."""
    if line is None and placed and command_line is not None:
        menu = PlacedFile(MemoryFileSystem({}, name="partition 2"), "/boot/grub/grub.cfg")
        line = PlacedLine(menu, 7, f"\tlinux\t/boot/vmlinuz {command_line}")
    return BootEntry(
        title="Linux",
        state=ExecutionState.AARCH64,
        kernel=MemoryDisk(b"kernel"),
        kernel_where="partition 2, /boot/vmlinuz",
        initrds=(("partition 2, /boot/initrd.img", MemoryDisk(b"")),) if initrd else (),
        command_line=command_line,
        source=line,
        default=default,
    )


def menu_entries(files: FileSystem, path: str = "/boot/grub/grub.cfg") -> tuple[BootEntry, ...]:
    """The entries of a simple GRUB menu: every ``linux`` line is one."""
    place = PlacedFile(files, path)
    found: list[BootEntry] = []
    for number, text in enumerate(files.read(path).decode().splitlines(), start=1):
        line = re.fullmatch(r"\s*linux\s+\S+\s*(.*)", text)
        if line is not None:
            found.append(boot_entry(line[1], line=PlacedLine(place, number, text), default=not found))
    return tuple(found)
