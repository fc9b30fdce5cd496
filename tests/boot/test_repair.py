"""Images that do not boot, repaired, and booted: a loader in its vendor's folder only, and a disk with an MBR."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from armvm.execution import ExecutionState
from conftest import Armvm
from tools.boot_images import BOOT_FILES, READY, efi_guest, esp_image
from tools.installer import Installer

CONFIG = b"chainloader /EFI/guest.efi\nboot\n"


def vendor_image(folder: Path, grub: Path) -> Path:
    """Debian's GRUB in its vendor's folder, which starts the stand-in guest as its configuration says."""
    files: dict[str, bytes | Path] = {
        f"EFI/debian/{grub.name}": grub,
        "debian-installer/arm64/grub/grub.cfg": CONFIG,
        "EFI/guest.efi": efi_guest(folder, "aarch64"),
        "MODE": b"w",
        "ubootefi.var": bytes(4096),
    }
    return esp_image(folder / "disk.img", files)


def turn_into_mbr(image: Path) -> None:
    """Take the GPT away, and name the ESP in an MBR."""
    with image.open("r+b") as file:
        size = file.seek(0, 2)
        sectors = size // 512 - 4096
        file.seek(0)
        record = struct.pack("<B3sB3s2I", 0x80, b"\0\0\0", 0xEF, b"\0\0\0", 2048, sectors)
        file.write(bytes(440) + b"\x42\xee\xff\xc0\0\0" + record + bytes(48) + b"\x55\xaa")
        file.write(bytes(33 * 512))
        file.seek(size - 33 * 512)
        file.write(bytes(33 * 512))


@pytest.mark.parametrize("table", ["gpt", "mbr"])
def test_a_repaired_image_boots(
    table: str, armvm: Armvm, installer: Callable[[ExecutionState], Installer], tmp_path: Path
) -> None:
    image = vendor_image(tmp_path, installer(ExecutionState.AARCH64).grub)
    if table == "mbr":
        turn_into_mbr(image)
    assert BOOT_FILES["aarch64"] not in armvm("inspect", image).stdout
    result = armvm("repair", "--write", image)
    assert result.returncode == 0, result.stdout + result.stderr
    booted = armvm("run", image, "--until", READY, "--timeout", "60", timeout_seconds=90)
    assert booted.returncode == 0, booted.stdout + booted.stderr
