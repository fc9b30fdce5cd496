from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from armvm.packages import (
    components,
    distribution_family,
    families,
    install_command,
    install_command_for,
)

NEWER = {"virtiofsd"}
"""What is a package of its own since Debian 13; before that it comes with QEMU."""
NAMES = {component.name for component in components()}


def release(monkeypatch: pytest.MonkeyPatch, text: str | None, platform: str = "linux") -> str | None:
    """The family that an /etc/os-release with ``text`` belongs to."""

    def read_text(_path: Path, **_options: str) -> str:
        if text is None:
            raise FileNotFoundError
        return text

    components()  # read its own file before reading is replaced
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "read_text", read_text)
    distribution_family.cache_clear()
    try:
        return distribution_family()
    finally:
        distribution_family.cache_clear()


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("ID=debian\n", "debian"),
        ("NAME=x\nID=ubuntu\nID_LIKE=debian\n", "debian"),
        ('ID="pop"\nID_LIKE="ubuntu debian"\n', "debian"),
        ("ID=fedora", "fedora"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "rhel"),
        ('ID="rhel"\nID_LIKE="fedora"\n', "rhel"),
        ("ID=arch", "arch"),
        ("ID='opensuse-tumbleweed'", "suse"),
        ('ID="opensuse-slowroll"\nID_LIKE="suse opensuse"\n', "suse"),
        ("ID=alpine", "alpine"),
        ("ID=nixos", None),
        ("", None),
        ("=\n===\nID", None),
        (None, None),
    ],
)
def test_families(monkeypatch: pytest.MonkeyPatch, text: str | None, family: str | None) -> None:
    assert release(monkeypatch, text) == family


def test_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    assert release(monkeypatch, None, platform="darwin") == "homebrew"


def test_commands() -> None:
    assert install_command("firmware-aarch64", "debian") == "apt-get install qemu-efi-aarch64"
    assert install_command("firmware-aarch32", "fedora") is None
    assert install_command("unheard-of", "debian") is None


def test_one_command_for_all_names_each_package_once() -> None:
    assert install_command_for(["qemu-img", "qemu-nbd", "mke2fs"], "debian") == "apt-get install qemu-utils e2fsprogs"
    assert install_command_for(["firmware-aarch32", "qemu-img"], "arch") == "pacman -S qemu-img"
    assert install_command_for([], "debian") is None
    assert install_command_for(["firmware-aarch32"], "arch") is None


def test_every_family_has_what_is_required() -> None:
    for component in components():
        assert component.purpose
        assert set(component.packages) <= set(families())
        if component.required:
            without = set(families()) - set(component.packages)
            assert without <= {"rhel"}, component.name


def test_the_packages_of_debian_exist() -> None:
    packages = sorted({component.packages["debian"] for component in components() if component.name not in NEWER})
    listed = subprocess.run(["apt-cache", "pkgnames"], check=True, capture_output=True, text=True, timeout=60)
    assert set(packages) <= set(listed.stdout.split())


def test_the_programs_come_with_the_packages_of_debian() -> None:
    """dpkg knows which package brought each program that is installed here."""
    for component in components():
        if component.name.startswith("firmware-") or component.name in NEWER:
            continue
        owner = subprocess.run(
            ["dpkg", "--search", component.file or f"*/{component.name}"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert component.packages["debian"] in {line.split(":")[0] for line in owner.stdout.splitlines()}
