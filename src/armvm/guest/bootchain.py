"""The boot chain: from what firmware starts at the removable path to every kernel that can be reached from there.

Nothing is booted. What the chain needs of the image's file systems is the ``VolumeSource`` that the caller brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from armvm.disk.storage import Disk, Slice
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.guest.boot_outcome import Choice, Outcome, Started, evidence_of, judge_menu, stopped
from armvm.guest.facts import BootEntry, PlacedFile
from armvm.guest.trouble import TroubleKind, missing, untold
from armvm.guest.volume_source import BootVolume, VolumeSource
from armvm.image.bootprogram import BootProgram, ProgramKind, grub_memdisk, identify
from armvm.image.contents import EfiProgram, ImageContents
from armvm.image.pe import PeImage, parse_pe
from armvm.printable import printable
from armvm.spec.judgement import Judgement, failed, not_applicable, passed, unknown
from armvm.spec.verdict import Evidence, Verdict

if TYPE_CHECKING:
    from armvm.guest.grub_values import GrubEntry, GrubLoad, GrubResult
    from armvm.guest.memdisk import OpenFiles

_MOST_PROGRAMS = 24
_MOST_DEPTH = 8
_MISSING = TroubleKind.MISSING
_INITRD_SECTIONS = (".ucode", ".initrd")
_SEARCH_REMEDY = (
    "Let GRUB's configuration name what is on the image: run `update-grub` and `grub-install --removable --no-nvram` "
    "where the image is made, or correct the line that is named above."
)


@dataclass(frozen=True, slots=True)
class BootChain:
    """All that was found. ``judgements`` has one for every execution state with a boot program that can be read.

    ``problem`` says why nobody knows what stands at the removable path; None when it could be looked at.
    """

    entries: tuple[BootEntry, ...] = ()
    judgements: Mapping[ExecutionState, Judgement] = field(default_factory=dict)
    problem: InputError | None = None

    def judgement_for(self, state: ExecutionState) -> Judgement | None:
        """Whether the image boots by itself in ``state``; None when it has no readable boot program for it."""
        return self.judgements.get(state)

    @property
    def default_entries(self) -> tuple[BootEntry, ...]:
        """What starts when nobody touches anything: at most one for each execution state that is known."""
        return tuple(entry for entry in self.entries if entry.default)


def find_boot(contents: ImageContents, volumes: VolumeSource, *, open_files: OpenFiles | None = None) -> BootChain:
    """Follow the boot chain of an image from each of its removable paths. Nothing is raised for what is wrong with it.

    ``open_files`` opens a memory disk of GRUB that is neither tar nor FAT (``armvm.disk.filesystems.open_files``).
    """
    try:
        programs = contents.boot_programs
    except InputError as error:
        return BootChain(problem=error)
    entries: list[BootEntry] = []
    judgements: dict[ExecutionState, Judgement] = {}
    for state, program in programs.items():
        if program.program is None:
            continue
        outcome = _Walk(volumes, state, open_files).from_removable_path(program)
        entries += outcome.entries
        judgements[state] = outcome.judgement
    return BootChain(tuple(entries), judgements)


@dataclass(frozen=True, slots=True)
class _Visit:
    """A program that can be read, on the way through the chain."""

    started: Started
    content: Disk
    program: BootProgram
    pe: PeImage
    steps: tuple[Evidence, ...]
    title: str
    arguments: str | None


class _Walk:
    """Following one execution state's programs; bounded in depth and number."""

    def __init__(self, volumes: VolumeSource, state: ExecutionState, open_files: OpenFiles | None) -> None:
        self.volumes = volumes
        self.state = state
        self.open_files = open_files
        self.depth = self.count = 0

    def from_removable_path(self, program: EfiProgram) -> Outcome:
        """Start where firmware does."""
        number = program.esp.partition.number
        volume = next((v for v in self.volumes if v.partition is not None and v.partition.number == number), None)
        if volume is None or volume.files is None:
            return Outcome(unknown("The EFI System Partition is not among the volumes that are read.", _step(program)))
        place = PlacedFile(volume.files, program.path.replace("\\", "/"))
        started = Started(place, volume, program.content, program.pe, program.program, program.error)
        return self.follow(started, ())

    def start(self, place: PlacedFile, volume: BootVolume) -> Started:
        """Read an EFI program's head."""
        try:
            content = place.open()
            pe = parse_pe(content)
            return Started(place, volume, content, pe, identify(pe, content))
        except InputError as error:
            return Started(place, volume, None, error=error)

    def follow(
        self, started: Started, steps: tuple[Evidence, ...], *, title: str = "", arguments: str | None = None
    ) -> Outcome:
        """What a program comes to: by its kind."""
        where = started.place.where
        program, pe = started.program, started.pe
        if program is None or pe is None or started.content is None:
            found = printable(started.error.message) if started.error else "unreadable"
            return Outcome(failed("What is started is no EFI program.", Evidence(where, found, "an EFI application")))
        if steps and pe.machine != self.state.pe_machine:
            found, expected = f"machine type {pe.machine:#06x}", f"{self.state.pe_machine:#06x} ({self.state.label})"
            return Outcome(failed("What is started is for another processor.", Evidence(where, found, expected)))
        self.count += 1
        if self.depth >= _MOST_DEPTH or self.count > _MOST_PROGRAMS:
            return Outcome(
                unknown("More boot programs start each other than are followed.", Evidence(where, "reached"))
            )
        self.depth += 1
        try:
            steps = (*steps, Evidence(where, printable(program.label)))
            return self._by_kind(_Visit(started, started.content, program, pe, steps, title, arguments))
        finally:
            self.depth -= 1

    def _by_kind(self, visit: _Visit) -> Outcome:
        started, steps = visit.started, visit.steps
        here = Evidence(started.place.where, visit.program.kind.value)
        match visit.program.kind:
            case ProgramKind.UNIFIED_KERNEL:
                return _unified_kernel(visit, self.state)
            case ProgramKind.KERNEL:
                return _kernel(visit, self.state)
            case ProgramKind.BOOT_STUB:
                lack = replace(here, found="no .linux section", expected="a unified kernel image")
                return Outcome(failed("The boot program is a boot stub without a kernel.", lack))
            case ProgramKind.GRUB:
                return self._grub(visit)
            case ProgramKind.SHIM:
                from armvm.guest.shim import follow_shim

                return follow_shim(self, started, steps)
            case ProgramKind.FALLBACK:
                from armvm.guest.shim import follow_fallback

                return follow_fallback(self, started, steps)
            case ProgramKind.SYSTEMD_BOOT:
                from armvm.guest.systemd_boot import follow_systemd_boot

                return follow_systemd_boot(self, started, self.volumes, steps)
            case ProgramKind.OTHER:
                return Outcome(
                    unknown(
                        "What this boot program needs is not known; booting it from an empty variable store tells "
                        "(`armvm run IMAGE`).",
                        here,
                    )
                )

    def _grub(self, visit: _Visit) -> Outcome:
        from armvm.guest.grub import GrubProgram, run_grub
        from armvm.guest.memdisk import open_memdisk

        started, program, steps = visit.started, visit.program, visit.steps
        where = started.place.where
        disk = grub_memdisk(visit.pe, visit.content)
        name = f"memory disk of {where}"
        grub = GrubProgram(
            where=where,
            volume=started.volume,
            folder=started.folder,
            prefix=program.grub_prefix,
            config=program.grub_config,
            memdisk=open_memdisk(disk, name=name, open_files=self.open_files) if disk is not None else None,
        )
        result = run_grub(grub, self.volumes, self.state)
        if not result.entries:
            return _no_menu(result)
        choices = [self._grub_choice(entry, result, steps) for entry in result.entries]
        outcome = judge_menu("GRUB", choices)
        judgement = outcome.judgement
        if judgement.verdict is Verdict.PASS:
            configs = _trail(result)
            waits = [Evidence(result.entries[0].line.file.where, "GRUB waits for a key: no timeout is set")]
            evidence = (*configs, *judgement.evidence, *(waits if result.waits else []), *_in_spite_of(result))
            message = judgement.message.replace("GRUB ", "GRUB finds its configuration and ", 1)
            judgement = replace(judgement, message=message, evidence=evidence)
        return replace(outcome, judgement=judgement)

    def _grub_choice(self, entry: GrubEntry, result: GrubResult, steps: tuple[Evidence, ...]) -> Choice:
        steps = (*steps, *map(_config, entry.trail))
        outcomes = [self._grub_load(entry, load, result, steps) for load in entry.loads]
        if not outcomes:
            outcome = stopped("It loads no kernel.", [*entry.troubles, missing(entry.line.where, "loads no kernel")])
        elif len(outcomes) == 1:
            outcome = outcomes[0]
        else:
            outcome = judge_menu("GRUB", [Choice(entry.title, one, certain=False, default=True) for one in outcomes])
        return Choice(entry.title, outcome, entry.default, entry.fallback, entry.certain)

    def _grub_load(self, entry: GrubEntry, load: GrubLoad, result: GrubResult, steps: tuple[Evidence, ...]) -> Outcome:
        if load.program is None or load.troubles:
            before = [t for t in (*entry.troubles, *result.troubles) if t.kind is _MISSING]
            what = "its kernel is not there." if load.program is None else "its initial RAM disk is not there."
            if load.chained:
                what = "the boot program that it starts is not there."
            stop = stopped(what, [*load.troubles, *before], remedy=_SEARCH_REMEDY)
            order = dict.fromkeys((*evidence_of(before), *evidence_of(load.troubles)))
            return replace(stop, judgement=replace(stop.judgement, evidence=tuple(order)))
        if load.chained:
            volume = next((v for v in self.volumes if v.name == load.program.files.name), None)
            if volume is None:
                return stopped("what it starts cannot be followed.", [untold(load.source.where, "not on a volume")])
            return self.follow(self.start(load.program, volume), steps, title=entry.title, arguments=load.command_line)
        try:
            kernel = load.program.open()
            initrds = tuple((initrd.where, initrd.open()) for initrd in load.initrds)
        except InputError as error:
            return stopped("its kernel cannot be read.", [untold(load.source.where, printable(error.message))])
        if kernel.size_bytes == 0:
            return stopped("its kernel is empty.", [missing(load.program.where, "0 bytes", "a kernel")])
        boot = BootEntry(
            title=entry.title,
            state=self.state,
            kernel=kernel,
            kernel_where=load.program.where,
            initrds=initrds,
            command_line=load.command_line,
            steps=steps,
            source=load.source,
            default=True,
        )
        return Outcome(passed("it boots.", Evidence(load.source.where, f"{load.program.where} is there")), (boot,))


