"""Real boot loaders, from the distribution's packages, are recognised and followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from armvm.disk.raw import RawDisk
from armvm.execution import ExecutionState
from armvm.image.bootprogram import BootProgram, ProgramKind, identify
from armvm.image.pe import parse_pe
from armvm.spec.verdict import Verdict
from tools.boot_volumes import audit
from tools.disk_images import AA64
from tools.foreign_packages import foreign_package
from tools.installer import find_installer


def _identify(path: Path) -> BootProgram:
    with RawDisk(path) as disk:
        return identify(parse_pe(disk), disk)


def _grub() -> Path:
    package = foreign_package("arm64", "grub-efi-arm64-bin", "grub-efi-arm64-unsigned")
    return package / "usr/lib/grub/arm64-efi/monolithic/grubaa64.efi"


def _shim(name: str) -> Path:
    return foreign_package("arm64", "shim-unsigned") / "usr/lib/shim" / name


def _verdict(files: dict[str, bytes]) -> Verdict:
    return audit(files).judgement.verdict


def test_grub() -> None:
    found = _identify(_grub())
    assert (found.kind, found.grub_prefix) == (ProgramKind.GRUB, "/EFI/debian")
    assert found.version
    assert found.version[0] == "2"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("shimaa64.efi", ProgramKind.SHIM),
        ("fbaa64.efi", ProgramKind.FALLBACK),
        ("mmaa64.efi", ProgramKind.OTHER),
    ],
)
def test_shim(name: str, kind: ProgramKind) -> None:
    assert _identify(_shim(name)).kind is kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("systemd-bootaa64.efi", ProgramKind.SYSTEMD_BOOT), ("linuxaa64.efi.stub", ProgramKind.BOOT_STUB)],
)
def test_systemd(name: str, kind: ProgramKind) -> None:
    package = foreign_package("arm64", "systemd-boot-efi")
    found = _identify(package / "usr/lib/systemd/boot/efi" / name)
    assert found.kind is kind
    assert found.version


@pytest.mark.parametrize("state", ExecutionState)
def test_kernels(state: ExecutionState) -> None:
    assert _identify(find_installer(state).kernel).kind is ProgramKind.KERNEL


def test_a_debian_chain_of_shim_and_grub() -> None:
    shim, grub = _shim("shimaa64.efi").read_bytes(), _grub().read_bytes()
    config = {"EFI/debian/grub.cfg": b"configfile /x.cfg\n", "x.cfg": b"menuentry a { linux /k }\n", "k": b"k"}
    assert _verdict({AA64: shim, "EFI/BOOT/grubaa64.efi": grub, **config}) is Verdict.PASS
    assert _verdict({AA64: grub, **config}) is Verdict.PASS
    assert _verdict({AA64: shim}) is Verdict.FAIL
    installed = {
        AA64: shim,
        "EFI/BOOT/fbaa64.efi": _shim("fbaa64.efi").read_bytes(),
        "EFI/debian/BOOTAA64.CSV": _shim("BOOTAA64.CSV").read_bytes()
        if _shim("BOOTAA64.CSV").exists()
        else "shimaa64.efi,debian,,This is the boot entry for debian\n".encode("utf-16"),
        **config,
    }
    assert _verdict(installed) is Verdict.FAIL
    vendor = {"EFI/debian/shimaa64.efi": shim, "EFI/debian/grubaa64.efi": grub}
    assert _verdict({**installed, **vendor}) is Verdict.PASS
    assert _verdict({**installed, **vendor, "x.cfg": b"menuentry a { linux /gone }\n"}) is Verdict.FAIL
