"""A running domain: its console on a socket of ours, its events from virsh, behind the Session protocol.

One virsh holds the connection that made the domain, with ``--autodestroy``, and prints its events. It dies with this
process; libvirt sees the connection close, and ends the domain.
"""

from __future__ import annotations

import re
import selectors
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from armvm.errors import MachineError
from armvm.machine.backend import ConsoleOutput, DeviceGone, Ended, Ending, Event, GuestReset, Readable, Report
from armvm.machine.definition import DiskDevice, Nic
from armvm.machine.libvirt.domain_xml import ALIAS, device_xml
from armvm.machine.libvirt.virsh import Virsh, error_of, log_file
from armvm.machine.lifecycle import Child
from armvm.printable import printable

_READ_BYTES = 65536
_GATHER_SECONDS = 0.008
_STOP_SECONDS = 30.0
"""How long libvirt may take to say that a domain is over whose console has closed."""
_MOST_EVENT_BYTES = 1 << 20
_EVENT = re.compile(r"event '([^']+)' for domain '[^']*'(?:: (.*))?\Z")


class LibvirtSession:
    """A domain that was created by ``child``, whose console is connected to ``console``."""

    def __init__(self, virsh: Virsh, domain: str, child: Child, console: socket.socket) -> None:
        self.domain = domain
        self._virsh = virsh
        self._child = child
        self._console = console
        console.setblocking(False)
        self._console_open = True
        self._closed_at: float | None = None
        self._said = bytearray()
        self._pending = bytearray()
        self._resets = 0
        self._own_resets = 0
        self._attached = 0
        self._ending: Ending | None = None
        self._stopped: str | None = None
        self._over = False

    @property
    def pending_bytes(self) -> int:
        """How much of what was sent still waits for the guest to take it."""
        return len(self._pending)

    def poll(self, timeout_seconds: float | None, watch: Sequence[int] = ()) -> list[Event]:
        """Wait for events; an empty list when the time is over. ``watch`` names descriptors of the caller's own.

        Raises MachineError when libvirt, or QEMU under it, fails.
        """
        if self._over:
            return []
        with selectors.DefaultSelector() as selector:
            if self._console_open:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._pending else 0)
                selector.register(self._console, wanted)
            selector.register(self._child.output, selectors.EVENT_READ)
            if self._child.error_descriptor >= 0:
                selector.register(self._child.error_descriptor, selectors.EVENT_READ)
            for descriptor in watch:
                selector.register(descriptor, selectors.EVENT_READ)
            ready = {key.fd: mask for key, mask in selector.select(self._wait_seconds(timeout_seconds))}
        if self._child.error_descriptor in ready:
            self._child.take_errors()
        events: list[Event] = []
        if self._console_open and self._console.fileno() in ready:
            self._flush()
            if ready[self._console.fileno()] & selectors.EVENT_READ:
                events += self._heard()
        if self._child.output.fileno() in ready:
            events += self._reported()
        events += [Readable(descriptor) for descriptor in watch if descriptor in ready]
        if self._stopped is not None and not self._console_open:
            events.append(self._ended())
        elif self._closed_at is not None and time.monotonic() > self._closed_at + _STOP_SECONDS:
            self.end()
            raise MachineError("the console closed, and libvirt does not say why")
        return events

    def _wait_seconds(self, asked: float | None) -> float | None:
        if self._closed_at is None:
            return asked
        left = max(self._closed_at + _STOP_SECONDS - time.monotonic(), 0.0) + 0.001
        return left if asked is None else min(asked, left)

    def send(self, data: bytes) -> None:
        """Type ``data`` on the guest's console. Never blocks."""
        self._pending += data
        self._flush()

    def request_power_off(self) -> None:
        """Press the power button. What comes of it is the guest's choice."""
        with suppress(MachineError):  # it may be going already: the next poll says so
            self._virsh.call("shutdown", self.domain, "--mode", "acpi")

    def reset(self) -> None:
        """Press the reset button."""
        self._own_resets += 1
        self._virsh.call("reset", self.domain)

    def attach(self, device: DiskDevice | Nic) -> None:
        """Add ``device`` at its port. Raises MachineError when libvirt does not take it."""
        self._attached += 1
        self._change("attach-device", device_xml(device, 16 + self._attached))

    def request_detach(self, device: DiskDevice | Nic) -> None:
        """Ask the guest to give ``device`` up; a DeviceGone event follows when it has."""
        self._virsh.call("detach-device-alias", self.domain, f"{ALIAS}{device.name}", "--live")

    def _change(self, verb: str, xml: str) -> None:
        """A verb that wants its XML in a file."""
        with tempfile.NamedTemporaryFile("w", prefix="armvm-", suffix=".xml", encoding="utf-8") as file:
            file.write(xml)
            file.flush()
            self._virsh.call(verb, self.domain, file.name, "--live")

    def end(self) -> None:
        """End the VM at once; what the guest has written to its disks is kept. Ending twice is no error."""
        if not self._over:
            self._over = True
            if self._stopped is None:
                with suppress(MachineError):
                    self._virsh.call("destroy", self.domain)
        self._child.kill()
        self._console.close()
        if self._virsh.uri.partition("?")[0].endswith("/session"):
            with suppress(OSError):
                log_file(self.domain).unlink()

    def kill(self) -> None:
        """End the VM as a power cut would: the guest is not asked. libvirt's QEMU still flushes what it holds."""
        self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _heard(self) -> list[Event]:
        time.sleep(_GATHER_SECONDS)  # a serial port says one byte at a time: see qemu.session
        try:
            data = self._console.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        if data:
            return [ConsoleOutput(data)]
        self._console_open = False
        self._closed_at = time.monotonic()
        return []

    def _flush(self) -> None:
        try:
            while self._pending and self._console_open:
                del self._pending[: self._console.send(self._pending)]
        except BlockingIOError:
            pass
        except OSError:
            self._pending.clear()  # QEMU is gone: the next poll says so

    def _reported(self) -> list[Event]:
        """What virsh printed since it was last asked."""
        data = self._child.output.read(_READ_BYTES)
        if data is None:
            return []
        if not data:
            self._child.wait(5.0)
            said = self._child.errors
            self.end()
            raise MachineError(f"libvirt hung up: {error_of(said) or 'it said nothing'}", output_tail=said)
        self._said += data
        if len(self._said) > _MOST_EVENT_BYTES:
            raise MachineError("libvirt sends an event without end")
        *lines, rest = self._said.split(b"\n")
        self._said = bytearray(rest)
        return [event for line in lines for event in self._event(line.decode(errors="replace"))]

    def _event(self, line: str) -> list[Event]:
        match = _EVENT.match(line)
        if match is None:
            return []
        name, detail = match[1], match[2] or ""
        if name == "lifecycle":
            self._lifecycle(detail)
        elif name == "reboot":
            if self._own_resets:
                self._own_resets -= 1
                return []
            self._resets += 1
            return [GuestReset(self._resets)]
        elif name == "device-removed":
            return [DeviceGone(detail.removeprefix(ALIAS))]
        return [Report(name, {"detail": printable(detail)})]

    def _lifecycle(self, detail: str) -> None:
        if detail.startswith("Shutdown"):
            self._ending = Ending.STOPPED if "host request" in detail else Ending.POWERED_OFF
        elif detail.startswith(("Stopped", "Crashed")):
            self._stopped = detail

    def _ended(self) -> Ended:
        stopped = self._stopped or ""
        self.end()
        if stopped == "Stopped Shutdown":
            return Ended(self._ending or Ending.POWERED_OFF)
        if stopped == "Stopped Destroyed":
            return Ended(self._ending or Ending.STOPPED)
        raise MachineError(f"QEMU ended under the guest: libvirt says {printable(stopped)}")
