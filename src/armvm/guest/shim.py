r"""shim and its fallback program, followed at rest (shim, shim.c, fallback.c, README.fallback)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from armvm.disk.files import FileKind
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.guest.boot_outcome import Choice, Follower, Outcome, Started, judge_menu, stopped
from armvm.guest.facts import PlacedFile, PlacedLine
from armvm.guest.trouble import Trouble, TroubleKind, missing, remark, untold
from armvm.image.bootprogram import ProgramKind
from armvm.printable import printable
from armvm.spec.judgement import failed
from armvm.spec.verdict import Evidence, Verdict
from armvm.units import KIB

_BOOT_FOLDER = "/EFI/BOOT"
_MOST_CSV_BYTES = 64 * KIB
_MOST_LINES = 64


@dataclass(frozen=True, slots=True)
class _Loader:
    """A line of a BOOT*.CSV: the program that it names, in the folder of the file."""

    line: PlacedLine
    path: str
    label: str


def _suffix(state: ExecutionState) -> str:
    return "aa64" if state is ExecutionState.AARCH64 else "arm"


def follow_shim(follower: Follower, started: Started, steps: tuple[Evidence, ...]) -> Outcome:
    r"""Follow shim: to the fallback program when it runs from ``\EFI\BOOT`` and one is there, else its second stage."""
    suffix = _suffix(follower.state)
    folder = started.folder
    second_name = f"{folder}/grub{suffix}.efi"
    try:
        fallback = _file(started, f"{folder}/fb{suffix}.efi") if folder.upper() == _BOOT_FOLDER else None
        if fallback is not None:
            return follower.follow(follower.start(fallback, started.volume), steps)
        second = _file(started, second_name)
    except InputError as error:
        return stopped("shim's second stage cannot be read.", [untold(started.place.where, printable(error.message))])
    if second is None:
        expected = f"{second_name} or {folder}/fb{suffix}.efi".replace("/", "\\")
        return Outcome(
            failed(
                "shim finds neither its second stage nor a fallback program beside it.",
                Evidence(started.volume.name, "no such file", expected),
                remedy=f"Put the second stage at {second_name}, or shim's fallback program and a BOOT*.CSV beside it.",
            )
        )
    loader = follower.start(second, started.volume)
    if loader.program is None:
        found = printable(loader.error.message) if loader.error else "unreadable"
        stage = Evidence(second.where, found, "an EFI application")
        return Outcome(failed("shim's second stage is no EFI program.", stage))
    if loader.program.kind is ProgramKind.SHIM:
        again = Evidence(second.where, "shim", "a boot loader")
        return Outcome(failed("shim's second stage is shim again.", again))
    return follower.follow(loader, steps)


def follow_fallback(follower: Follower, started: Started, steps: tuple[Evidence, ...]) -> Outcome:
    r"""The fallback program starts what the ``\EFI\*\BOOT*.CSV`` name: the first one, and makes entries of the rest."""
    csv_name = f"BOOT{_suffix(follower.state).upper()}.CSV"
    troubles: list[Trouble] = []
    choices: list[Choice] = []
    for loader in _listed(started, csv_name, troubles):
        try:
            place = _file(started, loader.path)
        except InputError as error:
            troubles.append(untold(loader.line.where, printable(error.message)))
            continue
        if place is None:
            found = f"{loader.path.rpartition('/')[2]} is not there"
            troubles.append(missing(loader.line.where, printable(found), printable(loader.path)))
            continue
        seen = (*steps, Evidence(loader.line.where, f"starts {printable(loader.path)}"))
        outcome = follower.follow(follower.start(place, started.volume), seen)
        choices.append(Choice(loader.label or loader.path, outcome, default=not choices))
    if not choices:
        if not troubles:
            troubles.append(missing(started.volume.name, f"no {csv_name}", f"\\EFI\\VENDOR\\{csv_name}"))
        return stopped("shim's fallback finds nothing to start.", troubles, remarks=True)
    outcome = judge_menu("shim's fallback", choices)
    judgement = outcome.judgement
    if judgement.verdict is Verdict.PASS:
        judgement = replace(
            judgement, message=f"shim's fallback finds a boot loader. {choices[0].outcome.judgement.message}"
        )
    dangling = tuple(trouble.evidence for trouble in troubles if trouble.kind is TroubleKind.MISSING)
    return replace(outcome, judgement=replace(judgement, evidence=(*judgement.evidence, *dangling)))


def _listed(started: Started, csv_name: str, troubles: list[Trouble]) -> list[_Loader]:
    """What the lists name, the folders in the order of their names."""
    files = started.place.files
    loaders: list[_Loader] = []
    try:
        folders = [entry for entry in files.entries("/EFI") if entry.kind is FileKind.FOLDER]
        for folder in folders:
            names = {entry.name.upper(): entry.path for entry in files.entries(folder) if entry.kind is FileKind.FILE}
            path = names.get(csv_name) or names.get("BOOT.CSV")
            if path is not None:
                loaders += _lines(PlacedFile(files, path), troubles)
    except InputError as error:
        troubles.append(untold(started.volume.name, printable(error.message)))
    return loaders[:_MOST_LINES]


def _lines(file: PlacedFile, troubles: list[Trouble]) -> list[_Loader]:
    content = file.files.read(file.path, max_bytes=_MOST_CSV_BYTES)
    if content and b"\0" not in content:
        troubles.append(remark(file.where, "is no UTF-16, which is all that fallback reads", "UTF-16"))
        return []
    has_mark = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = content.decode("utf-16" if has_mark else "utf-16-le", "replace")
    folder = file.path.rpartition("/")[0]
    loaders = []
    for number, line in enumerate(text.replace("\0", "").splitlines(), start=1):
        fields = [part.strip() for part in line.split(",")]
        if fields[0]:
            label = fields[1] if len(fields) > 1 else ""
            path = f"{folder}/{fields[0]}".replace("\\", "/")
            loaders.append(_Loader(PlacedLine(file, number, line), path, label))
    return loaders


def _file(started: Started, path: str) -> PlacedFile | None:
    entry = started.place.files.lookup(path)
    return None if entry is None or entry.kind is not FileKind.FILE else PlacedFile(started.place.files, entry.path)
