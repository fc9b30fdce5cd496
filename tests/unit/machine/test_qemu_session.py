from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from armvm.execution import ExecutionState
from armvm.machine.backend import ConsoleOutput, DeviceGone
from armvm.machine.qemu.backend import find_qemu
from tools.machines import machine_of


def test_an_event_that_came_before_an_answer_is_not_left_waiting(image: Path, behave: Callable[[str], None]) -> None:
    with find_qemu(ExecutionState.AARCH64).start(machine_of(disk=image)) as session:
        while not any(isinstance(event, ConsoleOutput) for event in session.poll(10.0)):
            pass
        session.qmp.execute("device_del", {"id": "it"})
        began = time.monotonic()
        assert session.poll(30.0) == [DeviceGone("it")]
        assert time.monotonic() - began < 10
