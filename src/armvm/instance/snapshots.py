"""Snapshots of an instance that is not running: made, gone back to, deleted, and put in order after a crash.

Every step can be the last one. What a folder in snapshots/ names is there whole; what is under way has a hidden entry
there first (see ``snapshot_file``), by which ``settle`` finishes it, or takes it back.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from armvm.atomic import replacing, sync_folder, write_file
from armvm.errors import ArmvmError, InputError, OutputError, UsageError
from armvm.instance import events, safekeeping, snapshot_file
from armvm.instance.definition import Definition
from armvm.instance.snapshot_file import DELETING, MAKING, RESTORING, TPM, VARIABLES, Snapshot, folder_of
from armvm.instance.store import Instance
from armvm.machine.definition import DiskDevice, Writes, disk_names
from armvm.printable import printable
from armvm.process import run

_SECONDS = 3600.0
_CHUNK_BYTES = 1 << 16
_MOST_SNAPSHOTS = 4096
_MOST_TPM_FILES = 64
_MOST_COMMENT = 1000


@dataclass(frozen=True, slots=True)
class KeptDisk:
    """A disk that snapshots hold: its name and its qcow2 image."""

    name: str
    path: Path


def every(instance: Instance) -> tuple[Snapshot, ...]:
    """The snapshots of ``instance``, the oldest first. Raises InputError when one cannot be read."""
    found = [snapshot_file.read(instance.snapshots / name) for name in names(instance)]
    return tuple(sorted(found, key=lambda one: (one.created, one.name)))


def names(instance: Instance) -> tuple[str, ...]:
    """What the snapshots of ``instance`` are called."""
    try:
        found = sorted(entry.name for entry in os.scandir(instance.snapshots) if not entry.name.startswith("."))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise OutputError(f"cannot read {instance.snapshots}: {error.strerror}") from error
    if len(found) > _MOST_SNAPSHOTS:
        raise InputError(f"more than {_MOST_SNAPSHOTS} snapshots", subject=str(instance.snapshots))
    return tuple(found)


def find(instance: Instance, name: str) -> Snapshot:
    """The snapshot ``name``. Raises UsageError when there is none, InputError when it cannot be read."""
    folder = folder_of(instance, name)
    if not folder.is_dir():
        raise UsageError(
            f"instance {instance.name} has no snapshot {name}",
            hint=f"armvm vm snapshot {instance.name} --list says which there are",
        )
    return snapshot_file.read(folder)


def definition_of(instance: Instance, name: str) -> Definition:
    """The machine as it was at the snapshot ``name``; of one with memory, on the same version of QEMU's machine.

    Raises UsageError when there is none, InputError when it cannot be read.
    """
    snapshot = find(instance, name)
    definition = snapshot_file.read_definition(instance, folder_of(instance, name))
    if snapshot.memory is None:
        return definition
    return replace(definition, machine=replace(definition.machine, platform=snapshot.memory.platform))


def disks_of(definition: Definition) -> tuple[KeptDisk, ...]:
    """The disks that a snapshot has to hold. Raises UsageError when it cannot hold one of them."""
    machine = definition.machine
    kept = []
    for name, disk in zip(disk_names(machine), machine.disks, strict=True):
        _require_possible(name, disk)
        if disk.writes is Writes.KEPT:
            kept.append(KeptDisk(name, disk.path))
    if not kept:
        raise UsageError("there is nothing to take a snapshot of: the guest writes to no disk")
    return tuple(kept)


def take(instance: Instance, name: str, *, comment: str = "") -> Snapshot:
    """Make the snapshot ``name`` of ``instance``, which is not running. Hold the lock.

    Raises UsageError when there is one of that name, or a disk cannot be kept, OutputError when it cannot be written.
    """
    settle(instance)
    require_settled(instance)
    definition = instance.definition()
    disks = disks_of(definition)
    require_free(instance, name, disks)
    snapshot = begin(instance, name, definition, comment=comment)
    try:
        copy_variables(instance, definition, name)
        for disk in disks:
            alter_inside(disk.path, "-c", name)
        commit(instance, snapshot, definition)
    except BaseException:
        with suppress(ArmvmError):
            settle(instance)
        raise
    return snapshot


def restore(instance: Instance, name: str) -> Definition:
    """Make ``instance``, which is not running, what it was at the snapshot ``name``. Hold the lock.

    What it has been since is gone. Returns what it is now. Raises UsageError when there is none, InputError when it is
    not whole: then nothing has been changed.
    """
    settle(instance)
    definition = require_whole(instance, name)
    announce(instance, name)
    go_back(instance, name)
    events.record(instance.events, "restored", snapshot=name, memory=False)
    return definition


def delete(instance: Instance, name: str) -> None:
    """Delete the snapshot ``name`` of ``instance``, which is not running. Hold the lock. Raises UsageError for none."""
    settle(instance)
    require_settled(instance)
    hide(instance, name)
    discard(instance, name)


def settle(instance: Instance) -> None:
    """Finish, or take back, a snapshot's work that was cut off. Hold the lock; nothing may run on the instance.

    Going back that was begun is finished; when that cannot be (a file is gone), ``require_settled`` says so. Perhaps it
    was a qemu-img that was killed: the disks' bookkeeping is put right too.
    """
    from armvm.instance.recovery import check_disks

    try:
        hidden = sorted(entry.name for entry in os.scandir(instance.snapshots) if entry.name.startswith("."))
    except OSError:
        return
    for entry in hidden:
        if entry.endswith((MAKING, DELETING)):
            name = entry[1:].removesuffix(MAKING).removesuffix(DELETING)
            with suppress(ArmvmError):  # a disk that is damaged must not be in the way of everything else
                _forget(instance, name, instance.snapshots / entry)
    if RESTORING in hidden:
        with suppress(ArmvmError, OSError):
            go_back(instance, snapshot_file.read_text(instance.snapshots / RESTORING).strip())
    if hidden:
        check_disks(instance)


def require_settled(instance: Instance) -> None:
    """Raise InputError when going back to a snapshot was begun and could not be finished: the disks are neither."""
    path = instance.snapshots / RESTORING
    if not path.exists():
        return
    name = snapshot_file.read_text(path).strip()
    why = "something is in its way"
    try:
        require_whole(instance, name)
    except ArmvmError as error:
        why = error.message
    raise InputError(
        f"instance {instance.name} was cut off while it went back to its snapshot {printable(name)}: {why}",
        subject=str(path),
        hint="put that right and try again, or delete the instance",
    )


def require_free(instance: Instance, name: str, disks: tuple[KeptDisk, ...]) -> None:
    """Raise UsageError when a snapshot ``name`` is there already, also inside a disk (an image may bring its own)."""
    if folder_of(instance, name).exists():
        raise UsageError(
            f"instance {instance.name} has a snapshot {name} already",
            hint=f"armvm vm snapshot {instance.name} --delete {name}",
        )
    for disk in disks:
        if name in inside(disk.path):
            raise UsageError(f"{disk.path} has a snapshot {name} of its own", hint="choose another name")


def require_whole(instance: Instance, name: str) -> Definition:
    """The machine as of the snapshot. Raises InputError when a part of it is gone."""
    from armvm.instance.chain import check_chain
    from armvm.instance.store import require_unchanged

    snapshot = find(instance, name)
    definition = snapshot_file.read_definition(instance, folder_of(instance, name))
    for image in definition.images:
        require_unchanged(instance.name, image)
    check_chain(definition)
    paths = {disk.name: disk.path for disk in disks_of(definition)}
    for disk in snapshot.disks:
        if disk not in paths:
            raise InputError(f"the machine in it has no disk {printable(disk)}", subject=f"snapshot {name}")
        if name not in inside(paths[disk]):
            raise InputError(f"the snapshot {name} is not in it any more", subject=str(paths[disk]))
    if definition.machine.variables is not None and not (folder_of(instance, name) / VARIABLES).is_file():
        raise InputError("its UEFI variables are gone", subject=str(folder_of(instance, name) / VARIABLES))
    return definition


def begin(instance: Instance, name: str, definition: Definition, *, comment: str) -> Snapshot:
    """Say that the snapshot ``name`` is being made. From now on, ``settle`` takes away what was made of it."""
    if len(comment) > _MOST_COMMENT:
        raise UsageError(f"a comment has at most {_MOST_COMMENT} characters")
    disks = tuple(disk.name for disk in disks_of(definition))
    snapshot = Snapshot(name, datetime.now(UTC), disks, comment=comment)
    folder = instance.snapshots / f".{name}{MAKING}"
    try:
        instance.snapshots.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700)
        snapshot_file.write(folder, snapshot, definition, instance)
        sync_folder(instance.snapshots)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from error
    return snapshot


def copy_variables(instance: Instance, definition: Definition, name: str) -> None:
    """Put the variable store, and the TPM's state, as they are now into the snapshot that is being made."""
    variables = definition.machine.variables
    folder = instance.snapshots / f".{name}{MAKING}"
    if variables is not None:
        _copy(variables.path, folder / VARIABLES)
        if definition.machine.tpm:
            _copy_folder(variables.path.parent / TPM, folder / TPM)


