"""Which of an image's file systems is the guest's root, what is mounted into it, and which system it is.

Sources: os-release(5), fstab(5), the Discoverable Partitions Specification, Linux Documentation/admin-guide
(kernel-parameters: root=, rootflags=).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from armvm.disk.files import FileSystem, join
from armvm.disk.storage import Disk
from armvm.errors import ArmvmError, InputError
from armvm.execution import ExecutionState
from armvm.guest.command_line import option_value
from armvm.guest.devices import Naming, Volume, Volumes, find_device, parse_device
from armvm.guest.facts import BootEntry, PlacedLine
from armvm.guest.mounted import GuestFiles, GuestText
from armvm.guid import LINUX_ROOT_ARM64_TYPE, LINUX_ROOT_ARM_TYPE
from armvm.printable import printable
from armvm.spec.verdict import Evidence

OpenSubvolume = Callable[[Disk, str, str], FileSystem]
"""Opens a btrfs subvolume: takes the volume's disk, the name that evidence calls it, and the subvolume's path."""

_ROOT_TYPES = {
    LINUX_ROOT_ARM64_TYPE: ExecutionState.AARCH64,
    LINUX_ROOT_ARM_TYPE: ExecutionState.AARCH32,
}
_SIGNS = ("/etc/os-release", "/usr/lib/os-release", "/sbin/init", "/usr/sbin/init", "/etc/fstab")
_MOUNTED = ("/boot", "/usr", "/boot/efi", "/efi", "/etc", "/var")
_MOST_FSTAB_LINES = 1000
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class OsRelease:
    """What a system says of itself in os-release(5)."""

    name: str
    version: str | None = None
    id: str | None = None
    pretty_name: str | None = None
    id_like: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name for people."""
        return self.pretty_name or " ".join(filter(None, (self.name, self.version)))


@dataclass(frozen=True, slots=True)
class FstabEntry:
    """A line of fstab(5) that mounts something or swaps to it."""

    line: PlacedLine
    source: str
    mount_point: str
    kind: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GuestSystem:
    """The operating system on an image.

    ``files`` shows its files as it does itself once it runs. ``root`` is None where no volume of the image holds it as
    it is (a test's tree). ``mounts`` are the volumes mounted below the root. ``unread`` is what could not be read.
    """

    files: GuestFiles
    root: Volume | None
    found_by: str
    """How it was told which one the root is."""
    os: OsRelease | None = None
    hostname: str | None = None
    fstab: tuple[FstabEntry, ...] = ()
    mounts: tuple[tuple[str, Volume], ...] = ()
    unread: tuple[Evidence, ...] = ()

    @property
    def init(self) -> str | None:
        """The path of its init with all links followed; None when it has none."""
        text = GuestText(self.files)
        return text.true_path("/sbin/init") or text.true_path("/usr/lib/systemd/systemd")

    @property
    def runs_systemd(self) -> bool:
        """Whether its init is systemd."""
        return "systemd" in (self.init or "")


def find_system(
    entries: Sequence[BootEntry], volumes: Volumes, *, open_subvolume: OpenSubvolume | None = None
) -> GuestSystem | None:
    """The system that ``entries`` start, or else the one that ``volumes`` hold; None when no root can be read.

    The root is what root= names (the default entry's first), else the partition whose type says so, else the only
    file system that looks like one.
    """
    for volume, entry, how in _candidates(entries, volumes):
        files = _files(volume, _subvolume(entry), open_subvolume)
        if files is not None and _looks_like_root(files):
            return read_system(files, volumes, root=volume, found_by=how, open_subvolume=open_subvolume)
    return None


def read_system(
    root_files: FileSystem,
    volumes: Volumes,
    *,
    root: Volume | None = None,
    found_by: str = "given",
    open_subvolume: OpenSubvolume | None = None,
) -> GuestSystem:
    """The system whose root is ``root_files``, with what its fstab mounts from ``volumes``."""
    plain = GuestText(GuestFiles(root_files))
    fstab = parse_fstab(plain.lines("/etc/fstab"))
    mounted: dict[str, FileSystem] = {}
    mounts: list[tuple[str, Volume]] = []
    unread = list(plain.unread)
    for each in fstab:
        place = join(each.mount_point)
        if place not in _MOUNTED or place in mounted:
            continue
        volume = find_device(parse_device(each.source), volumes)
        if volume is None:
            continue
        subvolume = next((o.partition("=")[2] for o in each.options if o.startswith("subvol=")), None)
        files = _files(volume, subvolume, open_subvolume)
        if files is None:
            why = printable(volume.problem.message) if volume.problem else "no file system that can be read"
            unread.append(Evidence(f"{volume.name}, {place}", why))
            continue
        mounted[place] = files
        mounts.append((place, volume))
    text = GuestText(GuestFiles(root_files, mounted))
    return GuestSystem(
        files=text.files,
        root=root,
        found_by=found_by,
        os=parse_os_release(text.lines("/etc/os-release") or text.lines("/usr/lib/os-release")),
        hostname=_first_word(text.lines("/etc/hostname")),
        fstab=fstab,
        mounts=tuple(mounts),
        unread=(*unread, *text.unread),
    )


