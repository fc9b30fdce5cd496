"""What command lines, mounts and consoles take for granted."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from armvm.disk.files import MemoryFileSystem
from armvm.guest.assumptions import Assumptions, find_assumptions
from armvm.guest.check_assumptions import check_no_assumptions
from armvm.guest.facts import Assumption, AssumptionKind
from armvm.guest.system import read_system
from armvm.spec.verdict import Verdict
from tools.standins import StandInVolumes, boot_entry, volume

ROOT, SWAP = "22222222-1111-4222-8333-222222222222", "33333333-1111-4222-8333-333333333333"
VOLUMES = StandInVolumes((volume(1, "vfat"), volume(2, uuid=ROOT, label="root"), volume(3, "swap", uuid=SWAP)))
GOOD = f"root=UUID={ROOT} console=ttyAMA0 console=hvc0"


def on_command_line(words: str, *, initrd: bool = True) -> tuple[Assumption, ...]:
    return find_assumptions(None, [boot_entry(words, initrd=initrd)], VOLUMES).found


def in_files(files: Mapping[str, str], links: Mapping[str, str] | None = None, line: str = GOOD) -> Assumptions:
    memory = MemoryFileSystem({path: text.encode() for path, text in files.items()}, links, name="partition 2")
    system = read_system(memory, VOLUMES, root=VOLUMES.volumes[1])
    return find_assumptions(system, [boot_entry(line)], VOLUMES)


@pytest.mark.parametrize(
    ("words", "new"),
    [
        ("root=/dev/vda2", f"root=UUID={ROOT}"),
        ("root=/dev/vda1", "root=PARTUUID=00000000-0000-0000-0000-000000000001"),
        ("root=/dev/sdb2", None),
        ("root=254:2", None),
        ("root=/dev/disk/by-id/virtio-1-part2", None),
        ("root=LABEL=gone", None),
        ("root=UUID=44444444-1111-4222-8333-444444444444", None),
        ("resume=/dev/vda3", f"resume=UUID={SWAP}"),
        ("resume=/dev/vda9", ""),
        ("resume=/dev/vda2", ""),
        ("ifname=eth0:52:54:00:12:34:56", ""),
        ("ip=ens3:dhcp", "ip=dhcp"),
        ("ip=10.0.0.1::10.0.0.2:255.0.0.0:x:eth0:off", None),
        ("earlycon=pl011,0x9000000", "earlycon"),
        ("earlycon=pl011,mmio32,0x9000000", "earlycon"),
    ],
)
def test_a_word_of_the_command_line(words: str, new: str | None) -> None:
    (found,) = on_command_line(f"ro {words} console=ttyAMA0 console=hvc0 quiet")
    assert (found.found, found.serious) == (words, True)
    assert found.where == "partition 2, /boot/grub/grub.cfg, line 7"
    expected = f"\tlinux\t/boot/vmlinuz ro {new} console=ttyAMA0 console=hvc0 quiet"
    assert found.replacement == (None if new is None else expected.replace("  ", " "))


@pytest.mark.parametrize(
    "root",
    [
        *(f"UUID={ROOT}", "LABEL=root", "PARTLABEL=p2", f"/dev/disk/by-uuid/{ROOT}", "/dev/mapper/vg-root"),
        *("/dev/vg/root", "ZFS=rpool/ROOT", "/dev/nfs", "live:LABEL=root", "PARTUUID=1234abcd-02"),
    ],
)
def test_good_names_of_the_root(root: str) -> None:
    assert not on_command_line(f"root={root} console=ttyAMA0 console=hvc0")


def test_without_an_initial_ram_disk_the_partition_is_named() -> None:
    (found,) = on_command_line("root=/dev/vda2 console=ttyAMA0 console=hvc0", initrd=False)
    assert found.replacement is not None
    assert "root=PARTUUID=00000000-0000-0000-0000-000000000002" in found.replacement
    (mention,) = on_command_line(GOOD, initrd=False)
    assert not mention.serious


@pytest.mark.parametrize(
    ("words", "added"),
    [
        ("console=ttyS0", "console=ttyAMA0 console=hvc0"),
        ("console=tty0 console=ttyS0,115200n8", "console=ttyAMA0 console=hvc0"),
        ("console=ttyAMA0,115200", "console=hvc0"),
        ("console=tty0 console=ttyAMA0", "console=hvc0"),
        ("console=hvc0", "console=ttyAMA0"),
        ("console=tty0", "console=ttyAMA0 console=hvc0"),
        ("console=ttyAMA0 console=ttyS0", "console=hvc0"),
    ],
)
def test_consoles_that_leave_others_dead(words: str, added: str) -> None:
    (found,) = on_command_line(f"root=UUID={ROOT} {words} quiet")
    assert (found.kind, found.found, found.serious) == (AssumptionKind.CONSOLE, words, True)
    assert found.replacement == f"\tlinux\t/boot/vmlinuz root=UUID={ROOT} {words} {added} quiet"


def test_consoles_that_serve_all() -> None:
    assert not on_command_line("console=tty0 console=hvc0 console=ttyAMA0,115200 console=ttyS0")
    (mention,) = on_command_line(f"root=UUID={ROOT}")
    assert (mention.found, mention.serious) == ("no console=", False)
    (silent,) = on_command_line("console=null")
    assert silent.serious


def test_what_cannot_be_told_is_said() -> None:
    hidden = StandInVolumes((*VOLUMES.volumes, volume(4, "crypto_LUKS")))
    entries = [boot_entry("root=LABEL=inside console=ttyAMA0 console=hvc0"), boot_entry(None, default=False)]
    found = find_assumptions(None, entries, hidden)
    assert not found.found
    assert [each.found for each in found.unread] == ["root=LABEL=inside: on no file system that could be read"]


def test_update_grub_joins_its_lines_and_later_files_win() -> None:
    grub = 'GRUB_CMDLINE_LINUX_DEFAULT="console=ttyAMA0"\nGRUB_CMDLINE_LINUX="console=hvc0 root=/dev/sda2"\n'
    (root,) = in_files({"/etc/default/grub": grub}).found
    assert root.kind is AssumptionKind.ROOT
    assert root.replacement == f'GRUB_CMDLINE_LINUX="console=hvc0 root=UUID={ROOT}"'
    later = {"/etc/default/grub": grub, "/etc/default/grub.d/50-c.cfg": "GRUB_CMDLINE_LINUX='console=ttyS0'\n"}
    (console,) = in_files(later).found
    assert console.replacement == 'GRUB_CMDLINE_LINUX_DEFAULT="console=ttyAMA0 console=hvc0"', "where the last one is"
    assert console.found == "console=ttyS0 console=ttyAMA0"
    added = {**later, "/etc/default/grub.d/50-c.cfg": 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX console=ttyS0"\n'}
    (root,) = in_files(added).found
    assert root.found == "root=/dev/sda2"


@pytest.mark.parametrize(
    ("path", "text", "replacement"),
    [
        ("/etc/default/grub", "GRUB_DISABLE_LINUX_UUID=true", ""),
        ("/etc/kernel/cmdline", "root=/dev/vda2 quiet", f"root=UUID={ROOT} quiet"),
        ("/etc/kernel/cmdline", "console=ttyAMA0", "console=ttyAMA0 console=hvc0"),
        ("/etc/initramfs-tools/conf.d/resume", "RESUME=/dev/sda3", f"RESUME=UUID={SWAP}"),
        ("/etc/initramfs-tools/conf.d/resume", "RESUME=/dev/sda9", "RESUME=none"),
        ("/etc/initramfs-tools/initramfs.conf", "ROOT=/dev/vda2", f"ROOT=UUID={ROOT}"),
        (
            "/etc/dracut.conf.d/a.conf",
            'kernel_cmdline="root=/dev/vda2 rd.x"',
            f'kernel_cmdline="root=UUID={ROOT} rd.x"',
        ),
        ("/etc/fstab", "/dev/vda2  /  ext4 ro 0 1", f"UUID={ROOT}  /  ext4 ro 0 1"),
        ("/etc/fstab", "/dev/xvda1 / ext4", f"UUID={ROOT} / ext4"),
        ("/etc/fstab", "/dev/vdb1 /data ext4 nofail", None),
        ("/etc/fstab", "/dev/sda3 none swap sw 0 0", f"UUID={SWAP} none swap sw 0 0"),
        ("/etc/fstab", "/dev/vda1 /boot/efi vfat", "PARTUUID=00000000-0000-0000-0000-000000000001 /boot/efi vfat"),
        ("/etc/fstab", "LABEL=gone /srv ext4", None),
        ("/etc/crypttab", "c /dev/vda3 none luks", f"c UUID={SWAP} none luks"),
        (
            "/etc/crypttab",
            "s\t/dev/vda3 /dev/urandom swap",
            "s\tPARTUUID=00000000-0000-0000-0000-000000000003 /dev/urandom swap",
        ),
        ("/etc/systemd/system/srv.mount", "What=/dev/vda2", f"What=/dev/disk/by-uuid/{ROOT}"),
    ],
)
def test_a_line_of_a_file(path: str, text: str, replacement: str | None) -> None:
    found = in_files({path: f"# a comment\n{text}\n"})
    (assumption,) = found.found
    assert (assumption.where, assumption.serious) == (f"partition 2, {path}, line 2", True)
    assert assumption.line is not None
    assert assumption.line.text == text
    assert assumption.replacement == replacement


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/fstab", f"UUID={ROOT} / ext4\nproc /proc proc\ntmpfs /tmp tmpfs\n/dev/mapper/vg-home /home ext4\n"),
        ("/etc/fstab", "#/dev/vda2 / ext4\n/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0\n"),
        ("/etc/fstab", "UUID=1A2B-3C4D /boot/efi vfat\n//server/share /mnt cifs\n/swapfile none swap\n"),
        ("/etc/crypttab", "# c /dev/vda3\nc UUID=1 none\n"),
        ("/etc/default/grub", '#GRUB_CMDLINE_LINUX="console=ttyS0"\nGRUB_CMDLINE_LINUX=""\n'),
        ("/etc/initramfs-tools/conf.d/resume", "RESUME=none\n"),
        ("/etc/systemd/system/cd.mount", "What=/dev/sr0\n"),
        ("/etc/inittab", "# ttyS0::respawn:/sbin/getty\n::respawn:/sbin/getty -L ttyS0\nconsole::askfirst:/bin/sh\n"),
        ("/etc/inittab", "1:2345:respawn:/sbin/getty tty1\na:23:respawn:/sbin/getty ttyAMA0\nh:2:respawn:getty hvc0\n"),
    ],
)
def test_lines_that_assume_nothing(path: str, text: str) -> None:
    assert not in_files({path: text}).serious


def test_a_file_system_that_is_gone_is_a_mention_when_nobody_needs_it() -> None:
    found = in_files({"/etc/fstab": "LABEL=gone none swap\nLABEL=gone /x ext4 nofail\nLABEL=gone /y ext4\n"})
    assert [each.serious for each in found.found] == [False, False, True]


def test_gettys_of_inittab() -> None:
    text = "1:2345:respawn:/sbin/getty 38400 tty1\nT0:23:respawn:/sbin/getty -L ttyS0 9600 vt100\n"
    text += "T1:23:respawn:/sbin/getty -L ttyAMA0\n"
    found = in_files({"/etc/inittab": text}).serious
    assert [each.replacement for each in found] == ["T0:23:respawn:/sbin/getty -L console 9600 vt100", ""]
    (mention,) = in_files({"/etc/inittab": "tty1::respawn:/sbin/getty 38400 tty1\n"}).found
    assert not mention.serious
    systemd = in_files({"/etc/inittab": text, "/lib/systemd/systemd": ""}, {"/sbin/init": "../lib/systemd/systemd"})
    assert not systemd.found, "systemd reads no inittab"


def test_gettys_of_systemd() -> None:
    links = {
        "/sbin/init": "/usr/lib/systemd/systemd",
        "/etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service": "/usr/lib/systemd/x",
    }
    files = {"/usr/lib/systemd/systemd": "", "/usr/lib/systemd/system-generators/systemd-getty-generator": ""}
    (mention,) = in_files(files, links).found
    assert not mention.serious
    masked = {**links, "/etc/systemd/system-generators/systemd-getty-generator": "/dev/null"}
    (serious,) = in_files(files, masked).found
    assert serious.serious


def test_gettys_of_openrc_and_securetty() -> None:
    links = {"/etc/runlevels/default/agetty.ttyAMA0": "/etc/init.d/agetty.ttyAMA0"}
    (serious,) = in_files({"/sbin/init": ""}, links).serious
    assert "agetty.hvc0" in serious.remedy
    (mention,) = in_files({"/etc/securetty": "tty1\nttyAMA0\n"}).found
    assert (mention.serious, mention.replacement) == (False, "ttyAMA0\nhvc0")


def test_what_the_initial_ram_disk_carries() -> None:
    initrd = MemoryFileSystem(
        {"/conf/param.conf": b"ROOT=/dev/vda2\n", "/conf/conf.d/resume": b"RESUME=/dev/vda3\n"}, name="initrd"
    )
    dracut = MemoryFileSystem({"/etc/cmdline.d/95root.conf": b" root=/dev/vda2 console=ttyS0\n"}, name="initrd 2")
    found = find_assumptions(None, [boot_entry(GOOD)], VOLUMES, initrds=[initrd, dracut])
    assert [each.where for each in found.serious] == [
        "initrd, /conf/param.conf, line 1",
        "initrd, /conf/conf.d/resume, line 1",
        "initrd 2, /etc/cmdline.d/95root.conf, line 1",
        "initrd 2, /etc/cmdline.d/95root.conf, line 1",
    ]
    assert all(each.replacement is None and "update-initramfs" in each.remedy for each in found.serious)


def test_the_verdict() -> None:
    memory = MemoryFileSystem({"/etc/fstab": b"/dev/vda2 / ext4\n/dev/vda3 none swap\n"}, name="partition 2")
    system = read_system(memory, VOLUMES, root=VOLUMES.volumes[1])
    entries = [boot_entry(GOOD)]
    bad = check_no_assumptions(system, entries, find_assumptions(system, entries, VOLUMES))
    assert bad.verdict is Verdict.FAIL
    assert bad.message.startswith("2 assumptions, the first: / is named by driver and order of the disks")
    assert bad.evidence[0].where == "partition 2, /etc/fstab, line 1"
    assert bad.evidence[0].found.startswith("/dev/vda2 (")
    assert bad.evidence[0].expected == f"UUID={ROOT}"
    good = read_system(MemoryFileSystem({"/etc/os-release": b"ID=x\n"}), VOLUMES, root=VOLUMES.volumes[1])
    for found, entry, verdict in (
        (good, GOOD, Verdict.PASS),
        (good, None, Verdict.UNKNOWN),
        (None, GOOD, Verdict.UNKNOWN),
        (None, None, Verdict.UNKNOWN),
        (None, "root=/dev/vda2", Verdict.FAIL),
    ):
        entries = [boot_entry(entry)]
        assert check_no_assumptions(found, entries, find_assumptions(found, entries, VOLUMES)).verdict is verdict


def test_what_is_unread_is_no_pass() -> None:
    memory = MemoryFileSystem({"/etc/os-release": b"ID=x\n", "/etc/crypttab": b"x" * 300_000})
    system = read_system(memory, VOLUMES, root=VOLUMES.volumes[1])
    entries = [boot_entry(GOOD)]
    judgement = check_no_assumptions(system, entries, find_assumptions(system, entries, VOLUMES))
    assert judgement.verdict is Verdict.UNKNOWN
    assert "/etc/crypttab" in judgement.evidence[0].where
