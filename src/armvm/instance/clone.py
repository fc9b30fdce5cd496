"""Makes an instance of another one, as it is or as it was at a snapshot: with disks, variables and identity of its own.

What the two share is the image under their disks, which neither writes.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from armvm.atomic import replacing, write_file
from armvm.disk.copying import copy_file
from armvm.errors import InputError, UsageError
from armvm.instance import cloud_init, events, machine_toml, seed, snapshots
from armvm.instance.addresses import readdressed
from armvm.instance.beside import appearing, move
from armvm.instance.definition import Definition
from armvm.instance.store import Instance
from armvm.machine.definition import DiskDevice, Machine, Writes
from armvm.printable import printable

Progress = Callable[[str, int, int], None]

_NOT_COPIED = {"lock", "run", "console.log", "console.log.1", "events.jsonl", "events.jsonl.1", "known_hosts"}
"""What belongs to the one instance: who holds it, what it said and did, and whom its ssh knows."""
_MOST_FILES = 10_000
_MOST_DEPTH = 8


@dataclass(frozen=True, slots=True)
class _File:
    """A file that a clone gets: where it is, and its name in the clone's folder."""

    source: Path
    name: Path
    size_bytes: int


def clone(
    original: Instance, copy: Instance, *, snapshot: str | None = None, progress: Progress | None = None
) -> Definition:
    """Make ``copy`` of ``original``, which is not running: as it is with its snapshots, or as it was at one, with that.

    The clone has other hardware addresses, other ports of this host, and another id for cloud-init. Returns what it is.
    Raises UsageError when ``copy`` is there already or there is no such snapshot, BusyError while ``original`` runs,
    InputError when it is broken, OutputError when the clone cannot be written.
    """
    if copy.exists:
        raise UsageError(f"instance {copy.name} is there already")
    with original.locked():
        source = original if snapshot is None else _snapshot_of(original, snapshot)
        definition = machine_toml.parse(_text(source.description), original.description)
        files = [*_files(original, snapshot), *_outside(original, definition)]
        with appearing(copy.folder) as beside:
            _copy(files, beside, progress)
            made = Instance(copy.name, beside)
            if snapshot is not None:
                _apply(made, snapshot, definition, original)
            new = _renewed(definition, original, copy, made)
            write_file(made.description, machine_toml.serialise(new, copy.folder), mode=0o600)
            _renew_snapshots(made, new, original, copy)
            events.record(made.events, "created", clone_of=original.name, snapshot=snapshot)
    return new


def rename(instance: Instance, to: Instance) -> None:
    """Give ``instance``, which is not running, the name of ``to``. Raises UsageError when that is taken, BusyError."""
    if to.exists:
        raise UsageError(f"instance {to.name} is there already")
    with instance.locked():
        move(instance.folder, to.folder)
        events.record(to.events, "renamed", before=instance.name)


def _snapshot_of(instance: Instance, name: str) -> Instance:
    """The files of a snapshot, as an instance's."""
    folder = instance.snapshots / name
    if name in {"", ".", ".."} or "/" in name or not (folder / "machine.toml").is_file():
        raise UsageError(
            f"instance {instance.name} has no snapshot {printable(name)}",
            hint=f"armvm vm snapshot {instance.name} --list says which there are",
        )
    return Instance(instance.name, folder)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", subject=str(path)) from error


def _files(original: Instance, snapshot: str | None) -> Iterator[_File]:
    """The files of the folder; of its snapshots, only that one where one is named."""
    kept = None if snapshot is None else Path("snapshots", snapshot)
    pending = [Path()]
    seen = 0
    while pending:
        below = pending.pop()
        for entry in sorted(os.scandir(original.folder / below), key=lambda entry: entry.name):
            name = below / entry.name
            if str(name) in _NOT_COPIED or entry.name.startswith(".") or len(name.parts) > _MOST_DEPTH:
                continue
            if kept is not None and name.parts[0] == "snapshots" and name.parts[:2] not in {("snapshots",), kept.parts}:
                continue
            seen += 1
            if seen > _MOST_FILES:
                raise InputError(f"more than {_MOST_FILES} files in one instance", subject=str(original.folder))
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                pending.append(name)
            elif stat.S_ISREG(status.st_mode):
                yield _File(Path(entry.path), name, status.st_size)


