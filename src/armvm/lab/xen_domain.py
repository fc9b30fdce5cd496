"""What runs in the control domain of the nested Xen host: one domain made of the image, or the trial of the platform.

``python3 -m armvm.lab.xen_domain boot|probe …``, as a task of the host's (``xen.XenHost``). Standard output is the
domain's console; exit code 0: the guest did what was asked, 1: it did not, and standard error says why.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from armvm.errors import ArmvmError, GuestError, InputError, MachineError
from armvm.execution import ExecutionState
from armvm.lab.recipe import IMAGE_DISK
from armvm.machine.definition import Bus, Console, DiskDevice, Machine, Writes
from armvm.machine.xen.backend import Xen, require_control_domain
from armvm.machine.xen.config import XenHost, xen_firmware
from armvm.process import run
from armvm.units import MIB

FIRMWARE = {state: f"usr/lib/armvm/xen-firmware-{state.value}.fd" for state in ExecutionState}
"""Where the host has the firmware of its domains, without a leading slash."""
BLOCK_SCRIPT, VIF_SCRIPT = "block-armvm", "vif-armvm"
"""The host's hotplug scripts, in /etc/xen/scripts."""
HOST = XenHost(block_script=BLOCK_SCRIPT, vif_script=VIF_SCRIPT)

_SETTLE_SECONDS = 60.0
_WRITES_BYTES = 512 * MIB
"""How much a guest can write to its image before there is no more room for it."""
_SECTOR_BYTES = 512
"""What device mapper counts in, whatever the disk."""
_CHUNK_SECTORS = 8
_RENDERER = "armvm.report.json"
"""By name: rendering a report is another room's, which stands above this one."""
_PROBE_BYTES = 512 * MIB
_PATIENCE = 2.0
"""A domain of an emulated machine takes its time, also by the clock of that machine."""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry it out; the exit code."""
    options = _parser().parse_args(argv)
    try:
        require_control_domain()
        code: int = options.action(options, Xen(host=HOST))
    except ArmvmError as error:
        _say(f"armvm: {error.message}" if error.hint is None else f"armvm: {error.message} ({error.hint})")
        return error.exit_code
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xen_domain", description="Boot a domain, or judge Xen with the probe.")
    actions = parser.add_subparsers(required=True)
    booting, probing = actions.add_parser("boot"), actions.add_parser("probe")
    for action in (booting, probing):
        action.add_argument("--state", type=ExecutionState, default=ExecutionState.AARCH64)
    booting.add_argument("--disk", type=Path, default=Path(IMAGE_DISK))
    booting.add_argument("--memory", type=int, required=True)
    booting.add_argument("--timeout", type=float, required=True)
    booting.add_argument("--until")
    booting.set_defaults(action=_boot)
    probing.add_argument("--profile", required=True)
    probing.add_argument("--report", type=Path, required=True)
    probing.add_argument("--log", type=Path, required=True)
    probing.set_defaults(action=_probe)
    return parser


def _boot(options: argparse.Namespace, xen: Xen) -> int:
    from armvm.machine.console import Conversation, Outcome, write_all
    from armvm.machine.console_text import Pattern

    machine = domain_machine(options.state, memory_bytes=options.memory)
    until = None if options.until is None else Pattern(options.until)
    with ExitStack() as stack:
        disk = DiskDevice(stack.enter_context(writable(options.disk)), "raw", writes=Writes.KEPT)
        session = stack.enter_context(xen.start(replace(machine, disks=(disk,))))
        conversation = Conversation(
            session,
            sinks=[lambda data, _text: write_all(1, data)],
            until=until,
            timeout_seconds=options.timeout,
        )
        try:
            outcome = conversation.run()
        except MachineError as error:
            raise GuestError(error.message, console_tail=conversation.text.tail) from error
    if outcome is Outcome.MATCHED or (outcome is Outcome.POWERED_OFF and until is None):
        return 0
    what = outcome.value
    if outcome is Outcome.TIMED_OUT:
        what = f"the guest was still running after {options.timeout:g} s"
    elif outcome is Outcome.RESET_LOOP:
        what = f"the guest reset itself {conversation.resets} times"
    if options.until is not None:
        what += f" and had not said what matches {options.until!r}"
    raise GuestError(what, console_tail=conversation.text.tail)


def domain_machine(state: ExecutionState, *, memory_bytes: int) -> Machine:
    """A domain without disks yet."""
    return Machine(
        state=state,
        firmware=xen_firmware(Path("/", FIRMWARE[state]), source="the nested host"),
        disks=(),
        memory_bytes=memory_bytes,
        vcpus=1,
        console=Console.XEN,
        bus=Bus.XEN,
        nics=(),
        hotplug_ports=0,
    )


@contextmanager
def writable(image: Path) -> Iterator[Path]:
    """``image``, a block device, as one that can be written to: what is written stays in memory, and goes afterwards.

    Linux's device mapper keeps what differs in a file (Documentation/admin-guide/device-mapper/snapshot.rst).
    Raises InputError when the device is not there, ProgramError when it cannot be set up.
    """
    try:
        descriptor = os.open(image, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(image)) from error
    try:
        sectors = os.lseek(descriptor, 0, os.SEEK_END) // _SECTOR_BYTES
    finally:
        os.close(descriptor)
    name = f"armvm-{os.getpid()}"
    with ExitStack() as stack:
        changes = stack.enter_context(tempfile.NamedTemporaryFile(prefix="armvm-changes-"))
        changes.truncate(_WRITES_BYTES)
        loop = run("losetup", ["-f"], timeout_seconds=_SETTLE_SECONDS).stdout.decode().strip()
        run("losetup", [loop, changes.name], timeout_seconds=_SETTLE_SECONDS)
        stack.callback(run, "losetup", ["-d", loop], timeout_seconds=_SETTLE_SECONDS, check=False)
        table = f"0 {sectors} snapshot {image.resolve()} {loop} N {_CHUNK_SECTORS}"
        run("dmsetup", ["create", name, "--noudevsync", "--table", table], timeout_seconds=_SETTLE_SECONDS)
        stack.callback(
            run, "dmsetup", ["remove", "--noudevsync", "--retry", name], timeout_seconds=_SETTLE_SECONDS, check=False
        )
        run("dmsetup", ["mknodes", name], timeout_seconds=_SETTLE_SECONDS, check=False)
        yield Path("/dev/mapper", name)


def _probe(options: argparse.Namespace, xen: Xen) -> int:
    from armvm.platform.check import check_platform
    from armvm.platform.host import expected_machine
    from armvm.platform.trial import run_trial
    from armvm.probe.kernels import find_guest_kernel

    machine = domain_machine(options.state, memory_bytes=_PROBE_BYTES)
    kernel = find_guest_kernel(options.state, home=Path("/root"))
    now = datetime.now(UTC).replace(microsecond=0)
    other = _in_other_state(options.state)
    result = run_trial(
        machine,
        xen,
        kernel=kernel,
        other_state=None if other is None else (other, xen),
        timestamp=int(now.timestamp()),
        patience=_PATIENCE,
        progress=_say,
    )
    options.log.write_bytes(result.console)
    known = replace(expected_machine(machine), disks=1)
    report = check_platform(result.observation, profile=options.profile, machine=known, hotplug=result.hotplug)
    render = importlib.import_module(_RENDERER).render_json
    text = render([report], profile=options.profile, created=now.isoformat().replace("+00:00", "Z"))
    options.report.write_text(text, encoding="ascii")
    return 1 if report.conforms is False else 0


def _in_other_state(state: ExecutionState) -> Machine | None:
    """An AArch32 domain beside an AArch64 one, where the host has the firmware."""
    other = ExecutionState.AARCH32
    if state is other or not Path("/", FIRMWARE[other]).is_file():
        return None
    return domain_machine(other, memory_bytes=_PROBE_BYTES)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
