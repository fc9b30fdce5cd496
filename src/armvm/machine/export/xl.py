"""The machine as a Xen domain, to be started by ``xl create``; the room ``machine.xen`` makes the configuration."""

from __future__ import annotations

from pathlib import Path

from armvm.errors import UsageError
from armvm.machine.definition import require_sound
from armvm.machine.export.source import Exported, Source, comment_lines
from armvm.machine.xen.config import adapt, is_domain_name, problems, render, xen_firmware

_FIRMWARE = Path("/usr/lib/xen/boot/XEN_EFI.fd")


def export(source: Source) -> Exported:
    """The configuration. Raises UsageError for a machine that Xen cannot be."""
    adapted = adapt(source.machine, xen_firmware(_FIRMWARE))
    require_sound(problems(adapted.machine))
    if not is_domain_name(source.name):
        raise UsageError(f"no name for a Xen domain: {source.name!r}")
    warnings = (
        *adapted.changes,
        f"{_FIRMWARE} is EDK2's ArmVirtXen build, put there by you (`armvm lab` makes one); not QEMU's firmware",
    )
    text = render(adapted.machine, name=source.name)
    return Exported(comment_lines(("made by armvm vm export", *warnings)) + text, warnings)
