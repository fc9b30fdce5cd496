"""Variable stores that firmware left on the ESP, taken away; what else must not be in an image is only named."""

from __future__ import annotations

from armvm.disk.fat_edit import FatEditor
from armvm.errors import InputError
from armvm.image.contents import Esp
from armvm.printable import printable
from armvm.repair.workbench import Workbench

_VARIABLES = "image.no-variables"
_STORES = {"ubootefi.var": "U-Boot", "nvvars": "EDK2"}
"""In the root of an ESP (U-Boot, doc/develop/uefi; EDK2, PlatformBdsLib)."""


def remove_variables(bench: Workbench) -> None:
    """image.no-variables: ``ubootefi.var`` and ``NvVars``."""
    if not bench.wants(_VARIABLES):
        return
    for esp in bench.contents().esps:
        if esp.volume is not None:
            _remove(bench, esp)


def _remove(bench: Workbench, esp: Esp) -> None:
    assert esp.volume is not None  # noqa: S101 - the caller looked
    try:
        found = [e for e in esp.volume.entries() if e.name.lower() in _STORES and not e.is_directory]
        if not found:
            return
        editor = FatEditor(bench.volume(esp.partition), timestamp=bench.timestamp)
        for entry in found:
            editor.delete(entry.name)
            where = f"{esp.where}, \\{printable(entry.name)}"
            reason = f"{_STORES[entry.name.lower()]} left one machine's UEFI variables in the image"
            bench.did(_VARIABLES, where, "file removed", reason)
    except InputError as error:
        remedy = "mend the file system first; then `mdel -i IMAGE@@OFFSET ::/ubootefi.var`"
        bench.cannot(_VARIABLES, esp.where, error.message, remedy)
