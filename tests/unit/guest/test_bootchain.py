"""The boot chain is followed from the removable path to every kernel, and each broken one is refused by its fault."""

from __future__ import annotations

import io
import tarfile

import pytest

from armvm.disk.files_fat import FatFileSystem
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError, MissingError
from armvm.execution import ExecutionState
from armvm.guest.bootchain import find_boot
from armvm.guest.check import check_image
from armvm.guest.check_boot import check_self_contained
from armvm.guest.grub_devices import NoAnswer
from armvm.guest.memdisk import open_memdisk
from armvm.guid import XBOOTLDR_TYPE
from armvm.image.check import CHECKS
from armvm.image.contents import ImageContents
from armvm.spec.verdict import Level, Verdict
from tools import fat_images
from tools.boot_volumes import audit, linux
from tools.disk_images import (
    AA64,
    ARM,
    BROKEN,
    BROKEN_BOOT,
    boot_csv,
    disk_image,
    fallback,
    grub,
    program,
    shim,
    systemd_boot,
    unified_kernel,
)

MENU = b"menuentry a { linux /k }\n"


def kernel(state: ExecutionState = ExecutionState.AARCH64) -> bytes:
    """What ``identify`` takes for a kernel with an EFI stub."""
    content = bytearray(program(state))
    offset, magic = (0x38, b"ARM\x64") if state is ExecutionState.AARCH64 else (0x24, b"\x18\x28\x6f\x01")
    content[offset : offset + 4] = magic
    return bytes(content)


@pytest.mark.parametrize("what", BROKEN_BOOT)
def test_a_broken_chain_fails_with_evidence_and_nothing_else_does(what: str) -> None:
    _, make = BROKEN_BOOT[what]
    disk = make()
    judgement = audit(disk).judgement
    assert judgement.verdict is Verdict.FAIL
    assert judgement.evidence, "a failure shows what was seen"
    assert [finding.requirement for finding in check_image(disk).failed(Level)] == ["image.self-contained-boot"]


def test_the_good_image_passes_for_both_states() -> None:
    audited = audit()
    assert audited.judgement.verdict is Verdict.PASS
    assert audited.chain.judgements.keys() == set(ExecutionState)
    assert [(e.state, e.title, e.command_line, e.default) for e in audited.chain.entries] == [
        (state, "Test", "quiet", True) for state in ExecutionState
    ]
    assert audited.chain.entries[0].kernel.read(0, 8) == b"a kernel"
    assert audited.chain.judgement_for(ExecutionState.AARCH32) is not None


def test_one_broken_state_is_enough_to_fail() -> None:
    assert audit({AA64: unified_kernel(), ARM: grub("/EFI/debian")}).judgement.verdict is Verdict.FAIL


def test_no_boot_program_is_not_applicable() -> None:
    for make in (BROKEN["ESP of another type"][1], BROKEN["empty ESP"][1]):
        judgement = audit(make()).judgement
        assert judgement.verdict is Verdict.NOT_APPLICABLE
        assert "image.removable-path" in judgement.message
    judgement = audit(BROKEN["boot program is text"][1]()).judgement
    assert judgement.verdict is Verdict.NOT_APPLICABLE
    assert "image.efi-application" in judgement.message


def test_it_is_judged_here_and_no_longer_by_the_image_alone() -> None:
    assert "image.self-contained-boot" not in CHECKS


@pytest.mark.parametrize(
    ("files", "verdict"),
    [
        ({AA64: grub("/EFI/debian"), "EFI/debian/grub.cfg": MENU, "k": b"k"}, Verdict.PASS),
        ({AA64: grub("/EFI/debian"), "EFI/debian/grub.cfg": b"set x=1\n"}, Verdict.FAIL),
        ({AA64: grub("/EFI/debian", "search x")}, Verdict.FAIL),
        ({AA64: grub("(hd0,gpt2)/boot/grub")}, Verdict.FAIL),
        ({AA64: grub("(lvmid/a/b)/boot/grub")}, Verdict.UNKNOWN),
        ({AA64: shim(), "EFI/BOOT/grubaa64.efi": grub("/g"), "g/grub.cfg": MENU, "k": b"k"}, Verdict.PASS),
        ({AA64: shim(), "EFI/BOOT/grubaa64.efi": b"text"}, Verdict.FAIL),
        ({AA64: shim(), "EFI/BOOT/grubaa64.efi": shim()}, Verdict.FAIL),
        ({AA64: shim(), "EFI/BOOT/grubaa64.efi": program()}, Verdict.UNKNOWN),
        ({AA64: shim(), "EFI/BOOT/grubaa64.efi": unified_kernel(ExecutionState.AARCH32)}, Verdict.FAIL),
        ({AA64: systemd_boot(), "EFI/Linux/a.efi": unified_kernel()}, Verdict.PASS),
        (
            {AA64: systemd_boot(), "loader/entries/a.conf": b"linux /k\ninitrd /i\n", "k": kernel(), "i": b""},
            Verdict.PASS,
        ),
        ({AA64: systemd_boot(), "loader/entries/a.conf": b"linux /k\n", "k": b"no kernel"}, Verdict.FAIL),
        ({AA64: systemd_boot(), "loader/entries/a.conf": b"linux /k\ninitrd /i\n", "k": kernel()}, Verdict.FAIL),
        ({AA64: systemd_boot(), "loader/entries/a.conf": b"efi /p\n", "p": program()}, Verdict.UNKNOWN),
        ({AA64: systemd_boot(), "loader/entries/a.conf": b"linux /k\narchitecture x64\n", "k": kernel()}, Verdict.FAIL),
        ({AA64: program()}, Verdict.UNKNOWN),
        ({AA64: kernel()}, Verdict.PASS),
        ({AA64: unified_kernel(), ARM: unified_kernel(ExecutionState.AARCH32)}, Verdict.PASS),
    ],
)
def test_the_boot_program_finds_what_it_needs(files: dict[str, bytes], verdict: Verdict) -> None:
    judgement = audit(files).judgement
    assert judgement.verdict is verdict, judgement