def commit(instance: Instance, snapshot: Snapshot, definition: Definition) -> None:
    """Make the snapshot be there: all that belongs to it is."""
    folder = instance.snapshots / f".{snapshot.name}{MAKING}"
    snapshot_file.write(folder, snapshot, definition, instance)
    _rename(folder, instance.snapshots / snapshot.name)
    memory = None if snapshot.memory is None else snapshot.memory.size_bytes
    events.record(instance.events, "snapshot", snapshot=snapshot.name, memory_bytes=memory)


def announce(instance: Instance, name: str) -> None:
    """Say that the instance goes back to ``name``: from now on, that is what it is."""
    safekeeping.forget(instance)  # what a machine that is given up started with is of no use any more
    write_file(instance.snapshots / RESTORING, f"{name}\n".encode(), mode=0o600)


def arrived(instance: Instance) -> None:
    """Say that the instance has gone back."""
    (instance.snapshots / RESTORING).unlink(missing_ok=True)
    sync_folder(instance.snapshots)


def go_back(instance: Instance, name: str) -> None:
    """Do what ``announce`` has said, again from the start where it was cut off."""
    snapshot = find(instance, name)
    folder = folder_of(instance, name)
    definition = snapshot_file.read_definition(instance, folder)
    for disk in disks_of(definition):
        if disk.name in snapshot.disks:
            alter_inside(disk.path, "-a", name)
    if definition.machine.variables is not None:
        _copy(folder / VARIABLES, definition.machine.variables.path)
        if definition.machine.tpm:
            _copy_folder(folder / TPM, definition.machine.variables.path.parent / TPM)
    instance.save(definition)
    arrived(instance)