def _no_menu(result: GrubResult) -> Outcome:
    evidence = evidence_of(result.troubles, remarks=True)
    message = "GRUB finds no configuration with anything to boot."
    if not evidence:
        evidence = (Evidence("GRUB's configuration", "no menu entry, and nothing is booted", "a menuentry"),)
    outcome = stopped(message, result.troubles, remedy=_SEARCH_REMEDY)
    return replace(outcome, judgement=replace(outcome.judgement, evidence=evidence))


def _started_untouched(result: GrubResult) -> GrubEntry:
    return next((entry for entry in result.entries if entry.default), result.entries[0])


def _trail(result: GrubResult) -> Sequence[Evidence]:
    """The configuration files that lead to the entry that starts untouched."""
    return [_config(file) for file in _started_untouched(result).trail]


def _in_spite_of(result: GrubResult) -> tuple[Evidence, ...]:
    """What failed on the way and kept nothing from booting: GRUB says so, waits for a key, and goes on."""
    return evidence_of(t for t in (*result.troubles, *_started_untouched(result).troubles) if t.kind is _MISSING)


def _config(file: PlacedFile) -> Evidence:
    return Evidence(file.where, "boot loader entry" if file.path.endswith(".conf") else "GRUB's configuration")


def _kernel(visit: _Visit, state: ExecutionState) -> Outcome:
    where = visit.started.place.where
    name = printable(visit.started.place.path.rpartition("/")[2])
    entry = BootEntry(
        title=visit.title or name,
        state=state,
        kernel=visit.content,
        kernel_where=where,
        command_line=visit.arguments,
        steps=visit.steps,
        default=True,
    )
    given = "arguments" if visit.arguments else "no arguments: only those that are built in"
    note = Evidence(where, f"{ProgramKind.KERNEL.value}, started with {given}")
    return Outcome(passed(f"{name}: a kernel with an EFI stub starts by itself.", note), (entry,))


