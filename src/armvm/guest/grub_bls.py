"""``blscfg``: GRUB's menu from Boot Loader Specification files (Fedora's and openSUSE's GRUB, GRUB 2.14)."""

from __future__ import annotations

import re

from armvm.disk.files import FileKind
from armvm.errors import InputError
from armvm.guest.facts import PlacedFile
from armvm.guest.grub_devices import Absent, NoAnswer
from armvm.guest.grub_run import GrubRun
from armvm.guest.grub_script import Command, Part, Word
from armvm.guest.grub_values import Call, MenuItem
from armvm.guest.loader_entries import LoaderEntry, parse_entry, read_entries, value_of, version_key
from armvm.guest.trouble import untold
from armvm.printable import printable

_FOLDERS = ("/loader/entries", "/boot/loader/entries")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", re.ASCII)


def add_entries(run: GrubRun, call: Call, path: str | None) -> bool | None:
    """Put the entries that ``blscfg`` finds into the menu: in ``path``, else ``$blsdir``, else where they belong."""
    if path in ("default", "non-default"):
        path = None
    folder = run.get("blsdir")
    places = [path] if path else [folder] if folder else list(_FOLDERS)
    answer: NoAnswer | None = None
    for place in places:
        found = run.lookup(place)
        if isinstance(found, NoAnswer):
            answer = answer or found
            if found.absent is Absent.UNTOLD:
                break
            continue
        entries = _read(run, found[0], found[1])
        if entries:
            for entry in entries:
                _add(run, call, entry)
            return True
    run.report(
        run.no_answer(call, answer or NoAnswer(Absent.MISSING, f"no boot loader entry in {printable(places[0] or '')}"))
    )
    return None if answer is not None and answer.absent is Absent.UNTOLD else False


def _read(run: GrubRun, place: PlacedFile, kind: FileKind) -> list[LoaderEntry]:
    if kind is FileKind.FILE:
        try:
            return [parse_entry(place)]
        except InputError as error:
            run.report(untold(place.where, printable(error.message)))
            return []
    entries, troubles = read_entries(place.files, place.path)
    for trouble in troubles:
        run.report(trouble)
    return sorted(entries, key=lambda entry: version_key(entry.id), reverse=True)


def _add(run: GrubRun, call: Call, entry: LoaderEntry) -> None:
    if entry.linux is None:
        return
    at = call.line.number
    options = _expanded(entry.options) if entry.options_line else [Word((Part("default_kernelopts", variable=True),))]
    body = [Command(at, (_word("linux"), *_expanded(value_of(entry.linux)), *options))]
    initrds = [word for line in entry.initrds for word in _expanded(value_of(line))]
    early = [Word((Part("early_initrd", variable=True),))] if run.get("early_initrd") else []
    if early or initrds:
        body.append(Command(at, (_word("initrd"), *early, *initrds)))
    if entry.devicetree is not None:
        body.append(Command(at, (_word("devicetree"), *_expanded(value_of(entry.devicetree)))))
    run.charge(text=len(entry.options))
    run.add(
        MenuItem(
            title=entry.title,
            id=entry.id,
            line=call.line,
            body=tuple(body),
            arguments=(entry.title,),
            trail=(*run.trail, entry.file),
            certain=not run.uncertain,
            source=entry.options_line or entry.linux,
        )
    )


def _word(text: str) -> Word:
    return Word((Part(text, quoted=True),))


def _expanded(text: str) -> list[Word]:
    """The words of a value: their variables are put in when the entry runs, as blscfg's own menu entries do it."""
    return [Word(tuple(_parts(piece))) for piece in text.split()]


def _parts(text: str) -> list[Part]:
    parts: list[Part] = []
    at = 0
    for found in _VARIABLE.finditer(text):
        parts += [Part(text[at : found.start()], quoted=True)] if found.start() > at else []
        parts.append(Part(found[1] or found[2], variable=True))
        at = found.end()
    return parts + ([Part(text[at:], quoted=True)] if at < len(text) else [])
