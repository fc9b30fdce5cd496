"""The machine as a Xen domain, to be started by ``xl create``; the room ``machine.xen`` makes the configuration."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from armvm.errors import UsageError
from armvm.machine.definition import require_sound
from armvm.machine.export.source import Exported, Source, comment_lines

_FIRMWARE = Path("/usr/lib/xen/boot/XEN_EFI.fd")


def export(source: Source) -> Exported:
    """The configuration. Raises UsageError for a machine that Xen cannot be."""
    if find_spec("armvm.machine.xen") is None:
        raise UsageError("this armvm does not know Xen's configuration files")
    xen = import_module("armvm.machine.xen.config")  # by its name: it stands beside this, and need not be there
    adapted = xen.adapt(source.machine, xen.xen_firmware(_FIRMWARE))
    require_sound(xen.problems(adapted.machine))
    if not xen.is_domain_name(source.name):
        raise UsageError(f"no name for a Xen domain: {source.name!r}")
    warnings = (
        *adapted.changes,
        f"{_FIRMWARE} is EDK2's ArmVirtXen build, put there by you (`armvm lab` makes one); not QEMU's firmware",
    )
    text = xen.render(adapted.machine, name=source.name)
    return Exported(comment_lines(("made by armvm vm export", *warnings)) + text, warnings)
