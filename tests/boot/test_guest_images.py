"""The small real guests of the audit boot: GRUB from the removable path, Debian's kernel, the initrd, the root."""

from __future__ import annotations

from pathlib import Path

import pytest

from armvm.execution import ExecutionState
from conftest import Armvm
from tools.guest_faults import SEEDED
from tools.guest_images import READY, GuestImage, copy_guest, good_guest

AARCH64, AARCH32 = ExecutionState


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guests")


def _boot(armvm: Armvm, guest: GuestImage, *options: str, until: str) -> str:
    done = armvm("run", guest.path, *options, "--until", until, "--timeout", "200", timeout_seconds=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return done.stdout


@pytest.mark.parametrize(("state", "says"), [(AARCH64, "aarch64"), (AARCH32, "armv7l")])
def test_the_good_guest_boots_to_its_marker(armvm: Armvm, guests: Path, state: ExecutionState, says: str) -> None:
    guest = good_guest(guests, state)
    _boot(armvm, guest, "--arch", state.value, until=f"{READY} debian {says} mounts=ok swap=ok")


def test_it_speaks_on_a_virtio_console_without_pci(armvm: Armvm, guests: Path) -> None:
    guest = good_guest(guests)
    _boot(armvm, guest, "--bus", "mmio", "--console", "virtio", until=f"{READY} debian aarch64 mounts=ok")


def test_a_root_that_is_not_there_is_seen(armvm: Armvm, guests: Path, tmp_path: Path) -> None:
    """The marker is no accident: a guest that names another VM's disk does not get there."""
    guest = copy_guest(good_guest(guests), tmp_path / "sda.img")
    SEEDED["root=/dev/sda2"].edit(guest)
    said = _boot(armvm, guest, until="ALERT!  /dev/sda2 does not exist")
    assert READY not in said
