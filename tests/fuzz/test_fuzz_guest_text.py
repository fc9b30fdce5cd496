"""Whatever a guest's text files hold, looking through them ends, and says nothing that steers a terminal."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from armvm.disk.files import MemoryFileSystem
from armvm.guest.assumptions import find_assumptions
from armvm.guest.check_assumptions import check_no_assumptions
from armvm.guest.system import find_system
from armvm.printable import printable
from tools.standins import StandInVolumes, boot_entry, volume

_PATHS = (
    *("/etc/fstab", "/etc/crypttab", "/etc/inittab", "/etc/securetty", "/etc/default/grub", "/etc/kernel/cmdline"),
    *("/etc/os-release", "/etc/network/interfaces", "/etc/netplan/a.yaml", "/etc/systemd/network/a.network"),
    *("/etc/NetworkManager/system-connections/a", "/etc/udev/rules.d/70-a.rules", "/etc/systemd/system/a.mount"),
    *("/etc/sysconfig/network-scripts/ifcfg-a", "/etc/initramfs-tools/conf.d/resume", "/etc/network/interfaces.d/a"),
)
_WORDS = st.sampled_from(
    [
        *(
            "root=",
            "/dev/vda2",
            "UUID=",
            "console=",
            "ttyS0",
            "auto",
            "iface",
            "ens3",
            "source",
            "/etc/network/*",
            "[Match]",
        ),
        *(
            "Name=",
            "MACAddress=52:54:00:12:34:56",
            "network:",
            "  ethernets:",
            "    ens3:",
            "match:",
            "{",
            "}",
            "&a",
            "*a",
        ),
        *(
            "GRUB_CMDLINE_LINUX=",
            '"',
            "'",
            "\\",
            "::respawn:/sbin/getty",
            "\x1b[2J",
            "\u202e",
            "What=",
            "\n",
            " ",
            "\t",
            "#",
        ),
    ]
)
_TEXT = (
    st.lists(_WORDS | st.text(max_size=8), max_size=30).map("".join).map(lambda text: text.encode("utf-8", "replace"))
)


@settings(max_examples=150, deadline=None)
@given(files=st.dictionaries(st.sampled_from(_PATHS), _TEXT | st.binary(max_size=60)), line=_TEXT)
def test_any_text(files: dict[str, bytes], line: bytes) -> None:
    root = MemoryFileSystem({"/sbin/init": b"", **files}, {"/etc/resolv.conf": "/etc/resolv.conf"}, name="partition 2")
    volumes = StandInVolumes((volume(2, uuid="u", files=root),))
    entries = [boot_entry(line.decode("utf-8", "replace"))]
    system = find_system(entries, volumes)
    assert system is not None
    judgement = check_no_assumptions(system, entries, find_assumptions(system, entries, volumes))
    for text in (
        judgement.message,
        judgement.remedy or "",
        *(t for e in judgement.evidence for t in (e.where, e.found)),
    ):
        assert text == printable(text)
