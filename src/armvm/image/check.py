"""Judging an image at rest: every requirement on images, each by the check that is named for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.image.check_boot import check_boot_program, check_removable_path
from armvm.image.check_layout import check_esp, check_esp_fat32, check_gpt
from armvm.image.check_portable import check_no_firmware, check_no_variables
from armvm.image.contents import ImageContents
from armvm.spec.catalogue import DEFAULT_PROFILE, Requirement, Topic, requirements_of
from armvm.spec.judgement import Judgement, finding, unknown
from armvm.spec.verdict import Finding, Report, Subject

Check = Callable[[ImageContents, Collection[ExecutionState]], Judgement]


def _any_state(check: Callable[[ImageContents], Judgement]) -> Check:
    return lambda contents, _states: check(contents)


CHECKS: Mapping[str, Check] = {
    "image.gpt": _any_state(check_gpt),
    "image.esp": _any_state(check_esp),
    "image.esp-fat32": _any_state(check_esp_fat32),
    "image.removable-path": check_removable_path,
    "image.efi-application": _any_state(check_boot_program),
    "image.no-variables": _any_state(check_no_variables),
    "image.no-firmware": _any_state(check_no_firmware),
}
"""Requirement to the check that judges it."""


def check_image(
    disk: Disk, *, profile: str = DEFAULT_PROFILE, states: Collection[ExecutionState] = (), name: str | None = None
) -> Report:
    """Judge ``disk`` by every requirement that ``profile`` has for images and their guests.

    ``states`` are the execution states that the image has to serve (default: at least one); ``name`` is what the
    report calls it (default: the disk's own name). Raises InputError when the disk cannot be read at all.
    """
    contents = ImageContents(disk)
    findings = tuple(
        _finding(entry, profile, contents, states) for entry in requirements_of(profile, Topic.IMAGE, Topic.GUEST)
    )
    subject = Subject("image", name or disk.name, disk.format, disk.size_bytes)
    return Report(subject, profile, findings)


def _finding(entry: Requirement, profile: str, contents: ImageContents, states: Collection[ExecutionState]) -> Finding:
    check = CHECKS.get(entry.id)
    if check is None:
        judgement = unknown(f"not judged: {entry.unchecked or 'only together with the guest'}")
    else:
        try:
            judgement = check(contents, states)
        except InputError as error:
            judgement = unknown(f"could not be determined: {error.message}")
    return finding(entry, profile, judgement)
