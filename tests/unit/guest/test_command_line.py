"""Words of command lines, device names, and the line that is given in place of a line."""

from __future__ import annotations

import pytest

from armvm.disk.files import MemoryFileSystem
from armvm.guest.command_line import WordFault, assumptions_of, option_value, split_words
from armvm.guest.devices import Naming, Tag, find_device, may_be_hidden, parse_device, stable_name
from armvm.guest.facts import AssumptionKind, PlacedFile, PlacedLine
from tools.standins import StandInVolume, StandInVolumes, volume


def test_quotes_keep_words_together() -> None:
    assert split_words('a="b c" d  e="f') == ('a="b c"', "d", 'e="f')
    assert option_value('root=x "root=y" root="LABEL=a b"', "root") == "LABEL=a b"
    assert option_value("quiet", "root") is None


@pytest.mark.parametrize(
    ("text", "naming", "partition"),
    [
        ("/dev/vda2", Naming.KERNEL, 2),
        ("/dev/xvda1", Naming.KERNEL, 1),
        ("/dev/sdb1", Naming.KERNEL, None),
        ("/dev/sda", Naming.KERNEL, None),
        ("/dev/nvme0n1p3", Naming.KERNEL, 3),
        ("/dev/nvme1n1p3", Naming.KERNEL, None),
        ("/dev/mmcblk1p2", Naming.KERNEL, None),
        ("/dev/disk/by-id/virtio-abc-part1", Naming.PLACE, None),
        ("/dev/disk/by-path/x-part1", Naming.PLACE, None),
        ("8:2", Naming.NUMBER, None),
        ("0xfe02", Naming.NUMBER, None),
        ("fe02", Naming.NUMBER, None),
        ("/dev/mapper/vg-root", Naming.MAPPED, None),
        ("/dev/vg/root", Naming.MAPPED, None),
        ("/dev/md/root", Naming.MAPPED, None),
        ("UUID=ab", Naming.TAG, None),
        ("/dev/disk/by-label/x", Naming.TAG, None),
        ("/dev/nfs", Naming.OTHER, None),
        ("tmpfs", Naming.OTHER, None),
        ("overlay", Naming.OTHER, None),
        ("", Naming.OTHER, None),
    ],
)
def test_device_names(text: str, naming: Naming, partition: int | None) -> None:
    name = parse_device(text, kernel=True)
    assert (name.naming, name.partition) == (naming, partition)


def test_tags_are_unquoted() -> None:
    assert parse_device('LABEL="a b"').value == "a b"
    assert parse_device("/dev/disk/by-label/a\\x20b").value == "a b"
    name = parse_device("PARTUUID=12/PARTNROFF=1")
    assert (name.tag, name.value) == (Tag.PARTUUID, "12")


def test_logical_volumes_are_found_by_both_names() -> None:
    volumes = StandInVolumes((StandInVolume("logical volume my-vg/root"),))
    for text in ("/dev/my-vg/root", "/dev/mapper/my--vg-root"):
        assert find_device(parse_device(text), volumes) is not None
    assert find_device(parse_device("/dev/mapper/my-vg-root"), volumes) is None


def test_stable_names() -> None:
    assert stable_name(volume(2, uuid="u")) == "UUID=u"
    assert stable_name(volume(2, uuid="u"), by_partition=True) == "PARTUUID=00000000-0000-0000-0000-000000000002"
    assert stable_name(volume(2, None)) == "PARTUUID=00000000-0000-0000-0000-000000000002"
    assert stable_name(StandInVolume("x")) is None


@pytest.mark.parametrize(
    ("name", "kinds", "hidden"),
    [
        ("LABEL=x", ["ext4"], False),
        ("LABEL=x", ["ext4", "crypto_LUKS"], True),
        ("LABEL=x", ["LVM2_member"], True),
        ("LABEL=x", [None], True),
        ("PARTLABEL=x", [None], False),
        ("UUID=1A2B-3C4D", ["ext4"], False),
        ("UUID=1A2B-3C4D", ["ext4", "vfat"], True),
        ("PARTUUID=1234-02", ["ext4"], True),
        ("PARTUUID=00000000-0000-0000-0000-000000000009", [None], False),
    ],
)
def test_what_was_not_found_may_be_where_nobody_could_look(name: str, kinds: list[str | None], hidden: bool) -> None:
    volumes = StandInVolumes(tuple(volume(number, kind) for number, kind in enumerate(kinds, start=1)))
    assert may_be_hidden(parse_device(name), volumes) is hidden


def test_one_line_puts_everything_right() -> None:
    file = PlacedFile(MemoryFileSystem({}), "/x")
    line = PlacedLine(file, 3, "\tlinux /k root=/dev/vda2 console=ttyS0 xroot=/dev/vda2 resume=/dev/vda3 console=ttyS0")
    faults = [
        WordFault(AssumptionKind.ROOT, "w", "root=/dev/vda2", "root=UUID=u", "r"),
        WordFault(AssumptionKind.CONSOLE, "w", "console=ttyS0", "console=ttyS0 console=hvc0", "r"),
        WordFault(AssumptionKind.RESUME, "w", "resume=/dev/vda3", "", "r"),
        WordFault(AssumptionKind.ROOT, "w", "xroot=/dev/vda2", None, "r"),
        WordFault(AssumptionKind.ROOT, "w", "elsewhere", "x", "r"),
    ]
    made = assumptions_of(faults, where="w", line=line)
    new = "\tlinux /k root=UUID=u console=ttyS0 xroot=/dev/vda2 console=ttyS0 console=hvc0"
    assert [each.replacement for each in made] == [new, new, new, None, None]
    assert all(each.replacement is None for each in assumptions_of(faults, where="w", line=None))
