"""A running Xen domain: its PV console and its end behind the Session protocol.

The domain starts paused and runs once its console has been taken up: not a byte is lost. xl itself does not watch it
(``create -e``): a domain that goes down is kept by Xen with the reason, until we have read that and taken it away. A
shell that waits on a pipe to us does the same if we die.
"""

from __future__ import annotations

import os
import select
import selectors
import subprocess
import tempfile
import termios
import time
import tty
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from armvm.errors import MachineError
from armvm.machine.backend import ConsoleOutput, DeviceGone, Ended, Ending, Event, GuestReset, Readable
from armvm.machine.definition import DiskDevice, Nic
from armvm.machine.lifecycle import Child
from armvm.machine.xen.config import XenHost, device_name, disk_specification, nic_specification
from armvm.printable import printable
from armvm.process import ProgramError, require_program, run

_XL_SECONDS = 120.0
"""How long any one command of xl may take, on an emulated machine."""
_READ_BYTES = 65536
_CONSOLE_SECONDS = 30.0
_PAUSE_SECONDS = 0.05
_LAST_WORDS_SECONDS = 1.0
"""How long the console of a domain that went down is listened to: xenconsoled hands on what the domain said last."""
_LOOK_SECONDS = 30.0
"""How often Xen is asked whether the domain is still up although xenstore has said nothing of an end."""
_RELEASE = "@releaseDomain"
"""What xenstored says whenever a domain goes down (Xen, docs/misc/xenstore.txt, WATCH)."""
_POWEROFF, _REBOOT = "0", "1"
"""Reasons of a shutdown (Xen, xen/include/public/sched.h)."""
_REASONS = {"2": "was suspended", "3": "crashed", "4": "was ended by its watchdog"}


@dataclass(frozen=True, slots=True)
class _Down:
    reason: str


