"""The EFI programs of armvm: C in ``efi/`` of the source tree, built for both states when the package is built."""

from __future__ import annotations

import enum
from pathlib import Path

from armvm.errors import MissingError
from armvm.execution import ExecutionState


class EfiProgram(enum.Enum):
    """A program that armvm brings with it for each execution state."""

    STUB = "stub"
    """The boot stub of unified kernel images."""
    PROBE = "probe"
    """What reports a virtual machine from inside (docs/probe-wire.md)."""


def program_path(program: EfiProgram, state: ExecutionState) -> Path:
    """Where the built program stands.

    Raises MissingError when this copy of armvm was not built (a source tree that was never installed).
    """
    path = Path(__file__).with_name(f"{program.value}-{state.value}.efi")
    if not path.is_file():
        raise MissingError(
            f"the EFI program {path.name} was not built",
            component=path.name,
            hint="install armvm anew: pip install --force-reinstall armvm (in a source tree: pip install -e .)",
        )
    return path


def read_program(program: EfiProgram, state: ExecutionState) -> bytes:
    """The built program's bytes. Raises MissingError when this copy of armvm was not built."""
    return program_path(program, state).read_bytes()
