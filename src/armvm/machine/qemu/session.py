"""A running QEMU: its console, its control channel and its process behind the Session protocol."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from armvm.errors import MachineError
from armvm.machine.backend import ConsoleOutput, DeviceGone, Ended, Ending, Event, GuestReset, Readable, Report
from armvm.machine.definition import DiskDevice, Nic
from armvm.machine.lifecycle import Child
from armvm.machine.qmp import Qmp, QmpEvent
from armvm.printable import printable

if TYPE_CHECKING:
    from armvm.machine.qemu.companions import Companions

_START_SECONDS = 60.0
_END_SECONDS = 5.0
_READ_BYTES = 65536
_GATHER_SECONDS = 0.008
"""A serial port says one byte at a time: so long is waited for more, lest every one of them wake this process, which
takes its time from the guest's."""


class QemuSession:
    """A QEMU that was started with its console on its standard input and output, and QMP on an inherited socket.

    ``channels`` are our ends of the other sockets that it inherited (``command.channel_names``), which do not block.
    ``beside`` are the programs that end with it.
    """

    def __init__(
        self,
        child: Child,
        control: socket.socket,
        channels: Mapping[str, socket.socket] | None = None,
        beside: Companions | None = None,
    ) -> None:
        self.channels = dict(channels or {})
        self._child = child
        self._beside = beside
        self._qmp = Qmp(control)
        self._console_open = True
        self._pending = bytearray()
        self._resets = 0
        self._ending: Ending | None = None
        self._over = False

    @property
    def pid(self) -> int:
        """The process id of QEMU."""
        return self._child.pid

    @property
    def qmp(self) -> Qmp:
        """The control channel, for commands that this class has no method for."""
        return self._qmp

    @property
    def pending_bytes(self) -> int:
        """How much of what was sent still waits for the guest to take it."""
        return len(self._pending)

    def greet(self) -> None:
        """Wait until QEMU is up. Raises MachineError with its own words when it does not come up."""
        try:
            self._qmp.greet(_START_SECONDS)
        except MachineError as error:
            status = self._child.wait(1.0)
            self.end()
            said = self._child.errors
            if status is None and not said:
                raise
            raise MachineError(f"QEMU did not start: {_first_line(said) or error}", output_tail=said) from None

    def poll(self, timeout_seconds: float | None, watch: Sequence[int] = ()) -> list[Event]:
        """Wait for events; an empty list when the time is over. ``watch`` names descriptors of the caller's own.

        Raises MachineError when QEMU fails.
        """
        if self._over:
            return []
        self._listen_beside()
        events: list[Event] = []
        with selectors.DefaultSelector() as selector:
            if self._console_open:
                selector.register(self._child.output, selectors.EVENT_READ)
                if self._pending:
                    selector.register(self._child.input, selectors.EVENT_WRITE)
            if not self._qmp.closed:
                selector.register(self._qmp, selectors.EVENT_READ)
            if self._child.error_descriptor >= 0:
                selector.register(self._child.error_descriptor, selectors.EVENT_READ)
            for descriptor in watch:
                selector.register(descriptor, selectors.EVENT_READ)
            waiting = self._qmp.waiting
            ready = {key.fd for key, _ in selector.select(0 if waiting else timeout_seconds)}
        if self._child.error_descriptor in ready:
            self._child.take_errors()
        if self._console_open and self._child.input.fileno() in ready:
            self._flush()
        if self._console_open and self._child.output.fileno() in ready:
            events += self._heard()
        if waiting or (not self._qmp.closed and self._qmp.fileno() in ready):
            events += self._reported(self._qmp.receive())
        events += [Readable(descriptor) for descriptor in watch if descriptor in ready]
        if not self._console_open and self._qmp.closed:
            events.append(self._ended())
        return events

    def send(self, data: bytes) -> None:
        """Type ``data`` on the guest's console. Never blocks."""
        self._pending += data
        self._flush()

    def request_power_off(self) -> None:
        """Press the power button. What comes of it is the guest's choice."""
        if not self._qmp.closed:
            with suppress(MachineError):  # QEMU is going already: the next poll says so
                self._qmp.tell("system_powerdown")

    def reset(self) -> None:
        """Press the reset button."""
        self._qmp.execute("system_reset")

    def attach(self, device: DiskDevice | Nic) -> None:
        """Add ``device`` at its port. Raises MachineError when QEMU does not take it."""
        from armvm.machine.qemu.hotplug import attach, hot

        attach(self, hot(device))

    def request_detach(self, device: DiskDevice | Nic) -> None:
        """Ask the guest to give ``device`` up; a DeviceGone event follows when it has."""
        from armvm.machine.qemu.hotplug import hot, request_detach

        request_detach(self, hot(device))

    def end(self) -> None:
        """End QEMU at once; what the guest has written to its disks is kept. Ending twice is no error."""
        self._over = True
        if not self._qmp.closed:
            with suppress(MachineError):
                self._qmp.tell("quit")
                self._drain_until_over()
        self._child.kill()
        self._hang_up()

    def kill(self) -> None:
        """Kill QEMU as a crash of the host would: nothing is flushed, nobody is asked."""
        self._over = True
        self._child.kill()
        self._hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _listen_beside(self) -> None:
        if self._beside is not None:
            self._beside.take_errors()

    def _hang_up(self) -> None:
        self._qmp.close()
        if self._beside is not None:
            self._beside.end()
        for channel in self.channels.values():
            channel.close()

    def _drain_until_over(self) -> None:
        """Give QEMU time to flush its disks, reading what it says so that it cannot block on saying it."""
        deadline = time.monotonic() + _END_SECONDS
        while self._child.wait(0.01) is None and time.monotonic() < deadline:
            self._qmp.receive()
            self._child.take_errors()
            if self._console_open:
                self._heard()

    def _heard(self) -> list[Event]:
        time.sleep(_GATHER_SECONDS)
        try:
            data = os.read(self._child.output.fileno(), _READ_BYTES)
        except BlockingIOError:
            return []
        if data:
            return [ConsoleOutput(data)]
        self._console_open = False
        return []

    def _flush(self) -> None:
        try:
            while self._pending and self._console_open:
                sent = os.write(self._child.input.fileno(), self._pending)
                del self._pending[:sent]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._pending.clear()  # QEMU is gone: the next poll says so

    def _reported(self, reports: list[QmpEvent]) -> list[Event]:
        events: list[Event] = []
        for report in reports:
            if report.name == "RESET" and report.data.get("guest"):
                self._resets += 1
                events.append(GuestReset(self._resets))
            elif report.name == "DEVICE_DELETED" and "device" in report.data:
                events.append(DeviceGone(str(report.data["device"])))
            elif report.name == "SHUTDOWN":
                self._ending = Ending.POWERED_OFF if report.data.get("guest") else Ending.STOPPED
            else:
                events.append(Report(report.name, report.data))
        return events

    def _ended(self) -> Ended:
        status = self._child.wait(_END_SECONDS)
        self.end()
        if self._ending is not None:
            return Ended(self._ending)
        said = self._child.errors
        how = f"was killed by signal {-status}" if status is not None and status < 0 else f"ended (exit {status})"
        raise MachineError(f"QEMU {how} under the guest: {_first_line(said) or 'it said nothing'}", output_tail=said)


def _first_line(said: str) -> str:
    """The line that says what is wrong, without the program's name."""
    lines = [line for line in said.splitlines() if "warning:" not in line] or said.splitlines()
    return printable(lines[0].split(": ", 1)[-1]) if lines else ""
