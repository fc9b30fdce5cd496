"""Packages of an ARM distribution, unpacked on a machine of any architecture: real GRUB, shim, systemd-boot.

They are fetched with an apt root of its own in the user's cache: the machine's package lists and architectures stay as
they are. Signatures are verified with the machine's own keys.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

_TIMEOUT_SECONDS = 300
_UPDATES = 3


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "armvm" / "test-packages"


def foreign_package(architecture: str, *names: str) -> Path:
    """The folder that the first of ``names`` which the archive has is unpacked into, for ``arm64`` or ``armhf``."""
    if shutil.which("apt-get") is None:
        pytest.skip("packages of another architecture are fetched with apt")
    root = _cache() / architecture
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names:
            if (root / name).is_dir():
                return root / name
        environment = {**os.environ, "APT_CONFIG": str(_configure(root, architecture)), "LC_ALL": "C"}
        if not (root / "updated").exists():
            _update(root, environment)
        for name in names:
            if "Candidate: " in _run(["apt-cache", "policy", f"{name}:{architecture}"], root, environment):
                return _unpacked(name, architecture, root, environment)
    message = f"none of {', '.join(names)} for {architecture} in this machine's package archive"
    if "ID=debian" in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        pytest.fail(message)
    pytest.skip(message)


def _configure(root: Path, architecture: str) -> Path:
    for folder in ("state/lists/partial", "cache/archives/partial", "download"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    path = root / "apt.conf"
    path.write_text(
        f'APT::Architecture "{architecture}";\n'
        f'APT::Architectures {{"{architecture}";}};\n'
        f'Dir::State "{root}/state";\n'
        f'Dir::State::status "{root}/status";\n'
        f'Dir::Cache "{root}/cache";\n'
        'APT::Sandbox::User "root";\n'
    )
    return path


def _update(root: Path, environment: dict[str, str]) -> None:
    """Fetch the package lists, again where a mirror is just being changed; what then still lacks shows below."""
    command = ["apt-get", "update", "-q=2", "-o", "Acquire::Retries=3"]
    for _ in range(_UPDATES):
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, check=False, timeout=_TIMEOUT_SECONDS
        )
        if done.returncode == 0:
            (root / "updated").touch()
            return


def _unpacked(name: str, architecture: str, root: Path, environment: dict[str, str]) -> Path:
    download = root / "download"
    _run(["apt-get", "download", "-q=2", f"{name}:{architecture}"], download, environment)
    (archive,) = download.glob(f"{name}_*.deb")
    part = root / f"{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    _run(["dpkg-deb", "-x", str(archive), str(part)], root, environment)
    archive.unlink()
    part.rename(root / name)
    return root / name


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_SECONDS,
    )
    if result.returncode:
        pytest.fail(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout
