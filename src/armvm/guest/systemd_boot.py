r"""systemd-boot, followed at rest: ``/loader/entries/*.conf`` and ``/EFI/Linux/*.efi`` on the ESP and on XBOOTLDR.

Source: systemd-boot(7), loader.conf(5), the Boot Loader Specification.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, replace

from armvm.disk.files import FileKind, FileSystem
from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.guest.boot_outcome import Choice, Follower, Outcome, Started, judge_menu, stopped
from armvm.guest.facts import BootEntry, PlacedFile, PlacedLine
from armvm.guest.loader_entries import (
    LoaderEntry,
    Rank,
    UnifiedEntry,
    in_order,
    read_entries,
    read_unified,
    value_of,
)
from armvm.guest.trouble import Trouble, missing, untold
from armvm.guest.volume_source import BootVolume, VolumeSource, why_unreadable
from armvm.guid import XBOOTLDR_TYPE
from armvm.image.bootprogram import ProgramKind
from armvm.printable import printable
from armvm.spec.judgement import passed
from armvm.spec.verdict import Evidence, Verdict
from armvm.units import KIB

_NAME = "systemd-boot"
_ENTRIES, _UNIFIED, _CONFIG = "/loader/entries", "/EFI/Linux", "/loader/loader.conf"
_MOST_PATTERN = 256
_REMEDY = "Put a boot loader entry with its kernel, or a unified kernel image under \\EFI\\Linux, on the ESP."


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the menu: how it is sorted, the names that ``default`` knows it by, and what it comes to."""

    rank: Rank
    names: tuple[str, ...]
    title: str
    outcome: Outcome


def follow_systemd_boot(
    follower: Follower, started: Started, volumes: VolumeSource, steps: tuple[Evidence, ...]
) -> Outcome:
    """What systemd-boot's menu comes to."""
    troubles: list[Trouble] = []
    lines: list[_Line] = []
    for volume, files in _boot_volumes(started.volume, volumes, troubles):
        entries, problems = read_entries(files, _ENTRIES)
        troubles += problems
        lines += [_type_1(follower, entry, volume, steps) for entry in entries if _is_for(entry, follower.state)]
        images, problems = read_unified(files, _UNIFIED)
        troubles += problems
        lines += [_type_2(follower, image, volume, steps) for image in images]
    if not lines:
        where = started.volume.name
        nothing = missing(where, "no boot entry", "\\EFI\\Linux\\*.efi or \\loader\\entries\\*.conf")
        return stopped("systemd-boot finds nothing to boot.", [*troubles, nothing], remedy=_REMEDY)
    ordered = in_order(lines, lambda line: line.rank)
    wanted = _wanted(started)
    default = next((line for line in ordered if wanted and _fits(line, wanted)), ordered[0])
    choices = [Choice(line.title, line.outcome, default=line is default) for line in ordered]
    if troubles:  # what could not be read may be what starts
        unread = stopped("an entry cannot be read", troubles)
        choices.append(Choice("an entry that cannot be read", unread, default=True, certain=False))
    outcome = judge_menu(_NAME, choices)
    if all(choice.outcome.judgement.verdict is Verdict.FAIL for choice in choices):
        message = f"systemd-boot finds nothing to boot. {outcome.judgement.message}"
        return replace(outcome, judgement=replace(outcome.judgement, message=message))
    return outcome


def _boot_volumes(
    esp: BootVolume, volumes: VolumeSource, troubles: list[Trouble]
) -> Iterator[tuple[BootVolume, FileSystem]]:
    """The ESP that it was started from, and the extended boot loader partition."""
    if esp.files is not None:
        yield esp, esp.files
    for volume in volumes:
        if volume.partition is None or volume.partition.type_guid != XBOOTLDR_TYPE:
            continue
        if volume.files is None:
            why = f"the extended boot loader partition is not read: {why_unreadable(volume)}"
            troubles.append(untold(volume.name, why))
        else:
            yield volume, volume.files


def _is_for(entry: LoaderEntry, state: ExecutionState) -> bool:
    """systemd-boot hides what is for another architecture."""
    return entry.architecture in (None, "aa64" if state is ExecutionState.AARCH64 else "arm")


