"""armvm: one disk image, every ARM hypervisor.

``armvm.check_image("disk.qcow2").conforms`` says whether an image conforms; ``docs/library.md`` has more.
"""

from typing import TYPE_CHECKING, Any

from armvm.api import check_image, open_image, requirements
from armvm.version import __version__

if TYPE_CHECKING:
    from armvm.machine.definition import Machine as Machine

__all__ = ["Machine", "__version__", "check_image", "open_image", "requirements"]


def __getattr__(name: str) -> Any:
    # A machine is what few importers want and what costs most to load.
    if name == "Machine":
        from armvm.machine.definition import Machine

        return Machine
    raise AttributeError(f"module 'armvm' has no attribute {name!r}")
