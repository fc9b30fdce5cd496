"""The pytest plugin: ``armvm_machine`` boots images in tests and cleans up behind them.

    def test_it_boots(armvm_machine):
        machine = armvm_machine("disk.qcow2")
        machine.expect("login:", timeout_seconds=120)

It is there wherever armvm is installed. ``--armvm-image`` names the image that tests get which name none.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from armvm.machines import Machine

_TAIL_LINES = 40
_MACHINES = pytest.StashKey[list["Machine"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare --armvm-image."""
    parser.getgroup("armvm").addoption(
        "--armvm-image", type=Path, metavar="IMAGE", help="the image that armvm_machine boots when a test names none"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows the last that its machines said."""
    report = yield
    if report.failed:
        for machine in item.stash.get(_MACHINES, []):
            said = "\n".join(machine.log.splitlines()[-_TAIL_LINES:])
            report.sections.append((f"console of {machine.name}", said or "(it said nothing)"))
    return report


@pytest.fixture
def armvm_machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Machine]]:
    """A function that boots an image and returns the ``armvm.Machine``, which is killed and deleted after the test.

    ``armvm_machine(image, start=True, **options)``: ``options`` are those of ``Machine.create``. The instances stand in
    a folder of the test's own, and the image is never written to.
    """
    from armvm.machines import Machine

    machines: list[Machine] = []
    request.node.stash[_MACHINES] = machines
    numbers = itertools.count(1)
    before = os.environ.get("ARMVM_HOME")
    os.environ["ARMVM_HOME"] = str(tmp_path_factory.mktemp("armvm"))

    def boot(image: str | os.PathLike[str] | None = None, *, start: bool = True, **options: Any) -> Machine:
        chosen = image or request.config.getoption("--armvm-image")
        if chosen is None:
            pytest.fail("armvm_machine wants an image: armvm_machine(IMAGE), or pytest --armvm-image IMAGE")
        machine = Machine.create(f"test-{next(numbers)}", chosen, **options)
        machines.append(machine)
        if start:
            machine.start()
        return machine

    try:
        yield boot
    finally:
        for machine in machines:
            if machine.exists:
                machine.delete()
        if before is None:
            del os.environ["ARMVM_HOME"]
        else:
            os.environ["ARMVM_HOME"] = before
