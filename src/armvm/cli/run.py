"""``armvm run``: boots an image on a conforming virtual machine, its console on this terminal."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.cli.instances_option import add_instances_option, require_no_instances
from armvm.cli.machine_options import (
    add_host_arguments,
    add_machine_arguments,
    backend,
    chosen,
    defined_image,
    machine_of,
)
from armvm.cli.options import seconds
from armvm.errors import BusyError, GuestError, MachineError, OutputError, UsageError
from armvm.execution import ExecutionState
from armvm.machine.definition import Console, DiskDevice, Machine, Writes, problems, require_sound

if TYPE_CHECKING:
    from armvm.disk.storage import Disk
    from armvm.instance.log import ConsoleLog
    from armvm.instance.store import Instance
    from armvm.machine.backend import Backend
    from armvm.machine.console import Conversation, Outcome, Sink
    from armvm.machine.console_text import Pattern

DESCRIPTION = """\
Boots a disk image on a virtual machine that meets the VM System Specification, with its console on this terminal.

The image is not changed: what the guest writes, and its UEFI variables, are gone afterwards. --name keeps both in an
instance of that name and goes on with it next time (other options then hold for that time only); --writable lets the
guest write to the image itself.

Ctrl-] asks the guest to power off; a second Ctrl-], or ten seconds, ends it at once. Standard input goes to the guest
only when it is a terminal, and not with --until. What the guest says goes to standard output as it is, except to a
terminal that is not the guest's (with --until): there, as plain text.

Exit code 0: the guest powered off, said what --until waits for, or was left by Ctrl-]. 1: it did not."""

EXAMPLES = """\
  armvm run disk.qcow2                                      boot it, log in, Ctrl-] to leave
  armvm run disk.raw --until 'login:' --timeout 300         does it boot? for scripts
  armvm run disk.raw --name web --forward 2222:22           keep it; next time: armvm run --name web
  armvm run disk.raw --arch aarch32 --gic 2 --bus mmio      another conforming machine
  armvm run disk.raw --disk data.qcow2,serial=DATA --share ~/work:work,ro --tpm --rng
  armvm run disk.raw --backend libvirt                      by libvirt instead of QEMU itself
  armvm run disk.raw --print-command                        the QEMU command, to be pasted"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.usage = "%(prog)s [OPTION…] [IMAGE]"
    parser.add_argument("image", metavar="IMAGE", nargs="?", type=Path, help="the disk image; not for a kept instance")
    kept = parser.add_argument_group("what is kept").add_mutually_exclusive_group()
    kept.add_argument("--name", help="keep what the guest writes in the instance of this name")
    kept.add_argument("--writable", action="store_true", help="let the guest write to the image itself")
    add_instances_option(parser)
    add_machine_arguments(parser)
    host = add_host_arguments(parser)
    host.add_argument(
        "--print-command", action="store_true", help="print the hypervisor's command (or file) and do nothing"
    )
    script = parser.add_argument_group("for scripts")
    script.add_argument("--until", metavar="REGEX", help="end with success as soon as the console says this")
    script.add_argument("--timeout", type=seconds, metavar="SECONDS", help="end with exit code 1 after this time")
    script.add_argument("--log", type=Path, metavar="FILE", help="write what the guest says to this file too")


def execute(options: argparse.Namespace) -> int:
    """Boot the image and carry its console. Returns the exit code."""
    until = _pattern(options.until)
    with ExitStack() as stack:
        plan = _planned(options, stack)
        if options.print_command:
            print(_command(plan))
            return 0
        _run(options, plan, until, stack)
    return 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be run: the machine, by what, holding which locks, and the instance's console log."""

    machine: Machine
    backend: Backend
    hold: tuple[int, ...] = ()
    log: ConsoleLog | None = None

    @property
    def kept(self) -> bool:
        """Whether something that the guest writes outlives this run."""
        return any(disk.writes is Writes.KEPT for disk in self.machine.disks)


def _planned(options: argparse.Namespace, stack: ExitStack) -> _Plan:
    hold: tuple[int, ...] = ()
    log = None
    if options.image is None and (options.name is None or not _is_there(options.name)):
        options.image = defined_image(options)
    if options.name is not None:
        machine, hold, log = _from_instance(options, stack)
    elif options.image is None:
        raise UsageError("no image to boot", hint="armvm run IMAGE, or armvm run --name NAME for a kept instance")
    else:
        if options.writable:
            require_no_instances(options.image, options, what="written to by the guest")
        with ExitStack() as reading:  # a reader of the image must not be in QEMU's way
            machine, _ = _from_image(options, reading)
        if options.writable and not options.print_command:
            hold = (_lock(options.image, stack),)
    return _Plan(machine, _backend_for(machine, options), hold, log)


