"""Makes nested hosts: packages → root → boot → warm → frozen; and finds the one that is there."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from armvm.atomic import replacing
from armvm.errors import MachineError
from armvm.lab import store
from armvm.lab.outer import EMULATOR, INCOMING, OuterMachine, machine_arguments
from armvm.lab.packages import Extracted, choose_packages, extract, find_extracted
from armvm.lab.recipe import HostFiles, HostRecipe, LabHost, Task
from armvm.lab.root import build_host, own_archive
from armvm.lab.store import Frozen
from armvm.process import run
from armvm.units import format_size

Notes = Callable[[str], None]
_VERSION_SECONDS = 30.0
_MOST_FREEZES = 6
_TRIAL = Task(("sleep", "2"), 60.0)
"""Nothing but the host's timers ends it."""


@dataclass(frozen=True, slots=True)
class ReadyHost:
    """A frozen host that is held (its ``in-use`` lock, shared) as long as the block runs: ``descriptor`` is that."""

    host: LabHost
    recipe: HostRecipe
    frozen: Frozen
    descriptor: int
    state: int
    """The open state; its position is where a machine is to be resumed from."""


@contextmanager
def ready_host(host: LabHost, *, renew: bool = False, notes: Notes) -> Iterator[ReadyHost]:
    """The frozen ``host``, made first where it is not there, not whole, or made of something else than now.

    Raises MissingError for what this machine lacks, OutputError when packages cannot be fetched, MachineError when the
    host does not come up (with the last that it said).
    """
    host.prepare(notes)
    recipe = host.recipe()
    own = own_archive(recipe)
    emulator = _emulator()
    key = _key(host, recipe, own, emulator)
    folder = store.make_folder(store.host_folder(host.kind))
    with store.holding(folder / "in-use", shared=True) as descriptor:
        frozen = store.read_frozen(host.kind)
        if renew or frozen is None or frozen.key != key:
            with store.holding(folder / "making"):
                frozen = store.read_frozen(host.kind)  # perhaps somebody has made it while we waited
                if renew or frozen is None or frozen.key != key:
                    frozen = _make(host, recipe, own, emulator, key, renew=renew, notes=notes)
        with (folder / "state").open("rb", buffering=0) as state:
            yield ReadyHost(host, recipe, frozen, descriptor, state.fileno())


def is_current(host: LabHost, frozen: Frozen) -> bool:
    """Whether ``frozen`` is what would be made now."""
    recipe = host.recipe()
    return frozen.key == _key(host, recipe, own_archive(recipe), _emulator())


def _emulator() -> str:
    said = run(EMULATOR, ["--version"], timeout_seconds=_VERSION_SECONDS).stdout.decode(errors="replace")
    return said.partition("\n")[0].strip()[:200]


def _key(host: LabHost, recipe: HostRecipe, own: bytes, emulator: str) -> str:
    parts = (
        host.kind.value,
        choose_packages(recipe).key,
        hashlib.sha256(own).hexdigest(),
        machine_arguments(recipe),
        host.arguments(HostFiles(Path("kernel"), Path("initrd"), {name: Path(name) for name in recipe.beside})),
        recipe.warm,
        emulator,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _make(
    host: LabHost, recipe: HostRecipe, own: bytes, emulator: str, key: str, *, renew: bool, notes: Notes
) -> Frozen:
    began = time.monotonic()
    extracted = _extracted(recipe, renew=renew, notes=notes)
    folder = store.host_folder(host.kind)
    with store.scratch_folder(folder) as scratch:
        files = build_host(scratch, extracted, own, recipe.beside)
        notes(f"booting the nested {host.kind.value} host for the first time: one to three minutes under emulation")
        with OuterMachine(recipe, host.arguments(files)) as machine:
            machine.await_ready(recipe.boot_seconds)
            _warm(machine, recipe)
            (folder / "manifest.json").unlink(missing_ok=True)
            with replacing(folder / "state", mode=0o600) as file:
                _freeze(machine, recipe, file)
                size = file.seek(0, os.SEEK_END)
    seconds = round(time.monotonic() - began, 1)
    frozen = Frozen(key, extracted.kernel_release, emulator, recipe.memory_bytes, size, store.now(), seconds)
    store.write_frozen(host.kind, frozen)
    notes(f"the nested {host.kind.value} host is frozen: {format_size(size)}, made in {seconds:.0f} s")
    return frozen


def _freeze(machine: OuterMachine, recipe: HostRecipe, file: BinaryIO) -> None:
    """Write the state of ``machine`` that it goes on from; not every moment is one (see ``OuterMachine.resume``).

    Raises MachineError when none was found.
    """
    for _ in range(_MOST_FREEZES):
        machine.freeze(file.fileno())
        file.seek(0)
        if _goes_on(recipe, file.fileno()):
            return
        file.seek(0)
        file.truncate()
        machine.go_on()
        _warm(machine, recipe)
    raise MachineError(f"the nested {recipe.kind.value} host does not go on from where it was frozen")


def _goes_on(recipe: HostRecipe, state: int) -> bool:
    """Whether a machine that is resumed from the open ``state`` wakes by its timers."""
    with OuterMachine(recipe, INCOMING) as trial:
        trial.resume(state)
        return trial.perform(_TRIAL).code == 0


def _extracted(recipe: HostRecipe, *, renew: bool, notes: Notes) -> Extracted:
    cache = store.make_folder(store.cache_folder())
    choice = choose_packages(recipe)
    with store.holding(cache / "making"):
        found = None if renew else find_extracted(choice, cache)
        return extract(choice, cache, notes=notes) if found is None else found


def _warm(machine: OuterMachine, recipe: HostRecipe) -> None:
    for command in recipe.warm:
        result = machine.perform(Task(command, recipe.boot_seconds))
        if result.code != 0:
            said = "\n".join(result.notes[-5:]) or result.error or f"exit {result.code}"
            raise MachineError(f"in the nested host, {' '.join(command)} fails", output_tail=said)