def hide(instance: Instance, name: str) -> None:
    """Make the snapshot be gone; ``settle``, or who has its disks open, takes away what it holds."""
    find_folder = folder_of(instance, name)
    if not find_folder.is_dir():
        find(instance, name)
    _rename(find_folder, instance.snapshots / f".{name}{DELETING}")
    events.record(instance.events, "snapshot-deleted", snapshot=name)


def discard(instance: Instance, name: str, *, besides: frozenset[Path] = frozenset()) -> None:
    """Take away what a snapshot that was hidden, or not finished, holds; not in the images ``besides``."""
    for ending in (MAKING, DELETING):
        folder = instance.snapshots / f".{name}{ending}"
        if folder.is_dir():
            _forget(instance, name, folder, besides=besides)


def inside(path: Path) -> tuple[str, ...]:
    """The names of the snapshots inside a qcow2 image that no program has open. Raises InputError for another file."""
    done = run("qemu-img", ["info", "--output=json", _alone(path)], timeout_seconds=_SECONDS, check=False)
    if done.returncode:
        raise InputError(f"cannot be read as qcow2: {_said(done.stderr)}", subject=str(path))
    try:
        return tuple(str(one["name"]) for one in json.loads(done.stdout).get("snapshots", []))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("qemu-img describes it in a way that is not understood", subject=str(path)) from error


