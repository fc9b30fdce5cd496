"""Real kernels of Debian, with their modules: from the distribution's packages, fetched once into the user's cache."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from armvm.execution import ExecutionState
from tools.foreign_packages import foreign_package

CLOUD = "linux-image-cloud-arm64"
ARM64 = "linux-image-arm64"
ARMHF = "linux-image-armmp-lpae"
_DEFAULT = {ExecutionState.AARCH64: CLOUD, ExecutionState.AARCH32: ARMHF}
_ARCHITECTURES = {ExecutionState.AARCH64: "arm64", ExecutionState.AARCH32: "armhf"}


@dataclass(frozen=True)
class Kernel:
    """A kernel image and the folder of its modules (``lib/modules/RELEASE``)."""

    image: Path
    modules: Path


def debian_kernel(state: ExecutionState, name: str | None = None) -> Kernel:
    """The kernel that Debian's metapackage ``name`` stands for: by default the cloud kernel, or armhf's for VMs."""
    architecture = _ARCHITECTURES[state]
    metapackage = foreign_package(architecture, name or _DEFAULT[state])
    folder = foreign_package(architecture, _real_package(metapackage, architecture))
    (image,) = folder.glob("boot/vmlinuz-*")
    modules = folder / "lib/modules"
    (release,) = (modules if modules.is_dir() else folder / "usr/lib/modules").iterdir()
    return Kernel(image, release)


def _real_package(metapackage: Path, architecture: str) -> str:
    known = metapackage / "depends"
    if not known.exists():
        done = subprocess.run(
            ["apt-cache", "depends", "--important", f"{metapackage.name}:{architecture}"],
            env={**os.environ, "APT_CONFIG": str(metapackage.parent / "apt.conf"), "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        found = re.search(r"Depends: (linux-image-[^\s:]+)", done.stdout)
        if found is None:
            pytest.fail(f"{metapackage.name} depends on no kernel: {done.stdout}{done.stderr}")
        unfinished = known.with_name(f"depends.{os.getpid()}")
        unfinished.write_text(found[1])
        unfinished.replace(known)
    return known.read_text()
