"""GRUB itself judges what we take for its language, and its own programs are followed with what is inside them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from armvm.execution import ExecutionState
from armvm.guest.grub_script import parse_script
from armvm.spec.verdict import Verdict
from tools import grub_configs
from tools.boot_volumes import BOOT_UUID, audit, linux
from tools.disk_images import AA64
from tools.foreign_packages import foreign_package
from tools.installer import find_installer

CONFIGS = {
    "debian": grub_configs.debian(versions=("6.1.0-28-arm64", "6.1.0-27-arm64")),
    "debian stub": grub_configs.STUB,
    "debian live": grub_configs.DEBIAN_LIVE,
    "ubuntu": grub_configs.ubuntu_cloud(),
    "fedora": grub_configs.FEDORA,
    "fedora stub": grub_configs.FEDORA_STUB.replace("export $prefix", "export prefix"),
    "suse": grub_configs.SUSE,
}
STATEMENTS = """\
menuentry x { }
menuentry x { true }
menuentry x { true; }
menuentry x{true}
menuentry if { true }
menuentry
if true; then fi
if true; then true; fi
if true; then true; else fi
if a; then b; elif c; then d; else e; fi
if a; then; b; fi
if a; then b; fi c
if ! a; then b; fi
if true; then function f { true; }; fi
if
for i in a b; do echo $i; done
for i in; do echo $i; done
for 'x' in a; do b; done
for for in a; do b; done
function f { true }
function f { true; } ; true
function 'f' { true; }
function if { a; }
while false; do true; done
until true; do false; done
a && b
a | b
a > b
a;;b
a &
;
a; b
a;
echo "x
echo 'x
echo if then fi
echo a#b # c
echo {
echo }
echo a{b
${x} y
$x
echo $
echo $ x
echo ${
echo ${x
echo "$"
echo "${x"
time a
select
case
then
in x
do
esac
!
! a
[ a ]
{ true; }
submenu a { menuentry b { true } }
menuentry x { if a; then b; fi }
echo a\\ b\\"c "a\\$b\\"c"
""".splitlines()


def _grub_takes(text: str, folder: Path) -> bool:
    path = folder / "grub.cfg"
    path.write_text(text)
    done = subprocess.run(["grub-script-check", path], capture_output=True, check=False, timeout=30)
    return done.returncode == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configurations_of_the_tests_are_grubs_language(name: str, tmp_path: Path) -> None:
    assert _grub_takes(CONFIGS[name], tmp_path)
    assert not parse_script(CONFIGS[name]).problems


@pytest.mark.parametrize("statement", STATEMENTS)
def test_we_take_and_refuse_what_grub_does(statement: str, tmp_path: Path) -> None:
    assert (not parse_script(f"{statement}\n").problems) == _grub_takes(f"{statement}\n", tmp_path)


# GRUB's programs


def _modules() -> Path:
    return foreign_package("arm64", "grub-efi-arm64-bin", "grub-efi-arm64-unsigned") / "usr/lib/grub/arm64-efi"


KERNEL = "6.1.0-28-arm64"
BOOT = linux(
    2,
    {
        "/boot/grub/grub.cfg": grub_configs.debian().encode(),
        f"/boot/vmlinuz-{KERNEL}": b"k",
        f"/boot/initrd.img-{KERNEL}": b"i",
    },
    uuid=BOOT_UUID,
)
STUB = grub_configs.STUB.encode()


@pytest.mark.parametrize("place", ["EFI/debian/grub.cfg", "EFI/BOOT/grub.cfg"])
def test_debians_grub_with_its_memory_disk(place: str) -> None:
    """Its own grub.cfg, in the FAT that it carries, looks below the prefix, and then beside the program."""
    program = (_modules() / "monolithic/grubaa64.efi").read_bytes()
    audited = audit({AA64: program, place: STUB}, BOOT)
    assert audited.judgement.verdict is Verdict.PASS, audited.judgement
    entry = audited.chain.default_entries[0]
    assert entry.title == "Debian GNU/Linux"
    wheres = [step.where for step in entry.steps]
    assert wheres[2] == "memory disk of partition 1, /EFI/BOOT/BOOTAA64.EFI, /grub.cfg"
    assert f"partition 1, /{place}" in wheres
    assert audit({AA64: program}, BOOT).judgement.verdict is Verdict.FAIL


def test_the_grub_for_discs_looks_for_its_disc() -> None:
    program = (_modules() / "monolithic/gcdaa64.efi").read_bytes()
    config = b"menuentry a { linux /k }\n"
    files = {"/.disk/info": b"Debian", "/boot/grub/grub.cfg": config, "/k": b"k"}
    audited = audit({AA64: program}, linux(2, files))
    assert [entry.kernel_where for entry in audited.chain.entries] == ["partition 2, /k"]


def test_the_installers_grub() -> None:
    """Its prefix is a folder of the network server's: an image with that tree beside it boots."""
    installer = find_installer(ExecutionState.AARCH64)
    folder = installer.grub.parent
    tree = "debian-installer/arm64"
    files = {
        f"{tree}/grub/grub.cfg": (folder / "grub/grub.cfg").read_bytes(),
        f"{tree}/linux": b"k",
        f"{tree}/initrd.gz": b"i",
        f"{tree}/gtk/initrd.gz": b"g",
    }
    audited = audit({AA64: installer.grub.read_bytes(), **files})
    assert audited.judgement.verdict is Verdict.PASS, audited.judgement
    assert audited.chain.default_entries[0].command_line == "--- quiet"
    assert len(audited.chain.entries) > 5


def test_a_standalone_grub_reads_the_tar_that_it_carries(tmp_path: Path) -> None:
    config, program = tmp_path / "grub.cfg", tmp_path / "grub.efi"
    config.write_text(f"search --fs-uuid --set=root {BOOT_UUID}\nconfigfile /boot/grub/grub.cfg\n")
    command = [
        "grub-mkstandalone",
        "-O",
        "arm64-efi",
        "-d",
        str(_modules()),
        "-o",
        str(program),
        "--locales=",
        "--fonts=",
    ]
    modules = "--install-modules=normal configfile search search_fs_uuid part_gpt fat ext2 linux tar memdisk"
    subprocess.run(
        [*command, "--themes=", modules, f"boot/grub/grub.cfg={config}"], check=True, capture_output=True, timeout=120
    )
    audited = audit({AA64: program.read_bytes()}, BOOT)
    assert audited.judgement.verdict is Verdict.PASS, audited.judgement
    assert audited.chain.default_entries[0].steps[1].where.startswith("memory disk of partition 1")
