"""Starts instances in the background, stops them, and says how they are."""

from __future__ import annotations

import enum
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from armvm.errors import BusyError, MachineError
from armvm.home import home
from armvm.instance import client, lock, protocol
from armvm.instance.lock import Holder, HolderKind, Phase
from armvm.instance.store import Instance
from armvm.machine.accelerators import AcceleratorKind

START_SECONDS = 120.0
STOP_SECONDS = 60.0
_ANSWER_SECONDS = 10.0
_KILL_SECONDS = 10.0
_QUIT_SECONDS = 8.0
_PAUSE_SECONDS = 0.02

_children: list[int] = []
"""The supervisors that this process has started; the dead are buried when there is an occasion."""


class State(enum.Enum):
    """How an instance is."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    """It runs, and its vCPUs do not: told so, or because a disk of this host is full."""
    CRASHED = "crashed"
    """Its process was killed, or its host went down; the next command puts that in order."""


@dataclass(frozen=True, slots=True)
class Status:
    """How an instance is, and which process holds it, or died holding it."""

    state: State
    holder: Holder | None


def status(instance: Instance) -> Status:
    """How ``instance`` is, by its lock alone: nobody is asked, and nothing is waited for."""
    holder, held = instance.holder
    machine = holder is not None and holder.kind is HolderKind.MACHINE
    if not held:
        return Status(State.CRASHED if machine else State.STOPPED, holder)
    if holder is None or not machine:
        return Status(State.STOPPED, holder)
    phases = {Phase.STARTING: State.STARTING, Phase.PAUSED: State.PAUSED}
    return Status(phases.get(holder.phase, State.RUNNING) if holder.phase else State.RUNNING, holder)


def runs(instance: Instance) -> bool:
    """Whether there is a machine, by the lock alone."""
    return status(instance).state in {State.STARTING, State.RUNNING, State.PAUSED}


def details(instance: Instance) -> dict[str, Any]:
    """What the supervisor of a running instance says of it. Raises MachineError when it does not run or answer."""
    return client.ask(instance, {"do": "status"}, timeout_seconds=_ANSWER_SECONDS)


class Starting:
    """An instance on its way up. Unless it gets there, nothing is left running."""

    def __init__(self, instance: Instance, process: subprocess.Popen[bytes], answer: int) -> None:
        self.instance = instance
        self._process = process
        self._answer = answer

    def wait(self, timeout_seconds: float = START_SECONDS) -> dict[str, Any]:
        """What it is when it is up: ``pid``, ``qemu_pid``. Raises the ArmvmError for which it did not come up."""
        deadline = time.monotonic() + timeout_seconds
        try:
            result = protocol.result(protocol.decode(self._line(deadline)))
        except TimeoutError:
            self.abandon()
            raise MachineError(f"instance {self.instance.name} was not up within {timeout_seconds:g} s") from None
        except BaseException:
            self.abandon()
            raise
        os.close(self._answer)
        self._answer = -1
        _children.append(self._process.pid)
        self._process.returncode = 0  # it lives on, and Popen is not to mind
        return result

    def abandon(self) -> None:
        """End it, unless it is up. Doing so twice is no error."""
        if self._answer >= 0:
            self._process.kill()  # its QEMU dies with it
            self._process.wait()
            os.close(self._answer)
            self._answer = -1

    def _line(self, deadline: float) -> bytes:
        """The answer's line. Raises TimeoutError, MachineError when there will be none."""
        received = b""
        while b"\n" not in received:
            ready, _, _ = select.select([self._answer], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise TimeoutError
            data = os.read(self._answer, 65536)
            if not data or len(received) > protocol.MOST_LINE_BYTES:
                how = f"exit {self._process.wait(_KILL_SECONDS)}"
                raise MachineError(f"the process that was to run instance {self.instance.name} died ({how})")
            received += data
        return received


def begin_start(
    instance: Instance,
    *,
    accelerator: AcceleratorKind | None = None,
    cpu: str | None = None,
    snapshot: str | None = None,
) -> Starting:
    """Set ``instance`` going, by a process of its own that survives this one. ``wait`` for it, or ``abandon`` it.

    ``snapshot`` resumes it from that snapshot. Raises UsageError when there is no such instance.
    """
    instance.require()
    _bury()
    ours, theirs = os.pipe()
    options = {
        "ready": theirs,
        "accelerator": None if accelerator is None else accelerator.value,
        "cpu": cpu,
        "snapshot": snapshot,
    }
    # -P: no module is ever taken from the folder that happens to be the current one.
    command = [sys.executable, "-P", "-m", "armvm.instance.supervisor", os.fspath(instance.folder), json.dumps(options)]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs,),
            start_new_session=True,
            env=_environment(),
        )
    except OSError as error:
        os.close(ours)
        raise MachineError(f"cannot start {sys.executable}: {error.strerror}") from error
    finally:
        os.close(theirs)
    return Starting(instance, process, ours)


