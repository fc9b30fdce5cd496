"""Finds a Linux kernel for the Linux probe: a file, a folder or a package that is given, or one in a well-known place.

$ARMVM_HOME or $XDG_DATA_HOME/armvm
└── kernels/aarch64|aarch32/NAME/     a kernel each: what Debian's linux-image packages unpack to, or the same by hand
    ├── boot/vmlinuz-RELEASE
    └── lib/modules/RELEASE/
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import InputError, UsageError
from armvm.execution import ExecutionState
from armvm.printable import printable
from armvm.units import MIB

_MOST_IMAGE_BYTES = 256 * MIB
_HEAD_BYTES = 4096
_GZIP = b"\x1f\x8b"
_PE_POINTER = slice(0x3C, 0x40)
_MACHINES = {"aarch64": ExecutionState.AARCH64, "arm64": ExecutionState.AARCH64}
_IMAGES = ("boot/vmlinuz-*", "boot/vmlinux-*", "vmlinuz*", "Image*", "zImage*", "linux")
_MODULES = ("lib/modules/*", "usr/lib/modules/*", "modules")


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A kernel image, the ``lib/modules/RELEASE`` that belongs to it (None without modules), and where it was found."""

    image: Path
    modules: Path | None
    source: str


def find_guest_kernel(
    state: ExecutionState, *, home: Path, kernel: Path | None = None, modules: Path | None = None
) -> GuestKernel | None:
    """The kernel that is given, else the newest in ``home``'s folder of kernels, else the running one of an ARM host.

    ``kernel`` is an image, the folder of an unpacked package, or a Debian package (unpacked once, into ``home``);
    ``modules`` replaces the modules that belong to it. ``home`` is the folder of everything that armvm keeps. None
    when there is none. Raises InputError when what is given is no kernel, or one that is not for ``state``, and
    UsageError for modules without a kernel.
    """
    if kernel is None:
        if modules is not None:
            raise UsageError("modules are given without the kernel that they belong to")
        return _kept(state, home) or _running(state)
    found = _given(state, kernel, home)
    _require_state(found.image, state)
    return GuestKernel(found.image, modules, found.source) if modules is not None else found


def open_kernel(path: Path) -> Disk:
    """The kernel's image as firmware can start it: one that is compressed with gzip as a whole is decompressed.

    Raises InputError when it cannot be read or is larger than 256 MiB.
    """
    disk = RawDisk(path)
    if disk.size_bytes < len(_GZIP) or disk.read(0, len(_GZIP)) != _GZIP:
        return disk
    disk.close()
    content = _gunzip(path, _MOST_IMAGE_BYTES + 1)
    if len(content) > _MOST_IMAGE_BYTES:
        raise InputError("larger than any kernel", subject=str(path), expected=f"at most {_MOST_IMAGE_BYTES} bytes")
    return MemoryDisk(content, name=str(path))


def kernel_state(path: Path) -> ExecutionState | None:
    """The execution state that an EFI-bootable kernel is for, by its PE header; None for any other file.

    Raises InputError when it cannot be read.
    """
    with RawDisk(path) as disk:
        head = disk.read(0, min(disk.size_bytes, _HEAD_BYTES))
    if head[:2] == _GZIP:
        head = _gunzip(path, _HEAD_BYTES)
    start = int.from_bytes(head[_PE_POINTER], "little")
    if head[:2] != b"MZ" or head[start : start + 4] != b"PE\0\0" or start + 6 > len(head):
        return None
    machine = int.from_bytes(head[start + 4 : start + 6], "little")
    return next((state for state in ExecutionState if state.pe_machine == machine), None)


def _gunzip(path: Path, most_bytes: int) -> bytes:
    import gzip
    import zlib

    try:
        with gzip.open(path) as file:
            return file.read(most_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be decompressed: {printable(str(error))}", subject=str(path)) from error


def _given(state: ExecutionState, kernel: Path, home: Path) -> GuestKernel:
    if kernel.is_dir():
        found = _in_folder(kernel, state)
        if found is None:
            raise InputError(
                f"no kernel for {state.label} in this folder",
                subject=str(kernel),
                expected="boot/vmlinuz-RELEASE and lib/modules/RELEASE, as in an unpacked package",
            )
        return found
    if kernel.suffix == ".deb":
        from armvm.probe.debian import unpack_kernel_package

        folder = home / "kernels" / state.value / kernel.stem
        if not folder.is_dir():
            unpack_kernel_package(kernel, folder)
        found = _in_folder(folder, state)
        if found is None:
            raise InputError(f"no kernel for {state.label} in this package", subject=str(kernel))
        return GuestKernel(found.image, found.modules, str(kernel))
    return GuestKernel(kernel, _modules_beside(kernel), str(kernel))


def _require_state(image: Path, state: ExecutionState) -> None:
    found = kernel_state(image)
    if found is state:
        return
    raise InputError(
        f"no kernel that firmware can start in {state.label}",
        subject=str(image),
        found=f"a kernel for {found.label}" if found else "no EFI program",
        hint="Debian's are in the packages linux-image-cloud-arm64 and linux-image-armmp-lpae"
        " (the packages of that name only point to the one with the version in its name)",
    )


def _modules_beside(image: Path) -> Path | None:
    """``/boot/vmlinuz-RELEASE`` → ``/lib/modules/RELEASE``, where that exists."""
    release = image.name.partition("-")[2]
    for base in (image.parent.parent, image.parent):
        for folder in ("lib/modules", "usr/lib/modules"):
            if release and (base / folder / release).is_dir():
                return base / folder / release
    return None


def _kept(state: ExecutionState, home: Path) -> GuestKernel | None:
    """The newest of the kernels that are kept, by the numbers in their names."""
    folder = home / "kernels" / state.value
    try:
        folders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return None
    for candidate in sorted(folders, key=lambda path: _natural(path.name), reverse=True):
        found = _in_folder(candidate, state)
        if found is not None:
            return found
    return None


def _in_folder(folder: Path, state: ExecutionState) -> GuestKernel | None:
    for pattern in _IMAGES:
        for image in sorted(folder.glob(pattern), key=lambda path: _natural(path.name), reverse=True):
            if image.is_file() and kernel_state(image) is state:
                return GuestKernel(image, _modules_beside(image) or _only_modules(folder), str(folder))
    return None


def _only_modules(folder: Path) -> Path | None:
    found = [path for pattern in _MODULES for path in folder.glob(pattern) if path.is_dir()]
    return found[0] if len(found) == 1 else None


def _running(state: ExecutionState) -> GuestKernel | None:
    """The kernel of this very machine, when it is for ``state`` and can be read (Ubuntu's is for root only)."""
    machine, release = platform.machine(), platform.release()
    host = _MACHINES.get(machine) or (ExecutionState.AARCH32 if machine.startswith("armv7") else None)
    images = (Path(f"/boot/vmlinuz-{release}"), Path(f"/lib/modules/{release}/vmlinuz"))
    image = next((path for path in images if os.access(path, os.R_OK)), None)
    if host is not state or image is None or kernel_state(image) is not state:
        return None
    modules = Path("/lib/modules", release)
    return GuestKernel(image, modules if modules.is_dir() else None, "this machine's own kernel")


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``6.1.0-10`` behind ``6.1.0-9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name[:255])]
