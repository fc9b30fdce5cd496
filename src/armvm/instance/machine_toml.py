"""machine.toml, the file that a kept machine is described in: TOML, to be read and edited by hand.

What may stand in it, and what it says when a key is missing, stands in ``toml_schema``; how it is written, here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import find_firmware
from armvm.instance.definition import BackingImage, Definition, LowerImage
from armvm.instance.toml_fields import Source
from armvm.instance.toml_schema import FORMAT, NIC_KINDS, Said, read_said
from armvm.machine.definition import DEFAULT_MEMORY_BYTES, Machine, disk_names, nic_names
from armvm.machine.devices import (
    BridgeNetwork,
    DiskDevice,
    Graphics,
    LinkNetwork,
    Nic,
    SharedFolder,
    TapNetwork,
    UserNetwork,
)
from armvm.printable import printable
from armvm.units import GIB, MIB

_MOST_BYTES = 128 * 1024
_HEADER = """\
# What this machine is. It may be edited while the machine is off; `armvm vm show NAME` says what was understood.
# Paths are relative to this file. A key that is left out has its default; `armvm vm create --help` explains them.
"""
_WRITTEN_ALWAYS = frozenset({"vcpus", "memory_bytes", "description", "console", "bus"})
_IN_TABLES = frozenset(
    {"state", "firmware", "disks", "nics", "shares", "graphics", "variables", "memory_bytes", "platform"}
)
"""The fields of a Machine that are not written as one key each, by its name; ``platform`` not at all, for it is a
fact of the memory in a snapshot."""


def read(path: Path) -> Definition:
    """What the file says. Raises InputError, with file and line, when it is broken, MissingError without firmware."""
    return parse(_content(path), path)


def parse(content: str, path: Path) -> Definition:
    """What the text of the file at ``path`` says; see ``read``."""
    said = read_said(_source(content, path), whole=True)
    machine = said.machine
    state: ExecutionState = machine["state"]
    secure_boot = bool(machine.get("secure_boot"))
    whole = Machine(
        **{
            "memory_bytes": DEFAULT_MEMORY_BYTES[state],
            "nics": (),
            **machine,
            "firmware": find_firmware(state, override=said.firmware_file, secure_boot=secure_boot),
        }
    )
    return Definition(whole, said.images, said.firmware_file, said.user, said.instance_id)


def read_partial(path: Path) -> Said:
    """What a file says that need not be whole: only ``format`` has to stand there. For ``--define``.

    Raises InputError, with file and line, when it is broken.
    """
    return read_said(_source(_content(path), path), whole=False)


def serialise(definition: Definition, folder: Path) -> bytes:
    """The content of the file in ``folder``; paths below that are written relative to it.

    Devices without a name get that which they have by their place. Raises InputError for a path that is no UTF-8.
    """
    writing = _Writing(folder)
    lines = [*_HEADER.splitlines(), ""]
    lines += [f"{key} = {writing.value(value)}" for key, value in _top(definition)]
    if not definition.machine.nics:
        lines.append("nics = []")
    for header, values in _tables(definition):
        lines += ["", header, *(f"{key} = {writing.value(value)}" for key, value in values)]
    try:
        return ("\n".join(lines) + "\n").encode()
    except UnicodeEncodeError:
        raise InputError(
            "a path is no UTF-8, and a kept instance cannot refer to it", subject=printable(str(folder))
        ) from None


Pairs = Iterator[tuple[str, Any]]


def _top(definition: Definition) -> Pairs:
    machine = definition.machine
    yield "format", FORMAT
    yield "state", machine.state
    for field in fields(Machine):
        value = getattr(machine, field.name)
        if field.name == "memory_bytes":
            yield "memory", _size(value)
        elif field.name not in _IN_TABLES and (field.name in _WRITTEN_ALWAYS or value != field.default):
            yield field.name, value
    if machine.variables is not None:
        yield "variables", machine.variables.path
        if machine.variables.format != "qcow2":
            yield "variables_format", machine.variables.format
    for key, value in (
        ("firmware", definition.firmware_file),
        ("user", definition.user),
        ("instance_id", definition.instance_id),
    ):
        if value is not None:
            yield key, value


def _tables(definition: Definition) -> Iterator[tuple[str, Pairs]]:
    machine = definition.machine
    for name, disk in zip(disk_names(machine), machine.disks, strict=True):
        yield "[[disks]]", _changed(disk, name, {"path", "format", "sector_size", "writes"})
        image = definition.image(name)
        if image is not None:
            yield "[disks.image]", _attributes(image, "path", "format", "size_bytes", "modified_ns")
            for lower in image.below:
                yield "[[disks.image.below]]", _attributes(lower, "path", "size_bytes", "modified_ns")
    for name, nic in zip(nic_names(machine), machine.nics, strict=True):
        yield "[[nics]]", _nic(nic, name)
    for share in machine.shares:
        yield "[[shares]]", _changed(share, None, {"path", "tag"})
    if machine.graphics is not None:
        yield "[graphics]", _changed(machine.graphics, None, set())


def _changed(device: DiskDevice | Nic | SharedFolder | Graphics, name: str | None, always: set[str]) -> Pairs:
    """The name, the fields that are always written, and those that have not their default."""
    if name is not None:
        yield "name", name
    for field in fields(device):
        value = getattr(device, field.name)
        default = () if field.default is MISSING else field.default
        if field.name != "name" and (field.name in always or value != default):
            yield field.name, value


def _attributes(image: BackingImage | LowerImage, *names: str) -> Pairs:
    for name in names:
        yield name, getattr(image, name)


def _nic(nic: Nic, name: str) -> Pairs:
    yield "kind", next(word for word, kind in NIC_KINDS.items() if isinstance(nic, kind))
    match nic:
        case UserNetwork():
            always = {"forwards"}
        case TapNetwork():
            always = {"interface"}
        case BridgeNetwork():
            always = {"bridge"}
        case LinkNetwork():
            always = {"folder", "end"}
    yield from _changed(nic, name, always)


@dataclass(frozen=True, slots=True)
class _Writing:
    """How values are written in a file in ``folder``."""

    folder: Path

    def value(self, value: Any) -> str:
        """``value`` as TOML has it."""
        match value:
            case bool():
                return "true" if value else "false"
            case int():
                return str(value)
            case str():
                return _text(value)
            case Path():
                below = value.is_relative_to(self.folder)
                return _text(str(value.relative_to(self.folder) if below else value))
            case tuple():
                return "[" + ", ".join(_text(f"{one.host_port}:{one.guest_port}") for one in value) + "]"
        if hasattr(value, "isoformat"):
            return str(value.isoformat())
        return self.value(value.value)


def _size(size_bytes: int) -> int | str:
    for unit, factor in (("GiB", GIB), ("MiB", MIB)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return size_bytes


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are a part of TOML's, and DEL must be escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _content(path: Path) -> str:
    subject = printable(str(path))
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=subject) from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"larger than {_MOST_BYTES // 1024} KiB: no description of a machine", subject=subject)
    try:
        return content.decode()
    except ValueError as error:
        raise InputError(f"no UTF-8: {error}", subject=subject) from error


def _source(content: str, path: Path) -> Source:
    return Source(content.replace("\r\n", "\n"), path)
