r"""The vendor's boot loader put at the removable path, \EFI\BOOT, with everything that it then looks for beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from armvm.disk.fat_edit import FatEditor
from armvm.disk.files import join
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.image.bootprogram import ProgramKind
from armvm.image.contents import EfiProgram, Esp, ImageContents
from armvm.printable import printable
from armvm.repair.workbench import Workbench

_PATH, _CONTAINED = "image.removable-path", "image.self-contained-boot"
_BOOT = "\\EFI\\BOOT"
_SUFFIXES = {ExecutionState.AARCH64: "aa64.efi", ExecutionState.AARCH32: "arm.efi"}
_PREFERENCE = (ProgramKind.SHIM, ProgramKind.SYSTEMD_BOOT, ProgramKind.GRUB, ProgramKind.UNIFIED_KERNEL)
_MOST_LOADERS = 64
_MOST_LOADER_BYTES = 64 << 20
_MOST_CSV_BYTES = 64 << 10
_INSTALL = "install one in the guest: `grub-install --removable --no-nvram`, or `bootctl install`"


@dataclass(frozen=True, slots=True)
class _Copy:
    """A file on the ESP to be copied to another place on it."""

    source: str
    target: str


def put_loader(bench: Workbench, states: Collection[ExecutionState] = ()) -> None:
    """image.removable-path: for ``states``, or where there is no boot program at all, for each state with a loader."""
    contents = bench.contents()
    if not bench.wants(_PATH) or not any(esp.volume for esp in contents.esps):
        return
    try:
        present = contents.boot_programs
    except InputError as error:
        bench.cannot(_PATH, "ESP", error.message, None)
        return
    wanted = tuple(states) or (() if present else tuple(ExecutionState))
    missing = [state for state in ExecutionState if state in wanted and state not in present]
    done = [state for state in missing if any(_put(bench, contents, esp, state) for esp in contents.esps)]
    needed = [state for state in missing if state not in done]
    if needed and (states or not done):
        names = " or ".join(state.label for state in needed)
        why = f"the ESP holds no boot loader for {names} that could be put there"
        bench.cannot(_PATH, contents.esps[0].where, why, _INSTALL)


def complete_loader(bench: Workbench) -> None:
    """image.self-contained-boot: what the boot program looks for, where the ESP has it in another place."""
    if not bench.wants(_CONTAINED):
        return
    contents = bench.contents()
    try:
        programs = contents.boot_programs if any(esp.volume for esp in contents.esps) else {}
    except InputError:
        return
    for state, program in programs.items():
        kind = program.program.kind if program.program else None
        try:
            if kind is ProgramKind.SHIM:
                _complete_shim(bench, contents, program, state)
            elif kind is ProgramKind.GRUB:
                _complete_grub(bench, contents, program)
        except InputError as error:
            bench.cannot(_CONTAINED, program.where, error.message, None)


def _put(bench: Workbench, contents: ImageContents, esp: Esp, state: ExecutionState) -> bool:
    """Copy the best loader of ``esp`` for ``state`` to the removable path. Whether there was one that could be."""
    loaders = sorted(_loaders(contents, esp, state), key=lambda loader: _rank(loader, state))
    kernels = [loader for loader in loaders if _kind(loader) is ProgramKind.UNIFIED_KERNEL]
    if not loaders or (loaders[0] in kernels and len(kernels) > 1):
        return False  # of several kernels nobody knows which one is meant
    loader = loaders[0]
    copies = [_Copy(loader.path, state.removable_path)]
    kind = _kind(loader)
    reason = f"{printable(loader.path)} boots only where it was installed; firmware starts {state.removable_path}"
    if kind is ProgramKind.SHIM:
        beside = _beside_shim(contents, loader, state)
        if beside is None:
            return False
        copies += beside
    if kind is ProgramKind.GRUB:
        copies += _grub_config(contents, loader, _BOOT)
    try:
        _copy(bench, esp, copies)
    except InputError as error:
        bench.cannot(_PATH, esp.where, error.message, "make room on the ESP, or mend its file system")
        return True
    for copy in copies:
        bench.did(_PATH, f"{esp.where}, {printable(copy.target)}", f"copied from {printable(copy.source)}", reason)
        reason = f"{kind.value} looks for it there"
    return True


def _rank(loader: EfiProgram, state: ExecutionState) -> tuple[int, int, str]:
    """Shim before what it starts; of several alike, the one with the usual name, then by path."""
    usual = {f"{name}{_SUFFIXES[state]}" for name in ("shim", "grub", "systemd-boot")}
    name = loader.path.rpartition("\\")[2].lower()
    return _PREFERENCE.index(_kind(loader)), int(name not in usual), loader.path


def _kind(loader: EfiProgram) -> ProgramKind:
    return loader.program.kind if loader.program else ProgramKind.OTHER


def _loaders(contents: ImageContents, esp: Esp, state: ExecutionState) -> Iterator[EfiProgram]:
    r"""The boot loaders for ``state`` below \EFI."""
    seen = 0
    try:
        for path, _ in contents.files(esp):
            if not path.lower().startswith("\\efi\\") or not path.lower().endswith(".efi"):
                continue
            if path.lower().startswith("\\efi\\boot\\boot"):
                continue  # another machine's removable path, whatever stands there
            program = contents.efi_program(esp, path)
            if program is None or program.pe is None or program.pe.machine != state.pe_machine:
                continue
            if _kind(program) in _PREFERENCE and program.entry.size_bytes <= _MOST_LOADER_BYTES:
                yield program
                seen += 1
                if seen == _MOST_LOADERS:
                    return
    except InputError:
        return


def _beside_shim(contents: ImageContents, shim: EfiProgram, state: ExecutionState) -> list[_Copy] | None:
    """What shim needs beside it at the removable path: its fallback, where that finds its list, else its loader."""
    suffix = _SUFFIXES[state]
    folder = shim.path.rpartition("\\")[0]
    manager = _optional(contents, shim.esp, f"{folder}\\mm{suffix}", f"{_BOOT}\\mm{suffix}")
    fallback_there = _file(contents, shim.esp, f"{_BOOT}\\fb{suffix}")
    fallback = _optional(contents, shim.esp, f"{folder}\\fb{suffix}", f"{_BOOT}\\fb{suffix}")
    if (fallback_there or fallback) and _listed(contents, shim, folder, suffix):
        return [*fallback, *manager]
    second = _optional(contents, shim.esp, f"{folder}\\grub{suffix}", f"{_BOOT}\\grub{suffix}")
    if fallback_there or not (second or _file(contents, shim.esp, f"{_BOOT}\\grub{suffix}")):
        return None  # a fallback without a list would be started in place of the loader
    grub = contents.efi_program(shim.esp, second[0].source) if second else None
    return [*second, *manager, *(_grub_config(contents, grub, _BOOT) if grub else [])]


def _listed(contents: ImageContents, shim: EfiProgram, folder: str, suffix: str) -> bool:
    """Whether the list for shim's fallback in its vendor's folder names something that is there."""
    for name in (f"BOOT{suffix.removesuffix('.efi').upper()}.CSV", "BOOT.CSV"):
        entry = shim.volume.lookup(f"{folder}\\{name}")
        if entry is None or entry.is_directory:
            continue
        text = shim.volume.read(entry, max_bytes=_MOST_CSV_BYTES).decode("utf-16", "replace")
        targets = [line.split(",", 1)[0].strip() for line in text.splitlines()]
        if any(target and _file(contents, shim.esp, f"{folder}\\{target}") for target in targets):
            return True
    return False


def _optional(contents: ImageContents, esp: Esp, source: str, target: str) -> list[_Copy]:
    """A copy, where the source is there and the target is not."""
    return [_Copy(source, target)] if _file(contents, esp, source) and not _file(contents, esp, target) else []


def _file(contents: ImageContents, esp: Esp, path: str) -> bool:
    del contents
    entry = esp.volume.lookup(path) if esp.volume is not None else None
    return entry is not None and not entry.is_directory


def _grub_config(contents: ImageContents, grub: EfiProgram, folder: str) -> list[_Copy]:
    """grub.cfg beside a GRUB that goes by its own place: one whose prefix is empty. Any other finds it as before."""
    program = grub.program
    if program is None or program.grub_prefix or program.grub_config or program.grub_memdisk:
        return []
    return _optional(contents, grub.esp, f"{grub.path.rpartition(chr(92))[0]}\\grub.cfg", f"{folder}\\grub.cfg")


def _complete_shim(bench: Workbench, contents: ImageContents, shim: EfiProgram, state: ExecutionState) -> None:
    suffix = _SUFFIXES[state]
    folder = shim.path.rpartition("\\")[0]
    if _file(contents, shim.esp, f"{folder}\\grub{suffix}") or _file(contents, shim.esp, f"{folder}\\fb{suffix}"):
        return
    found = [
        loader
        for loader in _loaders(contents, shim.esp, state)
        if loader.path.lower().endswith(f"\\grub{suffix}") and _kind(loader) is ProgramKind.GRUB
    ]
    if len(found) == 1:
        copies = [_Copy(found[0].path, f"{folder}\\grub{suffix}"), *_grub_config(contents, found[0], folder)]
        _copy(bench, shim.esp, copies)
        for copy in copies:
            where = f"{shim.esp.where}, {printable(copy.target)}"
            reason = "shim starts its second stage from the folder that it stands in, and there was none"
            bench.did(_CONTAINED, where, f"copied from {printable(copy.source)}", reason)
    else:
        which = "none" if not found else "several"
        why = f"shim finds no second stage, and the ESP has {which} that could be put beside it"
        bench.cannot(_CONTAINED, shim.where, why, "reinstall the boot loader in the guest: `grub-install --removable`")


def _complete_grub(bench: Workbench, contents: ImageContents, grub: EfiProgram) -> None:
    """grub.cfg where GRUB's prefix says, when the ESP has exactly one and it stands elsewhere."""
    program = grub.program
    if program is None or program.grub_config or program.grub_memdisk:
        return
    own = grub.path.rpartition("\\")[0]
    prefix = program.grub_prefix or own.replace("\\", "/")
    config = _grub_config_path(prefix)
    if config is None or _file(contents, grub.esp, config):
        return
    found = [path for path, _ in contents.files(grub.esp) if path.lower().endswith("\\grub.cfg")]
    if len(found) != 1:
        return  # its configuration may be on another file system; the check says when it is not
    target = config.replace("/", "\\")
    _copy(bench, grub.esp, [_Copy(found[0], target)])
    where = f"{grub.esp.where}, {printable(target)}"
    bench.did(_CONTAINED, where, f"copied from {printable(found[0])}", "GRUB looks for its configuration there")


def _copy(bench: Workbench, esp: Esp, copies: list[_Copy]) -> None:
    """Copy files on the ESP, all of them or none. Raises InputError when they do not fit."""
    from armvm.disk.patched import PatchedDisk

    disk = bench.volume(esp.partition)
    scratch = PatchedDisk(disk)
    try:
        editor = FatEditor(scratch, timestamp=bench.timestamp)
        for copy in copies:
            entry = editor.volume.lookup(copy.source)
            if entry is None:
                raise InputError(f"there is no {printable(copy.source)}", subject=disk.name)
            editor.write(copy.target, MemoryDisk(editor.volume.read(entry, max_bytes=_MOST_LOADER_BYTES)))
        for offset, _, content in scratch.changes():
            disk.write(offset, content)
    finally:
        scratch.close()


def _grub_config_path(prefix: str) -> str | None:
    """The path of grub.cfg below the ESP's root for a GRUB ``prefix`` without a device; None for one with a device.

    GRUB takes the device that it was started from when its prefix names none (``/EFI/debian``; ``(,gpt1)/grub`` and
    ``(hd0,gpt1)/grub`` name one).
    """
    return None if prefix.startswith("(") else join(prefix, "grub.cfg")
