"""What the kernel's command lines take for granted about disks: root=, resume=, and the places they are made from.

Sources: Linux, init/do_mounts.c and Documentation/admin-guide/kernel-parameters.rst; GRUB's manual (/etc/default/grub);
kernel-install(8) (/etc/kernel/cmdline); initramfs-tools(7), initramfs.conf(5); dracut.conf(5), dracut.cmdline(7).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from armvm.guest.assumptions_console import ALL_CONSOLES, console_faults, silent_on_virtio
from armvm.guest.assumptions_interfaces import command_line_interface_faults
from armvm.guest.command_line import WordFault, assumptions_of, split_words
from armvm.guest.devices import Disks, Naming, Tag, find_device, may_be_hidden, parse_device
from armvm.guest.facts import Assumption, AssumptionKind, BootEntry, PlacedLine
from armvm.guest.mounted import GuestText
from armvm.printable import printable
from armvm.spec.verdict import Evidence

_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)(\+?=)(.*)")
_MOST_ENTRIES = 64
_NO_RESUME = frozenset({"", "none", "auto", "noresume"})


def entry_assumptions(
    entries: Sequence[BootEntry], disks: Disks
) -> tuple[tuple[Assumption, ...], tuple[Evidence, ...]]:
    """What the command lines of the boot entries assume; and what could not be told, and why."""
    found: list[Assumption] = []
    untold: list[Evidence] = []
    for entry in entries[:_MOST_ENTRIES]:
        where = entry.source.where if entry.source is not None else printable(entry.kernel_where)
        if entry.command_line is None:
            if entry.default or len(entries) == 1:
                untold.append(Evidence(where, "the command line could not be told"))
            continue
        words = split_words(entry.command_line)
        faults, hidden = word_faults(words, disks, initrd=bool(entry.initrds))
        untold += [Evidence(where, each) for each in hidden]
        found += assumptions_of(faults, where=where, line=entry.source)
        if silent_on_virtio(words):
            found.append(
                Assumption(
                    AssumptionKind.CONSOLE,
                    "no console is named: the kernel takes the one that the firmware describes, or Xen's, and never "
                    "speaks on a virtio console",
                    where,
                    "no console=",
                    f"{ALL_CONSOLES} would serve all three.",
                    serious=False,
                )
            )
    return tuple(found), tuple(untold)


def word_faults(
    words: Sequence[str], disks: Disks, *, initrd: bool | None = None
) -> tuple[tuple[WordFault, ...], tuple[str, ...]]:
    """What is wrong with the words of a command line; and what could not be told. ``initrd`` None: nobody knows."""
    faults: list[WordFault] = []
    untold: list[str] = []
    for word in words:
        option, equals, value = word.strip('"').partition("=")
        if not equals or not value:
            continue
        if option == "root":
            fault, hidden = _root_fault(word, value, disks, initrd=initrd)
        elif option == "resume":
            fault, hidden = _resume_fault(word, value, disks, prefix="resume="), None
        else:
            continue
        faults += [fault] if fault is not None else []
        untold += [hidden] if hidden is not None else []
    return (*faults, *console_faults(words), *command_line_interface_faults(words)), tuple(untold)


def _root_fault(word: str, value: str, disks: Disks, *, initrd: bool | None) -> tuple[WordFault | None, str | None]:
    name = parse_device(value, kernel=True)
    kind = AssumptionKind.ROOT
    alone = initrd is False
    stable = disks.stable(name, root=True, by_partition=alone)
    new = f"root={stable}" if stable is not None else None
    say = f"Name the root by what stands on it: {new or 'root=UUID=…'}."
    if name.assumes:
        why = f"the root is named by {name.naming.value}: another VM has others"
        return WordFault(kind, why, word, new, say), None
    if name.naming is Naming.TAG:
        if find_device(name, disks.volumes) is None:
            if may_be_hidden(name, disks.volumes):
                return None, f"{word}: on no file system that could be read"
            return WordFault(kind, "no file system of the image is this root: it cannot boot", word, new, say), None
        if alone and name.tag in (Tag.UUID, Tag.LABEL):
            why = "without an initial RAM disk Linux finds a root by PARTUUID or PARTLABEL only"
            return WordFault(kind, why, word, new, say, serious=False), None
    if re.match(r"/dev/md\d", name.text):
        why = "the number of a RAID array can change; its UUID or name does not"
        return WordFault(kind, why, word, None, "Name the root by its UUID.", serious=False), None
    return None, None


def _resume_fault(word: str, value: str, disks: Disks, *, prefix: str) -> WordFault | None:
    name = parse_device(value, kernel=True)
    if value.lower() in _NO_RESUME:
        return None
    if name.assumes:
        volume = find_device(name, disks.volumes)
        swap = volume is not None and volume.content is not None and volume.content.kind == "swap"
        stable = disks.stable(name) if swap else None
        new = f"{prefix}{stable}" if stable else "" if prefix == "resume=" else f"{prefix}none"
        why = f"the place to resume from is named by {name.naming.value}: another VM has others"
        say = f"Write {new}." if new else "Take it away: a portable image has nothing to resume from."
        return WordFault(AssumptionKind.RESUME, why, word, new, say)
    if name.tag is not None and find_device(name, disks.volumes) is None and not may_be_hidden(name, disks.volumes):
        why = "nothing on the image to resume from: every boot waits for it"
        return WordFault(AssumptionKind.RESUME, why, word, None, "Take it away.", serious=False)
    return None


def source_assumptions(text: GuestText, disks: Disks) -> tuple[Assumption, ...]:
    """What the files assume that the next kernel's command line and initial RAM disk are made from."""
    found = list(_grub_defaults(text, disks))
    for path in ("/etc/kernel/cmdline", "/usr/lib/kernel/cmdline"):
        for line in text.lines(path):
            found += _judged(line, split_words(line.text), disks)
    found += _initramfs_settings(text, disks)
    for path in text.names("/etc/dracut.conf.d", (".conf",)):
        for line, name, value in _assignments(text.lines(path)):
            if name == "kernel_cmdline":
                found += _judged(line, split_words(value), disks)
    return tuple(found)


