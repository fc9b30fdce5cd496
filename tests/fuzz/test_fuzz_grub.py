"""Any text as GRUB's configuration, boot loader entry, environment block or BOOT.CSV: a judgement, and in time."""

from __future__ import annotations

import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armvm.disk.files import MemoryFileSystem
from armvm.disk.filesystems import Content
from armvm.disk.storage import MemoryDisk
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.guest.facts import PlacedFile
from armvm.guest.grub import GrubProgram, run_grub
from armvm.guest.grub_script import parse_script
from armvm.guest.loader_entries import compare_versions, parse_entry
from armvm.guest.memdisk import open_memdisk
from armvm.printable import printable
from tools import grub_configs
from tools.boot_volumes import StandIn, audit, linux
from tools.disk_images import AA64, fallback, grub, shim, systemd_boot

PIECES = (
    *("if", "then", "elif", "else", "fi", "for", "in", "do", "done", "while", "until", "function", "{", "}", ";", "\n"),
    *("[", "]", "!", "-a", "-o", "=", "-f", "-z", "true", "false", "mystery", "set", "x=1", "x=$x$x", "$x", '"${x}"'),
    *("f", "return", "break", "continue", "source", "configfile", "normal", "/g/grub.cfg", "search", "--file", "--set"),
    *("menuentry", "submenu", "linux", "initrd", "boot", "/k", "chainloader", "blscfg", "load_env", "probe", "eval"),
    *(
        "'",
        '"',
        "\\",
        "$",
        "${",
        "#",
        "*",
        "/*",
        "(hd0,gpt2)",
        "(memdisk)/x",
        "default=0",
        "export",
        "root=$y",
        "unset",
    ),
)
SCRIPTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=80).map(" ".join),
    st.text(max_size=300),
    st.tuples(st.integers(0, 4000), st.integers(1, 40), st.text(max_size=8)).map(
        lambda cut: grub_configs.debian()[: cut[0]] + cut[2] + grub_configs.debian()[cut[0] + cut[1] :]
    ),
)
EASY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _run(config: str, **more: bytes) -> None:
    files = {"/g/grub.cfg": config.encode("utf-8", "replace"), "/k": b"k", **{f"/{k}": v for k, v in more.items()}}
    volume = linux(2, files, uuid="u")
    other = StandIn("partition 3", None, Content("xfs", None, "v"), problem=InputError("is not read"))
    started = time.process_time()
    program = GrubProgram("partition 2, /a.efi", volume, "/EFI/BOOT", prefix="/g")
    result = run_grub(program, [volume, other], ExecutionState.AARCH64)
    assert time.process_time() - started < 5, "a second on this kind of machine, with room for a slow one"
    for entry in result.entries:
        assert entry.trail
        assert all(load.program is not None or load.troubles for load in entry.loads)
    troubles = [*result.troubles, *(trouble for entry in result.entries for trouble in entry.troubles)]
    for evidence in (trouble.evidence for trouble in troubles):
        assert all(printable(text) == text for text in (evidence.where, evidence.found, evidence.expected or ""))


def _boots(**files: bytes) -> None:
    judgement = audit({**files, "k": b"k"}).judgement
    assert printable(judgement.message) == judgement.message
    for evidence in judgement.evidence:
        assert all(printable(text) == text for text in (evidence.where, evidence.found, evidence.expected or ""))


@EASY
@given(SCRIPTS)
def test_any_configuration(config: str) -> None:
    _run(config)


@EASY
@given(st.text(max_size=2000))
def test_any_script_is_parsed(text: str) -> None:
    parse_script(text)


@EASY
@given(st.binary(max_size=400), st.binary(max_size=400))
def test_any_environment_and_entry(environment: bytes, entry: bytes) -> None:
    _run(
        "load_env\nblscfg\n",
        **{"g/grubenv": b"# GRUB Environment Block\n" + environment, "loader/entries/a.conf": entry},
    )
    parse_entry(PlacedFile(MemoryFileSystem({"/a.conf": entry}), "/a.conf"))


@EASY
@given(st.binary(max_size=3000), st.sampled_from([b"", b"x/y".ljust(100, b"\0") + b"0000644\0" * 3]))
def test_any_memory_disk(content: bytes, head: bytes) -> None:
    open_memdisk(MemoryDisk(head + content), name="memdisk")


@EASY
@given(
    st.text("0123456789ab.-~^+", max_size=12), st.text("0123456789ab.-~^+", max_size=12), st.text("019a.~-", max_size=6)
)
def test_versions_are_ordered(a: str, b: str, c: str) -> None:
    assert compare_versions(a, b) == -compare_versions(b, a)
    assert compare_versions(a, a) == 0
    if compare_versions(a, b) <= 0 and compare_versions(b, c) <= 0:
        assert compare_versions(a, c) <= 0


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=200), st.text(max_size=60))
def test_any_loader_entry_and_list_is_judged(content: bytes, text: str) -> None:
    shown = text.encode("utf-8", "replace")
    _boots(**{AA64: systemd_boot(), "loader/entries/a.conf": b"title " + shown + b"\nlinux /k\n" + content})
    _boots(**{AA64: systemd_boot(), "loader/entries/a.conf": content, "loader/loader.conf": b"default " + shown})
    lists = (text + ",a,b\n").encode("utf-16", "replace") + content
    _boots(**{AA64: shim(), "EFI/BOOT/fbaa64.efi": fallback(), "EFI/x/BOOTAA64.CSV": lists})
    _boots(**{AA64: grub("/g", text), "g/grub.cfg": b"menuentry '" + shown + b"' { linux /gone }\n"})