def _is_there(name: str) -> bool:
    from armvm.instance.store import find

    return find(name).exists


def _backend_for(machine: Machine, options: argparse.Namespace) -> Backend:
    """The hypervisor that ``machine`` is to run on. Raises UsageError when it cannot be that machine."""
    found = backend(options, machine.state)
    require_sound(problems(machine) + found.problems(machine))
    return found


def _from_image(options: argparse.Namespace, reading: ExitStack) -> tuple[Machine, Disk]:
    """The machine that boots the image itself, and the image as a disk."""
    from armvm.disk.detect import open_disk

    disk = reading.enter_context(open_disk(options.image, sector_size=options.sector_size, in_place=True))
    if options.arch:
        state = ExecutionState(options.arch)
    else:
        from armvm.image.contents import bootable_state

        state = bootable_state(disk)
    writes = Writes.KEPT if options.writable else Writes.DISCARDED
    machine = machine_of(options, state, DiskDevice(options.image, disk.format, disk.sector_size, writes))
    if options.name is None and "hotplug_ports" not in chosen(options):
        # Nothing can be plugged into a machine that nobody knows by name, and firmware takes 30 ms for every port.
        machine = replace(machine, hotplug_ports=0)
    return machine, disk


def _from_instance(options: argparse.Namespace, stack: ExitStack) -> tuple[Machine, tuple[int, ...], ConsoleLog | None]:
    """The machine of the kept instance, which is made when it is not there, its lock, and its console log."""
    from armvm.instance import safekeeping
    from armvm.instance.lock import HolderKind
    from armvm.instance.log import logging
    from armvm.instance.store import find

    instance = find(options.name)
    if not instance.exists:
        _make(instance, options)
    elif options.image is not None:
        _require_image(instance, options.image)
    hold: tuple[int, ...] = ()
    log = None
    if not options.print_command:
        hold = (stack.enter_context(instance.locked(kind=HolderKind.MACHINE)).descriptor,)
        log = stack.enter_context(logging(instance.log))
        safekeeping.keep(instance)
    machine = instance.machine()
    if options.arch not in {None, machine.state.value}:
        raise UsageError(f"instance {options.name} is an {machine.state.label} machine")
    if options.sector_size not in {None, machine.disks[0].sector_size}:
        raise UsageError(f"the disk of instance {options.name} has sectors of {machine.disks[0].sector_size} bytes")
    if options.firmware is not None:
        from armvm.firmware.discovery import find_firmware

        machine = replace(machine, firmware=find_firmware(machine.state, override=options.firmware))
    fields = chosen(options)
    return replace(machine, disks=(*machine.disks, *fields.pop("disks", ())), **fields), hold, log


def _require_image(instance: Instance, path: Path) -> None:
    image = next(iter(instance.definition().images), None)
    if image is None or not _same_file(path, image.path):
        raise UsageError(
            f"instance {instance.name} stands on {image.path if image else 'no image'}, not on {path}",
            hint="leave the image out to go on with it, or choose another name",
        )


def _make(instance: Instance, options: argparse.Namespace) -> None:
    from armvm.instance.create import create

    if options.image is None or options.print_command:
        raise UsageError(
            f"there is no instance {instance.name}", hint=f"armvm run IMAGE --name {instance.name} makes it"
        )
    firmware_file = None if options.firmware is None else options.firmware.absolute()
    with ExitStack() as reading:
        machine, disk = _from_image(options, reading)
        _backend_for(machine, options)  # nothing is made that could not be run
        create(instance, machine, disk, firmware_file=firmware_file)


def _run(options: argparse.Namespace, plan: _Plan, until: Pattern | None, stack: ExitStack) -> None:
    """Start the machine, carry its console to the end, and judge that end."""
    from armvm.machine.console import Conversation, Outcome, power_off
    from armvm.machine.terminal import RawTerminal, ending_on_signals, in_foreground

    stdin, stdout = 0, 1
    interactive = until is None and in_foreground(stdin)
    sinks = _sinks(options, plan, stack, interactive=interactive)
    stack.enter_context(ending_on_signals())
    if options.verbose:
        _notice(options, _command(plan))
    session = stack.enter_context(plan.backend.start(plan.machine, hold=plan.hold))
    if plan.machine.graphics is not None:
        _notice(options, f"the screen: {_screen_address(plan.machine)}")
    with ExitStack() as terminal:
        if interactive:
            _notice(options, "Ctrl-] powers the guest off")
            terminal.enter_context(RawTerminal(stdin, screen=stdout if os.isatty(stdout) else None))
        conversation = Conversation(
            session,
            sinks=sinks,
            keyboard=stdin if interactive else None,
            until=until,
            timeout_seconds=options.timeout,
            notice=lambda message: _notice(options, f"\r\n{message}\r"),
        )
        outcome = conversation.run()
    if plan.kept and outcome in {Outcome.MATCHED, Outcome.TIMED_OUT}:
        _notice(options, "asking the guest to power off")
        power_off(session, sinks=sinks)
    session.end()
    _judge(outcome, conversation, plan, options)


