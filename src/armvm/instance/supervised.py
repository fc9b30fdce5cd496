"""A running instance: one loop that carries its consoles, hears QEMU, and serves the commands that ask for things."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armvm.errors import ArmvmError, MachineError, OutputError, UsageError
from armvm.instance import events, lock, protocol, sockets
from armvm.instance.console_hub import Consoles
from armvm.instance.definition import Definition
from armvm.instance.listener import Listener, Peer
from armvm.instance.lock import Lock, Phase
from armvm.instance.store import Instance
from armvm.machine.backend import ConsoleOutput, DeviceGone, Ended, Event, GuestReset, Readable, Report
from armvm.printable import printable

if TYPE_CHECKING:
    from armvm.instance.running import Step
    from armvm.machine.qemu.backend import Qemu
    from armvm.machine.qemu.session import QemuSession

_TICK_SECONDS = 0.05
_FAREWELL_SECONDS = 1.0
_SIGNAL_POWER_OFF_SECONDS = 15.0
_QMP_SECONDS = 5.0


class Supervised:
    """A running instance: see ``running.Running``.

    ``reason`` is why it is paused, as far as that is known; ``ended`` how it came to its end, and ``failure`` what
    ended it when that was no orderly end.
    """

    def __init__(self, instance: Instance, definition: Definition, qemu: Qemu, held: Lock) -> None:
        self.instance = instance
        self.definition = definition
        self.gone: set[str] = set()
        self.session: QemuSession
        self.qemu = qemu
        self.reason: str | None = None
        self.since = datetime.now(UTC)
        self.ended: str | None = None
        self.failure: MachineError | None = None
        self._held = held
        self._phase = Phase.STARTING
        self._selector = selectors.DefaultSelector()
        self._consoles = Consoles(instance, self._selector)
        self._waiting: dict[Peer, float | None] = {}
        self._queue: deque[tuple[Peer | None, dict[str, Any]]] = deque()
        self._step: tuple[Peer | None, Step] | None = None
        self._power_off_by: float | None = None
        self._signals: deque[int] = deque()
        self._listener = Listener(
            sockets.make_folder(instance) / sockets.control(instance).name,
            self._selector,
            on_request=self._asked,
            on_gone=self._left,
        )
        self._hear_signals()

    def start(self, *, paused: bool) -> None:
        """Start the hypervisor. Raises ArmvmError when it does not start."""
        self.session = self.qemu.start(self.definition.machine, hold=(self._held.descriptor,), paused=paused)
        self.gone.clear()
        self._consoles.connect(self.session)

    def restart(self, definition: Definition, *, paused: bool) -> None:
        """End the hypervisor at once and start another as ``definition`` (see ``running.Running``)."""
        self._consoles.disconnect()
        self.session.end()
        self.definition = definition
        try:
            self.start(paused=paused)
        except ArmvmError as error:
            self.failure = error if isinstance(error, MachineError) else MachineError(error.message, hint=error.hint)
            raise self.failure from error

    def run_step(self, step: Step) -> dict[str, Any]:
        """Carry on until an operation is done, before anybody is served. Raises what it raises."""
        self._step = (None, step)
        done: list[dict[str, Any]] = []
        while not done:
            self._poll()
            try:
                next(step)
            except StopIteration as stop:
                done.append(stop.value or {})
            if self._over:
                break
        self._step = None
        if not done:
            raise self.failure or MachineError(f"instance {self.instance.name} ended while it was started")
        return done[0]

    def serve(self) -> None:
        """Carry on until the machine is over (see ``ended`` and ``failure``); nothing runs then."""
        if self._phase is Phase.STARTING:
            self._enter(Phase.RUNNING)
        while not self._over:
            self._poll()
            self._advance()
            self._expire()
            self._heed_signals()
        self.session.end()

    def close(self) -> None:
        """End the machine if it is not over, answer who waits, and go."""
        if hasattr(self, "session"):
            self._consoles.disconnect()
            self.session.end()
        error = MachineError(f"instance {self.instance.name} ended meanwhile")
        if self.failure is not None:
            error = self.failure
        for peer in list(self._waiting):
            if self.failure is not None:
                peer.refuse(error)
            else:
                peer.answer({"ended": self.ended or "stopped"})
        for asker in [*([self._step[0]] if self._step else []), *(peer for peer, _ in self._queue)]:
            if asker is not None:
                asker.refuse(error)
        self._listener.close(_FAREWELL_SECONDS)
        self._consoles.close()

    @property
    def _over(self) -> bool:
        return self.ended is not None or self.failure is not None

    def _poll(self) -> None:
        try:
            happened = self.session.poll(self._wait_seconds(), (self._selector.fileno(),))
        except MachineError as error:
            self.failure = error
            return
        for event in happened:
            self._take(event)
        self._consoles.hold_back()

    def _wait_seconds(self) -> float | None:
        if self._signals:
            return 0.0
        moments = [by for by in (*self._waiting.values(), self._power_off_by) if by is not None]
        wait = max(min(moments) - time.monotonic(), 0.0) if moments else None
        if self._step is not None or self._queue:
            return _TICK_SECONDS if wait is None else min(wait, _TICK_SECONDS)
        return wait

    def _take(self, event: Event) -> None:
        if isinstance(event, ConsoleOutput):
            self._consoles.hubs[0].said(event.data)
        elif isinstance(event, Readable):
            for key, mask in self._selector.select(0):
                key.data(mask)
        elif isinstance(event, DeviceGone):
            self.gone.add(event.name)
        elif isinstance(event, GuestReset):
            self._note("reset", count=event.count)
        elif isinstance(event, Ended):
            self.ended = event.how.value
        elif isinstance(event, Report):
            self._reported(event)

    def _reported(self, report: Report) -> None:
        if report.name == "STOP":
            self._enter(Phase.PAUSED)
            if self.reason is not None:
                self._note("paused", reason=self.reason)
        elif report.name == "RESUME":
            self.reason = None
            self._enter(Phase.RUNNING)
        elif report.name == "BLOCK_IO_ERROR" and report.data.get("action") == "stop":
            full = "no space left for" if report.data.get("nospace") else "cannot read or write"
            self.reason = f"{full} {printable(str(report.data.get('device') or report.data.get('node-name')))}"
        elif report.name == "WATCHDOG":
            self._note("watchdog", action=printable(str(report.data.get("action"))))

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        with suppress(OutputError):
            lock.mark(self._held.descriptor, phase)

    def _note(self, event: str, **facts: str | float | bool | None) -> None:
        """Record an event; a disk that is full is no reason to stop a machine."""
        with suppress(OutputError):
            events.record(self.instance.events, event, **facts)
        self._consoles.nudge()

    def _asked(self, peer: Peer, request: dict[str, Any]) -> None:
        """Somebody asks for something. Raises the ArmvmError that is the answer."""
        what = request.get("do")
        if what == "status":
            peer.answer(self._status())
        elif what == "console":
            self._watch(peer, request)
        elif what == "follow":
            followers = self._consoles.hubs[self._console_of(request)].followers
            peer.send(protocol.encode({"ok": {}}))
            followers.append(peer)
            peer.take = lambda _data: None
        elif what == "power-off":
            self._power_off(peer, request.get("timeout"))
        elif what == "kill":
            self._waiting[peer] = None
            self.ended = "killed"
        elif what == "reset":
            self.session.qmp.execute("system_reset", timeout_seconds=_QMP_SECONDS)
            peer.answer({})
        elif what == "continue":
            self.session.qmp.execute("cont", timeout_seconds=_QMP_SECONDS)
            peer.answer({})
        else:
            self._queue.append((peer, request))

    def _power_off(self, peer: Peer, timeout_seconds: object) -> None:
        if self._phase is Phase.PAUSED and self._step is None:
            name = self.instance.name
            raise MachineError(
                f"instance {name} is paused ({self.reason or 'it was told so'}), and cannot hear its power button",
                hint=f"armvm vm start {name} lets it run on; armvm vm kill {name} ends it",
            )
        self.session.request_power_off()
        given = timeout_seconds if isinstance(timeout_seconds, int | float) else None
        self._waiting[peer] = None if given is None else time.monotonic() + given

    def _status(self) -> dict[str, Any]:
        from armvm.machine.definition import disk_names, nic_names

        machine = self.definition.machine
        try:
            qemu = str(self.session.qmp.execute("query-status", timeout_seconds=_QMP_SECONDS)["status"])
        except (MachineError, TypeError, KeyError):
            qemu = "does not answer"
        return {
            "pid": os.getpid(),
            "qemu_pid": self.session.pid,
            "since": self.since.isoformat(timespec="seconds"),
            "phase": self._phase.value,
            "qemu_status": printable(qemu),
            "reason": self.reason,
            "accelerator": self.qemu.accelerator.value,
            "state": machine.state.value,
            "vcpus": machine.vcpus,
            "memory_bytes": machine.memory_bytes,
            "disks": list(disk_names(machine)),
            "nics": list(nic_names(machine)),
            "watchers": sum(len(hub.watchers) for hub in self._consoles.hubs),
            "lost_log_bytes": sum(hub.log.lost_bytes for hub in self._consoles.hubs),
            "operation": self._step is not None,
        }

    def _watch(self, peer: Peer, request: dict[str, Any]) -> None:
        number = self._console_of(request)
        peer.send(protocol.encode({"ok": {"watchers": len(self._consoles.hubs[number].watchers)}}))
        self._consoles.watch(number, peer, scrollback=bool(request.get("scrollback", True)))

    def _console_of(self, request: dict[str, Any]) -> int:
        number, there = request.get("index", 0), len(self._consoles.hubs)
        if not isinstance(number, int) or not 0 <= number < there:
            consoles = "one console, 0" if there == 1 else f"consoles 0 to {there - 1}"
            raise UsageError(f"instance {self.instance.name} has {consoles}, and no console {number!r}")
        return number

    def _left(self, peer: Peer) -> None:
        self._waiting.pop(peer, None)
        self._consoles.remove(peer)

    def _advance(self) -> None:
        """Go on with the operation at hand, or begin the next."""
        if self._step is None and self._queue and not self._over:
            self._begin(*self._queue.popleft())
        if self._step is None or self._over:
            return
        peer, step = self._step
        try:
            next(step)
        except StopIteration as stop:
            self._step = None
            if peer is not None:
                peer.answer(stop.value or {})
        except ArmvmError as error:
            self._step = None
            if peer is not None:
                peer.refuse(error)
        except Exception as error:  # noqa: BLE001 - a fault of ours in an operation does not take the guest with it
            self._step = None
            self._note("fault", message=fault_of(error))
            if peer is not None:
                peer.refuse(ArmvmError(f"a fault of ours: {fault_of(error)}"))

    def _begin(self, peer: Peer | None, request: dict[str, Any]) -> None:
        from armvm.instance.operations import operation

        try:
            self._step = (peer, operation(request.get("do"))(self, request))
        except ArmvmError as error:
            if peer is not None:
                peer.refuse(error)

    def _expire(self) -> None:
        """Tell whose time is over that the guest has not powered off."""
        from armvm.errors import GuestError

        now = time.monotonic()
        for peer in [peer for peer, by in self._waiting.items() if by is not None and now >= by]:
            del self._waiting[peer]
            peer.refuse(
                GuestError(
                    f"the guest of instance {self.instance.name} has not powered off in time",
                    console_tail=self._consoles.hubs[0].text.tail,
                    hint=f"armvm vm kill {self.instance.name} ends it at once, as a power cut would",
                )
            )
        if self._power_off_by is not None and now >= self._power_off_by:
            self.ended = "told to end by a signal"

    def _hear_signals(self) -> None:
        """Have signals wake the loop."""
        waking, woken = socket.socketpair()
        waking.setblocking(False)
        woken.setblocking(False)
        self._woken = (waking, woken)
        signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: self._signals.append(number))
        self._selector.register(woken, selectors.EVENT_READ, lambda _mask: woken.recv(64))

    def _heed_signals(self) -> None:
        """SIGHUP: make the control socket anew. SIGTERM (the host goes down): the guest is asked to power off first."""
        while self._signals:
            number = self._signals.popleft()
            if number == signal.SIGHUP:
                with suppress(OutputError):
                    sockets.make_folder(self.instance)
                    self._listener.renew()
            elif self._power_off_by is None:
                self._power_off_by = time.monotonic() + _SIGNAL_POWER_OFF_SECONDS
                self.session.request_power_off()
            else:
                self.ended = "told to end by a signal"


def fault_of(error: Exception) -> str:
    """A fault of ours in one line."""
    import traceback

    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
    return f"{type(error).__name__}: {printable(str(error))}{where}"
