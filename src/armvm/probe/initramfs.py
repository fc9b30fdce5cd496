"""The Linux probe's initial RAM disk: the probe as /init, the modules that it loads, nothing else; reproducible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from armvm.disk.composed import ComposedDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.errors import InputError, MissingError, UsageError
from armvm.execution import ExecutionState
from armvm.printable import printable
from armvm.probe.modules import ModuleFile, read_module
from armvm.units import MIB, align_up
from armvm.version import __version__

WANTED_MODULES = (
    *("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_scsi", "sd_mod"),
    *("virtio_balloon", "virtio_rng", "xen_blkfront", "xen_netfront", "nvme", "rtc_efi", "rtc_pl031", "efivarfs"),
)
"""The drivers that the probe has to do with; ``find_kernel_modules`` leaves out those that the kernel has built in."""

_MOST_BYTES = 256 * MIB
_ALIGNMENT = 4
_FOLDER, _FILE, _PROGRAM, _DEVICE = 0o040755, 0o100644, 0o100755, 0o020600
_CONSOLE = (5, 1)
"""/dev/console (Linux, Documentation/admin-guide/devices.txt)."""


def linux_probe(state: ExecutionState) -> bytes:
    """The probe's program for ``state``. Raises MissingError when this copy of armvm was not built."""
    path = Path(__file__).parent / "programs" / f"linux-probe-{state.value}"
    if not path.is_file():
        raise MissingError(
            f"the Linux program {path.name} was not built",
            component=path.name,
            hint="install armvm anew: pip install --force-reinstall armvm (in a source tree: pip install -e .)",
        )
    return path.read_bytes()


def build_initramfs(
    state: ExecutionState, *, modules: Sequence[ModuleFile] = (), extra: Mapping[str, bytes] | None = None
) -> Disk:
    """The probe's initial RAM disk, uncompressed, with ``modules`` in the order in which they are to be loaded.

    Compressed modules are decompressed: not every kernel can do that itself. ``extra`` are more files by their path
    below the root. Raises InputError when a module cannot be read or the whole would be larger than 256 MiB.
    """
    files = {"init": (_PROGRAM, linux_probe(state)), "version": (_FILE, f"{__version__}\n".encode())}
    for path, content in (extra or {}).items():
        files[_checked_path(path, files)] = (_FILE, content)
    for module in modules:
        if module.path is not None:
            files[f"modules/{module.name}.ko"] = (_FILE, read_module(module.path))
        if sum(len(content) for _, content in files.values()) > _MOST_BYTES:
            raise InputError(f"the modules take more than {_MOST_BYTES // MIB} MiB", subject="initial RAM disk")
    order = "".join(f"{module.name}\n" for module in modules)
    files["modules/load.list"] = (_FILE, order.encode())
    return _archive(files)


def _checked_path(path: str, files: Mapping[str, object]) -> str:
    parts = path.split("/")
    if path in files or parts[0] in {"modules", "dev", "proc", "sys"} or not all(parts) or {".", ".."} & set(parts):
        raise UsageError(f"not a path for a file of the initial RAM disk: {printable(path)}")
    return path


def _archive(files: Mapping[str, tuple[int, bytes]]) -> Disk:
    """A cpio archive in the format "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst)."""
    folders = {"dev", "proc", "sys"}
    for path in files:
        parts = path.split("/")[:-1]
        folders |= {"/".join(parts[: depth + 1]) for depth in range(len(parts))}
    entries = [_head(number, path, _FOLDER) for number, path in enumerate(sorted(folders), 1)]
    entries.append(_head(len(entries) + 1, "dev/console", _DEVICE, device=_CONSOLE))
    pieces: list[tuple[int, Disk]] = []
    position = 0
    for content in entries:
        pieces.append((position, MemoryDisk(content)))
        position += len(content)
    for number, path in enumerate(sorted(files), len(entries) + 1):
        mode, content = files[path]
        head = _head(number, path, mode, size_bytes=len(content))
        pieces += [(position, MemoryDisk(head)), (position + len(head), MemoryDisk(content))]
        position = align_up(position + len(head) + len(content), _ALIGNMENT)
    trailer = _head(0, "TRAILER!!!", 0)
    pieces.append((position, MemoryDisk(trailer)))
    return ComposedDisk("initial RAM disk", position + len(trailer), pieces)


def _head(number: int, path: str, mode: int, *, size_bytes: int = 0, device: tuple[int, int] = (0, 0)) -> bytes:
    """An entry's header and name. Owners and times are zero, so that equal content gives equal bytes."""
    name = path.encode()
    links = 2 if mode == _FOLDER else 1
    fields = (number, mode, 0, 0, links, 0, size_bytes, 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name + b"\0"
    return head.ljust(align_up(len(head), _ALIGNMENT), b"\0")
