"""The checks of what boots: the program at the removable path, what it is, and whether it finds what it needs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.guid import XBOOTLDR_TYPE
from armvm.image.bootprogram import BootProgram, ProgramKind, grub_config_path
from armvm.image.contents import EfiProgram, Esp, ImageContents
from armvm.image.efi_application import check_efi_application
from armvm.image.pe import parse_pe
from armvm.printable import printable
from armvm.spec.judgement import Judgement, failed, judged_by_problems, not_applicable, passed, unknown
from armvm.spec.verdict import Evidence, Verdict

_CSV_LIMIT = 64 * 1024
_ENTRY_LIMIT = 64 * 1024
_MOST_LOADERS_SHOWN = 8
_DAMAGE = frozenset({"sectors-per-cluster", "fat-size", "total-sectors", "root-entries", "root-cluster", "unreadable"})
_BOOT_FOLDER = "\\EFI\\BOOT"
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
    return _worst(judgements, lambda good: " ".join(judgement.message for judgement in good))


def check_self_contained(contents: ImageContents) -> Judgement:
    """image.self-contained-boot: what the boot program looks for is on the image, as far as it can be told at rest."""
    if not any(esp.volume for esp in contents.esps) or not contents.boot_programs:
        return not_applicable("image.removable-path", "There is no boot program")
    programs = contents.boot_programs.values()
    if all(program.program is None for program in programs):
        return not_applicable("image.efi-application", "The boot program cannot be read")
    judgements = [_follow(contents, program, program.program) for program in programs if program.program]
    return _worst(judgements, lambda good: " ".join(dict.fromkeys(judgement.message for judgement in good)))


def _worst(judgements: list[Judgement], summary: Callable[[list[Judgement]], str]) -> Judgement:
    """The first failure, else the first unknown, else one pass with everybody's evidence."""
    for verdict in (Verdict.FAIL, Verdict.UNKNOWN, Verdict.NOT_APPLICABLE):
        for judgement in judgements:
            if judgement.verdict is verdict:
                return judgement
    evidence = [evidence for judgement in judgements for evidence in judgement.evidence]
    return passed(summary(judgements), *evidence)


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


def _follow(contents: ImageContents, program: EfiProgram, identity: BootProgram) -> Judgement:
    """What ``program`` will look for on its ESP, and whether it is there."""
    kind = identity.kind
    if kind in (ProgramKind.UNIFIED_KERNEL, ProgramKind.KERNEL):
        carried = "a unified kernel image carries its kernel, initial RAM disk and command line"
        alone = "a kernel with an EFI stub starts by itself"
        reason = carried if kind is ProgramKind.UNIFIED_KERNEL else alone
        return passed(f"{program.path.rsplit(chr(92), 1)[-1]}: {reason}.", Evidence(program.where, kind.value))
    if kind is ProgramKind.BOOT_STUB:
        return failed(
            "The boot program is a boot stub without a kernel.",
            Evidence(program.where, "no .linux section", "a unified kernel image"),
        )
    if kind is ProgramKind.GRUB:
        return _follow_grub(contents, program, identity)
    if kind is ProgramKind.SHIM:
        return _follow_shim(contents, program)
    if kind is ProgramKind.SYSTEMD_BOOT:
        return _follow_systemd_boot(contents, program)
    return unknown(
        "What this boot program needs is not known; booting it from an empty variable store tells (`armvm run IMAGE`).",
        Evidence(program.where, kind.value),
    )


def _follow_grub(contents: ImageContents, program: EfiProgram, grub: BootProgram) -> Judgement:
    config = grub_config_path(grub.grub_prefix) if grub.grub_prefix else None
    if config is not None:
        shown = f"{program.esp.where}, {printable(config).replace('/', chr(92))}"
        entry = program.volume.lookup(config)
        if entry is not None and not entry.is_directory:
            return passed("GRUB finds its configuration on the ESP.", Evidence(shown, f"{entry.size_bytes} bytes"))
        if not grub.grub_config and not grub.grub_memdisk and len(contents.table.partitions) == len(contents.esps):
            return failed(
                "GRUB's configuration is not where its prefix says, and there is no other file system.",
                Evidence(shown, "no such file", f"grub.cfg (GRUB's prefix is {printable(grub.grub_prefix or '')})"),
                remedy=f"Put grub.cfg at {printable(config)} on the ESP.",
            )
    where = f"prefix {printable(grub.grub_prefix)}" if grub.grub_prefix else "no prefix"
    inside = ", a configuration of its own" if grub.grub_config else ", a memory disk" if grub.grub_memdisk else ""
    return unknown(
        "GRUB looks for its configuration outside the ESP, where this release cannot follow it.",
        Evidence(program.where, f"GRUB with {where}{inside}"),
    )


