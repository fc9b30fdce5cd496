"""A stand-in for QEMU: it speaks QMP and has a console, boots nothing, and dies as it is told. Linux only.

    fake_qemu.install(folder)      puts it in the place of qemu-system-aarch64 and qemu-system-arm

What it does is chosen by a file: $FAKE_QEMU names it, and it holds words.

    deaf     the power button does nothing
    fail     it ends at once, with words on standard error
    silent   it says nothing on its console (else "READY")
    full     it stops the guest, as QEMU does when a disk of the host is full

On its console it says back what it hears, in capitals. "flood" makes it say a great deal, "die" ends it in mid-air.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import sys
from pathlib import Path


def install(folder: Path) -> None:
    """Put it into ``folder``, which is to stand first in PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("qemu-system-aarch64", "qemu-system-arm"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {Path(__file__).absolute()} "$@"\n')
        program.chmod(0o755)


class FakeQemu:
    """One of them, running."""

    def __init__(self, arguments: str, words: set[str]) -> None:
        self.words = words
        self.control = socket.socket(fileno=int(re.findall(r"id=control,fd=(\d+)", arguments)[0]))
        self.running = " -S " not in arguments
        self.received = b""

    def run(self) -> None:
        """Until it is told to end."""
        self.say({"QMP": {"version": {}, "capabilities": []}})
        if "silent" not in self.words:
            os.write(1, b"\x1b[2JREADY\r\n")
        if "full" in self.words:
            self.event("BLOCK_IO_ERROR", device="disk0", action="stop", nospace=True, reason="No space left on device")
            self.running = False
            self.event("STOP")
        selector = selectors.DefaultSelector()
        for ready in (0, self.control):
            selector.register(ready, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == 0:
                    self.typed(os.read(0, 65536))
                else:
                    self.hear(self.control.recv(65536))

    def typed(self, data: bytes) -> None:
        """Keys."""
        if b"flood" in data:
            for number in range(40_000):
                os.write(1, b"%06d %s\r\n" % (number, b"x" * 72))
        if b"die" in data:
            os.write(2, b"qemu: \x1b[31mout of ideas\n")
            os._exit(3)
        os.write(1, data.upper())

    def hear(self, data: bytes) -> None:
        """Commands."""
        if not data:
            os._exit(0)
        *lines, self.received = (self.received + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            self.obey(command["execute"], command["id"])

    def obey(self, name: str, number: int) -> None:
        """One command."""
        if name == "query-status":
            state = "running" if self.running else "io-error"
            self.say({"return": {"status": state, "running": self.running}, "id": number})
            return
        if name == "device_del":
            self.event("DEVICE_DELETED", device="it")  # before the answer, as QEMU may
        self.say({"return": {}, "id": number})
        if name == "cont":
            self.running = True
            self.event("RESUME")
        elif name == "system_powerdown" and "deaf" not in self.words:
            os.write(1, b"POWER-BUTTON\r\n")
            self.event("SHUTDOWN", guest=True, reason="guest-shutdown")
            os._exit(0)
        elif name == "quit":
            self.event("SHUTDOWN", guest=False, reason="host-qmp-quit")
            os._exit(0)

    def event(self, name: str, **data: object) -> None:
        """Report something."""
        self.say({"event": name, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}})

    def say(self, message: object) -> None:
        """One line on the control channel."""
        self.control.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    chosen = Path(os.environ["FAKE_QEMU"]).read_text() if "FAKE_QEMU" in os.environ else ""
    if "fail" in chosen.split():
        sys.exit("qemu: -device x: No \x1b[31m such thing")
    FakeQemu(" ".join(sys.argv), set(chosen.split())).run()
