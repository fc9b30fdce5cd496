"""Names of network interfaces: which are concrete, which follow the hardware; and those on the kernel's command line.

systemd names an interface after its place (systemd.net-naming-scheme(7)): the same image sees ``enp0s1`` behind PCI,
``ens3`` behind a PCI slot with a number, ``enX0`` or ``eth0`` in a Xen domain, ``eth0`` on virtio-mmio. So a
concrete name, an address or a place holds in one kind of VM only. With ``net.ifnames=0``, or without udev, ``eth0`` is
the kernel's first interface everywhere: one name, whose owner depends on the order in which drivers load.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from armvm.guest.command_line import WordFault, split_words
from armvm.guest.facts import Assumption, AssumptionKind, BootEntry, PlacedLine
from armvm.guest.mounted import GuestText
from armvm.printable import printable

ANY_ETHERNET = "en* eth*"
"""What matches every wired interface, whoever named it: as systemd's and netplan's globs have it."""
_PHYSICAL = re.compile(r"eth\d+|en(?:o\d|s\d|p\d|P\d|x[0-9a-fA-F]{12}|X\d|d\d|u\d|i\d|v\d|a\d|c\d)\w*")
_KERNEL_NAMED = re.compile(r"eth\d+")
_MAC = re.compile(r"[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}")
_UDEV = (
    "/usr/lib/systemd/systemd-udevd",
    "/lib/systemd/systemd-udevd",
    "/usr/bin/udevadm",
    "/sbin/udevd",
    "/bin/udevadm",
)
_UNNAMED = (
    "/etc/systemd/network/99-default.link",
    "/etc/udev/rules.d/80-net-setup-link.rules",
    "/etc/udev/rules.d/80-net-name-slot.rules",
)
_CLOUD_INIT = ("/etc/cloud/cloud.cfg", "/usr/bin/cloud-init")


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What decides how much a name means.

    ``kernel_names``: interfaces keep the kernel's names (eth0). ``cloud_init``: networking is written at first boot.
    """

    kernel_names: bool = False
    cloud_init: bool = False


def network_facts(text: GuestText, entries: Sequence[BootEntry]) -> NetworkFacts:
    """Look at the udev, the command lines and the cloud-init of a guest."""
    lines = [split_words(entry.command_line) for entry in entries if entry.command_line is not None]
    switched_off = bool(lines) and all("net.ifnames=0" in words for words in lines)
    masked = any(text.link_target(path) == "/dev/null" for path in _UNNAMED)
    udev = any(text.exists(path) for path in _UDEV)
    return NetworkFacts(switched_off or masked or not udev, any(text.exists(path) for path in _CLOUD_INIT))


def is_concrete(name: str) -> bool:
    """Whether ``name`` is that of one wired interface, and no pattern (nor that of a bridge, a tunnel, a container)."""
    return _PHYSICAL.fullmatch(name) is not None


def is_mac(text: str) -> bool:
    """Whether ``text`` is a MAC address."""
    return _MAC.fullmatch(text.strip().strip("\"'")) is not None


def by_name(
    name: str, line: PlacedLine, facts: NetworkFacts, *, remedy: str, replacement: str | None, rendered: bool = False
) -> Assumption:
    """The assumption of a line that is tied to the interface ``name``; ``rendered``: cloud-init wrote it."""
    kept = facts.kernel_names and _KERNEL_NAMED.fullmatch(name) is not None
    if rendered and facts.cloud_init:
        why = f"left behind by cloud-init for {printable(name)}; it is written again at the first boot elsewhere"
    elif kept:
        why = f"tied to {printable(name)}, the kernel's name for whichever interface comes first"
    else:
        why = f"tied to the interface {printable(name)}, which has another name in another VM"
    serious = not kept and not (rendered and facts.cloud_init)
    found = printable(line.text.strip())
    return Assumption(AssumptionKind.NETWORK, why, line.where, found, remedy, line, replacement, serious)


def by_address(line: PlacedLine, *, remedy: str, replacement: str | None, what: str = "a MAC address") -> Assumption:
    """The assumption of a line that is tied to ``what``: an address, a place or a driver of one VM's interface."""
    why = f"tied to {what}, which another VM's interface does not have"
    return Assumption(AssumptionKind.NETWORK, why, line.where, printable(line.text.strip()), remedy, line, replacement)


def command_line_interface_faults(words: Sequence[str]) -> tuple[WordFault, ...]:
    """ip=, ifname= and BOOTIF= that name one interface (Linux, nfsroot.rst; dracut.cmdline(7))."""
    faults = []
    kind = AssumptionKind.NETWORK
    for word in words:
        option, _, value = word.partition("=")
        if option in ("ifname", "rd.ifname", "BOOTIF") and _MAC.search(value):
            why = "tied to a MAC address, which another VM's interface does not have"
            faults.append(WordFault(kind, why, word, "", "Take it away."))
        elif option == "ip" and any(is_concrete(part) for part in value.split(":")):
            new = "ip=dhcp" if re.fullmatch(r"\w+:dhcp|:::::\w+:dhcp", value) else None
            why = "tied to one interface, which has another name in another VM"
            faults.append(WordFault(kind, why, word, new, "Name no interface: ip=dhcp."))
    return tuple(faults)
