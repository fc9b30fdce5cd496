"""Small real guests, each with one seeded fault that repair claims: repaired, they conform and boot to their marker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Armvm
from tools.guest_faults import SEEDED
from tools.guest_images import READY, copy_guest, good_guest

REPAIRABLE = [name for name, fault in SEEDED.items() if fault.repairable]
ORDINARY = {"root=/dev/vda1", "boot program under the vendor's path only", "only console=ttyS0", "fstab by device name"}
"""What the ordinary suite boots: a fault of each kind. All of them are booted by ./test --slow."""


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repaired")


@pytest.mark.parametrize(
    "name", [name if name in ORDINARY else pytest.param(name, marks=pytest.mark.slow) for name in REPAIRABLE]
)
def test_a_repaired_guest_conforms_and_boots(armvm: Armvm, guests: Path, name: str, tmp_path: Path) -> None:
    image = copy_guest(good_guest(guests), tmp_path / "faulty.img")
    SEEDED[name].edit(image)
    repaired = armvm("repair", "--write", image.path, timeout_seconds=120)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    said = armvm("check", "--fail-on", "should", "--strict", "--format", "json", image.path)
    report = json.loads(said.stdout)["reports"][0]
    assert said.returncode == 0, [f for f in report["findings"] if f["verdict"] != "pass"]
    assert report["conforms"] is True
    marker = f"{READY} debian aarch64 mounts=ok swap=ok"
    booted = armvm("run", "-q", image.path, "--until", marker, "--timeout", "200", timeout_seconds=240)
    assert booted.returncode == 0, booted.stdout[-3000:] + booted.stderr
