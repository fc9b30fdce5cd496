"""The emulated ARM machine that a nested host lives in: booted once, frozen to a file, resumed from that file.

QEMU emulates EL2 (``virtualization=on``), so what runs in it is a real hypervisor. Its state goes to a file through
migration, so that a frozen host is one immutable file that any number of machines can be resumed from, at once; the
host's root is in its memory, and no disk belongs to it.
"""

from __future__ import annotations

import json
import secrets
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from armvm.errors import MachineError
from armvm.lab.recipe import HostRecipe, Task
from armvm.lab.wire import MOST_FILE_BYTES, PORT, SILENCE_SECONDS, Frame, Reader, WireError, serialise
from armvm.machine.backend import ConsoleOutput, Ended
from armvm.machine.console_text import ConsoleText
from armvm.machine.lifecycle import Child
from armvm.machine.qemu.session import QemuSession
from armvm.printable import printable
from armvm.process import require_program
from armvm.units import MIB

EMULATOR = "qemu-system-aarch64"
IMAGE_TARGET = 1
"""The SCSI target that the image is plugged in as."""

_SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
_CONTROLLER = "lab-scsi"
_SHIFT = 0
"""An instruction takes 2⁰ ns of the machine's own time (QEMU, "TCG Instruction Counting"). Were its time the world's, a
busy computer would leave it no time between two ticks of its timers, each of which costs many thousands of instructions
in a nested guest: measured with a fifth of a processor, the guest of KVM then never came past its firmware. With 2³ ns
ticks come eight times as often for the same work, and a Debian takes half as long again to come up."""
_MOVE_SECONDS = 300.0
_START_SECONDS = 30.0
_READ_BYTES = 65536
_TIMED_OUT = 124  # the agent's word for it, as timeout(1) has it


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What came of a task. ``code`` is its exit code; None when it could not be run, and ``error`` says why."""

    code: int | None
    error: str | None
    timed_out: bool = False
    """Its time was over before it had an end, here or inside."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """The lines of its standard error, the last 200."""


Said = Callable[[bytes], None]
Noted = Callable[[str], None]


def machine_arguments(recipe: HostRecipe) -> list[str]:
    """QEMU's arguments of every host, without the program: the machine itself, and the bus that images come by.

    Everything is on virtio-mmio, which a Xen dom0 has too, and SCSI disks come and go without PCI hotplug.
    """
    return [
        *("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-machine", "virt,virtualization=on,gic-version=3", "-cpu", recipe.cpu),
        *("-accel", "tcg,thread=single", "-icount", f"shift={_SHIFT},sleep=on"),
        *("-smp", str(recipe.vcpus), "-m", f"{recipe.memory_bytes // MIB}M", "-rtc", "base=utc"),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-device", f"virtio-scsi-device,id={_CONTROLLER}", "-device", "virtio-serial-device"),
    ]


def channel_arguments(*, control: int, agent: int) -> list[str]:
    """The arguments for what QEMU inherits: the console on its standard output, QMP, the agent's port."""
    return [
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=control,fd={control}", "-mon", "chardev=control,mode=control"),
        *("-chardev", f"socket,id=agent,fd={agent}", "-device", f"virtserialport,chardev=agent,name={PORT}"),
    ]


