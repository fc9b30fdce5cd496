"""A test of an image for a distribution's CI: pytest examples/test_an_image.py --armvm-image disk.qcow2."""

from collections.abc import Callable

import armvm


def test_it_boots_to_a_login(armvm_machine: Callable[..., armvm.Machine]) -> None:
    """The guest says that it is ready."""
    armvm_machine().expect(r"login:", timeout_seconds=300)


def test_it_survives_a_power_cut(armvm_machine: Callable[..., armvm.Machine]) -> None:
    """Killed in the middle, it boots again."""
    machine = armvm_machine()
    machine.expect(r"Booting Linux|Loading Linux|EFI stub", timeout_seconds=120)
    machine.kill()
    machine.start()
    machine.expect(r"login:", timeout_seconds=300)
