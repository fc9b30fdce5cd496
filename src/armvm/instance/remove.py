"""Deletes instances, and says beforehand what is lost by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from armvm.errors import UsageError
from armvm.instance import beside, dependants
from armvm.instance.store import Instance
from armvm.instance.summary import used_bytes


@dataclass(frozen=True, slots=True)
class Loss:
    """What goes with an instance: the bytes that its folder takes, its snapshots, and who stands on its files."""

    size_bytes: int
    snapshots: tuple[str, ...]
    dependants: tuple[str, ...]


def loss(instance: Instance) -> Loss:
    """What deleting ``instance`` takes away."""
    files = [path for path in _entries(instance.folder) if path.is_file()]
    return Loss(
        used_bytes(instance.folder),
        tuple(path.name for path in _entries(instance.snapshots) if path.is_dir() and not path.name.startswith(".")),
        dependants.of(*files, besides=instance.name),
    )


def remove(instance: Instance, *, with_dependants: bool = False) -> None:
    """Delete ``instance``, which is not running: after one rename there is none, whatever happens then.

    Raises UsageError when there is none, or others stand on its files, BusyError while it runs, OutputError.
    """
    with instance.locked():
        names = loss(instance).dependants
        if names and not with_dependants:
            raise UsageError(
                f"instance {instance.name} cannot be deleted: {', '.join(names)} stand on its disks",
                hint="--force deletes it, and they are lost",
            )
        beside.remove(instance.folder)


def _entries(folder: Path) -> tuple[Path, ...]:
    try:
        return tuple(sorted(folder.iterdir()))
    except OSError:
        return ()
