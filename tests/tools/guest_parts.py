"""What a small real guest is made of: Debian's kernel, its modules, BusyBox, an initial RAM disk, GRUB.

The initial RAM disk does what initramfs-tools' does: it loads the drivers that it has, finds the root by UUID, LABEL or
device name, and hands over to its init.
"""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from armvm.execution import ExecutionState
from armvm.probe.modules import ModuleFile, find_kernel_modules, read_module
from tools.foreign_packages import foreign_package
from tools.kernels import Kernel, debian_kernel

BOOT_MODULES = (
    *("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "virtio_balloon"),
    *("xen_blkfront", "xen_netfront"),
)
"""The drivers that the specification names and that Debian's kernels have as modules."""
_FILE_SYSTEM = ("crc32c_generic", "ext4")  # built into some of Debian's kernels, modules of others
_ROOT_MODULES = (*BOOT_MODULES, *_FILE_SYSTEM, "vfat", "nls_ascii", "nls_cp437", "virtio_rng", "virtio_scsi")
_ARCHITECTURES = {ExecutionState.AARCH64: "arm64", ExecutionState.AARCH32: "armhf"}
_APPLETS = (
    *(
        "sh",
        "cat",
        "echo",
        "findfs",
        "init",
        "login",
        "getty",
        "ls",
        "mount",
        "mkdir",
        "modprobe",
        "poweroff",
        "reboot",
    ),
    *("sed", "sleep", "swapon", "switch_root", "sync", "umount", "uname"),
)
_GRUB_MODULES = (
    *("part_gpt", "fat", "ext2", "search", "search_fs_uuid", "search_label", "configfile", "normal", "linux", "echo"),
    *("test", "gzio", "sleep", "reboot", "halt", "all_video", "minicmd", "ls", "cat"),
)

_INIT = """\
#!/bin/sh
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
ROOT= ; resume=
. /conf/param.conf
for word in $(cat /proc/cmdline); do
    case $word in root=*) ROOT=${word#root=} ;; esac
done
while read -r module; do modprobe -q "$module"; done < /conf/modules
ROOT=$(echo "$ROOT" | sed 's,^/dev/disk/by-uuid/,UUID=,; s,^/dev/disk/by-label/,LABEL=,')
tries=0
while [ $tries -lt 20 ]; do
    case $ROOT in
        UUID=*|LABEL=*) device=$(findfs "$ROOT" 2>/dev/null) ;;
        *) device=$ROOT ;;
    esac
    [ -b "$device" ] && break
    sleep 0.1
    tries=$((tries + 1))
done
if mount -t ext4 -o ro "$device" /root; then
    mount -o move /dev /root/dev
    umount /proc /sys
    exec switch_root /root /sbin/init
fi
echo "ALERT!  $ROOT does not exist.  Dropping to a shell!"
poweroff -f
"""


@dataclass(frozen=True)
class GuestKernel:
    """Debian's kernel for an execution state. ``config`` is its build configuration."""

    state: ExecutionState
    kernel: Kernel
    config: Path

    @property
    def release(self) -> str:
        """What ``uname -r`` says."""
        return self.kernel.modules.name

    @property
    def architecture(self) -> str:
        """Debian's name for it: arm64, armhf."""
        return _ARCHITECTURES[self.state]


@cache
def guest_kernel(state: ExecutionState) -> GuestKernel:
    """The kernel of the small guests."""
    kernel = debian_kernel(state)
    return GuestKernel(state, kernel, kernel.image.with_name(f"config-{kernel.modules.name}"))


@cache
def busybox(state: ExecutionState) -> bytes:
    """BusyBox, linked statically."""
    package = foreign_package(_ARCHITECTURES[state], "busybox-static")
    return next(path for path in (package / "bin/busybox", package / "usr/bin/busybox") if path.is_file()).read_bytes()


def applet_links() -> dict[str, str]:
    """The links to BusyBox: path to target."""
    return {f"bin/{name}": "busybox" for name in _APPLETS} | {
        f"sbin/{name}": "../bin/busybox" for name in ("init", "modprobe", "getty", "poweroff", "reboot")
    }


def module_tree(state: ExecutionState, *, root: bool, without: Collection[str] = ()) -> dict[str, bytes]:
    """The files below lib/modules/RELEASE of the root, or of the initial RAM disk; ``without`` these modules."""
    guest = guest_kernel(state)
    folder = guest.kernel.modules
    modules = _modules(state, root=root)
    kept = [each for each in modules if each.name not in without]
    files = {_module_path(folder, each): read_module(each.path) for each in kept if each.path is not None}
    places = {each.name: _module_path(folder, each) for each in modules}
    lines = []
    for each in kept:
        needed = reversed(_needed(state, each.name))
        lines.append(f"{places[each.name]}: {' '.join(places[name] for name in needed)}".rstrip() + "\n")
    files["modules.dep"] = "".join(lines).encode()
    for name in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
        if (folder / name).is_file() and (root or name != "modules.builtin.modinfo"):
            files[name] = (folder / name).read_bytes()
    return files


@cache
def _modules(state: ExecutionState, *, root: bool) -> tuple[ModuleFile, ...]:
    found = find_kernel_modules(
        guest_kernel(state).kernel.modules, _ROOT_MODULES if root else (*BOOT_MODULES, *_FILE_SYSTEM)
    )
    return tuple(each for each in found if each.path is not None)


@cache
def _needed(state: ExecutionState, name: str) -> tuple[str, ...]:
    """What a module needs, the first to be loaded first."""
    found = find_kernel_modules(guest_kernel(state).kernel.modules, [name])
    return tuple(each.name for each in found if each.name != name)


def _module_path(folder: Path, module: ModuleFile) -> str:
    assert module.path is not None
    return module.path.relative_to(folder).as_posix().partition(".ko")[0] + ".ko"


def initrd(state: ExecutionState, *, without: Collection[str] = (), extra: Mapping[str, bytes] | None = None) -> bytes:
    """The initial RAM disk, gzip-compressed; ``without`` these modules, with ``extra`` files in place of its own."""
    tree = module_tree(state, root=False, without=without)
    files: dict[str, tuple[int, bytes]] = {
        "init": (0o100755, _INIT.encode()),
        "bin/busybox": (0o100755, busybox(state)),
        "conf/modules": (0o100644, "".join(f"{name}\n" for name in (*BOOT_MODULES, *_FILE_SYSTEM)).encode()),
        "conf/param.conf": (0o100644, b""),
        "conf/initramfs.conf": (0o100644, b"MODULES=most\nBUSYBOX=y\nCOMPRESS=gzip\n"),
    }
    files |= {path: (0o120777, target.encode()) for path, target in applet_links().items()}
    base = f"usr/lib/modules/{guest_kernel(state).release}"
    files |= {f"{base}/{path}": (0o100644, content) for path, content in tree.items()}
    files |= {path: (0o100644, content) for path, content in (extra or {}).items()}
    files["lib"] = (0o120777, b"usr/lib")
    return gzip.compress(newc(files, folders=("dev", "proc", "sys", "root")), compresslevel=1, mtime=0)


def newc(files: Mapping[str, tuple[int, bytes]], folders: Sequence[str] = ()) -> bytes:
    """A cpio archive as Linux unpacks it (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    above = {parent.as_posix() for path in files for parent in Path(path).parents} - {"."}
    members = dict.fromkeys(sorted(above | set(folders)), (0o040755, b"")) | dict(sorted(files.items()))
    parts = []
    for number, (path, (mode, content)) in enumerate([*members.items(), ("TRAILER!!!", (0, b""))]):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path) + 1, 0)
        head = b"070701" + "".join(f"{field:08x}" for field in fields).encode() + path.encode() + b"\0"
        parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


@cache
def grub(state: ExecutionState) -> bytes:
    """Debian's GRUB, its prefix /EFI/debian: the monolithic program of arm64; armhf's is put together here."""
    if state is ExecutionState.AARCH64:
        package = foreign_package("arm64", "grub-efi-arm64-bin", "grub-efi-arm64-unsigned")
        return (package / "usr/lib/grub/arm64-efi/monolithic/grubaa64.efi").read_bytes()
    if shutil.which("grub-mkimage") is None:
        pytest.fail("no grub-mkimage on this machine: ./test installs grub-common")
    folder = foreign_package("armhf", "grub-efi-arm-bin") / "usr/lib/grub/arm-efi"
    command = ["grub-mkimage", "-O", "arm-efi", "-d", str(folder), "-p", "/EFI/debian"]
    with tempfile.NamedTemporaryFile() as made:  # it cannot write to a pipe
        subprocess.run([*command, "-o", made.name, *_GRUB_MODULES], check=True, capture_output=True, timeout=60)
        return Path(made.name).read_bytes()


@cache
def shim() -> bytes:
    """Debian's shim for AArch64, unsigned."""
    return (foreign_package("arm64", "shim-unsigned") / "usr/lib/shim/shimaa64.efi").read_bytes()


def swap_area(size_bytes: int, uuid: bytes) -> bytes:
    """The first page of a swap area with pages of 4 KiB (Linux, include/linux/swap.h, union swap_header)."""
    page = bytearray(4096)
    struct.pack_into("<III16s16s", page, 1024, 1, size_bytes // 4096 - 1, 0, uuid, b"")
    page[4086:] = b"SWAPSPACE2"
    return bytes(page)


def without_symbol(text: str, *symbols: str) -> str:
    """A kernel's configuration with these symbols not set."""
    return "".join(_unset(line, symbols) for line in text.splitlines(keepends=True))


def _unset(line: str, symbols: Sequence[str]) -> str:
    name = line.partition("=")[0]
    return f"# {name} is not set\n" if name.removeprefix("CONFIG_") in symbols else line


def lines_without(text: str, *words: str) -> str:
    """``text`` without the lines that hold one of ``words``."""
    return "".join(_lines_without(text, words))


def _lines_without(text: str, words: Sequence[str]) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        if not any(word in line for word in words):
            yield line