def _outside(original: Instance, definition: Definition) -> Iterator[_File]:
    """The disks that stand elsewhere and that the guest writes: an image in place is copied too."""
    for index, disk in enumerate(definition.machine.disks):
        if _is_outside(disk, original):
            try:
                size = disk.path.stat().st_size
            except OSError as error:
                raise InputError(f"cannot be read: {error.strerror}", subject=str(disk.path)) from error
            yield _File(disk.path, _own_name(disk, index), size)


def _is_outside(disk: DiskDevice, original: Instance) -> bool:
    return disk.writes is Writes.KEPT and not disk.path.is_relative_to(original.folder)


def _own_name(disk: DiskDevice, index: int) -> Path:
    return Path(f"{disk.name or f'disk{index}'}.{'qcow2' if disk.format == 'qcow2' else 'img'}")


def _copy(files: list[_File], beside: Path, progress: Progress | None) -> None:
    total = sum(file.size_bytes for file in files)
    before = 0
    for file in files:
        target = beside / file.name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        offset = before
        tell = None if progress is None else lambda done, offset=offset: progress("copying", offset + done, total)
        with open(file.source, "rb") as source, replacing(target, mode=0o600, overwrite=False) as new:
            copy_file(source, new, progress=tell)
        before += file.size_bytes


def _renewed(definition: Definition, original: Instance, copy: Instance, made: Instance) -> Definition:
    """The clone's definition; its seed is written anew where it has one."""
    machine = readdressed(definition.machine)
    disks = _own_disks(machine, original, copy)
    variables = machine.variables
    if variables is not None:
        variables = replace(variables, path=_moved(variables.path, original, copy))
    new = replace(definition, machine=replace(machine, disks=disks, variables=variables))
    if (made.folder / seed.FILE_NAME).exists():
        new = replace(new, instance_id=cloud_init.new_instance_id())
        files = seed.read(made.folder / seed.FILE_NAME)
        assert new.instance_id is not None  # noqa: S101 - just set
        files = cloud_init.renewed(files, new.instance_id, cloud_init.hostname_of(copy.name))
        seed.write(made.folder / seed.FILE_NAME, files)
    return new


def _own_disks(machine: Machine, original: Instance, copy: Instance) -> tuple[DiskDevice, ...]:
    """The disks of ``machine`` where the clone has them."""
    return tuple(
        replace(disk, path=copy.folder / _own_name(disk, index))
        if _is_outside(disk, original)
        else replace(disk, path=_moved(disk.path, original, copy))
        for index, disk in enumerate(machine.disks)
    )


def _moved(path: Path, original: Instance, copy: Instance) -> Path:
    return copy.folder / path.relative_to(original.folder) if path.is_relative_to(original.folder) else path


def _renew_snapshots(made: Instance, new: Definition, original: Instance, copy: Instance) -> None:
    """Give the snapshots' descriptions the clone's addresses and id: at none of them may it be the original."""
    if not made.snapshots.is_dir():
        return
    for folder in made.snapshots.iterdir():
        path = folder / "machine.toml"
        if not path.is_file():
            continue
        old = machine_toml.parse(_text(path), original.description)
        by_name = {nic.name or index: nic for index, nic in enumerate(new.machine.nics)}
        nics = tuple(by_name.get(nic.name or index, nic) for index, nic in enumerate(old.machine.nics))
        disks = _own_disks(old.machine, original, copy)
        machine = replace(old.machine, nics=nics, disks=disks)
        if machine.variables is not None:
            machine = replace(
                machine, variables=replace(machine.variables, path=_moved(machine.variables.path, original, copy))
            )
        changed = replace(old, machine=machine, instance_id=new.instance_id)
        write_file(path, machine_toml.serialise(changed, copy.folder), mode=0o600)


def _apply(made: Instance, snapshot: str, definition: Definition, original: Instance) -> None:
    """Turn the copied disks back to ``snapshot``, and let go of what the other snapshots keep in them."""
    shutil.copyfile(made.snapshots / snapshot / "vars.qcow2", made.variables)
    for index, disk in enumerate(definition.machine.disks):
        if disk.format != "qcow2" or disk.writes is not Writes.KEPT:
            continue
        outside = _is_outside(disk, original)
        path = made.folder / (_own_name(disk, index) if outside else disk.path.relative_to(original.folder))
        for name in snapshots.inside(path):
            snapshots.alter_inside(path, "-a" if name == snapshot else "-d", name)
