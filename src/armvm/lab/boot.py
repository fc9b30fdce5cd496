"""Uses a frozen host: resumes it, boots an image in it or judges its hypervisor with the probe, and ends it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from armvm.disk.detect import open_disk
from armvm.errors import InputError, MachineError, UsageError
from armvm.execution import ExecutionState
from armvm.lab.freeze import Notes, ReadyHost, ready_host
from armvm.lab.outer import INCOMING, Noted, OuterMachine, Said, TaskResult
from armvm.lab.recipe import GuestRequest, HostKind, LabHost
from armvm.lab.verdicts import parse_reports
from armvm.machine.console_text import ConsoleText, Pattern
from armvm.printable import printable
from armvm.spec.verdict import Finding, Report, Verdict

FORMATS = ("raw", "qcow2")
"""The containers that every hypervisor of a nested host reads by itself."""
PROBE_SECONDS = 1800.0
_FAULTS = frozenset({2, 65, 69, 70, 126, 127})
"""Exit codes of the command inside that say nothing about the guest: it could not be started."""

Sha256 = str


@dataclass(frozen=True, slots=True)
class BootResult:
    """What came of booting an image in a nested host.

    ``why`` is None when the guest did what was asked. ``lacking`` are the requirements that the hypervisor has of an
    image and that this one fails: where the boot failed, the likely reason. ``unchanged`` says that the image was byte
    for byte the same afterwards (None: not looked at).
    """

    host: HostKind
    image: Path
    state: ExecutionState
    why: str | None
    console_tail: str
    seconds: float
    resume_seconds: float
    sha256: Sha256 | None = None
    unchanged: bool | None = None
    lacking: tuple[Finding, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether the guest did what was asked of it."""
        return self.why is None


def request_for(image: Path, *, state: ExecutionState | None, **wanted: object) -> GuestRequest:
    """The request to boot ``image``: its format, sectors and (without ``state``) execution state are read from it.

    Raises InputError when it is no image that a nested host can be given, UsageError for a pattern that is none.
    """
    from armvm.image.contents import bootable_state

    until = wanted.get("until")
    if isinstance(until, str):
        Pattern(until)
    with open_disk(image, in_place=True) as disk:
        if disk.format not in FORMATS:
            raise InputError(
                "a container that nested hypervisors do not read",
                subject=str(image),
                found=disk.format,
                expected=" or ".join(FORMATS),
                hint=f"armvm convert {image} {image.with_suffix('.qcow2')}",
            )
        if state is None:
            state = bootable_state(disk)
        request = GuestRequest(image, disk.format, state, sector_size=disk.sector_size)
    return replace(request, **wanted)  # type: ignore[arg-type]  # fields of the request


def boot_image(
    host: LabHost,
    request: GuestRequest,
    *,
    verify: bool = False,
    said: Said = lambda _data: None,
    notes: Notes = lambda _line: None,
) -> BootResult:
    """Boot ``request.image`` in ``host``, which is made first where it is not there.

    ``said`` takes the guest's console. With ``verify`` the image is hashed before and after. Raises UsageError for what
    this host cannot do, before anything is started; MachineError when the host itself fails. A guest that does not boot
    is a result.
    """
    require_possible(host.problems(request))
    digest = digest_of(request.image) if verify else None
    text = ConsoleText()

    def hear(data: bytes) -> None:
        text.feed(data)
        said(data)

    with _resumed(host, notes) as (machine, resume_seconds):
        machine.attach(request.image)
        began = time.monotonic()
        result = machine.perform(host.boot_task(request), image=True, said=hear)
        seconds = time.monotonic() - began
    why = _why(result, request, machine)
    return BootResult(
        host.kind,
        request.image,
        request.state,
        why,
        text.tail,
        round(seconds, 1),
        round(resume_seconds, 1),
        digest,
        None if digest is None else digest_of(request.image) == digest,
        () if why is None else lacking(host, request),
    )


def judge_hypervisor(
    host: LabHost,
    state: ExecutionState,
    *,
    profile: str,
    noted: Noted = lambda _line: None,
    notes: Notes = lambda _line: None,
) -> tuple[Report, bytes]:
    """Run the probe in ``host``'s hypervisor: the report, named for the host, and the console log of the probes.

    Raises UsageError for what this host cannot do, before anything is started; MachineError when the host fails or no
    report comes back.
    """
    require_possible(host.probe_problems(state))
    task = host.probe_task(state, profile=profile, timeout_seconds=PROBE_SECONDS)
    with _resumed(host, notes) as (machine, _):
        result = machine.perform(task, said=lambda _data: None, noted=noted)
    content = result.files.get("report")
    if content is None:
        raise MachineError(
            f"no report came back from the nested {host.kind.value} host: {_ended(result)}",
            output_tail="\n".join(result.notes[-20:]),
        )
    name = f"nested {host.kind.value} host"
    try:
        reports = parse_reports(content, subject=f"the report of the {name}")
    except InputError as error:
        raise MachineError(str(error)) from error
    if len(reports) != 1:
        raise MachineError(f"{len(reports)} reports came back from the {name}, not one")
    subject = replace(reports[0].subject, name=f"{name}: {printable(reports[0].subject.name)}")
    return replace(reports[0], subject=subject), result.files.get("console", b"")


def require_possible(problems: tuple[str, ...]) -> None:
    """Raise UsageError when there are ``problems``."""
    if problems:
        raise UsageError("; ".join(problems))


def lacking(host: LabHost, request: GuestRequest) -> tuple[Finding, ...]:
    """What ``host``'s hypervisor asks of an image and ``request``'s fails."""
    from armvm.guest.check import check_image

    try:
        with open_disk(request.image, in_place=True) as disk:
            report = check_image(disk, states=[request.state])
    except InputError:
        return ()
    return tuple(
        finding
        for finding in report.findings
        if finding.requirement in host.required and finding.verdict is Verdict.FAIL
    )


@contextmanager
def _resumed(host: LabHost, notes: Notes) -> Iterator[tuple[OuterMachine, float]]:
    """The host, resumed, and how long that took."""
    with ready_host(host, notes=notes) as ready:
        began = time.monotonic()
        with _machine(ready) as machine:
            machine.resume(ready.state)
            yield machine, time.monotonic() - began


def _machine(ready: ReadyHost) -> OuterMachine:
    return OuterMachine(ready.recipe, INCOMING, hold=(ready.descriptor,))


def _why(result: TaskResult, request: GuestRequest, machine: OuterMachine) -> str | None:
    """Why the guest did not do what was asked; None when it did. Raises MachineError when it was not even started."""
    if result.code == 0:
        return None
    if result.timed_out:
        waited = "" if request.until is None else f" and had not said what matches {request.until!r}"
        return f"the guest was still running after {request.timeout_seconds:g} s{waited}"
    said = [line for line in result.notes if line.startswith("armvm: ")]
    if result.code is None or result.code in _FAULTS:
        raise MachineError(
            f"the nested hypervisor could not start the guest: {_ended(result)}",
            output_tail="\n".join(result.notes[-20:]) or machine.console_tail,
        )
    return printable(said[-1].removeprefix("armvm: ")) if said else _ended(result)


def _ended(result: TaskResult) -> str:
    if result.error is not None:
        return result.error
    last = f": {printable(result.notes[-1])}" if result.notes else ""
    return f"the command ended with exit code {result.code}{last}"


def digest_of(path: Path) -> Sha256:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
