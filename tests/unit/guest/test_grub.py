"""GRUB's configurations as distributions make them lead to their kernels, and each fault is named by file and line."""

from __future__ import annotations

import pytest

from armvm.errors import MissingError
from armvm.guest.grub_condition import judge
from armvm.spec.verdict import Verdict
from tools import grub_configs
from tools.boot_volumes import BOOT_UUID, ROOT_UUID, Audited, StandIn, audit, linux
from tools.disk_images import AA64, grub, program
from tools.grub_configs import FEDORA_ID, STUB, debian

KERNEL = "6.1.0-28-arm64"
ESP = {AA64: grub("/EFI/debian"), "EFI/debian/grub.cfg": STUB.encode()}
KERNELS = {f"/boot/vmlinuz-{KERNEL}": b"kernel", f"/boot/initrd.img-{KERNEL}": b"initrd"}


def _boot(config: str, files: dict[str, bytes] | None = None, *, uuid: str = BOOT_UUID) -> StandIn:
    return linux(2, {"/boot/grub/grub.cfg": config.encode(), **(KERNELS if files is None else files)}, uuid=uuid)


def _direct(config: str, files: dict[str, bytes] | None = None, *more: StandIn) -> Audited:
    """A GRUB with ``config`` on the ESP, beside a kernel and an initial RAM disk."""
    return audit({AA64: grub("/g"), "g/grub.cfg": config.encode(), "k": b"k", "i": b"i", **(files or {})}, *more)


def _titles(audited: Audited) -> list[str]:
    return [entry.title for entry in audited.chain.entries]


def _cmdline(config: str, *more: StandIn) -> str | None:
    (entry,) = _direct(f"{config}\nboot\n", None, *more).chain.entries
    return entry.command_line


# Real configurations


def test_debian() -> None:
    audited = audit(ESP, _boot(debian(versions=(KERNEL, "6.1.0-27-arm64"))))
    assert audited.judgement.verdict is Verdict.PASS, audited.judgement
    assert "GRUB finds its configuration and starts Debian GNU/Linux" in audited.judgement.message
    assert _titles(audited) == [
        "Debian GNU/Linux",
        f"Advanced options for Debian GNU/Linux > Debian GNU/Linux, with Linux {KERNEL}",
        f"Advanced options for Debian GNU/Linux > Debian GNU/Linux, with Linux {KERNEL} (recovery mode)",
    ]
    first = audited.chain.entries[0]
    assert first.default
    assert [entry for entry in audited.chain.entries if entry.default] == [first] == list(audited.chain.default_entries)
    assert first.command_line == f"root=UUID={ROOT_UUID} ro quiet"
    assert first.kernel.read(0, 6) == b"kernel"
    assert first.kernel_where == f"partition 2, /boot/vmlinuz-{KERNEL}"
    assert [(where, disk.read(0, 6)) for where, disk in first.initrds] == [
        (f"partition 2, /boot/initrd.img-{KERNEL}", b"initrd")
    ]
    assert first.source is not None
    assert first.source.file.path == "/boot/grub/grub.cfg"
    lines = debian(versions=(KERNEL, "6.1.0-27-arm64")).splitlines()
    assert lines[first.source.number - 1] == first.source.text
    assert first.source.text.strip().startswith(f"linux\t/boot/vmlinuz-{KERNEL}")
    assert [step.where for step in first.steps] == [
        "partition 1, /EFI/BOOT/BOOTAA64.EFI",
        "partition 1, /EFI/debian/grub.cfg",
        "partition 2, /boot/grub/grub.cfg",
    ]


@pytest.mark.parametrize(
    "default",
    [
        "1>1",
        f"gnulinux-advanced-{ROOT_UUID}>gnulinux-{KERNEL}-recovery-{ROOT_UUID}",
        f"Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux {KERNEL} (recovery mode)",
    ],
)
def test_a_default_inside_a_submenu(default: str) -> None:
    audited = audit(ESP, _boot(debian(default=default)))
    assert [entry.title.rpartition("> ")[2] for entry in audited.chain.entries if entry.default] == [
        f"Debian GNU/Linux, with Linux {KERNEL} (recovery mode)"
    ]


def test_the_saved_entry_is_the_default_and_it_must_boot() -> None:
    config = debian(default="${saved_entry}", versions=(KERNEL, "6.1.0-27-arm64"))
    saved = f"gnulinux-advanced-{ROOT_UUID}>gnulinux-6.1.0-27-arm64-advanced-{ROOT_UUID}"
    files = {**KERNELS, "/boot/grub/grubenv": grub_configs.grubenv(saved_entry=saved)}
    audited = audit(ESP, _boot(config, files))
    assert audited.judgement.verdict is Verdict.FAIL
    assert "6.1.0-27-arm64, does not boot (others would: Debian GNU/Linux)" in audited.judgement.message
    assert "partition 2 has no /boot/vmlinuz-6.1.0-27-arm64" in audited.judgement.evidence[0].found