def _wanted(started: Started) -> str | None:
    """The pattern that loader.conf has for the default entry; ``@saved`` asks a variable that a fresh store lacks."""
    files = started.place.files
    try:
        entry = files.lookup(_CONFIG)
        if entry is None or entry.kind is not FileKind.FILE:
            return None
        text = files.read(entry, max_bytes=64 * KIB).decode("utf-8", "replace")
    except InputError:
        return None
    pairs = [line.split(None, 1) for line in text.splitlines()]
    values = [pair[1].strip() for pair in pairs if len(pair) == 2 and pair[0] == "default"]
    return values[-1][:_MOST_PATTERN] if values and values[-1] != "@saved" else None


def _fits(line: _Line, pattern: str) -> bool:
    if pattern.count("*") > 8:  # more would only cost time
        return False
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for name in line.names)


def _type_1(follower: Follower, entry: LoaderEntry, volume: BootVolume, steps: tuple[Evidence, ...]) -> _Line:
    rank = Rank(entry.id, entry.sort_key, entry.machine_id, entry.version, entry.tries_left)
    names = (f"{entry.id}.conf", entry.id)
    return _Line(rank, names, entry.title, _entry_outcome(follower, entry, volume, steps))


def _entry_outcome(follower: Follower, entry: LoaderEntry, volume: BootVolume, steps: tuple[Evidence, ...]) -> Outcome:
    target = entry.linux or entry.efi
    if target is None:
        nothing = missing(entry.file.where, "neither linux nor efi", "a line that names a kernel")
        return stopped("The entry names no kernel.", [nothing])
    steps = (*steps, Evidence(entry.file.where, "boot loader entry"))
    found = {line: _located(entry, line) for line in (target, *entry.initrds)}
    troubles = [trouble for trouble in found.values() if isinstance(trouble, Trouble)]
    places = {line: place for line, place in found.items() if isinstance(place, PlacedFile)}
    if troubles:
        return stopped("what the entry names is not there.", troubles)
    started = follower.start(places[target], volume)
    kind = started.program.kind if started.program else None
    if entry.linux is None or kind is ProgramKind.UNIFIED_KERNEL:
        return follower.follow(started, steps, title=entry.title, arguments=entry.options)
    if started.content is None or started.program is None:
        why = printable(started.error.message) if started.error else "no EFI program"
        return stopped("what the entry names is no kernel.", [missing(places[target].where, why, "an EFI-stub kernel")])
    initrds: list[tuple[str, Disk]] = []
    try:
        initrds += [(places[line].where, places[line].open()) for line in entry.initrds]
    except InputError as error:
        return stopped("an initial RAM disk cannot be read.", [untold(entry.file.where, printable(error.message))])
    kernel = BootEntry(
        title=entry.title,
        state=follower.state,
        kernel=started.content,
        kernel_where=places[target].where,
        initrds=tuple(initrds),
        command_line=entry.options,
        steps=steps,
        source=entry.options_line or target,
        default=True,
    )
    return Outcome(passed("it boots.", Evidence(target.where, f"{places[target].where} is there")), (kernel,))


def _located(entry: LoaderEntry, line: PlacedLine) -> PlacedFile | Trouble:
    path = value_of(line).replace("\\", "/")
    files = entry.file.files
    try:
        found = files.lookup(path)
    except InputError as error:
        return untold(line.where, printable(error.message))
    if found is None or found.kind is not FileKind.FILE:
        return missing(line.where, f"{files.name} has no {printable(path)}", "a file that is there")
    return PlacedFile(files, found.path)


def _type_2(follower: Follower, image: UnifiedEntry, volume: BootVolume, steps: tuple[Evidence, ...]) -> _Line:
    started = follower.start(image.file, volume)
    release = _os_release(started.program.os_release if started.program else None)
    sort_key = release.get("IMAGE_ID") or release.get("ID", "")
    version = release.get("IMAGE_VERSION") or release.get("VERSION_ID") or release.get("BUILD_ID", "")
    title = release.get("PRETTY_NAME") or image.file.path.rpartition("/")[2]
    rank = Rank(image.id, sort_key, "", version, image.tries_left)
    return _Line(rank, (f"{image.id}.efi", image.id), title, follower.follow(started, steps, title=title))


def _os_release(text: str | None) -> dict[str, str]:
    values = {}
    for line in (text or "").splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values[key.strip()] = value.strip().strip("\"'")
    return values
