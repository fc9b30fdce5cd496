"""A running Cloud Hypervisor: its console on its standard input and output, its API on a socket of ours.

Source: Cloud Hypervisor, vmm/src/api/openapi/cloud-hypervisor.yaml. It reports neither resets nor the guest's consent
to losing a device: what has become of those only the guest can tell.
"""

from __future__ import annotations

import http.client
import json
import os
import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from armvm.errors import MachineError
from armvm.machine.backend import ConsoleOutput, Ended, Ending, Event, Readable
from armvm.machine.definition import DiskDevice, Nic, TapNetwork, Writes
from armvm.machine.lifecycle import Child
from armvm.printable import printable

_API_SECONDS = 10.0
_END_SECONDS = 5.0
_READ_BYTES = 65536
_MOST_ANSWER_BYTES = 1 << 20


class _Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_API_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_API_SECONDS)
        self.sock.connect(str(self._path))


class CloudHypervisorSession:
    """A Cloud Hypervisor that was started as ``child``, with its API at ``api``; ``kept`` is let go at the end."""

    def __init__(self, child: Child, api: Path, kept: ExitStack) -> None:
        self._child = child
        self._api = api
        self._kept = kept
        self._pending = bytearray()
        self._over = False

    @property
    def pending_bytes(self) -> int:
        """How much of what was sent still waits for the guest to take it."""
        return len(self._pending)

    def poll(self, timeout_seconds: float | None, watch: Sequence[int] = ()) -> list[Event]:
        """Wait for events; an empty list when the time is over. Raises MachineError when the hypervisor fails."""
        if self._over:
            return []
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.output, selectors.EVENT_READ)
            if self._pending:
                selector.register(self._child.input, selectors.EVENT_WRITE)
            if self._child.error_descriptor >= 0:
                selector.register(self._child.error_descriptor, selectors.EVENT_READ)
            for descriptor in watch:
                selector.register(descriptor, selectors.EVENT_READ)
            ready = {key.fd for key, _ in selector.select(timeout_seconds)}
        if self._child.error_descriptor in ready:
            self._child.take_errors()
        if self._pending:
            self._flush()
        events: list[Event] = []
        if self._child.output.fileno() in ready:
            data = self._child.output.read(_READ_BYTES)
            if data:
                events.append(ConsoleOutput(data))
            elif data is not None:
                events.append(self._ended())
        return events + [Readable(descriptor) for descriptor in watch if descriptor in ready]

    def send(self, data: bytes) -> None:
        """Type ``data`` on the guest's console. Never blocks."""
        self._pending += data
        self._flush()

    def request_power_off(self) -> None:
        """Press the power button. What comes of it is the guest's choice."""
        with suppress(MachineError):
            self._call("vm.power-button")

    def reset(self) -> None:
        """Press the reset button."""
        self._call("vm.reboot")

    def attach(self, device: DiskDevice | Nic) -> None:
        """Add ``device``. Raises MachineError when it is not taken."""
        if isinstance(device, DiskDevice):
            read_only = device.writes is Writes.REFUSED
            fields = {"path": str(device.path.absolute()), "readonly": read_only, "id": device.name}
            self._call("vm.add-disk", fields | ({"serial": device.serial} if device.serial else {}))
        elif isinstance(device, TapNetwork):
            self._call(
                "vm.add-net", {"tap": device.interface, "id": device.name} | ({"mac": device.mac} if device.mac else {})
            )
        else:
            raise MachineError("Cloud Hypervisor has network cards on tap devices only")

    def request_detach(self, device: DiskDevice | Nic) -> None:
        """Ask the guest to give ``device`` up."""
        self._call("vm.remove-device", {"id": device.name})

    def end(self) -> None:
        """End the VM at once, keeping what it has written to its disks. Ending twice is no error."""
        if not self._over:
            self._over = True
            with suppress(MachineError):
                self._call("vmm.shutdown")
                deadline = time.monotonic() + _END_SECONDS
                while self._child.wait(0.02) is None and time.monotonic() < deadline:
                    self._child.output.read(_READ_BYTES)
        self._child.kill()
        self._kept.close()

    def kill(self) -> None:
        """Kill it as a crash of the host would."""
        self._over = True
        self._child.kill()
        self._kept.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _flush(self) -> None:
        try:
            while self._pending:
                del self._pending[: os.write(self._child.input.fileno(), self._pending)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._pending.clear()  # it is gone: the next poll says so

    def _call(self, action: str, body: dict[str, Any] | None = None) -> None:
        connection = _Connection(self._api)
        try:
            content = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request("PUT", f"/api/v1/{action}", content, headers)
            answer = connection.getresponse()
            said = answer.read(_MOST_ANSWER_BYTES).decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise MachineError(f"Cloud Hypervisor does not answer {action}: {error}") from error
        finally:
            connection.close()
        if answer.status >= 300:
            raise MachineError(f"Cloud Hypervisor refuses {action}: {printable(said.strip()) or answer.status}")

    def _ended(self) -> Ended:
        status = self._child.wait(_END_SECONDS)
        self._over = True
        self._child.kill()
        self._kept.close()
        if status == 0:
            return Ended(Ending.POWERED_OFF)
        said = self._child.errors
        last = printable(said.splitlines()[-1]) if said else "it said nothing"
        raise MachineError(f"Cloud Hypervisor ended (exit {status}): {last}", output_tail=said)
