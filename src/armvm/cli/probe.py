"""``armvm probe``: judges a platform from inside the VM: this machine's, or any other hypervisor's."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.cli.clock import timestamp
from armvm.cli.machine_options import add_host_arguments, add_machine_arguments, backend, chosen
from armvm.cli.options import common_options
from armvm.cli.report_options import add_report_arguments, deliver, outputs
from armvm.errors import InputError, UsageError
from armvm.execution import ExecutionState

if TYPE_CHECKING:
    from armvm.machine.backend import Backend
    from armvm.machine.definition import Machine
    from armvm.platform.trial import TrialResult
    from armvm.probe.report import PlatformObservation
    from armvm.probe.wire import Run
    from armvm.spec.verdict import Report

DESCRIPTION = """Judge a platform against the VM System Specification, from inside the VM.

`run` boots the probe on this machine's VM. `image` writes the probe as a portable disk, to be booted on any other
hypervisor, and says how. `read` judges what came back from there: the disk itself, or a console log."""
EXAMPLES = """  armvm probe run
  armvm probe run --arch aarch32 --gic 2 --vcpus 8
  armvm probe run --backend libvirt
  armvm probe image -o probe.qcow2
  armvm probe read probe.qcow2 console.log"""

_RUN_DESCRIPTION = """Boot the probe on this machine's VM and judge what it sees.

The EFI probe runs twice with a reset between, again after a power cycle and after the VM was killed, and once more on a
second instance of the same image. With a Linux kernel, the Linux probe follows, while a disk and a network card are
plugged in and out. Nothing on this machine is changed."""
_RUN_EXAMPLES = """  armvm probe run
  armvm probe run --kernel linux-image-6.1.0-28-cloud-arm64_6.1.119-1_arm64.deb
  armvm probe run --arch aarch32 --gic 2 --vcpus 8 --format json -o report.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    running = actions.add_parser(
        "run",
        help="judge this machine's VM",
        description=_RUN_DESCRIPTION,
        epilog=f"examples:\n{_RUN_EXAMPLES}",
        parents=[common_options()],
    )
    add_machine_arguments(running, devices=False)
    _add_run_arguments(running)
    add_report_arguments(running)
    running.set_defaults(action=_run)
    image = actions.add_parser(
        "image",
        help="write the probe's disk for another hypervisor",
        description="Write the probe as a portable disk that serves both execution states, and say how to boot it.",
        epilog="examples:\n  armvm probe image -o probe.img\n  armvm probe image -o probe.vmdk --for vmware",
        parents=[common_options()],
    )
    _add_image_arguments(image)
    image.set_defaults(action=_image)
    reading = actions.add_parser(
        "read",
        help="judge what a probe has said elsewhere",
        description="Judge a platform by what the probe left on its disk, or said on the console. Several files are\n"
        "taken as one VM's, in the order given; a log may have any other text around, and may be cut off.",
        epilog="examples:\n  armvm probe read probe.qcow2\n  armvm probe read first-boot.log second-boot.log",
        parents=[common_options()],
    )
    reading.add_argument("files", nargs="+", type=Path, metavar="DISK|LOG", help="a probe disk, or a console log")
    reading.add_argument("--name", help="what the report calls the platform (default: the first file's name)")
    add_report_arguments(reading)
    reading.set_defaults(action=_read)


def execute(options: argparse.Namespace) -> int:
    """Carry it out."""
    code: int = options.action(options)
    return code


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    host = add_host_arguments(parser)
    host.add_argument(
        "--kernel",
        type=Path,
        metavar="FILE",
        help="a mainline Linux for the Linux probe: an image, a .deb, or the folder of an unpacked package"
        " (default: the newest in $ARMVM_HOME/kernels/STATE; without any, what only Linux can show is unknown)",
    )
    host.add_argument("--modules", type=Path, metavar="FOLDER", help="the kernel's modules (default: beside it)")
    host.add_argument("--hotplug-ports", type=int, metavar="N", help="empty PCIe root ports (default: 2)")
    host.add_argument("--log", type=Path, metavar="FILE", help="keep the console log, which `probe read` takes too")


def _run(options: argparse.Namespace) -> int:
    from armvm.cli.terminal import notes
    from armvm.home import home
    from armvm.platform.check import check_platform
    from armvm.platform.host import expected_machine
    from armvm.platform.trial import run_trial
    from armvm.probe.kernels import find_guest_kernel

    files = outputs(options)
    machine, hypervisor = _machine(options)
    kernel = find_guest_kernel(machine.state, home=home(), kernel=options.kernel, modules=options.modules)
    say = notes(quiet=options.quiet)
    if kernel is None:
        say("no Linux kernel: what only Linux can show stays unknown (--kernel FILE)")
    result = run_trial(
        machine,
        hypervisor,
        kernel=kernel,
        other_state=_in_other_state(machine, options),
        timestamp=timestamp(),
        progress=say,
    )
    if options.log is not None:
        _keep_log(options.log, result)
    report = check_platform(
        result.observation,
        profile=options.profile,
        machine=expected_machine(machine),
        hotplug=result.hotplug,
        schema_warnings=_schema_warnings(result.observation),
    )
    return deliver([report], options, files)


