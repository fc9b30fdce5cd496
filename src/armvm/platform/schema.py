"""What dtschema's ``dt-validate`` says of a device tree, where it is installed: a second opinion beside our rules."""

from __future__ import annotations

from pathlib import Path

from armvm.printable import printable
from armvm.process import ProgramError, find_program, run

_PROGRAM = "dt-validate"
_TIMEOUT_SECONDS = 60
_MOST_WARNINGS = 32
_NO_SCHEMA = "is not of type 'object', 'integer', 'array', 'boolean', 'null'"
"""What it says of a property that none of its schemas knows: dtschema alone has no bindings of devices."""


def schema_warnings(fdt: bytes) -> tuple[str, ...]:
    """The warnings of ``dt-validate`` on a device tree, at most 32; none where it is not installed or cannot go on."""
    if find_program(_PROGRAM) is None:
        return ()
    import tempfile

    with tempfile.TemporaryDirectory(prefix="armvm-") as folder:
        path = Path(folder) / "platform.dtb"
        path.write_bytes(fdt)
        try:
            said = run(_PROGRAM, [str(path)], timeout_seconds=_TIMEOUT_SECONDS, check=False).stderr
        except ProgramError:
            return ()
        head = f"{path}: "
        # A line that begins with a tab names the schema of the warning before it.
        warnings = [line.removeprefix(head) for line in said.splitlines() if line.startswith(head)]
    return tuple(printable(warning) for warning in warnings if _NO_SCHEMA not in warning)[:_MOST_WARNINGS]
