"""The machine as a Xen domain, to be started by ``xl create``; the room ``machine.xen`` makes the configuration."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from armvm.errors import UsageError
from armvm.machine.export.source import Exported, Source


def export(source: Source) -> Exported:
    """The configuration. Raises UsageError for a machine that Xen cannot be."""
    if find_spec("armvm.machine.xen") is None:
        raise UsageError("this armvm does not know Xen's configuration files")
    exported: Exported = import_module("armvm.machine.xen.config").export(source)
    return exported
