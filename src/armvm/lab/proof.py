"""One image on every hypervisor: QEMU and libvirt here, KVM and Xen in their nested hosts, and what came of each.

The image is hashed before and after: it is the same file, byte for byte, that all of them boot. A guest that does not
boot is a result, and so is a hypervisor that cannot be had here: nothing stops at the first.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from armvm.errors import ArmvmError, GuestError, MachineError, MissingError, UsageError
from armvm.execution import ExecutionState
from armvm.lab.boot import Sha256, boot_image, digest_of, judge_hypervisor, lacking, request_for
from armvm.lab.hosts import lab_host
from armvm.lab.recipe import GuestRequest, HostKind
from armvm.lab.workers import Notes, work_through
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.backend import Backend
from armvm.spec.verdict import Finding, Report


class Platform(enum.Enum):
    """What an image is booted on; the values are the command line's words."""

    TCG = "tcg"
    LIBVIRT = "libvirt"
    KVM = "kvm"
    XEN = "xen"

    @property
    def title(self) -> str:
        """What it is, in words."""
        return {"tcg": "QEMU (emulation)", "libvirt": "libvirt (emulation)", "kvm": "nested KVM", "xen": "nested Xen"}[
            self.value
        ]

    @property
    def nested(self) -> bool:
        """Whether it is a nested host's."""
        return self in {Platform.KVM, Platform.XEN}


@dataclass(frozen=True, slots=True)
class Boot:
    """What came of booting the image on one platform in one execution state.

    ``why`` is None when the guest said what was waited for. ``possible`` is False when the platform said beforehand
    that it cannot, or is not to be had here; ``why`` says so then. ``lacking`` are the requirements that the platform
    has of an image and that this one fails: where the boot failed, the likely reason.
    """

    platform: Platform
    state: ExecutionState
    why: str | None
    possible: bool = True
    seconds: float = 0.0
    console_tail: str = ""
    lacking: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Proof:
    """All of it: the boots, the verdicts on image and platforms, and the image's SHA-256 before and after.

    ``unjudged`` are the platforms that no verdict could be had of, and why.
    """

    image: Path
    sha256: Sha256
    sha256_after: Sha256
    boots: tuple[Boot, ...]
    reports: tuple[Report, ...]
    unjudged: tuple[tuple[Platform, str], ...] = ()

    @property
    def unchanged(self) -> bool:
        """Whether the image is byte for byte the same."""
        return self.sha256 == self.sha256_after

    @property
    def booted_everywhere(self) -> bool:
        """Whether every boot that was possible came to what was asked, and there was one on every platform."""
        return all(boot.why is None for boot in self.boots if boot.possible) and {
            boot.platform for boot in self.boots if boot.possible
        } == {boot.platform for boot in self.boots}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be proved: ``until`` is a regular expression that every guest is to say within ``timeout_seconds``.

    ``kernel`` is a Linux for the probes of the platforms here (None: what only Linux can show stays unknown; nested
    hosts have their own). ``probe`` False leaves the platforms unjudged. ``connect`` is libvirt's URI (None: its own
    default). ``at_once`` boots and probes go on beside each other; a nested host takes one processor and 3 GiB.
    """

    image: Path
    until: str
    states: tuple[ExecutionState, ...]
    platforms: tuple[Platform, ...] = tuple(Platform)
    timeout_seconds: float = 900.0
    profile: str = "vmspec-1.0"
    probe: bool = True
    kernel: Path | None = None
    home: Path = field(default_factory=Path)
    timestamp: int = 0
    connect: str | None = None
    at_once: int = 1


_Unit = tuple[Platform, ExecutionState | None]
"""A boot in that state, or (None) the verdict."""


def prove(plan: Plan, *, notes: Notes = lambda _line: None) -> Proof:
    """Boot ``plan.image`` everywhere, have every platform judged, and say what came of it.

    Raises InputError when it is no image that can be booted.
    """
    before = digest_of(plan.image)
    image = _image_report(plan)
    for state in plan.states:
        _request(plan, state)
    units = _units(plan)
    results = work_through(_unit, [(unit, plan) for unit in units], at_once=plan.at_once, notes=notes)
    done = dict(zip(units, results, strict=True))
    boots = (done[platform, state] for platform in plan.platforms for state in plan.states)
    judged = {platform: done.get((platform, None)) for platform in plan.platforms}
    return Proof(
        plan.image,
        before,
        digest_of(plan.image),
        tuple(boot for boot in boots if isinstance(boot, Boot)),
        (image, *(report for report in judged.values() if isinstance(report, Report))),
        tuple((platform, why) for platform, why in judged.items() if isinstance(why, str)),
    )


def _units(plan: Plan) -> list[_Unit]:
    """What is done by itself, and in which order: what takes longest first, so that little is waited for in the end.

    One of each nested host comes first: each is made by one, where it is not there, while nobody waits for it.
    """
    wanted: tuple[ExecutionState | None, ...] = (None, *plan.states) if plan.probe else plan.states
    nested = [platform for platform in plan.platforms if platform.nested]
    here = [platform for platform in plan.platforms if not platform.nested]
    return [(platform, state) for group in (nested, here) for state in wanted for platform in group]


def _unit(task: tuple[_Unit, Plan], notes: Notes) -> Boot | Report | str:
    """A boot; or a platform's verdict, or why there is none. In a process of its own."""
    (platform, state), plan = task

    def say(line: str) -> None:
        notes(f"{platform.title}{'' if state is None else f', {state.label}'}: {line}")

    if state is None:
        say("judging it with the probe")
        try:
            return _judged(platform, plan, say)
        except ArmvmError as error:
            return error.message
    say("booting the image")
    boot = _boot(platform, plan, _request(plan, state), say)
    say(boot.why or f"it said what was waited for ({boot.seconds:g} s)")
    return boot


