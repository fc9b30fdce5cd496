"""``armvm lab``: real hypervisors, KVM and Xen, on an ARM machine that QEMU emulates."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armvm.cli.options import common_options, seconds
from armvm.cli.report_options import add_report_arguments, deliver, outputs
from armvm.errors import GuestError, OutputError, UsageError
from armvm.execution import ExecutionState
from armvm.lab.recipe import HostKind

if TYPE_CHECKING:
    from armvm.lab.boot import BootResult
    from armvm.lab.store import Frozen

DESCRIPTION = """Boots images on real KVM and real Xen without ARM hardware: QEMU emulates an ARM machine with
virtualization extensions, on which Debian runs with the hypervisor and this armvm.

`up` makes such a host once and freezes it; `run` resumes it within seconds, boots an image in it (or judges its
hypervisor with the probe) and ends it. Nothing runs between commands, and an image is never written to."""
EXAMPLES = """  armvm lab up kvm
  armvm lab run kvm disk.qcow2 --until 'login:' --timeout 600
  armvm lab run xen disk.qcow2 --arch aarch64
  armvm lab run kvm --probe --arch aarch32 -o json:kvm.json
  armvm lab down --cache"""

SCHEMA = "armvm.lab/1"
_HOSTS = [kind.value for kind in HostKind]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(name: str, help: str, description: str, examples: str, do: Callable[[argparse.Namespace], int]) -> Any:
        sub = actions.add_parser(
            name, help=help, description=description, epilog=f"examples:\n{examples}", parents=[common_options()]
        )
        sub.set_defaults(action=do)
        return sub

    up = action(
        "up",
        "make a nested host, or say that it is there",
        "Fetch what the host is made of (Debian's arm64 packages, with mmdebstrap; this machine's own packages stay\n"
        "as they are), boot it under emulation, and freeze it. It is made anew when armvm or QEMU changes.",
        "  armvm lab up kvm\n  armvm lab up xen --renew",
        _up,
    )
    up.add_argument("host", choices=_HOSTS, help="which hypervisor")
    up.add_argument("--renew", action="store_true", help="fetch the packages again and make it anew")
    _add_run(action)
    _add_prove(action)
    listing = action(
        "list",
        "say which nested hosts there are",
        "Say which nested hosts are made, of what, and how much room they take.",
        "  armvm lab list\n  armvm lab list --json",
        _list,
    )
    listing.add_argument("--json", action="store_true", help="as JSON")
    down = action(
        "down",
        "remove nested hosts",
        "Remove frozen hosts; the next `up` makes them again. Refused while another armvm uses one.",
        "  armvm lab down kvm\n  armvm lab down --cache --yes",
        _down,
    )
    down.add_argument("host", nargs="?", choices=_HOSTS, help="which (default: all)")
    down.add_argument("--cache", action="store_true", help="the fetched packages of all hosts too")
    down.add_argument("--yes", action="store_true", help="do not ask")


def _add_run(action: Callable[..., Any]) -> None:
    run = action(
        "run",
        "boot an image on a nested hypervisor, or judge that with the probe",
        "Boot an image on a nested hypervisor, its console on standard output, and say whether it came to what was\n"
        "asked: that the console says what matches --until, else that the guest powers off. The image is plugged into\n"
        "the host byte for byte and for reading only. --probe judges the hypervisor, after the image if there is one.\n"
        "\n"
        "Exit code 0: the guest did it, and the probe's report has no failure. 1: it did not.",
        "  armvm lab run kvm disk.raw --until 'login:'\n  armvm lab run kvm disk.raw --arch aarch32 --json\n"
        "  armvm lab run kvm --probe -o json:kvm.json",
        _run,
    )
    run.add_argument("host", choices=_HOSTS, help="which hypervisor")
    run.add_argument("image", metavar="IMAGE", nargs="?", type=Path, help="the disk image: raw or qcow2")
    guest = run.add_argument_group("the guest")
    guest.add_argument(
        "--arch",
        choices=[state.value for state in ExecutionState],
        help="execution state (default: what the image has a boot program for, aarch64 before aarch32)",
    )
    guest.add_argument("--memory", type=_size, metavar="SIZE", help="its memory (default: 1G)")
    guest.add_argument("--until", metavar="REGEX", help="end with success as soon as the console says this")
    guest.add_argument(
        "--timeout", type=seconds, default=900.0, metavar="SECONDS", help="give up after this time (default: 900)"
    )
    guest.add_argument("--log", type=Path, metavar="FILE", help="write what the guest says to this file too")
    guest.add_argument(
        "--json", action="store_true", help="say what came of it as JSON, with the image's SHA-256 before and after"
    )
    run.add_argument("--probe", action="store_true", help="judge the hypervisor with the probe")
    add_report_arguments(run)


def _add_prove(action: Callable[..., Any]) -> None:
    prove = action(
        "prove",
        "boot an image on every hypervisor, and judge them all",
        "Boot one image, byte for byte the same file, on QEMU and libvirt here and on nested KVM and Xen, in every\n"
        "execution state that it has a boot program for, and judge image and platforms: one report of all.\n\n"
        "Exit code 0: it booted everywhere and nothing failed. 1: not so; the report says where and why.",
        "  armvm lab prove disk.raw --until 'login:'\n  armvm lab prove disk.raw --until READY --on tcg,xen -v",
        _prove,
    )
    prove.add_argument("image", metavar="IMAGE", type=Path, help="the disk image: raw or qcow2")
    prove.add_argument("--until", metavar="REGEX", required=True, help="what every guest is to say")
    prove.add_argument(
        "--on", default="tcg,libvirt,kvm,xen", metavar="LIST", help="the platforms (default: tcg,libvirt,kvm,xen)"
    )
    prove.add_argument("--arch", choices=[state.value for state in ExecutionState], help="only this execution state")
    prove.add_argument("--timeout", type=seconds, default=900.0, metavar="SECONDS", help="for each boot (default: 900)")
    prove.add_argument("--no-probe", action="store_true", help="boot only: leave the platforms unjudged")
    prove.add_argument(
        "--kernel", type=Path, metavar="FILE", help="a Linux for the probe on the platforms here (see armvm probe run)"
    )
    prove.add_argument("--connect", metavar="URI", help="libvirt's (default: virsh's own)")
    prove.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="boots and probes beside each other (default: one per processor); one on a nested host takes 3 GiB",
    )
    add_report_arguments(prove)


def execute(options: argparse.Namespace) -> int:
    """Carry it out."""
    code: int = options.action(options)
    return code


def _up(options: argparse.Namespace) -> int:
    from armvm.cli.terminal import notes
    from armvm.lab.freeze import ready_host
    from armvm.lab.hosts import lab_host
    from armvm.machine.terminal import ending_on_signals
    from armvm.units import format_size

    kind = HostKind(options.host)
    with (
        ending_on_signals(),
        ready_host(lab_host(kind), renew=options.renew, notes=notes(quiet=options.quiet)) as ready,
    ):
        size = format_size(ready.frozen.state_bytes)
        if not options.quiet:
            print(f"{kind.value}: ready, Linux {ready.frozen.kernel}, {ready.frozen.emulator}, {size}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from armvm.cli.terminal import notes
    from armvm.lab.boot import boot_image, judge_hypervisor, request_for, require_possible
    from armvm.lab.hosts import lab_host
    from armvm.machine.terminal import ending_on_signals

    files = outputs(options)
    if options.image is None and not options.probe:
        raise UsageError("nothing to do", hint="armvm lab run HOST IMAGE, or armvm lab run HOST --probe")
    if options.json and options.probe and not files:
        raise UsageError("--json and the report cannot both go to standard output", hint="-o json:FILE for the report")
    host = lab_host(HostKind(options.host))
    state = None if options.arch is None else ExecutionState(options.arch)
    probed = state or ExecutionState.AARCH64
    request = None
    # What cannot be is said before anything is started.
    if options.image is not None:
        wanted = {"until": options.until, "timeout_seconds": options.timeout}
        if options.memory is not None:
            wanted["memory_bytes"] = options.memory
        request = request_for(options.image, state=state, **wanted)
        require_possible(host.problems(request))
    if options.probe:
        require_possible(host.probe_problems(probed))
    say = notes(quiet=options.quiet)
    code = 0
    with ExitStack() as stack:
        said = _sink(options, stack)
        stack.enter_context(ending_on_signals())
        if request is not None:
            result = boot_image(host, request, verify=options.json, said=said, notes=say)
            if options.json:
                _print_json(_result_value(result))
            code = 0 if result.succeeded else 1
            if not options.probe:
                _judge(result, options)
        if options.probe:
            report, _ = judge_hypervisor(host, probed, profile=options.profile, noted=say, notes=say)
            code = max(code, deliver([report], options, files))
    return code


def _prove(options: argparse.Namespace) -> int:
    from armvm.cli.clock import timestamp
    from armvm.cli.lab_proof import deliver_proof
    from armvm.cli.terminal import notes
    from armvm.home import home
    from armvm.lab.proof import Plan, Platform, prove
    from armvm.machine.console_text import Pattern
    from armvm.machine.terminal import ending_on_signals

    files = outputs(options)
    Pattern(options.until)
    known = {platform.value: platform for platform in Platform}
    names = [name for name in options.on.split(",") if name]
    if not names or not set(names) <= set(known):
        raise UsageError(f"no list of platforms: {options.on!r}", hint=f"of {', '.join(known)}")
    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}: at least one is")
    plan = Plan(
        options.image,
        options.until,
        (ExecutionState(options.arch),) if options.arch else _states(options.image),
        tuple(dict.fromkeys(known[name] for name in names)),
        options.timeout,
        options.profile,
        not options.no_probe,
        options.kernel,
        home(),
        timestamp(),
        options.connect,
        options.jobs or os.cpu_count() or 1,
    )
    with ending_on_signals():
        proof = prove(plan, notes=notes(quiet=options.quiet))
    return deliver_proof(proof, options, files)


def _states(image: Path) -> tuple[ExecutionState, ...]:
    """Every execution state that the image has a boot program for."""
    from armvm.disk.detect import open_disk
    from armvm.image.contents import ImageContents, bootable_state

    with open_disk(image, in_place=True) as disk:
        bootable_state(disk)  # says what is missing when there is none
        return tuple(ImageContents(disk).bootable_states)


def _judge(result: BootResult, options: argparse.Namespace) -> None:
    """Raise GuestError when the guest did not do what was asked, with what the image lacks."""
    if result.succeeded or options.json:
        return
    hint = None
    if result.lacking:
        hint = "; ".join(f"{finding.requirement}: {finding.message}" for finding in result.lacking)
    raise GuestError(f"on nested {result.host.value}, {result.why}", console_tail=result.console_tail, hint=hint)


def _result_value(result: BootResult) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "host": result.host.value,
        "image": str(result.image),
        "arch": result.state.value,
        "booted": result.succeeded,
        "why": result.why,
        "lacking": [{"requirement": finding.requirement, "message": finding.message} for finding in result.lacking],
        "seconds": result.seconds,
        "resume_seconds": result.resume_seconds,
        "sha256": result.sha256,
        "unchanged": result.unchanged,
        "console_tail": result.console_tail,
    }


def _sink(options: argparse.Namespace, stack: ExitStack) -> Callable[[bytes], None]:
    """Where what the guest says goes: standard output as plain text, and --log as it is."""
    from armvm.machine.console_text import ConsoleText, harmless

    log = None
    if options.log is not None:
        if options.image is not None and options.log.exists() and options.log.samefile(options.image):
            raise UsageError(f"--log {options.log} is the image itself")
        try:
            log = stack.enter_context(options.log.open("wb", buffering=0))
        except OSError as error:
            raise OutputError(f"cannot write {options.log}: {error.strerror}") from error
    show = not (options.json or options.quiet)
    text = ConsoleText()

    def take(data: bytes) -> None:
        if log is not None:
            try:
                log.write(data)
            except OSError as error:
                raise OutputError(f"cannot write {options.log}: {error.strerror}") from error
        if show:
            sys.stdout.write(harmless(text.feed(data)))
            sys.stdout.flush()

    return take


def _list(options: argparse.Namespace) -> int:
    from armvm.lab.store import cache_bytes, read_frozen
    from armvm.units import format_size

    hosts = {kind: read_frozen(kind) for kind in HostKind}
    if options.json:
        value = {kind.value: _frozen_value(kind, frozen) for kind, frozen in hosts.items()}
        _print_json({"schema": SCHEMA, "hosts": value, "cache_bytes": cache_bytes()})
        return 0
    for kind, frozen in hosts.items():
        print(f"{kind.value:4} {_described(kind, frozen)}")
    print(f"packages in the cache: {format_size(cache_bytes())}")
    return 0


def _described(kind: HostKind, frozen: Frozen | None) -> str:
    import time

    from armvm.printable import printable
    from armvm.units import format_size

    if frozen is None:
        return f"not made: armvm lab up {kind.value}"
    made = time.strftime("%Y-%m-%d", time.gmtime(frozen.created))
    state = "ready" if _is_current(kind, frozen) else "out of date, will be made anew"
    what = f"Linux {printable(frozen.kernel)}, {printable(frozen.emulator)}"
    return f"{state}: {what}, {format_size(frozen.state_bytes)}, made {made} in {frozen.made_in_seconds:.0f} s"


def _frozen_value(kind: HostKind, frozen: Frozen | None) -> dict[str, Any] | None:
    from dataclasses import asdict

    return None if frozen is None else {**asdict(frozen), "current": _is_current(kind, frozen)}


def _is_current(kind: HostKind, frozen: Frozen) -> bool:
    from armvm.errors import ArmvmError
    from armvm.lab.freeze import is_current
    from armvm.lab.hosts import lab_host

    try:
        return is_current(lab_host(kind), frozen)
    except ArmvmError:  # it cannot be made here any more, for want of something
        return False


def _down(options: argparse.Namespace) -> int:
    from armvm.lab.store import remove_cache, remove_host
    from armvm.units import format_size

    kinds = list(HostKind) if options.host is None else [HostKind(options.host)]
    what = ", ".join(kind.value for kind in kinds) + (", and the packages in the cache" if options.cache else "")
    if not options.yes:
        if not sys.stdin.isatty():
            raise UsageError(f"this removes the nested hosts {what}", hint="--yes does it without asking")
        print(f"Remove the nested hosts {what}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            return 1
    freed = sum(remove_host(kind) for kind in kinds)
    if options.cache:
        freed += remove_cache()
    if not options.quiet:
        print(f"freed {format_size(freed)}")
    return 0


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=True))


def _size(text: str) -> int:
    from armvm.units import parse_size

    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
