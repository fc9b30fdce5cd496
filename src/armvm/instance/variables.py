"""The variables of an instance, read and edited while it does not run: one edit at a time, each whole or not at all.

An edit reads the store, changes it as a value, and writes the new one beside it as a qcow2 image that then takes its
place: whoever is killed in between leaves the old store, and what the next command sweeps up (``recovery``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from armvm.disk.detect import open_disk
from armvm.disk.storage import Disk
from armvm.errors import InputError, MissingError, UsageError
from armvm.firmware.variables import FLASH_SIZE_BYTES, VariableStore
from armvm.firmware.varstore import READ_BYTES, new_instance_store, parse_store, serialise_store
from armvm.instance.snapshots import require_settled
from armvm.instance.store import Instance
from armvm.machine.definition import Machine

WAIT_SECONDS = 600.0
"""How long a command waits for others: of hundreds that are started at once each gets its turn, on slow machines too.

A running machine is not waited for.
"""


@dataclass(frozen=True, slots=True)
class Edit:
    """What an edit did, or would do: the store before and after. ``before`` is None when it could not be read."""

    before: VariableStore | None
    after: VariableStore

    @property
    def changes(self) -> bool:
        """Whether anything is different."""
        return self.before is None or self.before.variables != self.after.variables


def read_variables(instance: Instance) -> VariableStore:
    """The instance's store.

    Raises InputError when it cannot be read, UsageError when there is no such instance or its firmware keeps no
    variables there, BusyError when it runs.
    """
    with _held(instance), _open(instance.variables) as flash:
        return _parse(flash, instance.variables)


def edit_variables(
    instance: Instance,
    change: Callable[[VariableStore], VariableStore],
    *,
    force: bool = False,
    dry_run: bool = False,
) -> Edit:
    """Put ``change`` of the instance's store in its place. What stands behind the store in its flash is kept.

    With ``dry_run`` nothing is written; nor is it when nothing changes. A store with serious problems, of which the
    firmware would keep only a part, or nothing, is refused unless ``force``.
    Raises what ``read_variables`` and ``change`` raise, InputError when the instance is about to go back to a snapshot
    (see ``snapshots.require_settled``), which would undo it, and OutputError when it cannot be written.
    """
    with _held(instance), _open(instance.variables) as flash:
        require_settled(instance)
        before = _parse(flash, instance.variables)
        edit = Edit(before, change(before))
        if not edit.changes:
            return edit
        if not force:
            _require_sound(before, instance.variables)
        if not dry_run:
            content = serialise_store(edit.after.variables, area_bytes=edit.after.area_bytes or 0)
            _replace(instance.variables, content, flash)
    return edit


def reset_variables(instance: Instance, *, dry_run: bool = False) -> Edit:
    """Give the instance the store of a new one, whatever state its own is in.

    Raises UsageError when there is no such instance or its firmware keeps no variables there, BusyError when it runs,
    InputError when its definition is broken or it is about to go back to a snapshot, MissingError when its firmware is
    gone, OutputError when it cannot be written.
    """
    with _held(instance):
        require_settled(instance)
        before: VariableStore | None = None
        with suppress(InputError), _open(instance.variables) as flash:
            before = _parse(flash, instance.variables)
        content = new_store(instance.definition().machine)
        edit = Edit(before, parse_store(content))
        if not dry_run:
            _replace(instance.variables, content)
    return edit


def replace_store(instance: Instance, content: bytes) -> None:
    """Make ``content`` the start of the instance's flash, whatever state that is in. Hold the lock.

    Raises OutputError when it cannot be written.
    """
    try:
        with _open(instance.variables) as flash:
            _replace(instance.variables, content, flash)
    except InputError:
        _replace(instance.variables, content)


def new_store(machine: Machine) -> bytes:
    """The start of the flash of a new machine: with the keys that its firmware's maker ships where it has Secure Boot.

    Raises InputError when what the maker ships cannot be read.
    """
    firmware = machine.firmware
    if not machine.secure_boot or firmware.vars_template is None:
        return new_instance_store()
    with open_disk(firmware.vars_template, format=firmware.vars_format, sector_size=512) as template:
        return new_instance_store(template.read(0, min(READ_BYTES, template.size_bytes)))


def read_store_file(path: Path) -> VariableStore:
    """The variables of a store in a file, raw or qcow2, such as those that distributions ship.

    Raises InputError when it is none.
    """
    with open_disk(path, sector_size=512) as flash:
        return _parse(flash, path)


@contextmanager
def _held(instance: Instance) -> Iterator[None]:
    """Hold an instance that has a store; one whose definition cannot be read just now may have."""
    with instance.locked(wait_seconds=WAIT_SECONDS):
        firmware = None
        with suppress(InputError, MissingError):
            firmware = instance.definition().machine.firmware
        if firmware is not None and not firmware.keeps_variables:
            raise UsageError(
                f"the firmware of {instance.name} keeps no variables with the machine: {firmware.code}",
                hint="U-Boot keeps them in the file ubootefi.var on the EFI system partition of the disk",
            )
        yield


def _open(path: Path) -> Disk:
    return open_disk(path, format="qcow2", sector_size=512)


def _parse(flash: Disk, path: Path) -> VariableStore:
    return parse_store(flash.read(0, min(READ_BYTES, flash.size_bytes)), subject=str(path))


def _require_sound(store: VariableStore, path: Path) -> None:
    serious = next((problem for problem in store.problems if problem.serious), None)
    if serious is not None:
        raise InputError(
            f"{serious.message}, so that the firmware may lose variables; it is not written to",
            subject=f"{path}, {serious.evidence.where}",
            found=serious.evidence.found,
            expected=serious.evidence.expected,
            hint="--force writes a sound store with what could be read; armvm vars reset makes a new one",
        )


def _replace(path: Path, content: bytes, flash: Disk | None = None) -> None:
    """Put ``content``, and what ``flash`` holds behind it, in the place of the store. Hold the lock."""
    from armvm.atomic import replacing
    from armvm.disk.composed import ComposedDisk
    from armvm.disk.qcow2_write import write_qcow2
    from armvm.disk.storage import MemoryDisk, Slice

    size_bytes = FLASH_SIZE_BYTES if flash is None else max(flash.size_bytes, len(content))
    pieces: list[tuple[int, Disk]] = [(0, MemoryDisk(content))]
    if flash is not None and flash.size_bytes > len(content):
        rest = Slice(flash, len(content), flash.size_bytes - len(content), name="behind the variables")
        pieces.append((len(content), rest))
    with replacing(path, mode=0o600) as file:
        write_qcow2(file, ComposedDisk("variables", size_bytes, pieces))