class OuterMachine:
    """The emulated machine while it runs. Leaving its context ends it; it dies with this process, however that dies."""

    def __init__(self, recipe: HostRecipe, arguments: Sequence[str], *, hold: Sequence[int] = ()) -> None:
        """Start QEMU; ``arguments`` are the host's own. The machine keeps ``hold`` (locks) open as long as it lives.

        Raises MissingError without QEMU, MachineError with its words when it does not start.
        """
        self._text = ConsoleText()
        self._reader = Reader()
        self._frames: list[Frame] = []
        program = require_program(EMULATOR)
        sandbox = _SANDBOX if sys.platform.startswith("linux") else ()
        try:
            self._start(program, sandbox, recipe, arguments, hold)
        except MachineError as error:
            if not sandbox or "sandbox" not in error.output_tail:
                raise
            self._start(program, (), recipe, arguments, hold)  # a QEMU that was built without seccomp

    def _start(
        self, program: str, sandbox: Sequence[str], recipe: HostRecipe, arguments: Sequence[str], hold: Sequence[int]
    ) -> None:
        control, its_control = socket.socketpair()
        self._agent, its_agent = socket.socketpair()
        with its_control, its_agent:
            inherited = [its_control.fileno(), its_agent.fileno()]
            channels = channel_arguments(control=inherited[0], agent=inherited[1])
            argv = [program, *sandbox, *machine_arguments(recipe), *channels, *arguments]
            try:
                self._session = QemuSession(Child(argv, inherit=[*inherited, *hold]), control)
                self._session.greet()
            except BaseException:
                control.close()
                self._agent.close()
                raise
        self._agent.setblocking(False)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._session.pid

    @property
    def console_tail(self) -> str:
        """The last that the host's own console said."""
        return self._text.tail

    def await_ready(self, timeout_seconds: float) -> None:
        """Wait for the agent in a host that boots. Raises MachineError when it does not come."""
        for frame in self._listen(timeout_seconds, silence_seconds=timeout_seconds + 1, what="the host's agent"):
            if frame is None:
                message = f"the host's agent did not come within {timeout_seconds:g} s"
                raise MachineError(message, output_tail=self._said())
            if frame.kind == "ready":
                return

    def freeze(self, file_descriptor: int) -> None:
        """Stop the machine and write its whole state to ``file_descriptor``. Raises MachineError."""
        self._move(file_descriptor, "migrate", "the host cannot be frozen")

    def resume(self, file_descriptor: int) -> None:
        """Take the state out of ``file_descriptor`` and go on from it; the machine was started with ``INCOMING``.

        The agent has something to read from the first instruction on: QEMU does not move the timer of EL2 (target/arm/
        machine.c has those of EL1 only), and a hypervisor that sleeps on it would never wake.
        """
        self._move(file_descriptor, "migrate-incoming", "the frozen host cannot be resumed")
        self._send(Frame("wake"))
        self.go_on()

    def go_on(self) -> None:
        """Let it run on after ``freeze``. Raises MachineError."""
        self._session.qmp.execute("cont", timeout_seconds=_START_SECONDS)

    def _move(self, file_descriptor: int, command: str, failure: str) -> None:
        qmp = self._session.qmp
        capability = {"capability": "events", "state": True}
        qmp.execute("migrate-set-capabilities", {"capabilities": [capability]})
        if command == "migrate":
            qmp.execute("stop")
            qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        qmp.give("state", file_descriptor)
        qmp.execute(command, {"uri": "fd:state"}, timeout_seconds=_MOVE_SECONDS)
        deadline = time.monotonic() + _MOVE_SECONDS
        while (remaining := deadline - time.monotonic()) > 0:
            for event in qmp.receive():
                if event.name == "MIGRATION" and event.data.get("status") == "completed":
                    return
                if event.name == "MIGRATION" and event.data.get("status") == "failed":
                    raise MachineError(f"{failure}: QEMU says that the migration failed", output_tail=self._said())
            if qmp.closed:
                raise MachineError(f"{failure}: QEMU ended", output_tail=self._said())
            select.select([qmp], [], [], min(remaining, 1.0))
        raise MachineError(f"{failure} within {_MOVE_SECONDS:g} s", output_tail=self._said())

    def attach(self, image: Path) -> None:
        """Plug ``image`` in, byte for byte and for reading only. Raises MachineError when QEMU does not take it."""
        file = {"driver": "file", "filename": str(image.absolute()), "read-only": True}
        node = {"driver": "raw", "node-name": "image", "read-only": True, "file": file}
        self._session.qmp.execute("blockdev-add", node, timeout_seconds=_START_SECONDS)
        device = {"driver": "scsi-hd", "bus": f"{_CONTROLLER}.0", "scsi-id": IMAGE_TARGET, "lun": 0, "drive": "image"}
        self._session.qmp.execute("device_add", {**device, "id": "image"}, timeout_seconds=_START_SECONDS)

    def perform(
        self, task: Task, *, image: bool = False, said: Said = lambda _data: None, noted: Noted = lambda _line: None
    ) -> TaskResult:
        """Have the agent run ``task``; ``image`` says that one was attached, which it is to wait for.

        Raises MachineError when the host hangs, ends, or talks nonsense. What comes of the task itself is a result.
        """
        request = {
            "command": list(task.command),
            "timeout_seconds": task.timeout_seconds,
            "collect": dict(task.collect),
            "image": IMAGE_TARGET if image else None,
            "clock": time.time(),
            "entropy": secrets.token_hex(32),
        }
        self._send(Frame("task", json.dumps(request).encode()))
        files: dict[str, bytearray] = {}
        notes: list[str] = []
        what = f"the end of {task.command[0]}"
        for frame in self._listen(task.timeout_seconds, silence_seconds=SILENCE_SECONDS, what=what):
            if frame is None:
                break
            if frame.kind == "said":
                said(frame.body)
            elif frame.kind == "note":
                notes = [*notes[-199:], frame.body.decode(errors="replace")]
                noted(notes[-1])
            elif frame.kind == "file":
                _take_piece(frame.body, task, files)
            elif frame.kind == "done":
                return _result(frame.body, files, notes)
        return TaskResult(None, f"it was still running after {task.timeout_seconds:g} s", True, {}, tuple(notes))

    def end(self) -> None:
        """End the machine at once; nothing of it is kept. Ending twice is no error."""
        self._session.kill()
        self._agent.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _send(self, frame: Frame) -> None:
        data = memoryview(serialise(frame))
        deadline = time.monotonic() + _START_SECONDS
        while data:
            with suppress(BlockingIOError):
                data = data[self._agent.send(data) :]
                continue
            if time.monotonic() > deadline:
                raise MachineError("the nested host does not take its task", output_tail=self._said())
            select.select([], [self._agent], [], 1.0)

    def _listen(self, timeout_seconds: float, *, silence_seconds: float, what: str) -> Iterator[Frame | None]:
        """The agent's frames as they come, and None when the time is over: the last.

        The time is this computer's: the machine's own goes slower where it has to share the processor. Raises
        MachineError when the machine ends or says nothing at all for ``silence_seconds``.
        """
        deadline = time.monotonic() + timeout_seconds
        heard = time.monotonic()
        while True:
            while self._frames:
                yield self._frames.pop(0)
            now = time.monotonic()
            if now >= deadline:
                yield None
                return
            if now >= heard + silence_seconds:
                raise MachineError(f"the nested host was silent for {silence_seconds:g} s", output_tail=self._said())
            for event in self._session.poll(min(deadline, heard + silence_seconds) - now, (self._agent.fileno(),)):
                if isinstance(event, ConsoleOutput):
                    self._text.feed(event.data)
                elif isinstance(event, Ended):
                    raise MachineError(f"the nested host ended before {what}", output_tail=self._said())
            if self._receive():
                heard = time.monotonic()

    def _receive(self) -> bool:
        with suppress(BlockingIOError, ConnectionError):
            data = self._agent.recv(_READ_BYTES)
            try:
                self._frames += self._reader.feed(data)
            except WireError as error:
                message = f"the nested host's agent talks nonsense: {printable(str(error))}"
                raise MachineError(message, output_tail=self._said()) from error
            return bool(data)
        return False

    def _said(self) -> str:
        return self._text.tail


INCOMING = ("-incoming", "defer")
"""What a machine is started with that is to be resumed."""


def _take_piece(body: bytes, task: Task, files: dict[str, bytearray]) -> None:
    """A piece of a file that was asked for; anything else is dropped."""
    head, _, content = body.partition(b"\n")
    try:
        place = json.loads(head)
        name, offset, size = str(place["name"]), int(place["offset"]), int(place["size"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return
    whole = files.setdefault(name, bytearray()) if name in task.collect else bytearray()
    if offset == len(whole) and offset + len(content) <= size <= MOST_FILE_BYTES:
        whole += content


def _result(body: bytes, files: Mapping[str, bytearray], notes: Sequence[str]) -> TaskResult:
    try:
        done = json.loads(body)
        code, error = done["code"], done.get("error")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MachineError("the nested host's agent says something else than a result") from None
    return TaskResult(
        code if isinstance(code, int) else None,
        None if error is None else printable(str(error)),
        code == _TIMED_OUT,
        {name: bytes(content) for name, content in files.items()},
        tuple(notes),
    )
