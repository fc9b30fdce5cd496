"""Judging an image whole, at rest: every requirement on images, and on the guests that they boot."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from armvm.disk.storage import Disk
from armvm.errors import InputError, MissingError
from armvm.execution import ExecutionState
from armvm.guest.audit import GuestAudit
from armvm.guest.check_assumptions import check_no_assumptions
from armvm.guest.check_boot import check_self_contained
from armvm.guest.check_drivers import DRIVER_CHECKS, DriverCheck
from armvm.image.check import CHECKS as IMAGE_CHECKS
from armvm.image.contents import ImageContents
from armvm.spec.catalogue import DEFAULT_PROFILE, Requirement, Topic, requirements_of
from armvm.spec.judgement import Judgement, finding, unknown, worst
from armvm.spec.verdict import Finding, Report, Subject

GuestCheck = Callable[[GuestAudit], Judgement]


def _check_drivers(check: DriverCheck) -> GuestCheck:
    return lambda audit: check(audit.kernels)


def _check_assumptions(audit: GuestAudit) -> Judgement:
    """guest.no-assumptions: of every system that the image boots."""
    judgements = [
        check_no_assumptions(system, audit.entries_for(state), audit.assumptions[state])
        for state, system in audit.installed.items()
    ]
    return worst(judgements, lambda good: good[0].message)


CHECKS: Mapping[str, GuestCheck] = {
    "image.self-contained-boot": lambda audit: check_self_contained(audit.contents, audit.chain),
    "guest.no-assumptions": _check_assumptions,
    **{requirement: _check_drivers(check) for requirement, check in DRIVER_CHECKS.items()},
}
"""Requirement to the check that judges it; those on the image alone are ``armvm.image.check.CHECKS``."""


def check_image(
    disk: Disk, *, profile: str = DEFAULT_PROFILE, states: Collection[ExecutionState] = (), name: str | None = None
) -> Report:
    """Judge ``disk`` by every requirement that ``profile`` has for images and their guests.

    ``states`` are the execution states that the image has to serve (default: at least one); ``name`` is what the
    report calls it (default: the disk's own name). Raises InputError when the disk cannot be read at all.
    """
    contents = ImageContents(disk)
    audit = GuestAudit(contents, states)
    findings = tuple(_finding(entry, profile, audit, states) for entry in requirements_of(profile, *_TOPICS))
    subject = Subject("image", name or disk.name, disk.format, disk.size_bytes)
    return Report(subject, profile, findings)


_TOPICS = (Topic.IMAGE, Topic.GUEST)


def _finding(entry: Requirement, profile: str, audit: GuestAudit, states: Collection[ExecutionState]) -> Finding:
    on_image, on_guest = IMAGE_CHECKS.get(entry.id), CHECKS.get(entry.id)
    try:
        if on_image is not None:
            judgement = on_image(audit.contents, states)
        elif on_guest is not None:
            judgement = on_guest(audit)
        else:
            judgement = unknown(f"not judged: {entry.unchecked}")
    except (InputError, MissingError) as error:
        hint = f" ({error.hint})" if error.hint else ""
        judgement = unknown(f"could not be determined: {error.message}{hint}")
    return finding(entry, profile, judgement)