def test_ubuntu_cloud() -> None:
    files = {"/boot/vmlinuz-6.8.0-48-generic": b"k", "/boot/initrd.img-6.8.0-48-generic": b"i"}
    (entry,) = audit(ESP, _boot(grub_configs.ubuntu_cloud(), files)).chain.entries
    assert entry.command_line == "root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyAMA0 vt.handoff=7"


VERSION = "6.8.5-301.fc40.aarch64"
FEDORA_ESP = {AA64: grub("/EFI/fedora"), "EFI/fedora/grub.cfg": grub_configs.FEDORA_STUB.encode()}
FEDORA_FILES = {
    "/grub2/grub.cfg": grub_configs.FEDORA.encode(),
    f"/loader/entries/{FEDORA_ID}-0-rescue.conf": grub_configs.fedora_entry("0-rescue"),
    f"/loader/entries/{FEDORA_ID}-6.8.5-9.fc40.aarch64.conf": grub_configs.fedora_entry("6.8.5-9.fc40.aarch64"),
    f"/loader/entries/{FEDORA_ID}-{VERSION}.conf": grub_configs.fedora_entry(VERSION),
    f"/vmlinuz-{VERSION}": b"k",
    f"/initramfs-{VERSION}.img": b"i",
}


@pytest.mark.parametrize("environment", [{}, {"kernelopts": "root=LABEL=x", "saved_entry": f"{FEDORA_ID}-{VERSION}"}])
def test_fedora(environment: dict[str, str]) -> None:
    files = {**FEDORA_FILES, "/grub2/grubenv": grub_configs.grubenv(**environment)}
    audited = audit(FEDORA_ESP, linux(2, files, uuid=BOOT_UUID))
    assert audited.judgement.verdict is Verdict.PASS, audited.judgement
    (entry,) = audited.chain.entries  # the others have no kernel here
    assert entry.default
    assert entry.command_line == environment.get("kernelopts", f"root=UUID={ROOT_UUID} ro console=tty0")
    assert entry.source is not None
    assert entry.source.where == f"partition 2, /loader/entries/{FEDORA_ID}-{VERSION}.conf, line 5"


def test_fedora_falls_to_the_newest_entry_that_has_to_boot() -> None:
    files = {name: content for name, content in FEDORA_FILES.items() if not name.startswith("/vmlinuz")}
    audited = audit(FEDORA_ESP, linux(2, files, uuid=BOOT_UUID))
    assert audited.judgement.verdict is Verdict.FAIL
    assert VERSION in audited.judgement.message


def test_suse() -> None:
    files = {"/boot/Image-6.4.0-150600.23.25-default": b"k", "/boot/initrd-6.4.0-150600.23.25-default": b"i"}
    audited = audit(ESP, _boot(grub_configs.SUSE, files))
    assert [entry.command_line for entry in audited.chain.entries] == [f"root=UUID={ROOT_UUID} mitigations=auto quiet"]


def test_debian_live_waits_for_a_key_and_says_so() -> None:
    files = {f"live/vmlinuz-{KERNEL}": b"k", f"live/initrd.img-{KERNEL}": b"i"}
    audited = audit({AA64: grub("/boot/grub"), "boot/grub/grub.cfg": grub_configs.DEBIAN_LIVE.encode(), **files})
    assert audited.judgement.verdict is Verdict.PASS
    assert "GRUB waits for a key: no timeout is set" in [item.found for item in audited.judgement.evidence]
    assert _titles(audited)[-1] == "Advanced install options ... > ... Expert install"


@pytest.mark.parametrize(
    ("prefix", "config"),
    [
        ("(,gpt2)/boot/grub", ""),
        ("(hd0,gpt2)/boot/grub", ""),
        ("/nowhere", f"search.fs_uuid {BOOT_UUID} root hd0,gpt2\nset prefix=($root)'/boot/grub'\n"),
        ("/nowhere", f"search --fs-uuid --set=root {BOOT_UUID}\nconfigfile /boot/grub/grub.cfg\n"),
    ],
)
def test_the_ways_grub_install_tells_grub_where_to_look(prefix: str, config: str) -> None:
    audited = audit({AA64: grub(prefix, config)}, _boot(debian()))
    assert audited.judgement.verdict is Verdict.PASS, audited.judgement


# Faults


