"""What a list says of every instance: read from machine.toml and the lock alone, so that hundreds cost little.

Nothing is judged here, and no firmware is looked for. What is broken is said, and hides no other.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armvm.errors import InputError, UsageError
from armvm.instance.lock import HolderKind
from armvm.instance.store import Instance, every
from armvm.units import parse_size

MOST_DESCRIPTION_BYTES = 1 << 20
"""A machine.toml that is longer is none."""
_MOST_DEPTH = 8
_SSH = 22


class Status(enum.Enum):
    """How an instance is."""

    RUNNING = "running"
    STARTING = "starting"
    PAUSED = "paused"
    """It runs, and its vCPUs do not."""
    STOPPED = "stopped"
    BUSY = "busy"
    """A command is at work on it."""
    CRASHED = "crashed"
    """The process that ran it was killed, or its host went down: the next command cleans up."""
    BROKEN = "broken"
    """Its machine.toml cannot be read."""


@dataclass(frozen=True, slots=True)
class Summary:
    """An instance in one line. ``problem`` says why it is BROKEN; then nothing else of machine.toml is known.

    ``disks`` are the files that are its disks, ``images`` those under them; paths as they stand, made absolute.
    ``ports`` are the ports of this host that it forwards.
    """

    instance: Instance
    status: Status
    state: str | None = None
    vcpus: int | None = None
    memory_bytes: int | None = None
    disks: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    problem: str | None = None

    @property
    def ssh_port(self) -> int | None:
        """The port of this host that leads to its ssh server."""
        return next((host for host, guest in self.ports if guest == _SSH), None)

    @property
    def image(self) -> Path | None:
        """The image under its first disk, or that disk where it is the image itself; None for a copy."""
        if self.images:
            return self.images[0]
        first = next(iter(self.disks), None)
        return None if first is None or first.is_relative_to(self.instance.folder) else first


def summaries() -> tuple[Summary, ...]:
    """Every instance, by name."""
    return tuple(summarise(instance) for instance in every())


def summarise(instance: Instance) -> Summary:
    """``instance`` in one line; whatever is wrong with it is in the line."""
    status = status_of(instance)
    try:
        return _parsed(instance, status, _fields(instance.description))
    except InputError as error:
        return Summary(instance, Status.BROKEN if status is Status.STOPPED else status, problem=error.message)


def status_of(instance: Instance) -> Status:
    """How it is, by its lock."""
    holder, held = instance.holder
    machine = holder is not None and holder.kind is HolderKind.MACHINE
    if not held:
        return Status.CRASHED if machine else Status.STOPPED
    if holder is None or not machine:
        return Status.BUSY
    return Status(holder.phase.value) if holder.phase is not None else Status.RUNNING


def used_bytes(folder: Path, depth: int = 0) -> int:
    """What the files below ``folder`` take on the disk; what cannot be read counts nothing."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += used_bytes(Path(entry.path), depth + 1) if depth < _MOST_DEPTH else 0
                else:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        return total
    return total


def _fields(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        with path.open("rb") as file:
            content = file.read(MOST_DESCRIPTION_BYTES + 1)
        if len(content) > MOST_DESCRIPTION_BYTES:
            raise InputError("far too long for a description of a machine", subject=str(path))
        return tomllib.loads(content.decode())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"no TOML: {error}", subject=str(path)) from error


def _parsed(instance: Instance, status: Status, fields: dict[str, Any]) -> Summary:
    try:
        disks = [disk for disk in fields["disks"] if isinstance(disk, dict)]
        return Summary(
            instance,
            status,
            str(fields["state"]),
            int(fields["vcpus"]) if "vcpus" in fields else _default_vcpus(),
            _memory(fields),
            tuple(instance.folder / str(disk["path"]) for disk in disks),
            tuple(_images(instance.folder, disks)),
            tuple(_forward(one) for nic in fields.get("nics", []) for one in nic.get("forwards", [])),
        )
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise InputError(
            f"a broken description of a machine: {type(error).__name__} {error}", subject=str(instance.description)
        ) from error


def _memory(fields: dict[str, Any]) -> int:
    """Its memory in bytes: a number, or a text such as 2GiB."""
    value = fields.get("memory", fields.get("memory_bytes"))
    if value is None:
        from armvm.execution import ExecutionState
        from armvm.machine.definition import DEFAULT_MEMORY_BYTES

        return DEFAULT_MEMORY_BYTES[ExecutionState(fields["state"])]
    return parse_size(value) if isinstance(value, str) else int(value)


def _default_vcpus() -> int:
    from armvm.machine.definition import DEFAULT_VCPUS  # only where it is needed: it is no small module

    return DEFAULT_VCPUS


def _forward(value: Any) -> tuple[int, int]:
    """The ports of this host and of the guest: "2222:22" or [2222, 22]."""
    host, guest = value.split(":") if isinstance(value, str) else value
    return int(host), int(guest)


def _images(folder: Path, disks: list[dict[str, Any]]) -> Iterator[Path]:
    for disk in disks:
        if "image" in disk:
            image = disk["image"]
            for one in (image, *image.get("below", ())):
                yield folder / str(one["path"])
