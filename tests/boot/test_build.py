"""Images that ``armvm build`` makes boot, unchanged, under plain QEMU commands with EDK2 and with U-Boot."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from armvm.execution import ExecutionState
from conftest import Armvm
from tools.foreign_packages import foreign_package
from tools.installer import find_installer
from tools.plain_qemu import EVERY_PLATFORM, PLATFORMS, Platform, boot
from tools.tiny_guest import CMDLINE, DONE, READY, tiny_initramfs

AARCH64, AARCH32 = ExecutionState


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def both_states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image for both states: real kernels, a root RAM disk that says so and powers off."""
    from armvm.cli.main import main

    folder = tmp_path_factory.mktemp("both")
    arguments = ["build", "-q", "-o", str(folder / "both.img"), "--cmdline", "console=ttyAMA0 panic=-1 armvm.both"]
    for state in ExecutionState:
        arguments += ["--kernel", str(find_installer(state).kernel)]
        arguments += ["--initrd", f"{state.value}={tiny_initramfs(state, folder)}"]
    assert main(arguments) == 0
    return folder / "both.img"


@EVERY_PLATFORM
def test_one_image_boots_everywhere_unchanged(both_states: Path, platform: Platform) -> None:
    before = _digest(both_states)
    said = boot(platform, both_states, DONE)
    assert f"{READY} {platform.state.value}" in said
    assert f"{CMDLINE} console=ttyAMA0 panic=-1 armvm.both" in said
    assert _digest(both_states) == before


def test_an_image_with_grub_and_a_kernel_boots(armvm: Armvm, tmp_path: Path) -> None:
    package = foreign_package("arm64", "grub-efi-arm64-bin", "grub-efi-arm64-unsigned")
    grub = package / "usr/lib/grub/arm64-efi/monolithic/grubaa64.efi"
    config = tmp_path / "grub.cfg"
    config.write_text(
        "set timeout=0\nlinux /vmlinuz console=ttyAMA0 console=hvc0 panic=-1 by=grub\ninitrd /initrd.cpio\nboot\n"
    )
    files = {
        config: "/EFI/debian/grub.cfg",
        find_installer(AARCH64).kernel: "/vmlinuz",
        tiny_initramfs(AARCH64, tmp_path): "/initrd.cpio",
    }
    image = tmp_path / "grub.img"
    extra = [f"--esp-file={source}:{destination}" for source, destination in files.items()]
    result = armvm("build", "-o", image, "--efi", f"aarch64={grub}", *extra)
    assert result.returncode == 0, result.stderr
    check = armvm("check", image)
    assert check.returncode == 0, check.stdout
    assert "GRUB finds its configuration" in check.stdout
    said = boot(PLATFORMS["edk2-64"], image, DONE)
    assert "by=grub" in said.split(CMDLINE)[1]


def test_a_stub_of_systemd_can_be_given(armvm: Armvm, tmp_path: Path) -> None:
    stub = foreign_package("arm64", "systemd-boot-efi") / "usr/lib/systemd/boot/efi/linuxaa64.efi.stub"
    image = tmp_path / "systemd.img"
    kernel, initrd = find_installer(AARCH64).kernel, tiny_initramfs(AARCH64, tmp_path)
    arguments = ["--kernel", kernel, "--initrd", initrd, "--stub", f"aarch64={stub}", "--cmdline", "console=ttyAMA0"]
    assert armvm("build", "-o", image, *arguments).returncode == 0
    assert f"{READY} aarch64" in boot(PLATFORMS["edk2-64"], image, DONE)


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(AARCH64, marks=pytest.mark.slow),  # what ./quickstart does
        ExecutionState.AARCH32,
    ],
)
def test_the_debian_installer_greets(armvm: Armvm, tmp_path: Path, state: ExecutionState) -> None:
    """The main job on real input: what ./quickstart does, for both states."""
    installer = find_installer(state)
    image = tmp_path / "installer.qcow2"
    assert armvm("build", "-o", image, "--kernel", installer.kernel, "--initrd", installer.initrd).returncode == 0
    assert armvm("check", image).returncode == 0
    before = _digest(image)
    result = armvm("run", image, "--until", "Select a language", "--timeout", "240", timeout_seconds=280)
    assert result.returncode == 0, result.stderr
    assert _digest(image) == before
