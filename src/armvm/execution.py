"""The two execution states that the specification names, and what the UEFI specification derives from them."""

from __future__ import annotations

import enum


class ExecutionState(enum.Enum):
    """An execution state of the ARM architecture that a VM can be booted in."""

    AARCH64 = "aarch64"
    AARCH32 = "aarch32"

    @property
    def boot_file(self) -> str:
        """The name of the removable-media boot program (UEFI 2.10 §3.5.1.1)."""
        return "BOOTAA64.EFI" if self is ExecutionState.AARCH64 else "BOOTARM.EFI"

    @property
    def removable_path(self) -> str:
        """The removable-media path with backslashes, as the UEFI specification writes it (UEFI 2.10 §3.5.1.1)."""
        return f"\\EFI\\BOOT\\{self.boot_file}"

    @property
    def pe_machine(self) -> int:
        """The PE/COFF machine type of its EFI programs (UEFI 2.10 §2.1.1)."""
        return 0xAA64 if self is ExecutionState.AARCH64 else 0x01C2

    @property
    def label(self) -> str:
        """Its name as Arm writes it."""
        return "AArch64" if self is ExecutionState.AARCH64 else "AArch32"
