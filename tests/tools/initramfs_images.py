"""Initial RAM disks, kernels and guests for tests: cpio archives written here, kernels that hold nothing but words."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from armvm.disk.files import FileSystem, MemoryFileSystem
from armvm.disk.storage import MemoryDisk
from armvm.execution import ExecutionState
from armvm.guest.bootable import BootableKernel, KernelCache, load_kernel
from armvm.guest.facts import BootEntry
from tools.kernel_modules import module

RELEASE = "6.1.0-1-test"
CONFIG = {
    **dict.fromkeys(("ARM64", "PCI", "SERIAL_AMBA_PL011", "SERIAL_AMBA_PL011_CONSOLE", "HVC_XEN", "XEN"), "y"),
    **dict.fromkeys(("ARM_GIC", "ARM_GIC_V3", "ARM_GIC_V3_ITS", "RTC_DRV_EFI", "XEN_BALLOON", "ACPI"), "y"),
    **dict.fromkeys(("VIRTIO_PCI", "VIRTIO_MMIO", "VIRTIO_BLK", "VIRTIO_NET", "VIRTIO_CONSOLE"), "m"),
    **dict.fromkeys(("VIRTIO_BALLOON", "XEN_BLKDEV_FRONTEND", "XEN_NETDEV_FRONTEND"), "m"),
}
"""The configuration of a guest that has everything."""

MODULES = {
    "drivers/virtio/virtio_pci_modern_dev": "",
    "drivers/virtio/virtio_pci": "virtio_pci_modern_dev",
    "drivers/virtio/virtio_mmio": "",
    "drivers/virtio/virtio_balloon": "",
    "drivers/block/virtio_blk": "",
    "drivers/block/xen-blkfront": "",
    "drivers/net/net_failover": "",
    "drivers/net/virtio_net": "net_failover",
    "drivers/net/xen-netfront": "",
    "drivers/char/virtio_console": "",
}
"""Its modules, and what each needs."""

EARLY = ("virtio_pci_modern_dev", "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console", "xen-blkfront")
"""Those of them that are in its initial RAM disk."""


def cpio_entry(
    name: str, content: bytes = b"", *, mode: int = 0o100644, inode: int = 1, links: int = 1, magic: bytes = b"070701"
) -> bytes:
    """One entry of a newc archive (cpio(5)), padded."""
    raw = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(raw), 0)
    header = magic + b"".join(b"%08X" % value for value in fields)
    head = header + raw
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


TRAILER = cpio_entry("TRAILER!!!", mode=0)


def cpio(files: Mapping[str, bytes | str], *, magic: bytes = b"070701") -> bytes:
    """An archive of ``files``: path without ``/`` at its front → content, or (text) a link's target; folders first."""
    folders = sorted({"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)})
    entries = [cpio_entry(folder, mode=0o040755, magic=magic) for folder in folders]
    for number, (path, content) in enumerate(files.items()):
        if isinstance(content, str):
            entries.append(cpio_entry(path, content.encode(), mode=0o120777, magic=magic))
        else:
            entries.append(cpio_entry(path, content, inode=number + 2, magic=magic))
    return b"".join(entries) + TRAILER


def config_text(values: Mapping[str, str]) -> bytes:
    """A kernel configuration; what is ``n`` is written as Kconfig does."""
    lines = ["# Linux/arm64 6.1.0 Kernel Configuration"]
    lines += [
        f"# CONFIG_{key} is not set" if value == "n" else f"CONFIG_{key}={value}" for key, value in values.items()
    ]
    return ("\n".join(lines) + "\n").encode()


def ikconfig(text: bytes) -> bytes:
    """A configuration as CONFIG_IKCONFIG puts it into a kernel (Linux, kernel/configs.c)."""
    return b"IKCFG_ST" + gzip.compress(text, mtime=0) + b"IKCFG_ED"


def banner(release: str = RELEASE) -> bytes:
    """The line that a kernel begins its log with."""
    return f"Linux version {release} (a@b) (gcc 12) #1 SMP\n\0".encode()


def image(*words: bytes, release: str | None = RELEASE) -> bytes:
    """An arm64 Image that holds nothing but words."""
    head = bytearray(64)
    head[:2] = b"MZ"
    head[0x38:0x3C] = b"ARM\x64"
    return bytes(head) + bytes(4096) + (banner(release) if release else b"") + b"\0".join(words) + bytes(512)


def zimage(packed: bytes) -> bytes:
    """An arm zImage: a decompressor of zeros, and the packed kernel behind it."""
    head = bytearray(4096)
    struct.pack_into("<III", head, 0x24, 0x016F2818, 0, 4096 + len(packed))
    return bytes(head) + packed


def zboot(packed: bytes, name: str, machine: int = 0xAA64) -> bytes:
    """An EFI zboot image (Linux, drivers/firmware/efi/libstub/zboot-header.S)."""
    head = bytearray(512)
    struct.pack_into("<4s4sII8x32s", head, 0, b"MZ\0\0", b"zimg", 512, len(packed), name.encode())
    struct.pack_into("<I", head, 0x3C, 0x40)
    struct.pack_into("<4sH", head, 0x40, b"PE\0\0", machine)
    return bytes(head) + packed


def module_files(names: Mapping[str, str], *, release: str = RELEASE, base: str = "lib/modules") -> dict[str, bytes]:
    """Module files below ``base``, without any list of them."""
    return {
        f"{base}/{release}/kernel/{path}.ko": module("license=GPL", f"depends={needs}") for path, needs in names.items()
    }


def modules_dep(names: Mapping[str, str]) -> bytes:
    """``modules.dep`` for them (each needs one at most, which needs none)."""
    paths = {path.rpartition("/")[2].replace("-", "_"): f"kernel/{path}.ko" for path in (*MODULES, *names)}
    return "".join(
        f"kernel/{path}.ko:{''.join(f' {paths[n]}' for n in needs.split(',') if n)}\n" for path, needs in names.items()
    ).encode()


@dataclass
class Guest:
    """A guest with initramfs-tools that has every driver; tests take things away from it before they load it."""

    config: dict[str, str] = field(default_factory=lambda: dict(CONFIG))
    early: dict[str, str] = field(
        default_factory=lambda: {path: needs for path, needs in MODULES.items() if path.rpartition("/")[2] in EARLY}
    )
    modules: dict[str, str] = field(default_factory=lambda: dict(MODULES))
    initrd_files: dict[str, bytes | str] = field(default_factory=lambda: {"conf/initramfs.conf": b"MODULES=most\n"})
    root_files: dict[str, bytes] = field(default_factory=lambda: {"usr/sbin/update-initramfs": b"#!/bin/sh\n"})
    command_line: str | None = "root=UUID=1234 ro"
    kernel: bytes = field(default_factory=image)
    kernel_name: str = f"/boot/vmlinuz-{RELEASE}"
    initrd_release: str = RELEASE
    with_root: bool = True
    with_config: bool = True
    with_initrd: bool = True
    with_lists: bool = True
    state: ExecutionState = ExecutionState.AARCH64

    def initrd(self) -> bytes:
        """Its initial RAM disk."""
        files = dict(self.initrd_files)
        files |= module_files(self.early, release=self.initrd_release)
        if self.with_lists:
            files[f"lib/modules/{self.initrd_release}/modules.dep"] = modules_dep(MODULES)
        return cpio(files)

    def root(self) -> FileSystem | None:
        """Its root file system."""
        if not self.with_root:
            return None
        files = dict(self.root_files)
        if self.modules:
            files |= module_files(self.modules)
            files[f"lib/modules/{RELEASE}/modules.dep"] = modules_dep(self.modules)
        if self.with_config:
            files[f"boot/config-{RELEASE}"] = config_text(self.config)
        return MemoryFileSystem(files, name="partition 2")

    def entry(self, title: str = "Debian GNU/Linux", *, default: bool = True) -> BootEntry:
        """What its boot menu says."""
        initrd = (("partition 2, /boot/initrd.img", MemoryDisk(self.initrd(), name="initrd")),)
        return BootEntry(
            title,
            self.state,
            MemoryDisk(self.kernel, name="kernel"),
            f"partition 2, {self.kernel_name}",
            initrd if self.with_initrd else (),
            self.command_line,
            default=default,
        )

    def load(
        self, title: str = "Debian GNU/Linux", *, default: bool = True, cache: KernelCache | None = None
    ) -> BootableKernel:
        """The kernel as the checks get it."""
        root = self.root()
        return load_kernel(
            self.entry(title, default=default), root=root, boot=[root] if root is not None else [], cache=cache
        )
