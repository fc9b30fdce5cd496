"""The folder of every kept machine: where things stand in it, its lock, and its definition.

$ARMVM_HOME or $XDG_DATA_HOME/armvm
└── instances/NAME/     0700
    ├── machine.toml    what the machine is, and which images it stands on; to be read and edited by hand
    ├── disk.qcow2      what the guest wrote, over the image (further disks: NAME.qcow2)
    ├── vars.qcow2      its UEFI variables: no snapshots inside, so that it can be replaced whole
    ├── vars.kept       the same as the machine that runs, or ran last, started with them (see ``safekeeping``)
    ├── snapshots/NAME/ machine.toml, vars.qcow2 and snapshot.toml as of then; disks and memory are inside the disks
    ├── console.log     what it said, with times (further consoles: console1.log …)
    ├── events.jsonl    what happened to it
    ├── lock            held (flock) by a command, or by the process that runs the machine and its hypervisor
    └── run/            sockets while it runs (elsewhere when this path is too long for them, see ``sockets``)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.atomic import write_file
from armvm.errors import InputError, OutputError, UsageError
from armvm.home import home
from armvm.instance import lock
from armvm.instance.lock import Holder, HolderKind, Lock

if TYPE_CHECKING:
    from armvm.instance.definition import BackingImage, Definition, LowerImage
    from armvm.machine.definition import Machine

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Instance:
    """A kept machine, by its name and folder."""

    name: str
    folder: Path

    @property
    def description(self) -> Path:
        """What the machine is, and which images it stands on."""
        return self.folder / "machine.toml"

    @property
    def disk(self) -> Path:
        """What the guest wrote to its first disk, over the image."""
        return self.folder / "disk.qcow2"

    @property
    def variables(self) -> Path:
        """Its UEFI variable store."""
        return self.folder / "vars.qcow2"

    @property
    def kept_variables(self) -> Path:
        """The store as the machine started with it; there until what the machine left has been looked at."""
        return self.folder / "vars.kept"

    @property
    def snapshots(self) -> Path:
        """The folder of its snapshots."""
        return self.folder / "snapshots"

    @property
    def log(self) -> Path:
        """What it said on its console."""
        return self.folder / "console.log"

    def console_log(self, number: int) -> Path:
        """What it said on the console of that number; 0 is the first."""
        return self.log if number == 0 else self.folder / f"console{number}.log"

    @property
    def events(self) -> Path:
        """What happened to it."""
        return self.folder / "events.jsonl"

    @property
    def lock(self) -> Path:
        """What is held by whoever uses it."""
        return self.folder / "lock"

    @property
    def exists(self) -> bool:
        """Whether it has been made."""
        return self.description.exists()

    @property
    def holder(self) -> tuple[Holder | None, bool]:
        """Who uses it now, or died using it, and whether that is now (see ``lock.holder``)."""
        return lock.holder(self.lock)

    def require(self) -> None:
        """Raise UsageError when it has not been made."""
        if not self.exists:
            raise UsageError(f"there is no instance {self.name}", hint="armvm vm list says which there are")

    def definition(self) -> Definition:
        """What it is.

        Raises InputError, with file and line, when machine.toml is broken, MissingError when its firmware is gone.
        """
        from armvm.instance import machine_toml  # not for `armvm vm list`, which has no need of machines

        return machine_toml.read(self.description)

    def machine(self) -> Machine:
        """The machine that it is. Raises InputError also when an image under it is gone or has changed since."""
        definition = self.definition()
        for image in definition.images:
            require_unchanged(self.name, image)
        return definition.machine

    def save(self, definition: Definition) -> None:
        """Replace machine.toml, whole or not at all. Hold the lock."""
        from armvm.instance import machine_toml

        write_file(self.description, machine_toml.serialise(definition, self.folder), mode=0o600)

    @contextmanager
    def locked(self, *, kind: HolderKind = HolderKind.COMMAND, wait_seconds: float = 60.0) -> Iterator[Lock]:
        """Hold the instance within the block; another command is waited for, a running machine is not.

        What somebody who died holding it has left behind is put in order first (see ``recovery``).
        Raises UsageError when there is none of that name (any more), BusyError, which names who holds it, otherwise.
        """
        self.require()
        what = f"instance {self.name}"
        with lock.locked(self.lock, what=what, kind=kind, wait_seconds=wait_seconds, recover=self._recover) as held:
            self.require()  # it may have been deleted, or renamed, while it was waited for
            self._settle()
            yield held

    def _settle(self) -> None:
        """Finish what a snapshot was at when its QEMU ended, and see what became of the variables.

        Whoever held the lock may have let go in order.
        """
        with suppress(OSError):
            if any(name.startswith(".") for name in os.listdir(self.snapshots)):  # noqa: PTH208 - names alone
                from armvm.instance.snapshots import settle

                settle(self)
        if self.kept_variables.exists():
            from armvm.instance import safekeeping

            safekeeping.settle(self)

    def _recover(self, crashed: Holder) -> None:
        from armvm.instance.recovery import recover

        recover(self, crashed)


def find(name: str) -> Instance:
    """The instance ``name``, which may not have been made yet. Raises UsageError when that is no name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"not a name for an instance: {name!r}",
            hint="letters, digits, and after the first character . _ - (64 characters at most)",
        )
    return Instance(name, instances_folder() / name)


def instances_folder() -> Path:
    """The folder of all of them."""
    return home() / "instances"


def every() -> tuple[Instance, ...]:
    """All instances, by name. Folders that are none of ours, or half made, are left out."""
    folder = instances_folder()
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if _NAME.fullmatch(entry.name))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise OutputError(f"cannot read {folder}: {error.strerror}") from error
    found = (Instance(name, folder / name) for name in names)
    return tuple(instance for instance in found if instance.exists)


def require_unchanged(name: str, image: BackingImage) -> None:
    """Raise InputError when ``image``, under instance ``name``, or one below it is gone or no longer what it was."""
    images: tuple[BackingImage | LowerImage, ...] = (image, *image.below)
    for one in images:
        try:
            status = one.path.stat()
        except OSError as error:
            raise InputError(
                f"the image of instance {name} is gone: {error.strerror}", subject=str(one.path)
            ) from error
        if (status.st_size, status.st_mtime_ns) != (one.size_bytes, one.modified_ns):
            raise InputError(
                f"the image has changed since instance {name} was made on it",
                subject=str(one.path),
                hint="what the instance wrote belongs to the image as it was: put that back, or make another instance",
            )
