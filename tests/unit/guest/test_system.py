"""Which file system is the guest's root, what is mounted into it, and which system it is."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import pytest

from armvm.disk.files import FileEntry, FileKind, FileSystem, MemoryFileSystem
from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.guest.mounted import GuestFiles, GuestText
from armvm.guest.system import find_system, parse_os_release, read_system
from armvm.guid import LINUX_ROOT_ARM64_TYPE, LINUX_ROOT_ARM_TYPE
from tools.standins import StandInVolume, StandInVolumes, boot_entry, volume

FIRST, SECOND, THIRD = (f"{digit * 8}-1111-4222-8333-{digit * 12}" for digit in "123")


def memory(files: Mapping[str, str], name: str = "partition 2", links: Mapping[str, str] | None = None) -> FileSystem:
    return MemoryFileSystem({path: text.encode() for path, text in files.items()}, links, name=name)


def system_files(number: int, **more: str) -> FileSystem:
    return memory({"/etc/os-release": f"NAME=System{number}\n", **more}, f"partition {number}")


def both(type_guid: UUID | None = None) -> StandInVolumes:
    other = volume(3, uuid=THIRD, label="data", files=system_files(3))
    if type_guid is not None:
        other = volume(3, uuid=THIRD, label="data", files=system_files(3), type_guid=type_guid)
    return StandInVolumes((volume(1, "vfat"), volume(2, uuid=SECOND, label="root", files=system_files(2)), other))


@pytest.mark.parametrize(
    ("root", "found"),
    [
        (f"UUID={THIRD}", "System3"),
        (f"UUID={THIRD.upper()}", "System3"),
        (f"/dev/disk/by-uuid/{SECOND}", "System2"),
        ("LABEL=data", "System3"),
        ("PARTLABEL=p3", "System3"),
        (f"PARTUUID={UUID(int=2)}", "System2"),
        ("/dev/vda3", "System3"),
        ("/dev/nvme0n1p2", "System2"),
        ("/dev/mmcblk0p3", "System3"),
        ("/dev/sdb3", None),
        ("/dev/vda1", None),
        ("UUID=nowhere", None),
    ],
)
def test_what_root_names(root: str, found: str | None) -> None:
    system = find_system([boot_entry(f"quiet root={root}")], both())
    assert (system.os.name if system and system.os else None) == found


def test_the_default_entry_goes_first() -> None:
    other, default = boot_entry("root=LABEL=data", default=False), boot_entry("root=LABEL=root")
    system = find_system([other, default], both())
    assert system is not None
    assert system.found_by == "root=LABEL=root"


def test_without_a_command_line_the_type_says_it_then_the_content() -> None:
    system = find_system([], both(LINUX_ROOT_ARM64_TYPE))
    assert system is not None
    assert (system.files.name, system.found_by) == ("partition 3", "its partition type")
    assert find_system([boot_entry(None)], both(LINUX_ROOT_ARM_TYPE)) is None, "the type of the other state"
    assert find_system([], both()) is None, "two systems, and nothing says which"
    one = StandInVolumes((volume(1, "vfat"), volume(2, files=system_files(2))))
    assert (system := find_system([], one)) is not None
    assert system.found_by == "the only file system with a system on it"


def test_a_subvolume_is_the_root() -> None:
    opened = []

    def open_subvolume(disk: Disk, name: str, subvolume: str) -> FileSystem:
        opened.append((name, subvolume))
        return system_files(2, **{"/etc/fstab": f"UUID={SECOND} /var btrfs subvol=@var 0 0\n"})

    volumes = StandInVolumes((volume(2, "btrfs", uuid=SECOND, files=memory({"/@/etc/os-release": ""})),))
    entry = boot_entry(f"root=UUID={SECOND} rootflags=ssd,subvol=@")
    system = find_system([entry], volumes, open_subvolume=open_subvolume)
    assert system is not None
    assert system.os is not None
    assert opened == [("partition 2", "@"), ("partition 2", "@var")]
    assert find_system([entry], volumes) is None


def test_what_fstab_mounts_is_part_of_the_tree() -> None:
    root = memory(
        {"/etc/fstab": f"UUID={FIRST} /boot ext4\nLABEL=usr\t/usr\txfs\tro\nUUID={THIRD} /home ext4\n"},
        links={"/lib": "usr/lib", "/etc/os-release": "../usr/lib/os-release"},
    )
    boot = memory({"/vmlinuz": "kernel", "/up": "x"}, "partition 1")
    usr = memory({"/lib/os-release": "NAME=Split\nVERSION_ID=1\n"}, "partition 4")
    volumes = StandInVolumes(
        (
            volume(1, uuid=FIRST, files=boot),
            volume(2, uuid=SECOND, files=root),
            volume(4, label="usr", files=usr),
            volume(3, uuid=THIRD),
        )
    )
    system = find_system([boot_entry(f"root=UUID={SECOND}")], volumes)
    assert system is not None
    assert system.os is not None
    assert system.os.label == "Split 1"
    assert [(place, each.name) for place, each in system.mounts] == [("/boot", "partition 1"), ("/usr", "partition 4")]
    place = system.files.placed("/lib/os-release")
    assert place is not None
    assert place.where == "partition 4, /lib/os-release"
    assert [entry.path for entry in system.files.entries("/boot")] == ["/boot/up", "/boot/vmlinuz"]
    assert system.files.read("/boot/vmlinuz") == b"kernel"
    assert system.files.lookup("/boot/../../usr/lib") is not None


def test_a_mount_that_cannot_be_read_is_said() -> None:
    root = memory({"/etc/fstab": f"UUID={FIRST} /boot xfs\n", "/etc/os-release": "ID=x\n"})
    broken = StandInVolume("partition 1", content=volume(1, uuid=FIRST).content, problem=InputError("no\x1bgood"))
    system = read_system(root, StandInVolumes((broken,)))
    assert [(each.where, each.found) for each in system.unread] == [("partition 1, /boot", "no\\x1bgood")]


def test_os_release_is_quoted_text() -> None:
    text = GuestText(GuestFiles(memory({"/o": '# c\nNAME="A \\"B\\""\nVERSION=\'2\'\nID_LIKE="x y"\nnonsense\n'})))
    release = parse_os_release(text.lines("/o"))
    assert release is not None
    assert (release.name, release.version, release.id_like) == ('A "B"', "2", ("x", "y"))
    assert parse_os_release(()) is None


def test_fstab_has_escapes_and_comments() -> None:
    fstab = "# c\n\n  \nLABEL=a\\040b\t/mnt\\040x ext4 ro,nofail 0 0\nalone\n/dev/vda1 none swap\n"
    system = read_system(memory({"/etc/fstab": fstab}), StandInVolumes())
    assert [(e.line.number, e.source, e.mount_point, e.kind, e.options) for e in system.fstab] == [
        (4, "LABEL=a b", "/mnt x", "ext4", ("ro", "nofail")),
        (6, "/dev/vda1", "none", "swap", ()),
    ]


def test_init_is_found_through_links() -> None:
    links = {"/sbin": "usr/sbin", "/usr/sbin/init": "../lib/systemd/systemd"}
    assert read_system(memory({"/usr/lib/systemd/systemd": ""}, links=links), StandInVolumes()).runs_systemd
    assert not read_system(memory({"/sbin/init": ""}), StandInVolumes()).runs_systemd


def test_text_that_cannot_be_read_is_remembered() -> None:
    files = memory({"/big": "x" * 300_000, "/fine": "a\r\nb", "/odd": "\udcff"[:0]}, links={"/loop": "/loop"})
    text = GuestText(GuestFiles(files))
    assert [line.text for line in text.lines("/fine")] == ["a", "b"]
    assert text.lines("/big") == text.lines("/loop") == text.lines("/absent") == ()
    assert [each.where for each in text.unread] == ["partition 2, /big", "partition 2, /loop"]


def test_an_entry_of_another_file_system_is_refused() -> None:
    with pytest.raises(InputError):
        GuestFiles(memory({})).open(FileEntry("/x", FileKind.FILE))