def _follow_shim(contents: ImageContents, program: EfiProgram) -> Judgement:
    suffix = "aa64.efi" if program.path.upper().endswith("AA64.EFI") else "arm.efi"
    folder = program.path.rsplit("\\", 1)[0]
    # shim hands over to fallback when it was started from \EFI\BOOT and finds one there (shim, shim.c).
    if folder.upper() == _BOOT_FOLDER and contents.efi_program(program.esp, f"{folder}\\fb{suffix}"):
        return _follow_fallback(contents, program, suffix)
    second = contents.efi_program(program.esp, f"{folder}\\grub{suffix}")
    if second is None:
        return failed(
            "shim finds neither its second stage nor a fallback program beside it.",
            Evidence(program.esp.where, "no such file", f"{folder}\\grub{suffix} or {folder}\\fb{suffix}"),
        )
    if second.program is None:
        found = printable(second.error.message) if second.error else "unreadable"
        return failed("shim's second stage is no EFI program.", Evidence(second.where, found, "an EFI application"))
    if second.program.kind is ProgramKind.SHIM:
        return failed("shim's second stage is shim again.", Evidence(second.where, "shim", "a boot loader"))
    return _follow(contents, second, second.program)


def _follow_fallback(contents: ImageContents, program: EfiProgram, suffix: str) -> Judgement:
    r"""The fallback of shim starts what \EFI\*\BOOT*.CSV name (shim, README.fallback)."""
    csv_name = f"BOOT{suffix.removesuffix('.efi').upper()}.CSV"
    names = (csv_name, "BOOT.CSV")
    missing: list[Evidence] = []
    for path, entry in contents.files(program.esp):
        folder, _, name = path.rpartition("\\")
        if name.upper() not in names or folder.upper().rpartition("\\")[0] != "\\EFI":
            continue
        content = program.volume.read(entry, max_bytes=_CSV_LIMIT)
        for line in content.decode("utf-16", "replace").splitlines():
            target = line.split(",", 1)[0].strip()
            if not target:
                continue
            if contents.efi_program(program.esp, f"{folder}\\{target}") is not None:
                return passed(
                    "shim's fallback finds a boot loader.",
                    Evidence(f"{program.esp.where}, {printable(path)}", f"starts {printable(target)}"),
                )
            missing.append(Evidence(f"{program.esp.where}, {printable(path)}", f"{printable(target)} is not there"))
    return failed(
        "shim's fallback finds nothing to start.",
        *(missing or [Evidence(program.esp.where, f"no {csv_name}", f"\\EFI\\VENDOR\\{csv_name}")]),
    )


def _follow_systemd_boot(contents: ImageContents, program: EfiProgram) -> Judgement:
    r"""What systemd-boot shows: \\EFI\\Linux\\*.efi and \\loader\\entries\\*.conf (Boot Loader Specification)."""
    broken: list[Evidence] = []
    for path, entry in contents.files(program.esp):
        lower = path.lower()
        if lower.startswith("\\efi\\linux\\") and lower.endswith(".efi"):
            return passed("systemd-boot finds a unified kernel image.", _seen(program.esp, path))
        if lower.startswith("\\loader\\entries\\") and lower.endswith(".conf"):
            text = program.volume.read(entry, max_bytes=_ENTRY_LIMIT).decode("utf-8", "replace")
            for target in _entry_targets(text):
                if program.volume.lookup(target) is None:
                    broken.append(Evidence(f"{program.esp.where}, {printable(path)}", f"no {printable(target)}"))
                    break
            else:
                return passed("systemd-boot finds a boot entry whose files are there.", _seen(program.esp, path))
    if any(partition.type_guid == XBOOTLDR_TYPE for partition in contents.table.partitions):
        return unknown("systemd-boot's entries may stand on the extended boot partition, which is not read yet.")
    return failed(
        "systemd-boot finds nothing to boot.",
        *(broken or [Evidence(program.esp.where, "no boot entry", "\\EFI\\Linux\\*.efi or \\loader\\entries\\*.conf")]),
    )


def _entry_targets(text: str) -> list[str]:
    """The files that a boot loader entry names (Boot Loader Specification, type 1)."""
    targets = []
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key in ("linux", "initrd", "efi", "uki", "devicetree") and value.strip():
            targets.append(value.strip())
    return targets


def _seen(esp: Esp, path: str) -> Evidence:
    return Evidence(f"{esp.where}, {printable(path)}", "is there")
