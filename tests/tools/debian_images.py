"""Real Debian images for slow tests, built once and kept in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import armvm
from armvm.home import cache

_EPOCH = "1750000000"
_RELEASE = ("--from", "debian:bookworm", "--pockets", "none")
_SECONDS = 4800


def cloud_image() -> Path:
    """An AArch64 Debian with cloud-init, an ssh server and the guest agent, qcow2; 4 GiB as its guest sees it."""
    arguments = ("--arch", "arm64", "--cloud-init", "--ssh", "--package", "qemu-guest-agent", "--size", "4G")
    return _built("cloud", "--from", "debian:bookworm", *arguments)


def both_states_image() -> Path:
    """One Debian for AArch64 and AArch32, raw: what every hypervisor takes. It comes to ``portable login: ``."""
    words = ("--arch", "both", "--ssh", "--hostname", "portable", "--kernel-argument", "quiet")
    return _built("both", *_RELEASE, *words, form="raw")


def _built(name: str, *arguments: str, form: str = "qcow2") -> Path:
    """The image that `armvm build` makes of ``arguments`` now; two tests at once make it once."""
    digest = hashlib.sha256("\0".join(arguments).encode())
    for room in ("distribution", "image"):  # what an image is made by
        for source in sorted((Path(armvm.__file__).parent / room).glob("*.py")):
            digest.update(source.read_bytes())
    folder = cache() / "test-images"
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"debian-{name}-{digest.hexdigest()[:12]}.{form}"
    with (folder / f"{image.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.exists():
            for old in folder.glob(f"debian-{name}-*.{form}"):
                old.unlink()
            command = [sys.executable, "-m", "armvm", "build", "-o", str(image), *arguments]
            environment = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH}
            built = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
            assert built.returncode == 0, built.stderr
    return image
