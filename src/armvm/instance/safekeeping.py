"""The variable store as a machine started with it, kept until the machine is over.

Flash is erased by the block, and the store is one block. EDK2 before 2024 writes a variable of more than 128 bytes by
erasing it all and writing it again: a QEMU that is killed in between, as by a power cut, takes every variable with it.
(EDK2 2022.11, OvmfPkg/VirtNorFlashDxe/VirtNorFlash.c: NorFlashWriteSingleBlock.) Whoever next holds the instance looks
at what the machine left, and puts the kept store in the place of one that was cut off like that.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from armvm.atomic import write_file
from armvm.disk.detect import open_disk
from armvm.errors import InputError, OutputError
from armvm.firmware.varstore import READ_BYTES, parse_store, was_cut_off
from armvm.instance import events
from armvm.instance.store import Instance


def keep(instance: Instance, source: Path | None = None) -> None:
    """Keep the store in ``source``, by default the instance's own, as what a machine starts with. Hold the lock.

    A store that is no good is not kept; nor is any on a disk that is full, which is no reason not to start.
    """
    forget(instance)
    with suppress(InputError, OutputError):
        content = _start_of(source or instance.variables)
        store = parse_store(content)
        if store.formatted and store.area_bytes is not None and not any(one.serious for one in store.problems):
            write_file(instance.kept_variables, content[: 3 * store.area_bytes], mode=0o600)


def forget(instance: Instance) -> None:
    """Keep it no longer: the machine is over, or the instance is to be something else."""
    instance.kept_variables.unlink(missing_ok=True)


def settle(instance: Instance) -> None:
    """Look at what a machine that is over left, and undo the loss of its variables. Hold the lock.

    Raises OutputError when the store cannot be written: it is tried again then.
    """
    from armvm.instance.variables import replace_store

    try:
        kept = instance.kept_variables.read_bytes()
    except OSError:
        return
    try:
        now = _start_of(instance.variables)
    except InputError:
        now = b""
    try:
        lost = was_cut_off(kept, now)
    except InputError:  # not by us: somebody has been at it
        lost = False
    if lost:
        replace_store(instance, kept)
        with suppress(OutputError):
            events.record(instance.events, "variables-restored", reason="the machine ended while they were written")
    forget(instance)


def _start_of(path: Path) -> bytes:
    with open_disk(path, format="qcow2", sector_size=512) as flash:
        return flash.read(0, min(READ_BYTES, flash.size_bytes))