def _request(plan: Plan, state: ExecutionState) -> GuestRequest:
    return request_for(plan.image, state=state, until=plan.until, timeout_seconds=plan.timeout_seconds)


def _boot(platform: Platform, plan: Plan, request: GuestRequest, notes: Notes) -> Boot:
    try:
        return _nested(platform, request, notes) if platform.nested else _here(platform, plan, request)
    except (UsageError, MissingError) as error:
        return Boot(platform, request.state, error.message, possible=False)
    except ArmvmError as error:  # it fails like a boot: the others are done all the same
        tail = error.console_tail if isinstance(error, GuestError) else ""
        tail = error.output_tail if isinstance(error, MachineError) else tail
        return Boot(platform, request.state, error.message, console_tail=tail)


def _nested(platform: Platform, request: GuestRequest, notes: Notes) -> Boot:
    result = boot_image(lab_host(HostKind(platform.value)), request, notes=notes)
    return Boot(
        platform,
        request.state,
        result.why,
        seconds=result.seconds,
        console_tail=result.console_tail,
        lacking=result.lacking,
    )


def _here(platform: Platform, plan: Plan, request: GuestRequest) -> Boot:
    from armvm.firmware.discovery import find_firmware
    from armvm.machine.console import Conversation, Outcome
    from armvm.machine.console_text import Pattern
    from armvm.machine.definition import DEFAULT_MEMORY_BYTES, DiskDevice, Machine, Writes

    machine = Machine(
        state=request.state,
        firmware=find_firmware(request.state),
        disks=(DiskDevice(request.image, request.format, request.sector_size, Writes.DISCARDED),),
        memory_bytes=DEFAULT_MEMORY_BYTES[request.state],
        vcpus=1,  # as on nested hosts; several are done beside each other
        nics=(),
    )
    began = time.monotonic()
    with _backend(platform, plan, request.state).start(machine) as session:
        conversation = Conversation(session, until=Pattern(str(request.until)), timeout_seconds=request.timeout_seconds)
        outcome = conversation.run()
    seconds = round(time.monotonic() - began, 1)
    if outcome is Outcome.MATCHED:
        return Boot(platform, request.state, None, seconds=seconds, console_tail=conversation.text.tail)
    why = f"{outcome.value}, and the guest had not said what matches {request.until!r}"
    host = lab_host(HostKind.KVM)  # it asks of an image what QEMU does: the same devices
    return Boot(
        platform,
        request.state,
        why,
        seconds=seconds,
        console_tail=conversation.text.tail,
        lacking=lacking(host, request),
    )


def _backend(platform: Platform, plan: Plan, state: ExecutionState) -> Backend:
    from armvm.machine.backends import find_backend

    if platform is Platform.LIBVIRT:
        return find_backend("libvirt", state, accelerator=AcceleratorKind.TCG, uri=plan.connect)
    return find_backend("qemu", state, accelerator=AcceleratorKind.TCG)


def _image_report(plan: Plan) -> Report:
    from armvm.disk.detect import open_disk
    from armvm.guest.check import check_image

    with open_disk(plan.image, in_place=True) as disk:
        return check_image(disk, profile=plan.profile, states=plan.states)


def _judged(platform: Platform, plan: Plan, notes: Notes) -> Report:
    if platform.nested:
        host = lab_host(HostKind(platform.value))
        report, _ = judge_hypervisor(host, plan.states[0], profile=plan.profile, noted=notes, notes=notes)
        return report
    return _judged_here(platform, plan, notes)


def _judged_here(platform: Platform, plan: Plan, notes: Notes) -> Report:
    from armvm.firmware.discovery import find_firmware
    from armvm.machine.definition import DEFAULT_MEMORY_BYTES, Machine
    from armvm.platform.check import check_platform
    from armvm.platform.host import expected_machine
    from armvm.platform.schema import schema_warnings
    from armvm.platform.trial import in_other_state, run_trial
    from armvm.probe.kernels import find_guest_kernel

    state = plan.states[0]
    machine = Machine(state, find_firmware(state), (), DEFAULT_MEMORY_BYTES[state])
    kernel = find_guest_kernel(state, home=plan.home, kernel=plan.kernel, modules=None)
    result = run_trial(
        machine,
        _backend(platform, plan, state),
        kernel=kernel,
        other_state=in_other_state(machine, lambda other: _backend(platform, plan, other)),
        timestamp=plan.timestamp,
        progress=notes,
    )
    observed = result.observation
    report = check_platform(
        observed,
        profile=plan.profile,
        machine=expected_machine(machine),
        hotplug=result.hotplug,
        schema_warnings=schema_warnings(observed.fdt) if observed.fdt is not None else (),
    )
    return replace(report, subject=replace(report.subject, name=f"{platform.title}: {report.subject.name}"))
