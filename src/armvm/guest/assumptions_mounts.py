"""What a guest takes for granted about the devices that it mounts, swaps to and decrypts.

Sources: fstab(5), crypttab(5), systemd.mount(5), systemd.swap(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from armvm.guest.devices import DeviceName, Disks, find_device, may_be_hidden, parse_device
from armvm.guest.facts import Assumption, AssumptionKind, PlacedLine
from armvm.guest.mounted import GuestText
from armvm.guest.system import FstabEntry
from armvm.printable import printable

_REMOVABLE = re.compile(r"/dev/(?:sr\d+|cdrom\w*|dvd\w*|fd\d+|floppy\w*)")
_MOST_UNITS = 500


def fstab_assumptions(fstab: Sequence[FstabEntry], disks: Disks) -> tuple[Assumption, ...]:
    """The lines of fstab that name a device by what is another one in another VM, or that is not on the image."""
    found = []
    for entry in fstab:
        name = parse_device(entry.source)
        if name.assumes:
            found.append(_by_device(entry, name, disks))
        elif name.tag is not None and find_device(name, disks.volumes) is None:
            if may_be_hidden(name, disks.volumes):
                continue
            optional = entry.kind == "swap" or bool({"noauto", "nofail"} & set(entry.options))
            waits = "every boot waits for it" if optional else "the boot stops there"
            found.append(
                Assumption(
                    AssumptionKind.MOUNT,
                    f"{_use(entry)} is on no volume of the image: {waits}",
                    entry.line.where,
                    printable(entry.source),
                    "Name a file system of the image, or take the line away.",
                    entry.line,
                    serious=not optional and "_netdev" not in entry.options,
                )
            )
    return tuple(found)


def _by_device(entry: FstabEntry, name: DeviceName, disks: Disks) -> Assumption:
    stable = disks.stable(name, root=entry.mount_point == "/")
    why = f"{_use(entry)} is named by {name.naming.value}: another VM has others"
    return Assumption(
        AssumptionKind.MOUNT,
        why,
        entry.line.where,
        printable(entry.source),
        f"Name it by what stands on it: {stable or 'UUID=…'}.",
        entry.line,
        _first_field(entry.line.text, stable) if stable else None,
        serious="noauto" not in entry.options,
    )


def _use(entry: FstabEntry) -> str:
    return "the swap" if entry.kind == "swap" else printable(entry.mount_point)


def _first_field(text: str, new: str) -> str:
    old = text.split(maxsplit=1)[0]
    start = text.index(old)
    return text[:start] + new + text[start + len(old) :]


def crypttab_assumptions(text: GuestText, disks: Disks) -> tuple[Assumption, ...]:
    """The lines of crypttab whose device is named by what is another one in another VM."""
    found = []
    for line in text.lines("/etc/crypttab"):
        fields = line.text.split()
        if len(fields) < 2 or fields[0].startswith("#"):
            continue
        name = parse_device(fields[1])
        if not name.assumes:
            continue
        # A swap that is encrypted anew at each boot has no UUID of its own; the partition has.
        anew = len(fields) > 3 and "swap" in fields[3].split(",")
        stable = disks.stable(name, by_partition=anew)
        found.append(
            Assumption(
                AssumptionKind.ENCRYPTED,
                f"{printable(fields[0])} is named by {name.naming.value}: another VM has others",
                line.where,
                printable(fields[1]),
                f"Name it by {stable or 'UUID=… or PARTUUID=…'}.",
                line,
                _second_field(line.text, stable) if stable else None,
            )
        )
    return tuple(found)


def _second_field(text: str, new: str) -> str:
    found = re.match(r"(\s*\S+\s+)\S+(.*)", text, re.DOTALL)
    return f"{found[1]}{new}{found[2]}" if found else text


def unit_assumptions(text: GuestText, disks: Disks) -> tuple[Assumption, ...]:
    """The mount and swap units that an administrator made, which name a device so."""
    found: list[Assumption] = []
    for path in text.names("/etc/systemd/system", (".mount", ".swap"))[:_MOST_UNITS]:
        for line in text.lines(path):
            key, equals, value = line.text.strip().partition("=")
            if equals and key.strip() == "What":
                found += _unit(line, value.strip(), disks)
    return tuple(found)


def _unit(line: PlacedLine, value: str, disks: Disks) -> Iterator[Assumption]:
    name = parse_device(value)
    if not name.assumes or _REMOVABLE.fullmatch(value):
        return
    stable = disks.stable(name)
    new = None
    if stable is not None:
        tag, _, tail = stable.partition("=")
        new = f"What=/dev/disk/by-{tag.lower()}/{tail}"
    why = f"what this unit mounts is named by {name.naming.value}: another VM has others"
    yield Assumption(
        AssumptionKind.MOUNT,
        why,
        line.where,
        printable(value),
        f"Write {new or 'What=/dev/disk/by-uuid/…'}.",
        line,
        new,
    )
