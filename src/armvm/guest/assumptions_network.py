"""What a guest takes for granted about its network: ifupdown, ifcfg files, udev's rules; the other kinds beside it.

Sources: interfaces(5) (its PATTERN MATCHING INTERFACES), nm-settings-ifcfg-rh(5), ifcfg(5) of wicked, udev(7).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from armvm.guest.assumptions_interfaces import NetworkFacts, by_address, by_name, is_concrete, network_facts
from armvm.guest.assumptions_keyfiles import keyfile_assumptions, networkd_assumptions
from armvm.guest.assumptions_netplan import netplan_assumptions
from armvm.guest.facts import Assumption, AssumptionKind, BootEntry, PlacedLine
from armvm.guest.mounted import GuestText
from armvm.printable import printable

_MOST_SOURCED = 100
_IFUPDOWN_FOLDERS = ("/etc/network/interfaces.d",)
_DEBIAN_IFUPDOWN = ("/var/lib/dpkg/info/ifupdown.list", "/usr/lib/ifupdown", "/lib/ifupdown")
_IFCFG_FOLDERS = ("/etc/sysconfig/network-scripts", "/etc/sysconfig/network")
_ASSIGNMENT = re.compile(r"\s*([A-Z_]+)=([\"']?)([^\"'#]*)\2")
_NET_RULE = re.compile(r'SUBSYSTEMS?=="net"')
_TIED_RULE = re.compile(
    r'(ATTRS?\{address\}|KERNELS|ENV\{ID_(?:PATH|NET_NAME_\w+|SERIAL\w*)\}|ID==|DRIVERS)\s*=?=?\s*"([^"]*)"'
)


def network_assumptions(text: GuestText, entries: Sequence[BootEntry]) -> tuple[Assumption, ...]:
    """Everything in the guest that is tied to one interface's name, address, place or driver."""
    facts = network_facts(text, entries)
    return (
        *_ifupdown(text, facts),
        *netplan_assumptions(text, facts),
        *keyfile_assumptions(text, facts),
        *networkd_assumptions(text, facts),
        *_ifcfg(text, facts),
        *_rules(text),
    )


def _ifupdown(text: GuestText, facts: NetworkFacts) -> Iterator[Assumption]:
    lines = list(_interfaces_lines(text))
    patterns = any(text.exists(path) for path in _DEBIAN_IFUPDOWN)
    started: set[str] = set()
    for line in lines:
        words = line.text.split()
        if words and (words[0] == "auto" or words[0].startswith("allow-")):
            names = [name for name in words[1:] if is_concrete(name)]
            started.update(names, (name.rpartition("=")[2] for name in words[1:] if "=" in name))
            new = _pattern_line(line.text, names) if patterns and len(names) == 1 else None
            for name in names:
                say = (
                    f"Match by pattern: {words[0]} /e*={name}." if patterns else "Match by pattern, or use DHCP on all."
                )
                yield by_name(name, line, facts, remedy=say, replacement=new, rendered=_rendered(line))
    for line in lines:
        words = line.text.split()
        if len(words) > 1 and words[0] == "iface" and is_concrete(words[1]) and words[1] not in started:
            # Nothing starts it at boot, so nothing fails.
            say = f"Start it by pattern: auto /e*={words[1]}."
            yield replace(by_name(words[1], line, facts, remedy=say, replacement=None), serious=False)
        elif len(words) > 1 and words[0] in ("bridge_ports", "bridge-ports", "bond-slaves", "slaves"):
            for name in filter(is_concrete, words[1:]):
                yield by_name(name, line, facts, remedy="Match by regular expression.", replacement=None)


def _pattern_line(text: str, names: Sequence[str]) -> str:
    # The interface's stanza stays as it is: it becomes the logical interface that every match is mapped to.
    return re.sub(rf"(?<!\S){re.escape(names[0])}(?!\S)", lambda found: f"/e*={found[0]}", text)


def _rendered(line: PlacedLine) -> bool:
    return "cloud-init" in line.file.path


def _interfaces_lines(text: GuestText) -> Iterator[PlacedLine]:
    """The lines of /etc/network/interfaces and of what it takes in, each file once."""
    pending = ["/etc/network/interfaces"]
    seen: set[str] = set()
    while pending and len(seen) < _MOST_SOURCED:
        path = pending.pop(0)
        if path in seen:
            continue
        seen.add(path)
        for line in text.lines(path):
            words = line.text.split()
            if len(words) == 2 and words[0] in ("source", "source-directory"):
                pending += _sourced(text, words[0], words[1])
            elif words and not words[0].startswith("#"):
                yield line


def _sourced(text: GuestText, word: str, pattern: str) -> list[str]:
    path = pattern if pattern.startswith("/") else f"/etc/network/{pattern}"
    if word == "source-directory":
        return [name for name in text.names(path) if re.fullmatch(r"[A-Za-z0-9_-]+", name.rpartition("/")[2])]
    folder, _, last = path.rpartition("/")
    if not re.search(r"[*?\[]", last):
        return [path]
    return [name for name in text.names(folder) if fnmatch.fnmatchcase(name.rpartition("/")[2], last[:200])]


def _ifcfg(text: GuestText, facts: NetworkFacts) -> Iterator[Assumption]:
    for folder in _IFCFG_FOLDERS:
        for path in text.names(folder):
            name = path.rpartition("/")[2]
            if name.startswith("ifcfg-") and name != "ifcfg-lo" and not name.endswith((".bak", ".rpmsave", "~")):
                yield from _ifcfg_file(text, path, facts)


def _ifcfg_file(text: GuestText, path: str, facts: NetworkFacts) -> Iterator[Assumption]:
    lines = text.lines(path)
    rendered = any("cloud-init" in line.text for line in lines[:5])
    named = False
    for line in lines:
        found = _ASSIGNMENT.match(line.text)
        if found is None:
            continue
        key, value = found[1], found[3].strip()
        if key == "DEVICE":
            named = True
            if is_concrete(value):
                say = "Let NetworkManager or cloud-init configure every wired interface: leave this file out."
                yield by_name(value, line, facts, remedy=say, replacement=None, rendered=rendered)
        elif key in ("HWADDR", "LLADDR"):
            yield by_address(line, remedy="Take this line away.", replacement="")
    name = path.rpartition("/ifcfg-")[2]
    # wicked ties a file to the interface of its name.
    if lines and not named and path.startswith("/etc/sysconfig/network/") and is_concrete(name):
        where = lines[0].file.where
        why = f"tied to the interface {printable(name)}, which has another name in another VM"
        say = "Let cloud-init write it, or match by another name."
        yield Assumption(AssumptionKind.NETWORK, why, where, printable(name), say, serious=not facts.kernel_names)


def _rules(text: GuestText) -> Iterator[Assumption]:
    for path in text.names("/etc/udev/rules.d", (".rules",)):
        for line in text.lines(path):
            if line.text.lstrip().startswith("#") or not _NET_RULE.search(line.text) or "NAME" not in line.text:
                continue
            tied = _TIED_RULE.search(line.text)
            if tied is not None and not re.fullmatch(r"[*?]*", tied[2]):
                what = "a MAC address" if "address" in tied[1] else "a place or a driver"
                say = "Take this rule away: it renames an interface that other VMs do not have."
                yield by_address(line, remedy=say, replacement="", what=what)
