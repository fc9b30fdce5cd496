"""A Linux guest with a shell on its console: Debian's kernel, the modules of what comes and goes, and a busybox.

It says ``ARMVM-GUEST-READY`` when the shell listens, on the first serial port. What is typed is not said back; a line
that ends with ``; echo DONE-$((1+1))`` can so be told from its echo in any case.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

from armvm.disk.raw import RawDisk
from armvm.disk.storage import MemoryDisk
from armvm.efi import EfiProgram, read_program
from armvm.execution import ExecutionState
from armvm.image.uki import build_uki
from armvm.probe.modules import find_kernel_modules, read_module
from tools.boot_images import MIB, READY, esp_image
from tools.guest_parts import busybox
from tools.kernels import debian_kernel
from tools.tiny_guest import newc

_MODULES = (
    *("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_scsi", "sd_mod", "virtio_console", "nvme"),
    *("efivarfs",),
)

_INIT = """#!/busybox sh
/busybox mkdir -p /sys /tmp /proc /dev /bin
/busybox --install -s /bin
export PATH=/bin PS1=
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in $(cat /modules.list); do insmod /$module.ko; done
mount -t efivarfs efivarfs /sys/firmware/efi/efivars
stty -echo -icrnl < /dev/console 2>/dev/null
stty icrnl < /dev/console
echo 0 > /proc/sys/kernel/printk
echo READY_LINE
while :; do setsid sh -i < /dev/console > /dev/console 2>&1; done
"""


def shell_image(path: Path, state: ExecutionState = ExecutionState.AARCH64) -> Path:
    """A raw image at ``path`` that boots it; a link to one that is made once and kept in the user's cache."""
    digest = hashlib.sha256(f"{_INIT}{_MODULES}{Path(__file__).read_text()}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "armvm" / "test-packages"
    kept = cache / f"shell-{state.value}-{digest}.img"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"shell-{state.value}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            unfinished = kept.with_suffix(".part")
            _make(unfinished, state)
            unfinished.chmod(0o444)
            unfinished.replace(kept)
    path.symlink_to(kept)
    return path


def _make(path: Path, state: ExecutionState) -> None:
    kernel = debian_kernel(state)
    modules = [one for one in find_kernel_modules(kernel.modules, _MODULES) if one.path is not None]
    files = {"init": _INIT.replace("READY_LINE", READY).encode(), "busybox": busybox(state)}
    files["modules.list"] = "\n".join(one.name for one in modules).encode()
    files |= {f"{one.name}.ko": read_module(one.path) for one in modules if one.path is not None}
    initrd = MemoryDisk(newc(files), name="initrd")
    words = "console=ttyAMA0 panic=-1 quiet"
    if state is ExecutionState.AARCH32:
        words += " maxcpus=1"
    with RawDisk(kernel.image) as linux:
        program = build_uki(read_program(EfiProgram.STUB, state), linux=linux, initrd=[initrd], cmdline=words)
        content = program.read(0, program.size_bytes)
    size = max(48 * MIB, len(content) + 16 * MIB) // MIB * MIB
    esp_image(path, {f"EFI/BOOT/{state.boot_file}": content}, size_bytes=size)