def _forget(instance: Instance, name: str, folder: Path, *, besides: frozenset[Path] = frozenset()) -> None:
    """Take the snapshot out of every disk that may hold it, then its folder away."""
    paths: set[Path] = set()
    with suppress(ArmvmError):
        paths |= {disk.path for disk in snapshot_file.read_definition(instance, folder).machine.disks if _is_kept(disk)}
    with suppress(ArmvmError):
        paths |= {disk.path for disk in instance.definition().machine.disks if _is_kept(disk)}
    for path in sorted(paths - besides):
        if path.is_file() and name in inside(path):
            alter_inside(path, "-d", name)
    shutil.rmtree(folder, ignore_errors=True)


def _is_kept(disk: DiskDevice) -> bool:
    return disk.writes is Writes.KEPT and disk.format == "qcow2"


def _require_possible(name: str, disk: DiskDevice) -> None:
    if disk.writes is Writes.DISCARDED:
        raise UsageError(
            f"disk {name} cannot be part of a snapshot: what the guest writes to it is discarded",
            hint='writes = "kept" or "refused" in machine.toml',
        )
    if disk.writes is Writes.KEPT and disk.format != "qcow2":
        raise UsageError(
            f"disk {name} cannot be part of a snapshot: {disk.path} is a {disk.format} image, written in place",
            hint="snapshots are kept inside qcow2 images: armvm convert makes one",
        )


def alter_inside(path: Path, action: str, name: str) -> None:
    """Create (-c), go to (-a) or delete (-d) a snapshot inside an image. Raises OutputError."""
    done = run("qemu-img", ["snapshot", "-q", action, name, _alone(path)], timeout_seconds=_SECONDS, check=False)
    if done.returncode:
        what = {"-c": "make", "-a": "go back to", "-d": "delete"}[action]
        raise OutputError(f"cannot {what} the snapshot {name} in {path}: {_said(done.stderr)}")


def _alone(path: Path) -> str:
    """The image without what is under it, which has no part in this and may be gone."""
    file = {"driver": "file", "filename": os.fspath(path.absolute())}
    return "json:" + json.dumps({"driver": "qcow2", "backing": None, "file": file})


def _said(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    return printable(lines[-1].removeprefix("qemu-img: ")) if lines else "qemu-img said nothing"


def _rename(folder: Path, to: Path) -> None:
    try:
        sync_folder(folder)
        folder.rename(to)
        sync_folder(to.parent)
    except OSError as error:
        raise OutputError(f"cannot rename {folder} to {to.name}: {error.strerror}") from error


def _copy_folder(source: Path, target: Path) -> None:
    """Make ``target`` hold the plain files of ``source``, which are few and small, and nothing else."""
    try:
        wanted = [path for path in source.iterdir() if path.is_file()] if source.is_dir() else []
        if len(wanted) > _MOST_TPM_FILES:
            raise InputError(f"more than {_MOST_TPM_FILES} files of a TPM", subject=str(source))
        target.mkdir(mode=0o700, exist_ok=True)
        for path in wanted:
            _copy(path, target / path.name)
        for path in set(target.iterdir()) - {target / path.name for path in wanted}:
            path.unlink()
    except OSError as error:
        raise OutputError(f"cannot copy {source} to {target}: {error.strerror}") from error


def _copy(source: Path, target: Path) -> None:
    """Copy a small image whole or not at all; runs of zeros take no room in the copy."""
    zeros = bytes(_CHUNK_BYTES)
    try:
        with open(source, "rb") as old, replacing(target, mode=0o600) as new:
            while chunk := old.read(_CHUNK_BYTES):
                if chunk == zeros[: len(chunk)]:
                    new.seek(len(chunk), os.SEEK_CUR)
                else:
                    new.write(chunk)
            new.truncate()
    except OSError as error:
        raise OutputError(f"cannot copy {source} to {target}: {error.strerror}") from error
