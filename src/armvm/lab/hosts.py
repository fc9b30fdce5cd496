"""The nested hosts that there are."""

from __future__ import annotations

import importlib

from armvm.errors import UsageError
from armvm.lab.recipe import HostKind, LabHost

_MODULES = {HostKind.KVM: "armvm.lab.kvm", HostKind.XEN: "armvm.lab.xen"}
"""Each has ``HOST``, a LabHost."""


def lab_host(kind: HostKind) -> LabHost:
    """The host of ``kind``. Raises UsageError for one that is not part of this release."""
    try:
        module = importlib.import_module(_MODULES[kind])
    except ModuleNotFoundError as error:
        if error.name != _MODULES[kind]:
            raise
        raise UsageError(f"there is no nested {kind.value} host in this release") from error
    host: LabHost = module.HOST
    return host
