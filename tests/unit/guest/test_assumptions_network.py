"""What a guest's network configuration takes for granted."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from armvm.disk.files import MemoryFileSystem
from armvm.guest.assumptions_network import network_assumptions
from armvm.guest.facts import Assumption
from armvm.guest.mounted import GuestFiles, GuestText
from tools.standins import boot_entry

UDEV = {"/usr/lib/systemd/systemd-udevd": ""}
DEBIAN = {**UDEV, "/var/lib/dpkg/info/ifupdown.list": ""}
MAC = "52:54:00:12:34:56"
NETPLAN = "/etc/netplan/01.yaml"
NETWORK = "/etc/systemd/network/10-a.network"
KEYFILE = "/etc/NetworkManager/system-connections/a.nmconnection"


def look(
    files: Mapping[str, str], links: Mapping[str, str] | None = None, line: str = "quiet"
) -> tuple[Assumption, ...]:
    text = GuestText(GuestFiles(MemoryFileSystem({path: each.encode() for path, each in files.items()}, links)))
    found = network_assumptions(text, [boot_entry(line)])
    assert not text.unread
    return found


def netplan(body: str) -> str:
    return f"network:\n  version: 2\n  ethernets:\n{body}"


@pytest.mark.parametrize(
    ("path", "text", "number", "replacement"),
    [
        ("/etc/network/interfaces", "auto lo ens3\niface ens3 inet dhcp\n", 1, "auto lo /e*=ens3"),
        ("/etc/network/interfaces", "x\nallow-hotplug enp0s1\niface enp0s1 inet dhcp\n", 2, "allow-hotplug /e*=enp0s1"),
        ("/etc/network/interfaces", "auto eth0\n", 1, "auto /e*=eth0"),
        ("/etc/network/interfaces.d/a", "auto enX0\n", 1, "auto /e*=enX0"),
        (NETPLAN, netplan("    ens3:\n      dhcp4: true\n"), 4, '    ens3:\n      match: {name: "e*"}'),
        (NETPLAN, netplan("    ens3: {dhcp4: true}\n"), 4, None),
        (NETPLAN, netplan("    x:\n      match:\n        name: enp0s1\n      dhcp4: true\n"), 6, '        name: "e*"'),
        (NETPLAN, netplan(f"    x:\n      match:\n        macaddress: '{MAC}'\n"), 6, '        name: "e*"'),
        (NETPLAN, netplan("    x:\n      match: {driver: virtio_net}\n"), 5, None),
        (NETWORK, "[Match]\nName=ens3\n[Network]\nDHCP=yes\n", 2, "Name=en* eth*"),
        (NETWORK, f"[Match]\nMACAddress={MAC}\n", 2, "Name=en* eth*"),
        (NETWORK, "[Match]\nType=ether\nPath=pci-0000:00:03.0\n", 3, ""),
        (NETWORK, "[Match]\nDriver=virtio_net\n", 2, "Name=en* eth*"),
        ("/etc/systemd/network/10-a.link", "[Match]\nPath=pci-*\n[Link]\nName=lan0\n", 2, "OriginalName=en* eth*"),
        ("/etc/systemd/network/1.link", f"[Match]\nMACAddress={MAC}\n[Link]\nName=lan\n", 2, "OriginalName=en* eth*"),
        (KEYFILE, "[connection]\ntype=ethernet\ninterface-name=ens3\n", 3, ""),
        (KEYFILE, f"[connection]\nid=a\n[802-3-ethernet]\nmac-address={MAC}\n", 4, ""),
        (KEYFILE, "[match]\ninterface-name=ens3;ens4\n", 2, ""),
        (KEYFILE, "[match]\npath=pci-0000:00:03.0\n", 2, ""),
        ("/etc/sysconfig/network-scripts/ifcfg-a", "TYPE=Ethernet\nDEVICE=ens3\n", 2, None),
        ("/etc/sysconfig/network-scripts/ifcfg-a", f"TYPE=Ethernet\nHWADDR={MAC}\n", 2, ""),
        ("/etc/udev/rules.d/70-n.rules", f'# c\nSUBSYSTEM=="net", ATTR{{address}}=="{MAC}", NAME="eth0"\n', 2, ""),
        ("/etc/udev/rules.d/70-n.rules", 'SUBSYSTEM=="net", KERNELS=="0000:00:03.0", NAME="lan"\n', 1, ""),
    ],
)
def test_a_line_that_is_tied_to_one_interface(path: str, text: str, number: int, replacement: str | None) -> None:
    base = {"/etc/network/interfaces": "source /etc/network/interfaces.d/*\n", **DEBIAN}
    (found,) = look({**base, path: text})
    assert found.serious
    assert found.line is not None
    assert (found.line.file.path, found.line.number) == (path, number)
    assert found.replacement == replacement


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/network/interfaces", "auto lo\niface lo inet loopback\nauto /e*=wired\niface wired inet dhcp\n"),
        ("/etc/network/interfaces", "#auto eth0\nauto br0\niface br0 inet dhcp\n"),
        (NETPLAN, netplan('    all:\n      match: {name: "e*"}\n      dhcp4: true\n')),
        (NETPLAN, netplan(f'    all:\n      match: {{name: "e*", macaddress: "{MAC}"}}\n')),
        (NETPLAN, "network: {version: 2, renderer: NetworkManager}\n"),
        (NETWORK, "[Match]\nName=eth0 en*\n"),
        (NETWORK, "[Match]\nType=ether\n"),
        (NETWORK, "[Match]\nName=ve-* vb-*\nDriver=veth\nKind=veth\n"),
        (NETWORK, "[Match]\nVirtualization=container\nName=host0\n"),
        (NETWORK, "[Network]\nName=ens3\n"),
        ("/usr/lib/systemd/network/99-default.link", "[Match]\nOriginalName=*\n"),
        # What systemd itself brings: for the host's ends of containers and VMs, and for the names of USB adapters.
        ("/usr/lib/systemd/network/80-container-ve.network", "[Match]\nName=ve-*\nDriver=veth\n"),
        ("/usr/lib/systemd/network/73-usb-net-by-mac.link", "[Match]\nPath=*-usb-*\n[Link]\nNamePolicy=mac\n"),
        (KEYFILE, "[connection]\ntype=bridge\ninterface-name=br0\n"),
        (KEYFILE, "[connection]\ntype=wifi\ninterface-name=wlan0\n[wifi]\nmac-address=x\n"),
        (KEYFILE, "[match]\ninterface-name=e*;\n"),
        ("/etc/sysconfig/network-scripts/ifcfg-lo", "DEVICE=lo\n"),
        ("/etc/udev/rules.d/70-n.rules", 'SUBSYSTEM=="net", ATTR{type}=="1", TAG+="x"\nSUBSYSTEM=="block", NAME="x"\n'),
    ],
)
def test_lines_that_fit_every_interface(path: str, text: str) -> None:
    assert not look({**DEBIAN, path: text})


def test_a_name_of_the_kernel_is_a_mention_where_the_kernel_names() -> None:
    interfaces = {"/etc/network/interfaces": "auto eth0\niface eth0 inet dhcp\n"}
    masked = {"/etc/systemd/network/99-default.link": "/dev/null"}
    assert [each.serious for each in look({**DEBIAN, **interfaces})] == [True]
    assert [each.serious for each in look({**DEBIAN, **interfaces}, line="net.ifnames=0")] == [False]
    assert [each.serious for each in look({**DEBIAN, **interfaces}, masked)] == [False]
    assert [each.serious for each in look(interfaces)] == [False], "no udev renames it"
    ens3 = {"/etc/network/interfaces": "auto ens3\n"}
    assert [each.serious for each in look({**DEBIAN, **ens3}, line="net.ifnames=0")] == [True]


def test_busybox_has_no_patterns() -> None:
    (found,) = look({**UDEV, "/etc/network/interfaces": "auto ens3\n"})
    assert found.replacement is None


def test_what_nothing_starts_is_a_mention() -> None:
    (found,) = look({**DEBIAN, "/etc/network/interfaces": "iface ens3 inet dhcp\n"})
    assert not found.serious


def test_what_cloud_init_left_behind() -> None:
    name, cloud = "/etc/netplan/50-cloud-init.yaml", {**UDEV, "/etc/cloud/cloud.cfg": ""}
    by_name, by_mac = netplan("    ens3: {dhcp4: true}\n"), netplan(f"    a:\n      match: {{macaddress: '{MAC}'}}\n")
    assert [each.serious for each in look({**cloud, name: by_name})] == [False]
    assert [each.serious for each in look({**UDEV, name: by_name})] == [True]
    assert [each.serious for each in look({**cloud, name: by_mac})] == [True]


def test_a_netplan_by_mac_gives_up_its_name_too() -> None:
    body = f"    a:\n      match:\n        macaddress: {MAC}\n      set-name: a\n      dhcp4: true\n"
    found = look({**UDEV, NETPLAN: netplan(body)})
    assert [(each.replacement, each.serious) for each in found] == [('        name: "e*"', True), ("", False)]
    two = netplan(f"{body}    b:\n      match: {{macaddress: '{MAC}'}}\n")
    assert look({**UDEV, NETPLAN: two})[0].replacement is None, "one pattern cannot stand for two interfaces"


def test_files_of_etc_hide_those_of_usr() -> None:
    vendor = {"/usr/lib/systemd/network/a.network": "[Match]\nName=ens3\n", **UDEV}
    assert len(look(vendor)) == 1
    assert not look(vendor, {"/etc/systemd/network/a.network": "/dev/null"})
    assert len(look({**UDEV, "/etc/systemd/network/a.network.d/x.conf": f"[Match]\nMACAddress={MAC}\n"})) == 0
    dropin = {"/etc/systemd/network/a.network": "[Match]\nName=e*\n"}
    dropin["/etc/systemd/network/a.network.d/x.conf"] = f"[Match]\nMACAddress={MAC}\n"
    (found,) = look({**UDEV, **dropin})
    assert found.line is not None
    assert found.line.file.path.endswith("x.conf")


def test_files_that_take_each_other_in_end() -> None:
    files = {"/etc/network/interfaces": "source /etc/network/interfaces\nsource b\nauto ens3\n"}
    files["/etc/network/b"] = "source interfaces\nsource-directory /etc/network\n"
    assert len(look({**DEBIAN, **files})) == 1


@pytest.mark.parametrize("text", ["a: [", "a: &x [*x]\n" * 3, "[" * 30_000, "- " * 10_000, "x" * 40_000, "\x00"])
def test_yaml_that_cannot_be_read_is_said(text: str) -> None:
    files = GuestText(GuestFiles(MemoryFileSystem({NETPLAN: text.encode()})))
    assert not network_assumptions(files, [])
    assert [each.where for each in files.unread] == [f"memory, {NETPLAN}"]
