"""Plain QEMU commands, as somebody without armvm would type them: what our images have to boot under."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from armvm.execution import ExecutionState

DEADLINE_SECONDS = 120


@dataclass(frozen=True)
class Platform:
    """A machine with a firmware, as QEMU arguments."""

    name: str
    state: ExecutionState
    machine: tuple[str, ...]
    firmware: tuple[str, ...]


def _platforms() -> list[Platform]:
    def flash(path: str) -> tuple[str, ...]:
        return ("-drive", f"if=pflash,format=raw,readonly=on,file=/usr/share/AAVMF/{path}")

    wide = ("qemu-system-aarch64", "-M", "virt,acpi=off,gic-version=3", "-cpu", "cortex-a72")
    narrow = ("qemu-system-arm", "-M", "virt,acpi=off", "-cpu", "cortex-a15")
    return [
        Platform("edk2-64", ExecutionState.AARCH64, wide, flash("AAVMF_CODE.fd")),
        Platform("edk2-32", ExecutionState.AARCH32, narrow, flash("AAVMF32_CODE.fd")),
        Platform("uboot-64", ExecutionState.AARCH64, wide, ("-bios", "/usr/lib/u-boot/qemu_arm64/u-boot.bin")),
        Platform("uboot-32", ExecutionState.AARCH32, narrow, ("-bios", "/usr/lib/u-boot/qemu_arm/u-boot.bin")),
    ]


PLATFORMS = {platform.name: platform for platform in _platforms()}
EVERY_PLATFORM = pytest.mark.parametrize("platform", PLATFORMS.values(), ids=list(PLATFORMS))


def command(platform: Platform, image: Path, *, drive: str = "readonly=on", sector_size: int = 512) -> list[str]:
    """The command that boots ``image``; ``drive`` says what becomes of what is written to it.

    The disk has logical sectors of ``sector_size`` bytes.
    """
    argv = [*platform.machine, *platform.firmware, "-m", "1024", "-nographic", "-net", "none"]
    sectors = "" if sector_size == 512 else f",logical_block_size={sector_size},physical_block_size={sector_size}"
    argv += ["-boot", "menu=on,splash-time=0", "-device", f"virtio-blk-pci,drive=disk,bootindex=0{sectors}"]
    return [*argv, "-drive", f"if=none,id=disk,format=raw,{drive},file={image}"]


def boot(
    platform: Platform,
    image: Path,
    until: str,
    *,
    powers_off: bool = True,
    drive: str = "readonly=on",
    sector_size: int = 512,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> str:
    """What the machine says until ``until`` stands in it; then it must power off by itself, or is killed."""
    argv = [*command(platform, image, drive=drive, sector_size=sector_size), "-no-reboot"]
    deadline = time.monotonic() + deadline_seconds
    said = b""
    with (
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as machine,
        selectors.DefaultSelector() as selector,
    ):
        assert machine.stdout is not None
        selector.register(machine.stdout, selectors.EVENT_READ)
        try:
            while until.encode() not in said:
                ready = selector.select(max(deadline - time.monotonic(), 0))
                chunk = os.read(machine.stdout.fileno(), 65536) if ready else b""
                if not chunk:
                    pytest.fail(f"{until!r} was never said: {said.decode(errors='replace')[-2000:]}")
                said += chunk
            if powers_off:
                said += machine.communicate(timeout=max(deadline - time.monotonic(), 1))[0]
                assert machine.returncode == 0
        finally:
            machine.kill()
    return said.decode(errors="replace")