def test_a_bare_kernel_gets_no_arguments_and_the_report_says_so() -> None:
    audited = audit({AA64: kernel()})
    assert audited.chain.entries[0].command_line is None
    assert "no arguments" in audited.judgement.evidence[0].found


# shim and its fallback

FALLBACK = {AA64: shim(), "EFI/BOOT/fbaa64.efi": fallback(), "EFI/debian/grubaa64.efi": unified_kernel()}
VENDOR = {**FALLBACK, "EFI/debian/shimaa64.efi": shim()}


@pytest.mark.parametrize(
    "lists",
    [
        {"EFI/debian/BOOTAA64.CSV": boot_csv("shimaa64.efi")},
        {"EFI/debian/BOOT.CSV": boot_csv("shimaa64.efi")},
        {"EFI/debian/BOOTAA64.CSV": boot_csv("shimaa64.efi").removeprefix(b"\xff\xfe")},
        {"EFI/debian/BOOTAA64.CSV": b"\xff\xfe" + "\r\ngone.efi,x,,\r\nshimaa64.efi,Debian,,x\r\n".encode("utf-16-le")},
    ],
)
def test_the_fallback_follows_every_list(lists: dict[str, bytes]) -> None:
    audited = audit({**VENDOR, **lists})
    assert audited.judgement.verdict is Verdict.PASS, audited.judgement
    assert "shim's fallback finds a boot loader" in audited.judgement.message
    (entry,) = audited.chain.entries
    assert [step.where.rpartition("/")[2] for step in entry.steps if "line" not in step.where] == [
        "BOOTAA64.EFI",
        "fbaa64.efi",
        "shimaa64.efi",
        "grubaa64.efi",
    ]


@pytest.mark.parametrize(
    ("lists", "found"),
    [
        ({}, "no BOOTAA64.CSV"),
        ({"EFI/debian/BOOTAA64.CSV": boot_csv("gone.efi")}, "gone.efi is not there"),
        ({"EFI/debian/BOOTAA64.CSV": b"shimaa64.efi,Debian,,x\n"}, "is no UTF-16"),
    ],
)
def test_a_list_that_leads_nowhere_is_named(lists: dict[str, bytes], found: str) -> None:
    judgement = audit({**VENDOR, **lists}).judgement
    assert judgement.verdict is Verdict.FAIL
    assert found in judgement.evidence[0].found


def test_a_fallback_whose_loader_finds_nothing_fails_by_that() -> None:
    files = {
        **VENDOR,
        "EFI/debian/BOOTAA64.CSV": boot_csv("shimaa64.efi"),
        "EFI/debian/grubaa64.efi": grub("/EFI/debian"),
    }
    judgement = audit(files).judgement
    assert judgement.verdict is Verdict.FAIL
    assert "/EFI/debian/grub.cfg" in judgement.evidence[0].found


def test_programs_that_start_each_other_come_to_an_end() -> None:
    loop = {AA64: grub("/g"), "g/grub.cfg": b"menuentry a { chainloader /EFI/BOOT/BOOTAA64.EFI }\n" * 8}
    assert audit(loop).judgement.verdict is Verdict.UNKNOWN


# systemd-boot

ENTRIES = {
    AA64: systemd_boot(),
    "loader/entries/arch-6.1.conf": b"title Old\nlinux /k\noptions a\noptions b\n",
    "loader/entries/arch-6.10+3-1.conf": b"# c\ntitle New\nlinux /k\ninitrd /i\ninitrd /i2\noptions new\n",
    "loader/entries/arch-7.0+0-3.conf": b"title Failed\nlinux /k\n",
    "k": kernel(),
    "i": b"1",
    "i2": b"2",
}