def _unified_kernel(visit: _Visit, state: ExecutionState) -> Outcome:
    where = visit.started.place.where
    name = printable(visit.started.place.path.rpartition("/")[2])
    try:
        kernel = _section(visit, ".linux")
        initrds = tuple(
            (f"{where}, section {section}", _section(visit, section))
            for section in _INITRD_SECTIONS
            if visit.pe.section(section) is not None
        )
    except InputError as error:
        if len(visit.steps) == 1:  # it is the boot program itself
            return Outcome(not_applicable("image.efi-application", "The boot program is cut off"))
        return Outcome(failed("The unified kernel image is cut off.", Evidence(where, printable(error.message))))
    notes = [Evidence(where, visit.program.kind.value)]
    if visit.pe.section(".profile") is not None:
        notes.append(Evidence(where, "has several profiles; the one that starts untouched is looked at"))
    entry = BootEntry(
        title=visit.title or visit.program.os_name or name,
        state=state,
        kernel=kernel,
        kernel_where=f"{where}, section .linux",
        initrds=initrds,
        command_line=visit.arguments or visit.program.command_line or "",
        steps=visit.steps,
        default=True,
    )
    carried = "a unified kernel image carries its kernel, initial RAM disk and command line"
    return Outcome(passed(f"{name}: {carried}.", *notes), (entry,))


def _section(visit: _Visit, name: str) -> Slice:
    section = visit.pe.section(name)
    if section is None:
        raise InputError(f"has no section {name}", subject=visit.started.place.where)
    return Slice(visit.content, section.raw_offset, section.data_size, name=f"section {name}")


def _step(program: EfiProgram) -> Evidence:
    return Evidence(program.where, printable(program.program.label if program.program else "no EFI program"))
