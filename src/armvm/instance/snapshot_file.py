"""A snapshot of an instance as a value, and snapshot.toml, the file that describes it.

snapshots/NAME/
├── snapshot.toml   what it is
├── machine.toml    the machine as it was, with what was attached then; paths are relative to the instance's folder
├── vars.qcow2      its UEFI variables as of then
└── tpm/            the state of its TPM, where it has one

What the disks held, and the memory, are snapshots of the same name inside the disks (qcow2). A snapshot is there from
the moment on when its folder has its name, and gone from the moment on when it has it no more. Three hidden entries say
that something is under way, and are what ``snapshots.settle`` goes by:

├── .NAME.making    the folder of a snapshot that is being made: not there yet
├── .NAME.deleting  the folder of one that is being deleted: not there any more
└── .restoring      the name of the one that is being gone back to: from now on, the instance is what that says
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from armvm.atomic import write_file
from armvm.errors import InputError, UsageError
from armvm.instance import machine_toml
from armvm.instance.definition import Definition
from armvm.instance.store import Instance

RESTORING = ".restoring"
MAKING, DELETING = ".making", ".deleting"
VARIABLES = "vars.qcow2"
TPM = "tpm"

_FORMAT = 1
_MOST_BYTES = 1 << 20
_PLATFORM = re.compile(r"virt(-[0-9]{1,3}\.[0-9]{1,3})?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory and the processors' state in a snapshot, and what can resume them.

    ``disk`` is the name of the disk that holds them, ``platform`` QEMU's name of the machine with its version,
    ``accelerator`` and ``cpu`` what ran the guest's instructions.
    """

    disk: str
    size_bytes: int
    platform: str
    accelerator: str
    cpu: str
    qemu: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot. ``disks`` are the names of the disks that it holds; ``memory`` is None when none was running."""

    name: str
    created: datetime
    disks: tuple[str, ...]
    memory: Memory | None = None
    comment: str = ""


def require_name(name: str) -> None:
    """Raise UsageError when ``name`` is none for a snapshot."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"not a name for a snapshot: {name!r}",
            hint="letters, digits, and after the first character . _ - (64 characters at most)",
        )
    if name.isdigit():
        # QEMU looks for a snapshot by its number inside the image first, and by its name then.
        raise UsageError(f"not a name for a snapshot: {name!r}", hint="QEMU takes digits alone for a number of its own")


def folder_of(instance: Instance, name: str) -> Path:
    """The folder of the snapshot ``name``, which need not be there. Raises UsageError when that is no name."""
    require_name(name)
    return instance.snapshots / name


def write(folder: Path, snapshot: Snapshot, definition: Definition, instance: Instance) -> None:
    """Write both descriptions into ``folder``."""
    # On which version of QEMU's board it ran is a fact of the memory, and not of the machine.
    definition = replace(definition, machine=replace(definition.machine, platform=None))
    write_file(folder / "machine.toml", machine_toml.serialise(definition, instance.folder), mode=0o600)
    write_file(folder / "snapshot.toml", serialise(snapshot), mode=0o600)


def serialise(snapshot: Snapshot) -> bytes:
    """The content of snapshot.toml."""
    memory = snapshot.memory
    lines = [
        f"format = {_FORMAT}",
        f"name = {_text(snapshot.name)}",
        f"created = {snapshot.created.astimezone(UTC).isoformat(timespec='milliseconds')}",
        f"disks = [{', '.join(map(_text, snapshot.disks))}]",
        *([f"comment = {_text(snapshot.comment)}"] if snapshot.comment else []),
    ]
    if memory is not None:
        lines += [
            "",
            "[memory]",
            f"disk = {_text(memory.disk)}",
            f"size_bytes = {memory.size_bytes}",
            f"platform = {_text(memory.platform)}",
            f"accelerator = {_text(memory.accelerator)}",
            f"cpu = {_text(memory.cpu)}",
            f"qemu = {_text(memory.qemu)}",
        ]
    return ("\n".join(lines) + "\n").encode(errors="backslashreplace")


def read(folder: Path) -> Snapshot:
    """The snapshot in ``folder``. Raises InputError when its description cannot be read or is broken."""
    import tomllib

    path = folder / "snapshot.toml"
    try:
        fields = tomllib.loads(read_text(path))
        if fields.get("format") != _FORMAT:
            found, expected = f"format {fields.get('format')!r}", f"format {_FORMAT}"
            raise InputError("a file of another version of armvm", subject=str(path), found=found, expected=expected)
        return _snapshot(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"a broken description of a snapshot: {type(error).__name__} {error}", subject=str(path)
        ) from error


def read_definition(instance: Instance, folder: Path) -> Definition:
    """The machine as the snapshot in ``folder`` has it. Raises InputError when that cannot be read or is broken."""
    return machine_toml.parse(read_text(folder / "machine.toml"), instance.description)


def read_text(path: Path) -> str:
    """A small file of text. Raises InputError when it is not one."""
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise InputError(f"is larger than {_MOST_BYTES} bytes", subject=str(path))
        return content.decode()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(path)) from error
    except ValueError as error:
        raise InputError(f"no UTF-8: {error}", subject=str(path)) from error


def _snapshot(fields: dict[str, Any]) -> Snapshot:
    created = fields["created"]
    if not isinstance(created, datetime):
        raise TypeError("created is no date and time")
    disks = fields["disks"]
    if not isinstance(disks, list):
        raise TypeError("disks is no list")
    memory = fields.get("memory")
    return Snapshot(
        name=str(fields["name"]),
        created=created if created.tzinfo else created.replace(tzinfo=UTC),
        disks=tuple(map(str, disks)),
        memory=None if memory is None else _memory(memory),
        comment=str(fields.get("comment", "")),
    )


def _memory(fields: dict[str, Any]) -> Memory:
    texts = {key: str(fields[key]) for key in ("disk", "platform", "accelerator", "cpu", "qemu")}
    if not _PLATFORM.fullmatch(texts["platform"]):  # it goes into QEMU's options
        raise ValueError("platform is none of QEMU's virtual boards")
    return Memory(size_bytes=int(fields["size_bytes"]), **texts)


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are a part of TOML's, and DEL must be escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