@pytest.mark.parametrize(
    ("volume", "message", "where", "found"),
    [
        (
            linux(2, uuid="1234"),
            "GRUB finds no configuration",
            "partition 1, /EFI/debian/grub.cfg, line 1",
            f"no file system on the image has the UUID {BOOT_UUID}",
        ),
        (
            linux(2, uuid=BOOT_UUID),
            "GRUB finds no configuration",
            "partition 1, /EFI/debian/grub.cfg, line 3",
            "partition 2 has no /boot/grub/grub.cfg",
        ),
        (
            _boot(debian(), {f"/boot/vmlinuz-{KERNEL}": b"k"}),
            "its initial RAM disk is not there",
            "partition 2, /boot/grub/grub.cfg, line 121",
            f"partition 2 has no /boot/initrd.img-{KERNEL}",
        ),
        (
            _boot("menuentry a {\n search --label --set=root gone\n linux ($root)/v\n}\n"),
            "its kernel is not there",
            "partition 2, /boot/grub/grub.cfg, line 2",
            "has the label gone",
        ),
        (_boot("set default=0\n"), "GRUB finds no configuration", "GRUB's configuration", "no menu entry"),
        (
            _boot("menuentry a {\n echo nothing\n}\n"),
            "it loads no kernel",
            "partition 2, /boot/grub/grub.cfg, line 1",
            "loads no kernel",
        ),
    ],
)
def test_a_fault_is_named_by_file_and_line(volume: StandIn, message: str, where: str, found: str) -> None:
    judgement = audit(ESP, volume).judgement
    assert judgement.verdict is Verdict.FAIL
    assert message in judgement.message
    assert judgement.evidence[0].where == where
    assert found in judgement.evidence[0].found


def test_a_search_that_fails_and_does_no_harm_is_mentioned() -> None:
    judgement = audit(ESP, _boot(debian(boot_uuid="dead-beef").replace("insmod ext2\nset", "set"))).judgement
    assert judgement.verdict is Verdict.PASS  # root stays at hd0,gpt2, as in GRUB
    assert "has the UUID dead-beef" in judgement.evidence[-1].found


def test_what_cannot_be_read_is_unknown_with_its_reason() -> None:
    problem = MissingError("XFS needs an extra", component="xfs", install="pip install 'armvm[filesystems]'")
    judgement = audit(ESP, linux(2, kind="xfs", uuid=BOOT_UUID, problem=problem)).judgement
    assert judgement.verdict is Verdict.UNKNOWN
    assert "XFS needs an extra (install it with: pip install 'armvm[filesystems]')" in judgement.message
    sealed = linux(2, kind="crypto_LUKS", uuid="other", problem=MissingError("is encrypted", component="luks"))
    assert audit(ESP, sealed).judgement.verdict is Verdict.UNKNOWN


# The language, run


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("linux /k a  b", "a b"),
        ("set x='a b'\nlinux /k $x \"$x\"", 'a b "a b"'),
        ("x=1\nlinux /k $x$y ${x}2", "1 12"),
        ("if [ $grub_platform = efi -a $grub_cpu = arm64 ]; then linux /k yes; else linux /k no; fi", "yes"),
        ("if [ ! -f /gone -a -s /k ]; then linux /k yes; else linux /k no; fi", "yes"),
        ("if [ -d /g ]; then linux /k d; fi", "d"),
        ('if [ -z "$unset" -a -n "a" ]; then linux /k z; fi', "z"),
        ("if false; then linux /k a; elif true; then linux /k b; else linux /k c; fi", "b"),
        ("if ! search --file /gone; then linux /k gone; fi", "gone"),
        ("search --set=found --file /g/grub.cfg\nlinux ($found)/k $found", "hd0,gpt1"),
        ("linux (hd0,gpt1)/k", ""),
        ("linux (hd0,1)/k x", "x"),
        ("set root=hd0,gpt1\nlinux (,gpt1)/k x", "x"),
        ("for i in a b c; do x=$x$i; done\nlinux /k $x", "abc"),
        ("for i in /g/*.cfg; do linux /k $i; done", "/g/grub.cfg"),
        ("for i in a b c; do if [ $i = b ]; then break; fi; x=$x$i; done\nlinux /k $x", "a"),
        ("while [ x$x != xaaa ]; do x=${x}a; done\nlinux /k $x", "aaa"),
        ("function f {\n  linux /k $1 $#\n}\nf a b", "a 2"),
        ("function f {\n  return 1\n}\nif f; then linux /k a; else linux /k b; fi", "b"),
        ("set x=1\nunset x\nlinux /k [$x]", "[]"),
        ('eval "set x=5"\nlinux /k $x', "5"),
        ("false\nlinux /k $?", "1"),
        ("if true; then :; fi\ntrue\nlinux /k $?", "0"),
        ("linux /k a\\'b", "a\\'b"),
        ("probe --set=u --fs-uuid ($root)\nlinux /k $u", "AAAA-BBBB"),
        ("insmod what\nnonsense\nlinux /k root=$cmdpath", "root=(hd0,gpt1)/EFI/BOOT"),
    ],
)
def test_the_language(lines: str, expected: str) -> None:
    assert _cmdline(lines) == expected


