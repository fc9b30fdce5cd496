"""Machine values for tests that start none."""

from __future__ import annotations

from pathlib import Path

from armvm.execution import ExecutionState
from armvm.firmware.discovery import Firmware, FirmwareKind
from armvm.machine.definition import DiskDevice, Machine
from armvm.units import GIB


def firmware_of(kind: FirmwareKind = FirmwareKind.PFLASH, *, keeps_variables: bool = True) -> Firmware:
    """A firmware whose file need not exist."""
    return Firmware(
        name="test",
        kind=kind,
        code=Path("/fw/code.fd"),
        code_format="raw",
        vars_template=None,
        vars_format="raw",
        source="test",
        keeps_variables=keeps_variables,
    )


def machine_of(state: ExecutionState = ExecutionState.AARCH64, disk: Path = Path("/images/disk.raw")) -> Machine:
    """The default machine on one raw disk."""
    return Machine(state=state, firmware=firmware_of(), disks=(DiskDevice(disk, "raw"),), memory_bytes=GIB)