def _default(files: dict[str, bytes]) -> str:
    (entry,) = audit(files).chain.default_entries
    return entry.title


def test_systemd_boot_takes_the_newest_entry_with_tries_left() -> None:
    audited = audit(ENTRIES)
    assert [entry.title for entry in audited.chain.entries] == ["New", "Old", "Failed"]
    new, old, _ = audited.chain.entries
    assert new.default
    assert [where for where, _ in new.initrds] == ["partition 1, /i", "partition 1, /i2"]
    assert (new.command_line, old.command_line) == ("new", "a b")
    assert new.source is not None
    assert (new.source.where, new.source.text) == (
        "partition 1, /loader/entries/arch-6.10+3-1.conf, line 6",
        "options new",
    )


@pytest.mark.parametrize(
    ("config", "title"),
    [
        (b"timeout 3\ndefault arch-6.1.conf\n", "Old"),
        (b"default arch-6.1*\n", "New"),
        (b"default @saved\n", "New"),
        (b"default nothing-*\n", "New"),
        (b"default *7*\n", "Failed"),
    ],
)
def test_loader_conf_chooses(config: bytes, title: str) -> None:
    assert _default({**ENTRIES, "loader/loader.conf": config}) == title


def test_sort_keys_go_first() -> None:
    keyed = b"title Keyed\nsort-key z\nversion 1\nlinux /k\n"
    newer = keyed.replace(b"Keyed", b"Newer").replace(b"version 1", b"version 2")
    files = {**ENTRIES, "loader/entries/a.conf": keyed, "loader/entries/b.conf": newer}
    assert [entry.title for entry in audit(files).chain.entries][:3] == ["Newer", "Keyed", "New"]


def test_a_broken_default_is_a_failure_and_the_good_one_is_named() -> None:
    judgement = audit({**ENTRIES, "loader/entries/arch-6.11.conf": b"title Broken\nlinux /gone\n"}).judgement
    assert judgement.verdict is Verdict.FAIL
    assert "Broken, does not boot (others would: New)" in judgement.message
    assert judgement.evidence[0].where == "partition 1, /loader/entries/arch-6.11.conf, line 2"


def test_the_extended_boot_loader_partition() -> None:
    files = {"/loader/entries/x.conf": b"title X\nlinux /linux\n", "/linux": kernel()}
    boot = linux(2, files, type_guid=XBOOTLDR_TYPE)
    audited = audit({AA64: systemd_boot()}, boot)
    assert [entry.kernel_where for entry in audited.chain.entries] == ["partition 2, /linux"]
    assert audited.judgement.verdict is Verdict.PASS
    sealed = linux(2, type_guid=XBOOTLDR_TYPE, problem=MissingError("needs the extra", component="x"))
    assert audit({AA64: systemd_boot()}, sealed).judgement.verdict is Verdict.UNKNOWN
    assert audit({AA64: systemd_boot()}).judgement.verdict is Verdict.FAIL


# Inside GRUB


def test_memory_disks() -> None:
    fat = open_memdisk(fat_images.fat32_disk({"grub.cfg": b"fat"}), name="memdisk")
    assert not isinstance(fat, NoAnswer)
    assert fat.read("/GRUB.CFG") == b"fat"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in (("boot/grub/grub.cfg", b"tar"), ("a/" * 300 + "deep", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    tar = open_memdisk(MemoryDisk(stream.getvalue()), name="memdisk")
    assert not isinstance(tar, NoAnswer)
    assert [entry.path for entry in tar.walk()] == ["/boot", "/boot/grub", "/boot/grub/grub.cfg"]
    assert tar.read("/boot/grub/grub.cfg") == b"tar"
    assert isinstance(open_memdisk(MemoryDisk(b"neither" * 999), name="memdisk"), NoAnswer)
    squashfs = open_memdisk(MemoryDisk(b"hsqs".ljust(4096, b"\0")), name="memdisk")
    assert isinstance(squashfs, NoAnswer)
    assert "squashfs" in squashfs.reason


def test_fat_names_are_found_in_any_case() -> None:
    files = FatFileSystem(fat_images.fat32_disk({"EFI/A long name.txt": b"x"}), name="esp")
    entry = files.lookup("/efi/a LONG name.TXT")
    assert entry is not None
    assert entry.path == "/EFI/A long name.txt"


def test_an_unreadable_folder_is_unknown() -> None:
    chain = find_boot(_Unreadable(), [])  # type: ignore[arg-type]  # all that it asks for
    assert check_self_contained(ImageContents(disk_image()), chain).verdict is Verdict.UNKNOWN


class _Unreadable:
    @property
    def boot_programs(self) -> None:
        raise InputError("a folder cannot be read")
