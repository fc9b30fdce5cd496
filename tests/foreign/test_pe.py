"""Real boot programs: read as pefile reads them, and found good, as they do boot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pefile  # type: ignore[import-untyped]
import pytest

from armvm.disk.raw import RawDisk
from armvm.execution import ExecutionState
from armvm.image.efi_application import check_efi_application
from armvm.image.pe import parse_pe
from tools.installer import Installer


def programs(installer: Installer) -> list[Path]:
    return [installer.kernel, *sorted(installer.kernel.parent.glob("*.efi"))]


@pytest.mark.parametrize("state", ExecutionState)
def test_the_programs_of_the_debian_installer(
    state: ExecutionState, installer: Callable[[ExecutionState], Installer]
) -> None:
    for path in programs(installer(state)):
        with RawDisk(path) as disk, pefile.PE(path, fast_load=True) as theirs:
            ours = parse_pe(disk)
            assert check_efi_application(ours, disk, state) == (), path
            header, optional = theirs.FILE_HEADER, theirs.OPTIONAL_HEADER
            assert (ours.machine, ours.characteristics) == (header.Machine, header.Characteristics)
            assert (ours.subsystem, ours.dll_characteristics) == (optional.Subsystem, optional.DllCharacteristics)
            assert (ours.entry_point_rva, ours.image_base) == (optional.AddressOfEntryPoint, optional.ImageBase)
            assert (ours.section_alignment, ours.file_alignment) == (optional.SectionAlignment, optional.FileAlignment)
            assert (ours.size_of_image, ours.size_of_headers) == (optional.SizeOfImage, optional.SizeOfHeaders)
            assert [(d.address, d.size_bytes) for d in ours.directories] == [
                (directory.VirtualAddress, directory.Size) for directory in optional.DATA_DIRECTORY
            ]
            assert [(s.name, s.virtual_address, s.virtual_size, s.raw_offset, s.raw_size) for s in ours.sections] == [
                (
                    s.Name.rstrip(b"\0").decode(),
                    s.VirtualAddress,
                    s.Misc_VirtualSize,
                    s.PointerToRawData,
                    s.SizeOfRawData,
                )
                for s in theirs.sections
            ]
