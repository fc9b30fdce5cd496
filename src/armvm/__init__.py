"""armvm: one disk image, every ARM hypervisor.

``armvm.check_image("disk.qcow2").conforms`` says whether an image conforms; ``docs/library.md`` has more.
"""

from typing import TYPE_CHECKING, Any

from armvm.api import check_image, open_image, requirements
from armvm.version import __version__

if TYPE_CHECKING:
    from armvm.machines import AsyncMachine as AsyncMachine
    from armvm.machines import Machine as Machine

__all__ = ["AsyncMachine", "Machine", "__version__", "check_image", "open_image", "requirements"]


def __getattr__(name: str) -> Any:
    # What few importers want, and what costs most to load.
    if name in {"AsyncMachine", "Machine"}:
        from armvm import machines

        return getattr(machines, name)
    raise AttributeError(f"module 'armvm' has no attribute {name!r}")
