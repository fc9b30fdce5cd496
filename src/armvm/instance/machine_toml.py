"""machine.toml, the file that a kept machine is described in: TOML, one key a field of the Definition value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import find_firmware
from armvm.instance.definition import BackingImage, Definition
from armvm.machine.definition import (
    Bus,
    Console,
    DiskDevice,
    GicVersion,
    HardwareDescription,
    Machine,
    PortForward,
    UserNetwork,
    VariablesFile,
    Writes,
    disk_names,
)

_FORMAT = 2


def serialise(definition: Definition, folder: Path) -> bytes:
    """The content of the file in ``folder``; paths below that are written relative to it."""
    machine = definition.machine
    lines = [
        f"format = {_FORMAT}",
        f"state = {_text(machine.state.value)}",
        f"vcpus = {machine.vcpus}",
        f"memory_bytes = {machine.memory_bytes}",
        *([f"gic = {machine.gic.value}"] if machine.gic else []),
        f"description = {_text(machine.description.value)}",
        f"console = {_text(machine.console.value)}",
        f"bus = {_text(machine.bus.value)}",
        *([f"firmware = {_path(definition.firmware_file, folder)}"] if definition.firmware_file else []),
        *([f"variables = {_path(machine.variables.path, folder)}"] if machine.variables else []),
        *([f"user = {_text(definition.user)}"] if definition.user else []),
        *([f"instance_id = {_text(definition.instance_id)}"] if definition.instance_id else []),
    ]
    for name, disk in zip(disk_names(machine), machine.disks, strict=True):
        lines += [
            "",
            "[[disks]]",
            f"name = {_text(name)}",
            f"path = {_path(disk.path, folder)}",
            f"format = {_text(disk.format)}",
            f"sector_size = {disk.sector_size}",
            f"writes = {_text(disk.writes.value)}",
        ]
        image = definition.image(name)
        if image is not None:
            lines += [
                "[disks.image]",
                f"path = {_path(image.path, folder)}",
                f"format = {_text(image.format)}",
                f"size_bytes = {image.size_bytes}",
                f"modified_ns = {image.modified_ns}",
            ]
    for nic in machine.nics:
        if isinstance(nic, UserNetwork):
            pairs = ", ".join(f"[{forward.host_port}, {forward.guest_port}]" for forward in nic.forwards)
            lines += ["", "[[nics]]", f"forwards = [{pairs}]"]
    try:
        return ("\n".join(lines) + "\n").encode()
    except UnicodeEncodeError:
        raise InputError("a path is no UTF-8, and a kept instance cannot refer to it", subject=str(folder)) from None


def read(path: Path) -> Definition:
    """What the file says. Raises InputError when it cannot be read or is broken, MissingError for missing firmware."""
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(path)) from error
    except ValueError as error:
        raise InputError(f"no UTF-8: {error}", subject=str(path)) from error
    return parse(content, path)


def parse(content: str, path: Path) -> Definition:
    """What the text of the file at ``path`` says."""
    import tomllib

    try:
        fields = tomllib.loads(content)
    except ValueError as error:
        raise InputError(f"no TOML: {error}", subject=str(path)) from error
    if fields.get("format") != _FORMAT:
        raise InputError(
            "a file of another version of armvm",
            subject=str(path),
            found=f"format {fields.get('format')}",
            expected=f"format {_FORMAT}",
        )
    try:
        return _definition(fields, path.parent)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"a broken description of a machine: {type(error).__name__} {error}", subject=str(path)
        ) from error


def _definition(fields: dict[str, Any], folder: Path) -> Definition:
    state = ExecutionState(fields["state"])
    named = fields.get("firmware")
    firmware_file = folder / named if named else None
    machine = Machine(
        state=state,
        firmware=find_firmware(state, override=firmware_file),
        disks=tuple(
            DiskDevice(
                folder / disk["path"],
                str(disk["format"]),
                int(disk["sector_size"]),
                Writes(disk["writes"]),
                name=str(disk["name"]),
            )
            for disk in fields["disks"]
        ),
        memory_bytes=int(fields["memory_bytes"]),
        vcpus=int(fields["vcpus"]),
        gic=GicVersion(fields["gic"]) if "gic" in fields else None,
        description=HardwareDescription(fields["description"]),
        console=Console(fields["console"]),
        bus=Bus(fields["bus"]),
        nics=tuple(
            UserNetwork(tuple(PortForward(int(host), int(guest)) for host, guest in nic["forwards"]))
            for nic in fields.get("nics", [])
        ),
        variables=VariablesFile(folder / fields["variables"], "qcow2") if "variables" in fields else None,
    )
    images = tuple(
        BackingImage(
            str(disk["name"]),
            folder / disk["image"]["path"],
            str(disk["image"]["format"]),
            int(disk["image"]["size_bytes"]),
            int(disk["image"]["modified_ns"]),
        )
        for disk in fields["disks"]
        if "image" in disk
    )
    return Definition(machine, images, firmware_file, fields.get("user"), fields.get("instance_id"))


def _path(path: Path, folder: Path) -> str:
    return _text(str(path.relative_to(folder) if path.is_relative_to(folder) else path))


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are a part of TOML's, and DEL must be escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
