"""The file that a kept machine is described in: TOML, one key a field of the Machine value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import find_firmware
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
)

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class BackingImage:
    """The image under an instance's disk, as it was when the instance was made."""

    path: Path
    format: str
    size_bytes: int
    modified_ns: int


def serialise(machine: Machine, image: BackingImage, firmware_file: Path | None) -> bytes:
    """The content of the file. ``firmware_file`` is the firmware that the user named, None for the system's own."""
    lines = [
        f"format = {_FORMAT}",
        f"state = {_text(machine.state.value)}",
        f"vcpus = {machine.vcpus}",
        f"memory_bytes = {machine.memory_bytes}",
        *([f"gic = {machine.gic.value}"] if machine.gic else []),
        f"description = {_text(machine.description.value)}",
        f"console = {_text(machine.console.value)}",
        f"bus = {_text(machine.bus.value)}",
        f"sector_size = {machine.disks[0].sector_size}",
        *([f"firmware = {_text(str(firmware_file))}"] if firmware_file else []),
        "",
        "[image]",
        f"path = {_text(str(image.path))}",
        f"format = {_text(image.format)}",
        f"size_bytes = {image.size_bytes}",
        f"modified_ns = {image.modified_ns}",
    ]
    for nic in machine.nics:
        pairs = ", ".join(f"[{forward.host_port}, {forward.guest_port}]" for forward in nic.forwards)
        lines += ["", "[[nics]]", f"forwards = [{pairs}]"]
    try:
        return ("\n".join(lines) + "\n").encode()
    except UnicodeEncodeError:
        raise InputError(
            "its name is no UTF-8, and a kept instance cannot refer to it", subject=str(image.path)
        ) from None


def read_text(path: Path) -> dict[str, Any]:
    """The file's fields. Raises InputError when it cannot be read or is not of our making."""
    import tomllib

    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(path)) from error
    except ValueError as error:
        raise InputError(f"no TOML: {error}", subject=str(path)) from error
    if fields.get("format") != _FORMAT:
        raise InputError(
            "a file of another version of armvm",
            subject=str(path),
            found=f"format {fields.get('format')}",
            expected=f"format {_FORMAT}",
        )
    return fields


def parse_image(fields: dict[str, Any], path: Path) -> BackingImage:
    """The image that the instance stands on."""
    try:
        image = fields["image"]
        return BackingImage(
            Path(image["path"]), str(image["format"]), int(image["size_bytes"]), int(image["modified_ns"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(path, error) from error


def parse_machine(fields: dict[str, Any], path: Path, *, disk: Path, variables: Path) -> Machine:
    """The machine, with its own ``disk`` and ``variables``. Raises MissingError when its firmware is gone."""
    from armvm.machine.definition import Writes

    try:
        state = ExecutionState(fields["state"])
        named = fields.get("firmware")
        return Machine(
            state=state,
            firmware=find_firmware(state, override=Path(named) if named else None),
            disks=(DiskDevice(disk, "qcow2", int(fields["sector_size"]), Writes.KEPT),),
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
            variables=VariablesFile(variables, "qcow2"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> InputError:
    return InputError(f"a broken description of a machine: {type(error).__name__} {error}", subject=str(path))


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are a part of TOML's, and DEL must be escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