def _schema_warnings(observation: PlatformObservation) -> tuple[str, ...]:
    from armvm.platform.schema import schema_warnings

    return schema_warnings(observation.fdt) if observation.fdt is not None else ()


def _machine(options: argparse.Namespace) -> tuple[Machine, Backend]:
    from armvm.firmware.discovery import find_firmware
    from armvm.machine.definition import DEFAULT_MEMORY_BYTES, Machine, problems, require_sound

    state = ExecutionState(options.arch or ExecutionState.AARCH64.value)
    machine = Machine(
        state=state,
        firmware=find_firmware(state, override=options.firmware),
        disks=(),
        memory_bytes=DEFAULT_MEMORY_BYTES[state],
    )
    machine = replace(machine, **chosen(options))
    if options.hotplug_ports is not None:
        machine = replace(machine, hotplug_ports=options.hotplug_ports)
    found = backend(options, state)
    require_sound(problems(machine) + found.problems(machine))
    return machine, found


def _in_other_state(machine: Machine, options: argparse.Namespace) -> tuple[Machine, Backend] | None:
    """An AArch32 VM beside an AArch64 one; what was chosen for one stays its."""
    from armvm.machine.backends import find_backend
    from armvm.platform.trial import in_other_state

    if options.firmware is not None:
        return None
    return in_other_state(machine, lambda state: find_backend(options.backend, state, uri=options.connect))


def _keep_log(path: Path, result: TrialResult) -> None:
    from armvm.atomic import write_file

    write_file(path, result.console)


def _add_image_arguments(parser: argparse.ArgumentParser) -> None:
    from armvm.platform.instructions import instructions

    parser.add_argument("-o", "--output", required=True, type=Path, metavar="IMAGE", help="the disk to write")
    parser.add_argument(
        "--format", choices=("raw", "qcow2", "vmdk", "vhdx", "vhd"), help="default: by IMAGE's name, else raw"
    )
    parser.add_argument("--force", action="store_true", help="replace IMAGE if it exists")
    parser.add_argument(
        "--for", dest="hypervisor", choices=list(instructions()), help="only these instructions (default: all)"
    )
    parser.add_argument("--runs", type=int, default=2, metavar="N", help="how often the probe runs (default: 2)")
    parser.add_argument(
        "--end", choices=("shutdown", "reset", "return", "halt"), default="shutdown", help="how it ends (shutdown)"
    )


def _image(options: argparse.Namespace) -> int:
    from armvm.platform.instructions import instructions, render_instructions
    from armvm.platform.probe_disk import FORMATS, ProbeConfig, build_probe_disk

    if not 1 <= options.runs <= 1000:
        raise UsageError(f"the probe runs 1 to 1000 times, not {options.runs}")
    suffix = options.output.suffix.lower().removeprefix(".")
    form = options.format or (suffix if suffix in FORMATS else "raw")
    build_probe_disk(
        options.output,
        format=form,
        config=ProbeConfig(runs=options.runs, end=options.end),
        timestamp=timestamp(),
        overwrite=options.force,
    )
    if not options.quiet:
        chosen_ones = [options.hypervisor] if options.hypervisor else list(instructions())
        print(f"{options.output}: the probe's disk ({form}), for AArch64 and AArch32\n")
        print("\n\n".join(render_instructions(name, options.output, form) for name in chosen_ones))
    return 0


def _read(options: argparse.Namespace) -> int:
    from armvm.platform.check import check_platform
    from armvm.probe.report import Sitting, observe

    files = outputs(options)
    sittings = [Sitting(_runs(path)) for path in options.files]
    if not any(sitting.runs for sitting in sittings):
        raise InputError(
            "no probe has said anything here",
            subject=", ".join(map(str, options.files)),
            expected="lines that begin with @A1",
        )
    observation = observe(sittings, name=options.name or str(options.files[0]))
    report: Report = check_platform(observation, profile=options.profile, schema_warnings=_schema_warnings(observation))
    return deliver([report], options, files)


def _runs(path: Path) -> tuple[Run, ...]:
    """What a probe said in the file: a disk where it is one by its content, else a log."""
    from armvm.disk.detect import detect_format, open_disk
    from armvm.disk.gpt import TableKind, read_partition_table
    from armvm.platform.probe_disk import read_probe_disk
    from armvm.probe.wire import decode

    if not path.exists():
        raise InputError("there is no such file", subject=str(path))
    if detect_format(path) != "raw":
        with open_disk(path) as disk:
            return read_probe_disk(disk)
    with open_disk(path) as disk:
        if read_partition_table(disk).kind is not TableKind.NONE:
            return read_probe_disk(disk)
    with path.open("rb") as file:
        return decode(file)