def test_what_nobody_knows_is_run_both_ways() -> None:
    unknown = "if mystery; then set x=1; else set x=2; fi\n"
    (entry,) = _direct(f"{unknown}linux /k $x\nboot\n").chain.entries
    assert entry.command_line is None
    both = _direct("menuentry a {\nif mystery; then linux /k a; else linux /k b; fi\n}\n")
    assert [e.command_line for e in both.chain.entries] == ["a", "b"]
    assert both.judgement.verdict is Verdict.PASS
    half = _direct("menuentry a {\nif mystery; then linux /k a; else linux /gone; fi\n}\n")
    assert half.judgement.verdict is Verdict.UNKNOWN
    gone = _direct("menuentry a {\nif mystery; then linux /gone1; else linux /gone; fi\n}\n")
    assert gone.judgement.verdict is Verdict.FAIL
    path = _direct(f"{unknown}menuentry a {{ linux /$x }}\n")
    assert path.judgement.verdict is Verdict.UNKNOWN


def test_contexts_and_menus() -> None:
    audited = _direct(
        "set a=1\nset b=2\nexport b\nfunction f {\n true\n}\nsubmenu s {\n menuentry x { linux /k $a,$b }\n}\n"
        "menuentry y --id z { f\n linux /k $a,$b,$1 }\nset default=z\n"
    )
    assert [(e.title, e.command_line, e.default) for e in audited.chain.entries] == [
        ("s > x", ",2", False),
        ("y", "1,2,y", True),
    ]


def test_a_fallback_entry_rescues_the_default() -> None:
    audited = _direct("set fallback=1\nmenuentry a { linux /gone }\nmenuentry b { linux /k }\n")
    assert audited.judgement.verdict is Verdict.PASS
    assert "its fallback, b, does" in audited.judgement.message


def test_linux_without_boot_and_without_a_menu_ends_at_the_prompt() -> None:
    assert _direct("linux /k\ninitrd /i\n").judgement.verdict is Verdict.FAIL


def test_a_menu_entry_may_start_another_boot_program() -> None:
    other = {"other.efi": program(), "k2.efi": program(linux=b"x" * 99, cmdline=b"own")}
    known = _direct("menuentry a { chainloader /k2.efi }\n", other)
    assert [e.command_line for e in known.chain.entries] == ["own"]
    assert known.judgement.verdict is Verdict.PASS
    assert _direct("menuentry a { chainloader /other.efi }\n", other).judgement.verdict is Verdict.UNKNOWN
    assert _direct("menuentry a { chainloader /gone.efi }\n").judgement.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "config",
    [
        "while true; do x=$x; done",
        "function f {\n f\n}\nf",
        "function f {\n if mystery; then f; else f; fi\n}\nf",
        "configfile /g/grub.cfg",
        "source /g/grub.cfg",
        "x=aaaaaaaa\n" + "x=$x$x\n" * 40,
        "for i in 1 2 3 4 5 6 7 8; do\n" * 8 + "echo\n" + "done\n" * 8,
        "menuentry a { configfile /g/grub.cfg }",
        "submenu a { source /g/grub.cfg\n}",
        "".join(f"menuentry a{n} {{ linux /k }}\n" for n in range(600)),
        "if mystery\nthen true\n" + "elif mystery\nthen true\n" * 3000 + "fi\n",
    ],
)
def test_it_always_ends(config: str) -> None:
    assert _direct(config + "\n").judgement.verdict is not Verdict.PASS


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a", "=", "a"], True),
        (["a", "!=", "a"], False),
        (["!", "a", "=", "a"], False),
        (["", "-o", "x"], True),
        (["x", "-a", ""], False),
        (["(", "a", "=", "b", ")", "-o", "2", "-gt", "1"], True),
        ([None, "=", "a"], None),
        ([None, "=", "a", "-a", ""], False),
        ([None, "-o", "x"], True),
        (["-z", ""], True),
        (["-n"], True),
        ([], False),
        (["-f", "/x"], None),
        (["10", "-le", "9"], False),
    ],
)
def test_conditions(words: list[str | None], expected: bool | None) -> None:
    assert judge(words, lambda _operator, _path: None) is expected
