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
from armvm.machine.definition import Machine, UserNetwork, nic_names, problems, require_sound
from armvm.machine.lifecycle import Child
from armvm.machine.qemu import command
from armvm.printable import printable
from armvm.process import require_program, run

if TYPE_CHECKING:
    from armvm.machine.qemu.companions import Companions
    from armvm.machine.qemu.session import QemuSession


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU program of this host, and what it runs the guest's instructions with.

    ``uring``: a machine that is started paused, to have its memory loaded, reads its disks by io_uring. Memory is read
    in thousands of small pieces, one after the other, and every one of them would wait for a thread to be scheduled.
    """

    program: str
    accelerator: AcceleratorKind
    narrow: bool = False
    cpu: str | None = None
    sandbox: bool = sys.platform.startswith("linux")
    uring: bool = sys.platform.startswith("linux")

    @property
    def name(self) -> str:
        """What it is called: the program's name."""
        return self.program.rsplit("/", 1)[-1]

    def capabilities(self) -> Capabilities:
        """What QEMU's ``virt`` machine can be."""
        return command.CAPABILITIES

    def problems(self, machine: Machine) -> tuple[str, ...]:
        """Why this QEMU, on this host, cannot be ``machine``, one sentence each.

        Raises MissingError, with the command that installs it, when a program that runs beside QEMU is not there.
        """
        found = command.problems(machine)
        if _plain(machine):
            return found
        from armvm.machine.qemu.companions import host_problems, resolved

        return (*found, *host_problems(resolved(machine)))

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
            uring=paused and self.uring,
            channels=channels,
        )

    def start(self, machine: Machine, *, hold: Sequence[int] = (), paused: bool = False) -> QemuSession:
        """Start ``machine``. The VM keeps the descriptors ``hold`` (locks) open as long as it lives.

        ``paused`` starts it with its vCPUs stopped.

        Raises UsageError for a machine that cannot be, MachineError with QEMU's words when it does not start,
        MissingError or OutputError when what runs beside QEMU cannot.
        """
        require_sound(problems(machine) + self.problems(machine))
        try:
            if _plain(machine):
                return self._start(machine, hold, paused)
            return self._start_with_companions(machine, hold, paused)
        except MachineError as error:
            if self.sandbox and "sandbox" in error.output_tail:  # a QEMU that was built without seccomp
                return replace(self, sandbox=False).start(machine, hold=hold, paused=paused)
            if paused and self.uring and "io_uring" in error.output_tail:  # neither every kernel nor every QEMU has it
                return replace(self, uring=False).start(machine, hold=hold, paused=paused)
            raise

    def _start_with_companions(self, machine: Machine, hold: Sequence[int], paused: bool) -> QemuSession:
        from armvm.machine.qemu.companions import resolved, start_companions

        machine = resolved(machine)
        beside = start_companions(machine, nic_names(machine))
        try:
            return self._start(machine, hold, paused, beside)
        except MachineError as error:
            trouble = beside.trouble
            if trouble:
                raise MachineError(trouble, output_tail=error.output_tail) from error
            raise
        finally:
            beside.hand_over()

    def _start(
        self, machine: Machine, hold: Sequence[int], paused: bool, beside: Companions | None = None
    ) -> QemuSession:
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
            beyond = {} if beside is None else beside.given
            inherited += beyond.values()
            channels = command.Channels(theirs.fileno(), variables, more, beyond)
            try:
                child = Child(self.plan(machine, channels, paused=paused), inherit=inherited)
            except BaseException:
                for end in (ours, *kept.values()):
                    end.close()
                if beside is not None:
                    beside.end()
                raise
        for end in kept.values():
            end.setblocking(False)
        from armvm.machine.qemu.session import QemuSession  # loaded while QEMU starts

        session = QemuSession(child, ours, kept, beside)
        try:
            session.greet()
        except BaseException:
            session.end()
            raise
        return session


def _plain(machine: Machine) -> bool:
    """Whether nothing beside QEMU is needed, and nothing of this host but what QEMU itself finds."""
    return not (
        machine.tpm
        or machine.shares
        or machine.graphics is not None
        or machine.vsock_cid is not None
        or any(not isinstance(nic, UserNetwork) for nic in machine.nics)
    )


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
