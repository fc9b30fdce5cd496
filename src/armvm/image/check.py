"""Judging an image at rest: every requirement on images, each by the check that is named for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from armvm.execution import ExecutionState
from armvm.image.check_boot import check_boot_program, check_removable_path
from armvm.image.check_layout import check_esp, check_esp_fat32, check_gpt
from armvm.image.check_portable import check_no_firmware, check_no_variables
from armvm.image.contents import ImageContents
from armvm.spec.judgement import Judgement

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
"""Requirement to the check that judges it, given the image and the execution states that it has to serve."""