def _screen_address(machine: Machine) -> str:
    """What a VNC viewer is told."""
    from armvm.machine.qemu.extras import screen_socket

    socket = screen_socket(machine)
    if socket is not None:
        return f"VNC on {socket}"
    return f"VNC on 127.0.0.1:{machine.graphics.port if machine.graphics else ''}"


def _judge(outcome: Outcome, conversation: Conversation, plan: _Plan, options: argparse.Namespace) -> None:
    """Raise GuestError, or MachineError, when the run did not come to what was asked."""
    from armvm.machine.console import Outcome

    if outcome in {Outcome.MATCHED, Outcome.LEFT} or (outcome is Outcome.POWERED_OFF and options.until is None):
        return
    if outcome is Outcome.STOPPED:
        raise MachineError("somebody else ended the machine while the guest was running")
    what = {
        Outcome.TIMED_OUT: f"the guest was still running after {options.timeout or 0:g} s",
        Outcome.RESET_LOOP: f"the guest reset itself {conversation.resets} times",
    }.get(outcome, outcome.value)
    if options.until is not None:
        what += f" and had not said what matches {options.until!r}"
    elif conversation.resets:
        what += f", having reset itself {conversation.resets} times"
    hint = None
    if plan.machine.console is Console.VIRTIO and not conversation.text.tail:
        hint = "firmware speaks only on the pl011; on the virtio console the guest needs its driver and console=hvc0"
    raise GuestError(what, console_tail=conversation.text.tail, hint=hint)


def _sinks(options: argparse.Namespace, plan: _Plan, stack: ExitStack, *, interactive: bool) -> list[Sink]:
    """Where what the guest says goes: standard output, --log, the instance's log."""
    sinks: list[Sink] = []
    if not (options.quiet and options.until is not None):
        sinks.append(_screen(options, plain=os.isatty(1) and not interactive))
    if plan.log is not None:
        kept_log = plan.log
        sinks.append(lambda _data, text: kept_log.write(text))
    if options.log is not None:
        sinks.append(_log_sink(_open_log(options, stack), str(options.log)))
    return sinks


def _screen(options: argparse.Namespace, *, plain: bool) -> Sink:
    """Standard output. With --until, somebody who reads no further (| head) does not end the wait."""
    from armvm.machine.console import write_all
    from armvm.machine.console_text import harmless

    def show(data: bytes, text: str) -> None:
        try:
            write_all(1, harmless(text).encode(errors="replace") if plain else data)
        except BrokenPipeError:
            if options.until is None:
                raise

    return show


def _log_sink(log: int, name: str) -> Sink:
    from armvm.machine.console import write_all

    def write(data: bytes, _text: str) -> None:
        try:
            write_all(log, data)
        except OSError as error:
            raise OutputError(f"cannot write {name}: {error.strerror}") from error

    return write


def _open_log(options: argparse.Namespace, stack: ExitStack) -> int:
    if options.image is not None and _same_file(options.log, options.image):
        raise UsageError(f"--log {options.log} is the image itself")
    try:
        file = stack.enter_context(options.log.open("wb", buffering=0))
    except OSError as error:
        raise OutputError(f"cannot write {options.log}: {error.strerror}") from error
    return int(file.fileno())


def _lock(image: Path, stack: ExitStack) -> int:
    """Hold the image for ourselves. Raises BusyError when another armvm does; QEMU sees to the other QEMUs."""
    try:
        descriptor = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(f"cannot write to {image}: {error.strerror}") from error
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(f"{image} is being written to by another process") from None
    return descriptor


def _pattern(expression: str | None) -> Pattern | None:
    if expression is None:
        return None
    from armvm.machine.console_text import Pattern

    return Pattern(expression)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one.absolute() == other


def _command(plan: _Plan) -> str:
    return plan.backend.describe(plan.machine)


def _notice(options: argparse.Namespace, message: str) -> None:
    """Something said beside the console, on standard error."""
    if not options.quiet:
        print(message, file=sys.stderr, flush=True)
