"""Judging a platform: every requirement on firmware, description and hardware, each by the check named for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from armvm.errors import InputError
from armvm.platform.check_description import (
    check_acpi,
    check_fdt,
    check_fdt_complete,
    check_mainline_boots,
    check_uefi_table,
)
from armvm.platform.check_firmware import (
    check_el1,
    check_first_software,
    check_not_in_image,
    check_rtc,
    check_uefi,
    check_uefi_version,
    check_variables_per_instance,
    check_variables_persist,
)
from armvm.platform.check_hotplug import check_hotplug_block, check_hotplug_network
from armvm.platform.check_platform import (
    check_aarch32_el1,
    check_console,
    check_enumerable,
    check_gic,
    check_psci,
    check_timer,
)
from armvm.platform.host import ExpectedMachine, HotplugRecord
from armvm.platform.seen import Seen, look
from armvm.probe.report import PlatformObservation
from armvm.spec.catalogue import DEFAULT_PROFILE, Requirement, Topic, requirements_of
from armvm.spec.judgement import Judgement, finding, unknown
from armvm.spec.verdict import Finding, Report, Subject

CHECKS: Mapping[str, Callable[[Seen], Judgement]] = {
    "firmware.uefi": check_uefi,
    "firmware.uefi-version": check_uefi_version,
    "firmware.first-software": check_first_software,
    "firmware.variables-persist": check_variables_persist,
    "firmware.variables-per-instance": check_variables_per_instance,
    "firmware.not-in-image": check_not_in_image,
    "firmware.rtc": check_rtc,
    "firmware.el1": check_el1,
    "description.uefi-table": check_uefi_table,
    "description.fdt": check_fdt,
    "description.fdt-complete": check_fdt_complete,
    "description.mainline-boots": check_mainline_boots,
    "description.acpi": check_acpi,
    "platform.enumerable": check_enumerable,
    "platform.console": check_console,
    "platform.gic": check_gic,
    "platform.timer": check_timer,
    "platform.aarch32-el1": check_aarch32_el1,
    "platform.hotplug-block": check_hotplug_block,
    "platform.hotplug-network": check_hotplug_network,
    "platform.psci": check_psci,
}
"""Requirement to the check that judges it."""


def check_platform(
    observation: PlatformObservation,
    *,
    profile: str = DEFAULT_PROFILE,
    machine: ExpectedMachine | None = None,
    hotplug: HotplugRecord | None = None,
    schema_warnings: tuple[str, ...] = (),
) -> Report:
    """Judge a platform by every requirement that ``profile`` has for one.

    ``machine`` is what the VM was made as and ``hotplug`` what was plugged into it, where the host knows that.
    ``schema_warnings`` are what ``armvm.platform.schema`` says of the device tree: they are shown, and fail nothing.
    What the observation does not show is unknown, with the reason.
    """
    seen = look(observation, profile, machine, hotplug, schema_warnings)
    topics = (Topic.FIRMWARE, Topic.DESCRIPTION, Topic.PLATFORM)
    findings = tuple(_finding(entry, seen) for entry in requirements_of(profile, *topics))
    return Report(Subject("platform", observation.name), profile, findings)


def _finding(entry: Requirement, seen: Seen) -> Finding:
    try:
        judgement = CHECKS[entry.id](seen)
    except InputError as error:
        judgement = unknown(f"could not be determined: {error.message}")
    return finding(entry, seen.profile, judgement)
