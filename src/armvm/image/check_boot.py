"""The checks of what firmware starts: the program at the removable path, and what it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.image.contents import EfiProgram, ImageContents
from armvm.image.efi_application import check_efi_application
from armvm.image.pe import parse_pe
from armvm.printable import printable
from armvm.spec.judgement import Judgement, failed, judged_by_problems, not_applicable, passed, unknown, worst
from armvm.spec.verdict import Evidence, Verdict

_MOST_LOADERS_SHOWN = 8
_DAMAGE = frozenset({"sectors-per-cluster", "fat-size", "total-sectors", "root-entries", "root-cluster", "unreadable"})
_MACHINES = {0xAA64: "AArch64", 0x01C2: "AArch32", 0x01C4: "AArch32 (wrong machine type)", 0x8664: "x86-64"}


def check_removable_path(contents: ImageContents, states: Collection[ExecutionState] = ()) -> Judgement:
    """image.removable-path: a boot program for ``states`` (default: for at least one execution state)."""
    if not any(esp.volume for esp in contents.esps):
        return not_applicable("image.esp-fat32", "There is no readable EFI System Partition")
    programs = contents.boot_programs
    missing = [state for state in ExecutionState if state in states and state not in programs]
    if programs and not missing:
        served = " and ".join(state.label for state in ExecutionState if state in programs)
        seen = [Evidence(program.where, _described(program)) for program in programs.values()]
        return passed(f"The image has a boot program for {served}.", *seen)
    wanted = missing or list(ExecutionState)
    damage = _damage(contents)
    if damage:
        return unknown("What is not found on the ESP may be there: its file system is damaged.", damage[0])
    paths = " or ".join(state.removable_path for state in wanted)
    loaders = _loaders(contents)
    evidence = (Evidence(contents.esps[0].where, "no such file", paths), *(loader for loader, _ in loaders))
    usable = [path for _, path in loaders if path.rsplit("\\", 1)[-1].lower().startswith(("shim", "grub", "systemd"))]
    if usable:
        return failed(
            f"The boot program is not at the removable path; a loader stands at {usable[0]} only.",
            *evidence,
            remedy=f"Copy {usable[0]} (and what it loads beside it) to {wanted[0].removable_path}, or run "
            "`grub-install --removable --no-nvram` when the image is made.",
        )
    return failed(f"There is no boot program at {paths}.", *evidence)


def check_boot_program(contents: ImageContents) -> Judgement:
    """image.efi-application: every program at a removable path, for the execution state of its name."""
    if not any(esp.volume for esp in contents.esps) or not contents.boot_programs:
        return not_applicable("image.removable-path", "There is no boot program")
    judgements = [_check_program(program, state) for state, program in contents.boot_programs.items()]
    damage = _damage(contents)
    if damage and any(judgement.verdict is Verdict.FAIL for judgement in judgements):
        return unknown("The boot program may not be what it seems: the ESP's file system is damaged.", damage[0])
    return worst(judgements, lambda good: " ".join(judgement.message for judgement in good))


def _damage(contents: ImageContents) -> list[Evidence]:
    """What is wrong with the file systems that can hide files, or change what is in them."""
    return [
        replace(problem.evidence, where=f"{esp.where}, {problem.evidence.where}")
        for esp in contents.esps
        for problem in contents.volume_problems(esp)
        if problem.serious and (problem.code in _DAMAGE or problem.code.startswith("chain-"))
    ]


def _check_program(program: EfiProgram, state: ExecutionState) -> Judgement:
    if program.content is None:
        return not_applicable("image.esp-fat32", "The file system does not give the boot program out")
    if program.pe is None:
        found = program.error.message if program.error else "unreadable"
        expected = f"an EFI application for {state.label}"
        return failed("The boot program is no EFI application.", Evidence(program.where, found, expected))
    return judged_by_problems(
        check_efi_application(program.pe, program.content, state),
        good=f"{state.boot_file} is an EFI application for {state.label}.",
        bad=f"{state.boot_file} is no sound EFI application",
        where=program.where,
    )


def _described(program: EfiProgram) -> str:
    kind = program.program.label if program.program else "not readable as an EFI program"
    return f"{printable(kind)}, {program.entry.size_bytes} bytes"


def _loaders(contents: ImageContents) -> list[tuple[Evidence, str]]:
    r"""The EFI programs below \EFI, wherever they stand: what the image has in place of a removable path."""
    found: list[tuple[Evidence, str]] = []
    for esp in contents.esps:
        if esp.volume is None:
            continue
        for path, entry in contents.files(esp):
            if not path.lower().endswith(".efi") or len(found) == _MOST_LOADERS_SHOWN:
                continue
            try:
                machine = parse_pe(esp.volume.open(entry)).machine
            except InputError:
                continue
            kind = _MACHINES.get(machine, f"machine type {machine:#06x}")
            found.append((Evidence(f"{esp.where}, {printable(path)}", f"EFI program for {kind}"), printable(path)))
    return found
