"""GRUB's names of devices and files, and what they stand for on the image (GRUB manual §11, §12).

The image is taken for GRUB's first disk, ``hd0``: a VM that boots it may have others, and configurations that name a
disk by its number rely on that.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from armvm.disk.files import FileEntry, FileKind, FileSystem, join
from armvm.errors import InputError
from armvm.guest.facts import PlacedFile
from armvm.guest.volume_source import BootVolume, VolumeSource, hidden_in, why_unreadable
from armvm.printable import printable

MEMDISK = "memdisk"
_DISK_PART = re.compile(r"hd(\d{1,4})(?:,(?:gpt|msdos)?(\d{1,5}))?")
_MOST_SHOWN = 6


class SearchKind(enum.Enum):
    """What ``search`` goes by."""

    UUID = "UUID"
    LABEL = "label"
    FILE = "file"
    PARTUUID = "partition UUID"


class Absent(enum.Enum):
    """Why there is no answer."""

    MISSING = "not on the image"
    UNTOLD = "cannot be told"


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A device or file that could not be had. ``reason`` is for evidence, ``expected`` what would have been right."""

    absent: Absent
    reason: str
    expected: str | None = None


@runtime_checkable
class _HasSubvolumes(Protocol):
    def subvolume(self, path: str) -> FileSystem: ...


class Devices:
    """The devices that GRUB sees. ``memdisk`` is what it carries inside, None without; or why that cannot be read."""

    def __init__(self, volumes: VolumeSource, memdisk: FileSystem | NoAnswer | None = None) -> None:
        self.volumes = tuple(volumes)
        self.memdisk = memdisk
        self._hidden: tuple[BootVolume, ...] | None = None

    @property
    def hidden(self) -> tuple[BootVolume, ...]:
        """The volumes that may hold file systems which are not seen."""
        if self._hidden is None:
            self._hidden = hidden_in(self.volumes)
        return self._hidden

    def name_of(self, volume: BootVolume) -> str:
        """GRUB's name of a volume, without parentheses."""
        if volume.partition is not None:
            return f"hd0,gpt{volume.partition.number}"
        if volume.mapped_name is not None:
            return f"lvm/{volume.mapped_name}"
        return f"volume/{volume.name}"

    def find(self, name: str) -> BootVolume | None:
        """The volume that GRUB calls ``name``."""
        part = _DISK_PART.fullmatch(name)
        if part is not None and int(part[1]) == 0 and part[2] is not None:
            number = int(part[2])
            return next((v for v in self.volumes if v.partition is not None and v.partition.number == number), None)
        return next((volume for volume in self.volumes if self.name_of(volume) == name), None)

    def files(self, name: str, *, top_level: bool = True) -> FileSystem | NoAnswer:
        """The file system of a device; of a btrfs with ``top_level`` not its default subvolume but the whole tree."""
        if name == MEMDISK:
            return self.memdisk or NoAnswer(Absent.MISSING, "the GRUB program has no memory disk")
        volume = self.find(name)
        if volume is None:
            return self._no_device(name)
        if volume.files is None:
            return NoAnswer(Absent.UNTOLD, f"{volume.name} cannot be read: {why_unreadable(volume)}")
        if top_level and volume.files.kind == "btrfs" and isinstance(volume.files, _HasSubvolumes):
            try:
                return volume.files.subvolume("/")
            except InputError as error:
                return NoAnswer(Absent.UNTOLD, printable(error.message))
        return volume.files

    def lookup(self, name: str, path: str, *, top_level: bool = True) -> tuple[FileSystem, FileEntry] | NoAnswer:
        """What stands at ``path`` on a device."""
        files = self.files(name, top_level=top_level)
        if isinstance(files, NoAnswer):
            return files
        try:
            entry = files.lookup(path)
        except InputError as error:
            return NoAnswer(Absent.UNTOLD, printable(error.message))
        if entry is None:
            return NoAnswer(Absent.MISSING, f"{files.name} has no {printable(join(path))}")
        return files, entry

    def search(self, kind: SearchKind, value: str) -> str | NoAnswer:
        """The name of the first device that has ``value``."""
        unread: list[BootVolume] = list(self.hidden)
        for volume in self.volumes:
            answer = self._has(volume, kind, value)
            if answer is True:
                return self.name_of(volume)
            if answer is None:
                unread.append(volume)
        shown = printable(value)
        if unread:
            why = f"{unread[0].name}: {why_unreadable(unread[0])}"
            return NoAnswer(Absent.UNTOLD, f"the file system with the {kind.value} {shown} may be one not read ({why})")
        if kind is SearchKind.FILE:
            return NoAnswer(Absent.MISSING, f"no file system on the image has the file {shown}")
        return NoAnswer(
            Absent.MISSING, f"no file system on the image has the {kind.value} {shown}", self._alternatives(kind)
        )

    def _has(self, volume: BootVolume, kind: SearchKind, value: str) -> bool | None:
        if kind is SearchKind.PARTUUID:
            return volume.partition is not None and str(volume.partition.unique_guid) == value.lower()
        if kind is SearchKind.FILE:
            return self._has_file(volume, value)
        content = volume.content
        if content is None:
            return False
        if kind is SearchKind.UUID:
            return content.uuid is not None and content.uuid.lower() == value.lower()
        return content.label == value

    def _has_file(self, volume: BootVolume, path: str) -> bool | None:
        found = self.lookup(self.name_of(volume), path)
        if isinstance(found, NoAnswer):
            is_file_system = volume.content is not None and volume.content.kind != "swap"
            return None if found.absent is Absent.UNTOLD and is_file_system and volume not in self.hidden else False
        return found[1].kind is FileKind.FILE

    def _alternatives(self, kind: SearchKind) -> str | None:
        seen = []
        for volume in self.volumes:
            content = volume.content
            has: str | None
            if kind is SearchKind.PARTUUID:
                has = str(volume.partition.unique_guid) if volume.partition else None
            elif content is None:
                continue
            else:
                has = content.uuid if kind is SearchKind.UUID else content.label
            if has:
                seen.append(f"{volume.name} has {printable(has)}")
        return "; ".join(seen[:_MOST_SHOWN]) or None

    def _no_device(self, name: str) -> NoAnswer:
        shown = printable(name)
        if name.startswith(("crypto", "lvm", "md", "zfs", "loop")) and self.hidden:
            return NoAnswer(Absent.UNTOLD, f"({shown}) is on a volume that is not read ({self.hidden[0].name})")
        if name.startswith(("lvmid/", "mduuid/", "cryptouuid/", "loop")):
            return NoAnswer(Absent.UNTOLD, f"what ({shown}) is cannot be told here")
        if not name:
            return NoAnswer(Absent.MISSING, "no device is given, and root is not set")
        return NoAnswer(Absent.MISSING, f"there is no device ({shown}) on the image")


def split_path(path: str) -> tuple[str | None, str]:
    """A GRUB file name as (device, path): ``(hd0,gpt2)/boot`` → ``hd0,gpt2`` and ``/boot``; without device: None."""
    if path.startswith("("):
        device, closed, rest = path[1:].partition(")")
        if closed:
            return device, rest
    return None, path


def placed(found: tuple[FileSystem, FileEntry]) -> PlacedFile:
    """The file as the other rooms take it."""
    return PlacedFile(found[0], found[1].path)
