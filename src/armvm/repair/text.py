"""Lines of the guest's text files replaced where they stand: on FAT by ourselves, on ext2/3/4 through debugfs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from armvm.disk.fat_edit import FatEditor
from armvm.disk.files import FileKind, FileSystem
from armvm.disk.gpt import read_partition_table
from armvm.disk.gpt_format import Partition
from armvm.disk.patched import PatchedDisk
from armvm.disk.storage import Disk
from armvm.errors import ArmvmError, InputError
from armvm.guest.facts import Assumption, PlacedLine
from armvm.printable import printable
from armvm.repair.workbench import Workbench
from armvm.units import MIB

Audit = Callable[[Disk], Iterable[Assumption]]
"""What finds a guest's assumptions on a disk."""

FileSystems = Callable[[Disk], Iterable[FileSystem]]
"""What gives the file systems on a disk, each named by its partition: ``partition 2``."""

_NAMING_PARTITIONS = (
    "/etc/fstab",
    "/etc/crypttab",
    "/etc/default/grub",
    "/etc/kernel/cmdline",
    "/boot/grub/grub.cfg",
    "/boot/cmdline.txt",
    "/boot/extlinux/extlinux.conf",
    "/grub/grub.cfg",
    "/extlinux/extlinux.conf",
    "/cmdline.txt",
    "/EFI/BOOT/grub.cfg",
)
"""Where a guest may name its partitions, from the root of the file system that the file stands on."""
_NAMING_FOLDERS = ("/loader/entries", "/boot/loader/entries", "/EFI")
_GUEST = "guest.no-assumptions"
_MOST_BYTES = 16 * MIB
_PARTITION = re.compile(r"partition (\d+)")
_FAT, _EXT = ("vfat", "fat", "msdos"), ("ext2", "ext3", "ext4")
_MOUNT_AND_EDIT = "in the guest, change the line by hand; or on a host: `guestfish -a IMAGE -i edit {path}`"


@dataclass(slots=True)
class _File:
    """A text file with its lines to be replaced."""

    line: PlacedLine
    path: str
    assumptions: list[Assumption] = field(default_factory=list)


def edit_lines(bench: Workbench, audit: Audit) -> None:
    """guest.no-assumptions: every line for which a better one is known."""
    if not bench.wants(_GUEST):
        return
    files: dict[tuple[str, str], _File] = {}
    for assumption in audit(bench.disk):
        if assumption.line is None or assumption.replacement is None:
            if assumption.serious:
                why = f"{assumption.why}: {printable(assumption.found)}"
                bench.cannot(_GUEST, assumption.where, why, assumption.remedy)
            continue
        placed = assumption.line.file
        try:
            entry = placed.files.lookup(placed.path)
        except ArmvmError as error:
            _refuse(bench, [assumption], error)
            continue
        path = entry.path if entry is not None else placed.path  # where it stands, with no link on the way
        files.setdefault((placed.files.name, path), _File(assumption.line, path)).assumptions.append(assumption)
    for name in dict.fromkeys(name for name, _ in files):
        _edit_volume(bench, name, [file for (owner, _), file in files.items() if owner == name])


def no_file_systems(_disk: Disk) -> Iterable[FileSystem]:
    """None: for disks whose file systems nobody can read."""
    return ()


def rename_partuuids(bench: Workbench, file_systems: FileSystems) -> None:
    """PARTUUIDs of an MBR that was turned into a GPT, in the files where a guest names its partitions."""
    if not bench.partuuids:
        return
    known = re.compile("|".join(map(re.escape, bench.partuuids)).encode("ascii"), re.IGNORECASE)
    for files in file_systems(bench.disk):
        contents: dict[str, bytes] = {}
        for path in _naming_files(files):
            try:
                old = files.read(path, max_bytes=MIB)
            except ArmvmError:
                continue
            new = known.sub(lambda match: bench.partuuids[match[0].decode("ascii").lower()].encode("ascii"), old)
            if new != old:
                contents[path] = new
        if not contents:
            continue
        try:
            _write(bench, files.name, files.kind, contents)
        except ArmvmError as error:
            new_names = ", ".join(f"{old} is now {new}" for old, new in bench.partuuids.items())
            why = f"it names partitions by the MBR's signature, and cannot be edited: {error.message}"
            for path in contents:
                bench.cannot("image.gpt", f"{files.name}, {printable(path)}", why, f"change it by hand: {new_names}")
            continue
        reason = "it named partitions by the MBR's signature; in a GPT they have GUIDs of their own"
        for path in contents:
            bench.did("image.gpt", f"{files.name}, {printable(path)}", "PARTUUIDs replaced by the new ones", reason)


