"""GRUB, followed at rest: from the EFI program to every kernel that its menus start.

What GRUB does at its start (grub-core/kern/main.c, kern/efi/init.c): the prefix that grub-mkimage gave it becomes
``$prefix``, with the device that it was started from where it names none; its embedded configuration runs; then
``$prefix/grub.cfg`` does. ``$cmdpath`` is the folder that it was started from.
"""

from __future__ import annotations

from dataclasses import dataclass

from armvm.disk.files import FileSystem, MemoryFileSystem
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.guest.facts import PlacedFile, PlacedLine
from armvm.guest.grub_commands import COMMANDS
from armvm.guest.grub_devices import Absent, Devices, NoAnswer
from armvm.guest.grub_run import GrubRun
from armvm.guest.grub_values import Call, GrubResult, Leave, OutOfBounds
from armvm.guest.trouble import missing, untold
from armvm.guest.volume_source import BootVolume, VolumeSource
from armvm.printable import printable

_EMBEDDED = "/embedded configuration"


@dataclass(frozen=True, slots=True)
class GrubProgram:
    """A GRUB program on the image. ``volume`` and ``folder`` are where it was started from; ``where`` is for evidence.

    ``memdisk`` is what it carries inside; None when it has none, or why it cannot be read.
    """

    where: str
    volume: BootVolume
    folder: str
    prefix: str | None = None
    config: str | None = None
    memdisk: FileSystem | NoAnswer | None = None


def run_grub(program: GrubProgram, volumes: VolumeSource, state: ExecutionState) -> GrubResult:
    """Follow GRUB to its menus. Nothing is raised: what stops it is among the result's troubles."""
    devices = Devices(volumes, program.memdisk)
    run = GrubRun(devices, state, COMMANDS)
    device = devices.name_of(program.volume)
    run.export("cmdpath", f"({device}){program.folder}")
    prefix_device, path = _prefix(program.prefix, device)
    run.export("root", prefix_device)
    run.export("prefix", f"({prefix_device}){path or program.folder}")
    try:
        if not program.config or _run_embedded(run, program):
            _run_normal(run, program)
    except Leave:
        pass
    except OutOfBounds as limit:
        run.troubles.append(untold(program.where, f"not followed to its end: {limit}"))
    return _result(run)


def _result(run: GrubRun) -> GrubResult:
    return GrubResult(tuple(run.entries), tuple(run.troubles), run.waits)


def _run_embedded(run: GrubRun, program: GrubProgram) -> bool:
    """Run the embedded configuration; whether GRUB goes on to its own menu afterwards."""
    files = MemoryFileSystem({_EMBEDDED: (program.config or "").encode()}, name=program.where)
    try:
        run.run_config(PlacedFile(files, _EMBEDDED))
    except Leave:
        return False
    except InputError as error:
        run.report(untold(program.where, printable(error.message)))
    return True


def _run_normal(run: GrubRun, program: GrubProgram) -> None:
    """What GRUB does when nothing else was said: ``$prefix/grub.cfg``."""
    prefix = run.get("prefix")
    path = None if prefix is None else f"{prefix}/grub.cfg"
    found = run.find(path)
    if isinstance(found, NoAnswer):
        make = missing if found.absent is Absent.MISSING else untold
        expected = f"grub.cfg (GRUB's prefix is {printable(prefix or 'not known')})"
        run.report(make(program.where, found.reason, expected))
        return
    start = PlacedFile(MemoryFileSystem({}, name=program.where), _EMBEDDED)
    run.call(Call("normal", (path,), PlacedLine(start, 0, "normal")))


def _prefix(prefix: str | None, device: str) -> tuple[str, str]:
    """The device and path of GRUB's prefix (grub_set_prefix_and_root)."""
    if prefix is None or not prefix.startswith("("):
        return device, prefix or ""
    named, _, path = prefix[1:].partition(")")
    if named.startswith(","):
        return device.partition(",")[0] + named, path
    return named or device, path
