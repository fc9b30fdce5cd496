"""The boot stub on every firmware that we have: real kernels start, get their initial RAM disk and command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from armvm.disk.storage import Disk, MemoryDisk
from armvm.efi import EfiProgram, read_program
from armvm.execution import ExecutionState
from armvm.image.uki import build_uki
from tools.boot_images import esp_image
from tools.installer import Installer
from tools.plain_qemu import EVERY_PLATFORM, PLATFORMS, Platform, boot
from tools.tiny_guest import CMDLINE, DONE, READY, tiny_initramfs

pytestmark = pytest.mark.boot

MIB = 1 << 20
FindInstaller = Callable[[ExecutionState], Installer]


def disk_with(tmp_path: Path, state: ExecutionState, program: bytes) -> Path:
    size = max(48 * MIB, -(-len(program) // MIB) * MIB + 16 * MIB)
    return esp_image(tmp_path / "disk.img", {f"EFI/BOOT/{state.boot_file}": program}, size_bytes=size)


def stub(state: ExecutionState) -> bytes:
    return read_program(EfiProgram.STUB, state)


def memory(path: Path) -> MemoryDisk:
    return MemoryDisk(path.read_bytes(), name=path.name)


def unified(state: ExecutionState, linux: Disk, cmdline: str | None, initrd: Sequence[Path]) -> bytes:
    uki = build_uki(stub(state), linux=linux, initrd=[memory(path) for path in initrd], cmdline=cmdline)
    return uki.read(0, uki.size_bytes)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ExecutionState], Path]:
    folder = tmp_path_factory.mktemp("tiny-guest")
    return lambda state: tiny_initramfs(state, folder)


Tiny = Callable[[ExecutionState], Path]


@EVERY_PLATFORM
def test_a_real_kernel_gets_its_initrd_and_command_line(
    platform: Platform, installer: FindInstaller, tiny: Tiny, tmp_path: Path
) -> None:
    state = platform.state
    cmdline = "console=ttyAMA0 panic=-1 armvm.word=schön-€-\N{GRINNING FACE}"
    program = unified(state, memory(installer(state).kernel), cmdline, [tiny(state)])
    said = boot(platform, disk_with(tmp_path, state, program), DONE)
    assert f"{READY} {state.value}" in said
    assert f"{CMDLINE} {cmdline}" in said
    assert "armvm stub:" not in said


@pytest.mark.parametrize("name", ["edk2-64", "edk2-32"])
def test_a_stub_in_a_stub_hands_on_options_and_initrd(
    name: str, installer: FindInstaller, tiny: Tiny, tmp_path: Path
) -> None:
    platform = PLATFORMS[name]
    state = platform.state
    other = tmp_path / "other.cpio"
    other.write_bytes(b"no initial RAM disk at all")
    inner = unified(state, memory(installer(state).kernel), None, [other])
    outer = unified(state, MemoryDisk(inner), "console=ttyAMA0 panic=-1 armvm.outer", [tiny(state)])
    said = boot(platform, disk_with(tmp_path, state, outer), DONE)
    assert "armvm stub: an initial RAM disk is offered already, the built-in one is not used" in said
    assert f"{CMDLINE} console=ttyAMA0 panic=-1 armvm.outer" in said


@EVERY_PLATFORM
def test_an_image_without_kernel_says_so(platform: Platform, tmp_path: Path) -> None:
    status = "800000000000000e" if platform.state is ExecutionState.AARCH64 else "8000000e"
    message = f"armvm stub: this program holds no kernel (section .linux) (status 0x{status})"
    boot(platform, disk_with(tmp_path, platform.state, stub(platform.state)), message, powers_off=False)


@EVERY_PLATFORM
def test_a_kernel_that_firmware_refuses_is_said_with_the_status(
    platform: Platform, installer: FindInstaller, tmp_path: Path
) -> None:
    kernel = installer(platform.state).kernel.read_bytes()
    program = bytearray(unified(platform.state, MemoryDisk(kernel), "quiet", []))
    start = program.index(kernel[:4096])
    program[start : start + 2] = b"ZM"
    image = disk_with(tmp_path, platform.state, bytes(program))
    boot(platform, image, "armvm stub: firmware does not load the kernel (status 0x8", powers_off=False)


@pytest.mark.parametrize("name", ["edk2-64", pytest.param("edk2-32", marks=pytest.mark.slow)])
def test_the_debian_installer_starts(name: str, installer: FindInstaller, tmp_path: Path) -> None:
    platform = PLATFORMS[name]
    parts = installer(platform.state)
    cmdline = "console=ttyAMA0 panic=-1 DEBIAN_FRONTEND=text"
    program = unified(platform.state, memory(parts.kernel), cmdline, [parts.initrd])
    said = boot(platform, disk_with(tmp_path, platform.state, program), "Starting system log daemon", powers_off=False)
    assert "Run /init as init process" in said