class XenSession:
    """A domain that was made from an xl configuration. Leaving its context ends it at once, whatever happened."""

    def __init__(
        self, name: str, configuration: str, host: XenHost, *, first_free: int, hold: Sequence[int] = ()
    ) -> None:
        """Start it. ``first_free`` is the place of the first disk that can be added.

        Raises ProgramError with xl's reason when it does not start.
        """
        self.name = name
        self._host = host
        self._next_place = first_free
        self._places: dict[str, str] = {}
        self._gone: list[Event] = []
        self._configuration = configuration
        self._pending = bytearray()
        self._resets = 0
        self._over = False
        self._looked = 0.0
        self._console: int | None = None
        self._releases: Child | None = None
        self._watchdog = _start_watchdog(require_program("xl"), name, hold)
        try:
            self._create()
        except BaseException:
            self.end()
            raise

    @property
    def pending_bytes(self) -> int:
        """How much of what was sent still waits for the guest to take it."""
        return len(self._pending)

    def poll(self, timeout_seconds: float | None, watch: Sequence[int] = ()) -> list[Event]:
        """Wait for events; an empty list when the time is over. ``watch`` names descriptors of the caller's own.

        Raises MachineError when the domain crashes, or is taken away by somebody else.
        """
        if self._over:
            return []
        if self._gone:
            gone, self._gone = self._gone, []
            return gone
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            look_at = self._looked + _LOOK_SECONDS
            until = look_at if deadline is None else min(look_at, deadline)
            events = self._wait(max(0.0, until - time.monotonic()), watch)
            if not events and time.monotonic() >= look_at:
                events = self._look()
            if events or (deadline is not None and time.monotonic() >= deadline):
                return events

    def send(self, data: bytes) -> None:
        """Type ``data`` on the guest's console. Never blocks."""
        self._pending += data
        self._flush()

    def request_power_off(self) -> None:
        """Ask the guest to power off. What comes of it is the guest's choice."""
        if not self._over:
            with suppress(ProgramError):  # one that is going already: the next poll says so
                xl("shutdown", self.name)

    def reset(self) -> None:
        """Take the domain away and start it anew, as a reset button does."""
        self._destroy()
        self._create()

    def attach(self, device: DiskDevice | Nic) -> None:
        """Add ``device``, which has a name; a network card needs an address too.

        Raises MachineError when xl does not take it; that it does says nothing about the guest.
        """
        if device.name is None or (not isinstance(device, DiskDevice) and device.mac is None):
            raise MachineError(
                "a device without a name, or a network card without an address, is not added to a domain"
            )
        if isinstance(device, DiskDevice):
            place = device_name(self._next_place)
            _tell("block-attach", self.name, disk_specification(device, self._next_place, self._host))
            self._next_place += 1
        else:
            place = str(device.mac).lower()
            _tell("network-attach", self.name, *nic_specification(device, self._host).split(","))
        self._places[device.name] = place

    def request_detach(self, device: DiskDevice | Nic) -> None:
        """Have the guest give ``device`` up: xl waits until it has, and a DeviceGone event follows.

        Raises MachineError when it does not.
        """
        name = device.name or ""
        if name not in self._places:
            raise MachineError(f"no device {printable(name)} was added to the domain")
        command = "block-detach" if isinstance(device, DiskDevice) else "network-detach"
        _tell(command, self.name, self._places[name])
        del self._places[name]
        self._gone.append(DeviceGone(name))

    def kill(self) -> None:
        """End the domain as a crash of the host would: nothing is flushed, nobody is asked."""
        self.end()

    def end(self) -> None:
        """End the domain at once, keeping what it has written to its disks. Ending twice is no error."""
        if self._over:
            return
        self._over = True
        self._destroy()
        if self._releases is not None:
            self._releases.kill()
        with suppress(OSError, subprocess.TimeoutExpired):
            self._watchdog.communicate(b"over\n", timeout=_XL_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _create(self) -> None:
        with tempfile.TemporaryDirectory(prefix="armvm-xen-") as folder:
            path = Path(folder) / "domain.cfg"
            path.write_text(self._configuration, encoding="utf-8")
            xl("create", "-p", "-e", str(path))
        if self._releases is None:
            self._releases = Child([require_program("xenstore-watch"), _RELEASE], inherit=())
        self._console = _open_console(self.name)
        xl("unpause", self.name)
        self._looked = time.monotonic()

    def _destroy(self) -> None:
        console, self._console = self._console, None
        with suppress(ProgramError):  # there may be none (any more)
            xl("destroy", self.name)
        if console is not None:
            os.close(console)

    def _wait(self, seconds: float, watch: Sequence[int]) -> list[Event]:
        console, releases = self._console, self._releases
        with selectors.DefaultSelector() as selector:
            if releases is not None:
                selector.register(releases.output, selectors.EVENT_READ)
            if console is not None:
                selector.register(console, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._pending else 0))
            for descriptor in watch:
                selector.register(descriptor, selectors.EVENT_READ)
            ready = {key.fd: happened for key, happened in selector.select(seconds)}
        events: list[Event] = []
        if console is not None and ready.get(console, 0) & selectors.EVENT_WRITE:
            self._flush()
        if console is not None and ready.get(console, 0) & selectors.EVENT_READ:
            events += self._heard()
        if releases is not None and releases.output.fileno() in ready and not self._over:
            if not releases.output.read(_READ_BYTES):  # it has ended: what is left is to look now and then
                releases.kill()
                self._releases = None
            events += self._look()
        return events + [Readable(descriptor) for descriptor in watch if descriptor in ready]

    def _heard(self) -> list[Event]:
        """What the console has to say; when that is gone, so is the domain, and it is time to look."""
        console = self._console
        if console is None:
            return []
        data = _read(console)
        if data is None:
            return []
        if data:
            return [ConsoleOutput(data)]
        self._console = None
        os.close(console)
        events = self._look()
        if not events and not self._over:
            raise MachineError("the console of the Xen domain is gone, and the domain is not")
        return events

    def _flush(self) -> None:
        try:
            while self._pending and self._console is not None:
                sent = os.write(self._console, self._pending)
                del self._pending[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._pending.clear()  # the domain is gone: the next poll says so

    def _look(self) -> list[Event]:
        """What has become of the domain, by Xen's own list."""
        self._looked = time.monotonic()
        down = _state(self.name)
        if down is None:
            return []
        events = self._last_words()
        if down.reason == _REBOOT:
            self._destroy()
            self._resets += 1
            self._create()
            return [*events, GuestReset(self._resets)]
        self.end()
        if down.reason == _POWEROFF:
            return [*events, Ended(Ending.POWERED_OFF)]
        said = b"".join(event.data for event in events if isinstance(event, ConsoleOutput)).decode(errors="replace")
        how = _REASONS.get(down.reason, "is gone: somebody else took it away")
        raise MachineError(f"the Xen domain {how}", output_tail=said)

    def _last_words(self) -> list[Event]:
        events: list[Event] = []
        until = time.monotonic() + _LAST_WORDS_SECONDS
        while self._console is not None and (left := until - time.monotonic()) > 0:
            if not select.select([self._console], [], [], left)[0]:
                break
            data = _read(self._console)
            if data == b"":
                break
            if data:
                events.append(ConsoleOutput(data))
        return events


def _open_console(name: str) -> int:
    """The terminal that xenconsoled has for the domain's console (Xen, docs/misc/console.txt), not blocking.

    It keeps what the domain says until that is read. (xl console would not take what is typed through a pipe.)
    """
    key = f"/local/domain/{int(xl('domid', name))}/console/tty"
    deadline = time.monotonic() + _CONSOLE_SECONDS
    while not (path := run("xenstore-read", [key], timeout_seconds=_XL_SECONDS, check=False).stdout.decode().strip()):
        if time.monotonic() > deadline:
            raise MachineError(f"xenconsoled gives the domain no console within {_CONSOLE_SECONDS:g} s: does it run?")
        time.sleep(_PAUSE_SECONDS)
    console = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        tty.setraw(console, termios.TCSANOW)
    except BaseException:
        os.close(console)
        raise
    return console


def _read(console: int) -> bytes | None:
    """What the console says; None when that is nothing yet, no bytes when there is no console any more."""
    try:
        return os.read(console, _READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:  # EIO: the other end of the terminal is closed
        return b""


def xl(*words: str) -> str:
    """What ``xl`` with these words says. Raises ProgramError with its reason when it fails."""
    try:
        return run("xl", words, timeout_seconds=_XL_SECONDS).stdout.decode(errors="replace")
    except ProgramError as error:
        raise ProgramError(
            f"xl {words[0]} failed: {telling(error.stderr)}",
            program="xl",
            stderr=error.stderr,
            returncode=error.returncode,
        ) from error


def _tell(*words: str) -> None:
    try:
        xl(*words)
    except ProgramError as error:
        raise MachineError(error.message, output_tail=error.stderr) from error


def telling(stderr: str) -> str:
    """The line of xl's words that says why: the first error, as the later ones follow from it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line.lower() or "fail" in line.lower()]
    return printable((wrong or lines or ["it said nothing"])[0][:400])


def _state(name: str) -> _Down | None:
    """Whether a domain is down, and why; None while it is up. One that there is not has no reason."""
    try:
        said = xl("list", "-v", name)
    except ProgramError:
        return _Down("")
    return parse_list(said, name)


def parse_list(said: str, name: str) -> _Down | None:
    """The line of ``xl list -v`` on ``name``: name, id, memory, vCPUs, state, time, UUID, reason, label."""
    for line in said.splitlines():
        words = line.split()
        if len(words) >= 8 and words[0] == name:
            return _Down(words[7]) if "s" in words[4] or "c" in words[4] or "d" in words[4] else None
    return _Down("")


def _start_watchdog(xl_path: str, name: str, hold: Sequence[int]) -> subprocess.Popen[bytes]:
    """A shell that takes the domain away when its standard input closes without a line on it."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r line || "$0" destroy "$1"', xl_path, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=tuple(hold),
        start_new_session=True,
    )
