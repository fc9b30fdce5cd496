"""What NetworkManager's keyfiles and systemd-networkd's files take for granted about interfaces.

Sources: nm-settings-keyfile(5), systemd.network(5), systemd.link(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from armvm.guest.assumptions_interfaces import ANY_ETHERNET, NetworkFacts, by_address, by_name, is_concrete, is_mac
from armvm.guest.facts import Assumption, PlacedLine
from armvm.guest.mounted import GuestText

_CONNECTIONS = ("/etc/NetworkManager/system-connections", "/usr/lib/NetworkManager/system-connections")
_NETWORKD = (
    "/etc/systemd/network",
    "/usr/local/lib/systemd/network",
    "/usr/lib/systemd/network",
    "/lib/systemd/network",
)
_WIRED = frozenset({"", "ethernet", "802-3-ethernet"})
_GLOB = re.compile(r"[*?\[]")
_TIED = {
    "MACAddress": "a MAC address",
    "PermanentMACAddress": "a MAC address",
    "Path": "a place on a bus",
    "Driver": "a driver",
    "Property": "a property of a device",
}

_SOFTWARE_DRIVERS = frozenset(
    {"bonding", "bridge", "dummy", "ipvlan", "macvlan", "team", "tun", "veth", "vxlan", "wireguard"}
)
"""What interfaces that are no devices say of their driver (ethtool(8)): the host's ends of containers and VMs."""

Setting = tuple[str, str, str, PlacedLine]
"""(section, key, value, line)."""


def keyfile_assumptions(text: GuestText, facts: NetworkFacts) -> tuple[Assumption, ...]:
    """NetworkManager's connections that are tied to one interface."""
    found: list[Assumption] = []
    for folder in _CONNECTIONS:
        for path in text.names(folder):
            settings = tuple(_settings(text.lines(path)))
            kind = next((value for section, key, value, _ in settings if (section, key) == ("connection", "type")), "")
            if kind in _WIRED:
                found += _connection(settings, facts, rendered="cloud-init" in path)
    return tuple(found)


def _connection(settings: Sequence[Setting], facts: NetworkFacts, *, rendered: bool) -> Iterator[Assumption]:
    say = "Take this line away: the connection then fits every wired interface."
    for section, key, value, line in settings:
        if (section, key) == ("connection", "interface-name") and value and not _GLOB.search(value):
            yield by_name(value, line, facts, remedy=say, replacement="", rendered=rendered)
        elif (section, key) == ("match", "interface-name"):
            names = [name.lstrip("|&") for name in re.split(r"[;,\s]+", value) if name and not name.startswith("!")]
            if names and all(is_concrete(name) for name in names):
                yield by_name(names[0], line, facts, remedy=say, replacement="")
        elif section in ("ethernet", "802-3-ethernet", "wired") and key == "mac-address" and value:
            yield by_address(line, remedy=say, replacement="")
        elif section == "match" and key in ("path", "driver") and value and not re.fullmatch(r"[*?]+", value):
            yield by_address(line, remedy=say, replacement="", what="a place on a bus" if key == "path" else "a driver")


def networkd_assumptions(text: GuestText, facts: NetworkFacts) -> tuple[Assumption, ...]:
    """The files of systemd-networkd and udev's link files whose [Match] fits one interface only."""
    found: list[Assumption] = []
    seen: set[str] = set()
    for folder in _NETWORKD:
        for path in text.names(folder, (".network", ".link")):
            name = path.rpartition("/")[2]
            if name in seen:
                continue  # an earlier folder's file of that name counts
            seen.add(name)
            lines = list(text.lines(path))
            for dropins in (f"{base}/{name}.d" for base in _NETWORKD[:2]):
                lines += [line for dropin in text.names(dropins, (".conf",)) for line in text.lines(dropin)]
            found += _match(tuple(_settings(lines)), facts, link=name.endswith(".link"), rendered="cloud-init" in name)
    return tuple(found)


def _match(settings: Sequence[Setting], facts: NetworkFacts, *, link: bool, rendered: bool) -> Iterator[Assumption]:
    name_key = "OriginalName" if link else "Name"
    matches = [(key, value, line) for section, key, value, line in settings if section == "Match" and value]
    if any(key in ("Kind", "Virtualization") and value not in ("no", "!*") for key, value, _ in matches):
        return  # a bridge, a tunnel, or the inside of a container
    if any(key == "Driver" and set(value.split()) <= _SOFTWARE_DRIVERS for key, value, _ in matches):
        return
    # A link file that gives no name only chooses how such devices are called or set up, where there are any.
    naming = not link or any((section, key) == ("Link", "Name") for section, key, _, _ in settings)
    loose = any(key == name_key and not _all_concrete(value) for key, value, _ in matches) or any(
        key == "Type" for key, _, _ in matches
    )
    new = "" if loose else f"{name_key}={ANY_ETHERNET}"
    say = f"Match by kind: {name_key}={ANY_ETHERNET}."
    for key, value, line in matches:
        if key == name_key and _all_concrete(value):
            made = by_name(value.split()[0], line, facts, remedy=say, replacement=new, rendered=rendered)
        elif key in _TIED and (key == "Driver" or "Address" not in key or is_mac(value.split()[0])):
            if re.fullmatch(r"[*?\s]+", value) or not (naming or "Address" in key):
                continue
            made = by_address(line, remedy=say, replacement=new, what=_TIED[key])
        else:
            continue
        new = ""  # one line of the section is enough
        yield made


def _all_concrete(value: str) -> bool:
    names = [name for name in value.split() if not name.startswith("!")]
    return bool(names) and all(is_concrete(name) for name in names)


def _settings(lines: Sequence[PlacedLine]) -> Iterator[Setting]:
    section = ""
    for line in lines:
        text = line.text.strip()
        if text.startswith("[") and text.endswith("]"):
            section = text[1:-1]
        elif text and not text.startswith(("#", ";")):
            key, equals, value = text.partition("=")
            if equals:
                yield section, key.strip(), value.strip(), line