def parse_os_release(lines: Sequence[PlacedLine]) -> OsRelease | None:
    """What os-release(5) says; None when it says no name."""
    values: dict[str, str] = {}
    for line in lines[:200]:
        key, equals, value = line.text.strip().partition("=")
        if equals and not key.startswith("#"):
            values[key] = re.sub(r"\\(.)", r"\1", _unquoted(value.strip()))[:200]
    name = values.get("NAME") or values.get("PRETTY_NAME") or values.get("ID")
    if not name:
        return None
    return OsRelease(
        name=name,
        version=values.get("VERSION") or values.get("VERSION_ID") or None,
        id=values.get("ID") or None,
        pretty_name=values.get("PRETTY_NAME") or None,
        id_like=tuple(values.get("ID_LIKE", "").split()),
    )


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]
    return value[1:-1] if quoted else value


def parse_fstab(lines: Sequence[PlacedLine]) -> tuple[FstabEntry, ...]:
    """The entries of fstab(5); lines that are none are left out."""
    found = []
    for line in lines[:_MOST_FSTAB_LINES]:
        fields = [_OCTAL.sub(lambda octal: chr(int(octal[1], 8)), field) for field in line.text.split()]
        if len(fields) < 2 or fields[0].startswith("#"):
            continue
        options = tuple(fields[3].split(",")) if len(fields) > 3 else ()
        found.append(FstabEntry(line, fields[0], fields[1], fields[2] if len(fields) > 2 else "auto", options))
    return tuple(found)


def _candidates(entries: Sequence[BootEntry], volumes: Volumes) -> Iterator[tuple[Volume, BootEntry | None, str]]:
    """The volumes that may be the root, the likeliest first; with the boot entry that says so."""
    ordered = sorted(entries, key=lambda entry: not entry.default)
    for entry in ordered:
        value = option_value(entry.command_line or "", "root")
        name = parse_device(value, kernel=True) if value else None
        volume = find_device(name, volumes) if name is not None else None
        if name is not None and volume is not None:
            guess = ", its number on the first disk" if name.naming is Naming.KERNEL else ""
            yield volume, entry, f"root={printable(name.text)}{guess}"
    states = {entry.state for entry in entries}
    first = ordered[0] if ordered else None
    for volume in volumes:
        state = _ROOT_TYPES.get(volume.partition.type_guid) if volume.partition else None
        if state is not None and (not states or state in states):
            yield volume, first, "its partition type"
    alike = [volume for volume in volumes if (files := _files(volume, None, None)) and _looks_like_root(files)]
    if len(alike) == 1:
        yield alike[0], first, "the only file system with a system on it"
    if first is not None and (subvolume := _subvolume(first)):
        # A btrfs whose root is a subvolume shows no sign of it at its top.
        for volume in volumes:
            if volume.content is not None and volume.content.kind == "btrfs":
                yield volume, first, f"rootflags=subvol={printable(subvolume)}"


def _subvolume(entry: BootEntry | None) -> str | None:
    flags = option_value(entry.command_line or "", "rootflags") if entry is not None else None
    return next((flag.partition("=")[2] for flag in (flags or "").split(",") if flag.startswith("subvol=")), None)


def _files(volume: Volume, subvolume: str | None, open_subvolume: OpenSubvolume | None) -> FileSystem | None:
    btrfs = volume.content is not None and volume.content.kind == "btrfs"
    if subvolume and btrfs and open_subvolume is not None:
        try:
            return open_subvolume(volume.disk, volume.name, subvolume)
        except ArmvmError:
            return None  # the volume's own problem says as much
    return volume.files


def _looks_like_root(files: FileSystem) -> bool:
    for path in _SIGNS:
        try:
            if files.lookup(path, follow=False) is not None:
                return True
        except InputError:
            continue
    return False


def _first_word(lines: Sequence[PlacedLine]) -> str | None:
    for line in lines[:50]:
        if line.text.strip() and not line.text.startswith("#"):
            return line.text.split()[0][:100]
    return None
