"""QEMU as a backend: which program, which accelerator, and the start of what was planned."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from armvm.errors import MachineError, MissingError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import EMULATORS
from armvm.firmware.variables import FLASH_SIZE_BYTES
from armvm.machine.accelerators import AcceleratorKind, available, survey
from armvm.machine.capabilities import Capabilities
from armvm.machine.definition import Machine, problems, require_sound
from armvm.machine.lifecycle import Child
from armvm.machine.qemu import command
from armvm.printable import printable
from armvm.process import require_program, run

if TYPE_CHECKING:
    from armvm.machine.qemu.session import QemuSession


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU program of this host, and what it runs the guest's instructions with."""

    program: str
    accelerator: AcceleratorKind
    narrow: bool = False
    cpu: str | None = None
    sandbox: bool = sys.platform.startswith("linux")

    @property
    def name(self) -> str:
        """What it is called: the program's name."""
        return self.program.rsplit("/", 1)[-1]

    def capabilities(self) -> Capabilities:
        """What QEMU's ``virt`` machine can be."""
        return command.CAPABILITIES

    def problems(self, machine: Machine) -> tuple[str, ...]:
        """Why this QEMU cannot be ``machine``, one sentence each."""
        return command.problems(machine)

    def describe(self, machine: Machine) -> str:
        """The command that starts ``machine`` by hand, for a shell."""
        import shlex

        return shlex.join(self.plan(machine))

    def plan(self, machine: Machine, channels: command.Channels | None = None, *, paused: bool = False) -> list[str]:
        """The argument list that starts ``machine``; without ``channels`` one to be run by hand."""
        return command.plan(
            machine,
            program=self.program,
            accelerator=self.accelerator,
            narrow=self.narrow,
            cpu=self.cpu,
            sandbox=self.sandbox,
            paused=paused,
            channels=channels,
        )

    def start(self, machine: Machine, *, hold: Sequence[int] = (), paused: bool = False) -> QemuSession:
        """Start ``machine``. The VM keeps the descriptors ``hold`` (locks) open as long as it lives.

        ``paused`` starts it with its vCPUs stopped.

        Raises UsageError for a machine that cannot be, MachineError with QEMU's words when it does not start.
        """
        require_sound(problems(machine) + self.problems(machine))
        try:
            return self._start(machine, hold, paused)
        except MachineError as error:
            if self.sandbox and "sandbox" in error.output_tail:  # a QEMU that was built without seccomp
                return replace(self, sandbox=False).start(machine, hold=hold, paused=paused)
            raise

    def _start(self, machine: Machine, hold: Sequence[int], paused: bool) -> QemuSession:
        ours, theirs = socket.socketpair()
        kept: dict[str, socket.socket] = {}
        with ExitStack() as stack:
            inherited = [stack.enter_context(theirs).fileno(), *hold]
            variables = None
            if machine.variables is None and machine.firmware.keeps_variables:
                variables = _ephemeral_variables()
                stack.callback(os.close, variables)
                inherited.append(variables)
            more: dict[str, int] = {}
            for name in command.channel_names(machine):
                kept[name], given = socket.socketpair()
                more[name] = stack.enter_context(given).fileno()
                inherited.append(more[name])
            channels = command.Channels(theirs.fileno(), variables, more)
            try:
                child = Child(self.plan(machine, channels, paused=paused), inherit=inherited)
            except BaseException:
                for end in (ours, *kept.values()):
                    end.close()
                raise
        for end in kept.values():
            end.setblocking(False)
        from armvm.machine.qemu.session import QemuSession  # loaded while QEMU starts

        session = QemuSession(child, ours, kept)
        try:
            session.greet()
        except BaseException:
            session.end()
            raise
        return session


def find_qemu(state: ExecutionState, *, accelerator: AcceleratorKind | None = None, cpu: str | None = None) -> Qemu:
    """The QEMU for machines of ``state``, with ``accelerator`` or the fastest that this host has.

    Raises MissingError when the program is not installed or the accelerator is not available.
    """
    if accelerator is None:
        chosen = available(state)[0]
    else:
        chosen = next(one for one in survey(state) if one.kind is accelerator)
        if not chosen.available:
            name = accelerator.value.upper()
            raise MissingError(f"{name} is not available for {state.label} guests: {chosen.detail}", component=name)
    emulator = EMULATORS[ExecutionState.AARCH64 if chosen.narrows else state]
    return Qemu(require_program(emulator), chosen.kind, narrow=chosen.narrows, cpu=cpu)


find = find_qemu
"""What ``machine.backends`` calls."""


def version() -> str:
    """The version of QEMU. Raises MissingError when it is not installed."""
    said = run(EMULATORS[ExecutionState.AARCH64], ["--version"], timeout_seconds=20).stdout.decode(errors="replace")
    return printable(said.partition("\n")[0])


def _ephemeral_variables() -> int:
    """A file without a name that holds a new variable store of the flash chip's size; its descriptor."""
    from armvm.firmware.varstore import new_instance_store

    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("armvm-variables")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.truncate(descriptor, FLASH_SIZE_BYTES)
        os.pwrite(descriptor, new_instance_store(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