def initrd_assumptions(text: GuestText, disks: Disks) -> tuple[Assumption, ...]:
    """What an initial RAM disk carries with it: initramfs-tools' conf/, dracut's etc/cmdline.d."""
    found: list[Assumption] = []
    for path in ("/conf/param.conf", *text.names("/conf/conf.d")):
        found += _settings(text.lines(path), disks, mend=False)
    for path in ("/etc/cmdline", *text.names("/etc/cmdline.d", (".conf",))):
        for line in text.lines(path):
            found += _judged(line, split_words(line.text), disks, mend=False)
    return tuple(found)


def _grub_defaults(text: GuestText, disks: Disks) -> Iterator[Assumption]:
    lines = [
        line
        for path in ("/etc/default/grub", *text.names("/etc/default/grub.d", (".cfg",)))
        for line in text.lines(path)
    ]
    last: dict[str, list[tuple[PlacedLine, str]]] = {}
    for line, name, value in _assignments(lines):
        joins = re.search(rf"\$\{{?{name}\b", value) or "+=" in line.text.partition("=")[0] + "="
        last[name] = [*(last.get(name, []) if joins else []), (line, value)]
    parts = [*last.get("GRUB_CMDLINE_LINUX", []), *last.get("GRUB_CMDLINE_LINUX_DEFAULT", [])]
    # Consoles are judged as update-grub joins the lines, everything else line by line.
    joined = [word for _, value in parts for word in split_words(value)]
    for line, value in parts:
        words = split_words(value)
        faults = [fault for fault in word_faults(words, disks)[0] if fault.kind is not AssumptionKind.CONSOLE]
        faults += [fault for fault in console_faults(joined) if fault.word in words]
        yield from assumptions_of(faults, where=line.where, line=line)
    for line, value in last.get("GRUB_DISABLE_LINUX_UUID", [])[-1:]:
        if value == "true":
            yield Assumption(
                AssumptionKind.ROOT,
                "the next update-grub names the root by its device",
                line.where,
                line.text.strip(),
                "Take this line away.",
                line,
                "",
            )


def _initramfs_settings(text: GuestText, disks: Disks) -> Iterator[Assumption]:
    for path in ("/etc/initramfs-tools/initramfs.conf", *text.names("/etc/initramfs-tools/conf.d")):
        yield from _settings(text.lines(path), disks, mend=True)


def _settings(lines: Sequence[PlacedLine], disks: Disks, *, mend: bool) -> Iterator[Assumption]:
    """ROOT= and RESUME= of initramfs-tools."""
    for line, name, value in _assignments(lines):
        word = f"{name}={value}"
        if name.upper() == "RESUME":
            fault = _resume_fault(word, value, disks, prefix=f"{name}=")
        elif name.upper() == "ROOT" and parse_device(value, kernel=True).assumes:
            stable = disks.stable(parse_device(value), root=True)
            why = "the root is named by driver and order of the disks: another VM has others"
            new = f"{name}={stable}" if stable else None
            fault = WordFault(AssumptionKind.ROOT, why, word, new, "Name the root by its UUID.")
        else:
            fault = None
        if fault is not None:
            yield from _placed(line, [fault], mend=mend)


def _judged(line: PlacedLine, words: Sequence[str], disks: Disks, *, mend: bool = True) -> Iterator[Assumption]:
    if not line.text.lstrip().startswith("#"):
        yield from _placed(line, word_faults(words, disks)[0], mend=mend)


def _placed(line: PlacedLine, faults: Iterable[WordFault], *, mend: bool) -> Iterator[Assumption]:
    for each in assumptions_of(tuple(faults), where=line.where, line=line):
        if mend:
            yield each
        else:  # an initial RAM disk is made again, not edited
            remedy = f"{each.remedy} Then make the initial RAM disk again (update-initramfs -u, dracut --force)."
            yield Assumption(each.kind, each.why, each.where, each.found, remedy, line, None, each.serious)


def _assignments(lines: Sequence[PlacedLine]) -> Iterator[tuple[PlacedLine, str, str]]:
    """(line, name, value without quotes) of shell-like assignments."""
    for line in lines:
        found = _ASSIGNMENT.match(line.text)
        if found is not None:
            value = found[3].strip()
            quote = value[:1] if value[:1] in ("'", '"') else ""
            yield line, found[1], value[1:].partition(quote)[0] if quote else value.partition("#")[0].strip()