def _naming_files(files: FileSystem) -> list[str]:
    """The text files of a file system that may name partitions, where they stand."""
    found: dict[str, None] = {}
    try:
        for path in _NAMING_PARTITIONS:
            entry = files.lookup(path)
            if entry is not None and entry.kind is FileKind.FILE:
                found[entry.path] = None
        for folder in _NAMING_FOLDERS:
            entry = files.lookup(folder)
            if entry is None or entry.kind is not FileKind.FOLDER:
                continue
            for child in files.walk(entry.path):
                if child.kind is FileKind.FILE and child.name.lower().endswith((".cfg", ".conf")):
                    found[child.path] = None
    except ArmvmError:
        pass  # what could be found is still worth it
    return list(found)


def _edit_volume(bench: Workbench, name: str, files: list[_File]) -> None:
    """All edits on one file system, which is written once; a file that cannot be edited takes only itself out."""
    contents: dict[str, bytes] = {}
    edited: list[_File] = []
    for file in files:
        try:
            old = file.line.file.files.read(file.path, max_bytes=_MOST_BYTES)
            new = replaced(old, file.assumptions)
        except (ArmvmError, ValueError) as error:
            _refuse(bench, file.assumptions, error)
            continue
        if new != old:
            contents[file.path] = new
            edited.append(file)
    if not contents:
        return
    try:
        _write(bench, name, files[0].line.file.files.kind, contents)
    except ArmvmError as error:
        for file in edited:
            _refuse(bench, file.assumptions, error)
        return
    for file in edited:
        for assumption in file.assumptions:
            line = assumption.replacement
            action = f"line replaced by: {printable(line)}" if line else "line removed"
            bench.did(_GUEST, assumption.where, action, f"{assumption.why} (was: {_was(assumption)})")


def replaced(content: bytes, assumptions: Iterable[Assumption]) -> bytes:
    """A text with the lines of ``assumptions`` replaced; line ends stay as each line had them.

    Raises ValueError when a line is not the one that was seen, or two disagree about one.
    """
    lines = _split(content)
    done: dict[int, str] = {}
    for assumption in assumptions:
        line, new = assumption.line, assumption.replacement
        assert line is not None and new is not None  # noqa: S101 - the caller chose them
        if done.setdefault(line.number, new) != new:
            raise ValueError(f"line {line.number} would have to become two things at once")
        index = line.number - 1
        if not 0 <= index < len(lines):
            raise ValueError(f"there is no line {line.number}")
        old = lines[index].rstrip(b"\r\n")
        if _text(old) != line.text and old.decode("utf-8", "replace") != line.text:
            raise ValueError(f"line {line.number} is not what was seen there")
        end = lines[index][len(old) :]
        if "\r" in new or "\0" in new:
            raise ValueError(f"line {line.number} would get a control character")
        # A replacement can be several lines (netplan's match): each gets the line end that stands there.
        made = [part.encode("utf-8", "surrogateescape") for part in new.split("\n")]
        lines[index] = (end or b"\n").join(made) + end if new else lines[index]
    removed = {number - 1 for number, new in done.items() if not new}
    return b"".join(line for index, line in enumerate(lines) if index not in removed)


def _split(content: bytes) -> list[bytes]:
    """Lines by line feeds only: a carriage return alone ends none in the files of a Unix guest."""
    parts = content.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _was(assumption: Assumption) -> str:
    assert assumption.line is not None  # noqa: S101 - only such get here
    return printable(assumption.line.text.strip())


def _write(bench: Workbench, name: str, kind: str, contents: dict[str, bytes]) -> None:
    """Give files on one file system their new contents. Raises ArmvmError when that cannot be done."""
    partition = _partition(bench.disk, name)
    if partition is None:
        raise InputError(f"files on {name} cannot be edited from outside: it is no partition of its own")
    disk = bench.volume(partition)
    if kind in _EXT:
        from armvm.disk.ext_edit import replace_files

        replace_files(disk, contents, timestamp=bench.timestamp)
    elif kind in _FAT:
        scratch = PatchedDisk(disk)
        try:
            editor = FatEditor(scratch, timestamp=bench.timestamp)
            for path, content in contents.items():
                editor.write(path, content)
            for offset, _, content in scratch.changes():
                disk.write(offset, content)
        finally:
            scratch.close()
    else:
        raise InputError(f"files on {kind} cannot be edited from outside", subject=name)


def _partition(disk: Disk, name: str) -> Partition | None:
    match = _PARTITION.fullmatch(name)
    if match is None:
        return None
    found = (p for p in read_partition_table(disk).partitions if p.number == int(match[1]))
    return next(found, None)


def _refuse(bench: Workbench, assumptions: Iterable[Assumption], error: Exception) -> None:
    message = error.message if isinstance(error, ArmvmError) else str(error)
    hint = error.hint if isinstance(error, ArmvmError) else None
    for assumption in assumptions:
        remedy = assumption.remedy
        if assumption.line is not None and assumption.replacement:
            by_hand = _MOUNT_AND_EDIT.format(path=printable(assumption.line.file.path))
            remedy = f"{hint or by_hand}; the line would be: {printable(assumption.replacement)}"
        bench.cannot(_GUEST, assumption.where, f"{assumption.why}; {message}", remedy)