def start(
    instance: Instance,
    *,
    accelerator: AcceleratorKind | None = None,
    cpu: str | None = None,
    snapshot: str | None = None,
    timeout_seconds: float = START_SECONDS,
) -> dict[str, Any]:
    """Start ``instance`` in the background, and return when it is up: its ``pid`` and ``qemu_pid``.

    Raises ArmvmError for what is in the way; then nothing is left running.
    """
    starting = begin_start(instance, accelerator=accelerator, cpu=cpu, snapshot=snapshot)
    return starting.wait(timeout_seconds)


def resume(instance: Instance) -> None:
    """Let the vCPUs of a paused instance run on. Raises MachineError when they cannot."""
    client.ask(instance, {"do": "continue"}, timeout_seconds=_ANSWER_SECONDS)


def stop(instance: Instance, *, timeout_seconds: float = STOP_SECONDS) -> None:
    """Press the power button, and return when the machine is off.

    Raises GuestError, with the last that it said, when the guest has not powered off in time; MachineError when the
    instance does not run, or its process does not answer.
    """
    request = {"do": "power-off", "timeout": timeout_seconds}
    client.ask(instance, request, timeout_seconds=timeout_seconds + _ANSWER_SECONDS)
    settle(instance)


def kill(instance: Instance) -> None:
    """End the machine at once, as a power cut would; also one whose process does not answer.

    Raises MachineError when it does not run, or when it cannot be ended from here.
    """
    holder = client.running_holder(instance)
    if not holder.here:
        raise MachineError(f"instance {instance.name} is run by {holder}", hint="kill it on that host")
    if holder.phase is not None:
        with suppress(MachineError):
            client.ask(instance, {"do": "kill"}, timeout_seconds=_QUIT_SECONDS)
            settle(instance)
            return
        _require_ended(instance, holder, (signal.SIGKILL,))
    else:
        _require_ended(instance, holder, (signal.SIGTERM, signal.SIGKILL))  # a terminal is to be put in order
    settle(instance)


def restart(
    instance: Instance, *, by_force: bool = False, timeout_seconds: float = STOP_SECONDS, **options: Any
) -> dict[str, Any]:
    """Stop ``instance``, or kill it, if it runs; start it with the ``options`` of ``start``."""
    if runs(instance):
        if by_force:
            kill(instance)
        else:
            stop(instance, timeout_seconds=timeout_seconds)
    return start(instance, **options)


def settle(instance: Instance) -> None:
    """Wait until who held ``instance`` has let go, and put in order what it left. Raises BusyError if it has not."""
    deadline = time.monotonic() + _KILL_SECONDS
    while True:
        try:
            with instance.locked(wait_seconds=_KILL_SECONDS):
                _bury()
                return
        except BusyError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_SECONDS)  # the process that said that it ends has yet to


def _require_ended(instance: Instance, holder: Holder, signals: tuple[signal.Signals, ...]) -> None:
    for number in signals:
        if lock.end_process(instance.lock, holder, number, timeout_seconds=_KILL_SECONDS / 2):
            return
    raise MachineError(f"instance {instance.name} is in use by {holder}, which cannot be ended")


def _bury() -> None:
    """A process that starts and stops machines for days collects no zombies."""
    for pid in list(_children):
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                continue
        _children.remove(pid)


def _environment() -> dict[str, str]:
    """This process's environment, for one that works in another folder."""
    environment = dict(os.environ)
    if environment.get("ARMVM_HOME"):
        environment["ARMVM_HOME"] = os.fspath(home())
    return environment
