"""The real thing: kernel and initial RAM disk of the Debian installer, from the distribution's packages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from armvm.execution import ExecutionState

_ARCHITECTURES = {ExecutionState.AARCH64: "arm64", ExecutionState.AARCH32: "armhf"}
_FOLDER = Path("/usr/lib/debian-installer/images")


@dataclass(frozen=True)
class Installer:
    """Where the installer's parts lie."""

    kernel: Path
    initrd: Path
    grub: Path


def find_installer(state: ExecutionState) -> Installer:
    """The newest installer on this machine.

    Only where the package archive itself has none (Ubuntu's, Fedora's) are its tests skipped; on Debian, ``./test``
    installs it, and its absence is a failure.
    """
    architecture = _ARCHITECTURES[state]
    folders = sorted(_FOLDER.glob(f"*/{architecture}/text/debian-installer/{architecture}"), reverse=True)
    for folder in folders:
        for name in ("linux", "vmlinuz"):
            if (folder / name).is_file():
                grub = next(iter(sorted(folder.glob("grub*.efi"))), folder / "grub.efi")
                return Installer(folder / name, folder / "initrd.gz", grub)
    message = f"no debian-installer-*-netboot-{architecture} on this machine"
    if "ID=debian" in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        pytest.fail(f"{message}: ./test installs it")
    pytest.skip(f"{message}, nor in its package archive")
