"""A Linux guest that is asked what devices it sees: Debian's kernel and drivers, BusyBox, a shell on the console."""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from typing import Self

import pytest

from armvm.disk.storage import MemoryDisk
from armvm.efi import EfiProgram, read_program
from armvm.errors import MachineError
from armvm.execution import ExecutionState
from armvm.image.uki import build_uki
from armvm.machine.backend import ConsoleOutput, Ended
from armvm.machine.qemu.session import QemuSession
from armvm.probe.modules import find_kernel_modules, read_module
from tools.boot_images import MIB, esp_image
from tools.guest_parts import busybox, newc
from tools.kernels import ARM64, debian_kernel

_STATE = ExecutionState.AARCH64
_DRIVERS = (
    *("virtio_pci", "virtio_mmio", "virtio_blk", "nvme", "virtio_scsi", "sd_mod", "virtio_net", "virtio_console"),
    *("virtio_rng", "virtio_balloon", "9pnet_virtio", "9p", "virtiofs", "i6300esb", "tpm_tis", "virtio_gpu"),
    *("xhci_pci", "hid_generic", "usbhid", "evdev", "af_packet"),
)
_APPLETS = ("sh", "cat", "echo", "insmod", "ip", "ls", "mkdir", "mount", "poweroff", "sleep", "grep", "head", "dmesg")
_INIT = """\
#!/bin/sh
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for each in $(cat /modules); do insmod /drivers/$each; done
cd /
exec sh -c 'stty -echo 2>/dev/null; PS1= ; echo GUEST-IS-UP; exec sh'
"""


def device_guest_image(path: Path) -> Path:
    """A disk image at ``path`` that boots it, on AArch64."""
    kernel = debian_kernel(_STATE, ARM64)
    modules = [each for each in find_kernel_modules(kernel.modules, _DRIVERS) if each.path is not None]
    files: dict[str, tuple[int, bytes]] = {
        "init": (0o100755, _INIT.encode()),
        "modules": (0o100644, "".join(f"{each.name}.ko\n" for each in modules).encode()),
        "bin/busybox": (0o100755, busybox(_STATE)),
    }
    files |= {f"bin/{name}": (0o120777, b"busybox") for name in (*_APPLETS, "stty")}
    files |= {f"drivers/{each.name}.ko": (0o100644, read_module(each.path)) for each in modules if each.path}
    initrd = gzip.compress(newc(files, folders=("dev", "proc", "sys", "mnt")), compresslevel=1, mtime=0)
    program = build_uki(
        read_program(EfiProgram.STUB, _STATE),
        linux=MemoryDisk(kernel.image.read_bytes(), name="kernel"),
        initrd=[MemoryDisk(initrd, name="initrd")],
        cmdline="console=ttyAMA0 quiet panic=-1",
    )
    size = max(48 * MIB, program.size_bytes + 16 * MIB) // MIB * MIB
    name = f"EFI/BOOT/{_STATE.boot_file}"
    return esp_image(path, {name: program.read(0, program.size_bytes)}, size_bytes=size)


class DeviceGuest:
    """The guest in a machine that was started on the image. Every wait has a deadline."""

    def __init__(self, session: QemuSession) -> None:
        self.session = session
        self.said = ""
        self._commands = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.end()

    def wait_for(self, word: str, timeout_seconds: float = 90.0) -> str:
        """Everything that was said before ``word``, which is taken out with it."""
        deadline = time.monotonic() + timeout_seconds
        while word not in self.said:
            left = deadline - time.monotonic()
            if left <= 0:
                pytest.fail(f"the guest never said {word!r}: {self.said[-2000:]}")
            for event in self.session.poll(left):
                if isinstance(event, ConsoleOutput):
                    self.said += event.data.decode(errors="replace").replace("\r", "")
                elif isinstance(event, Ended):
                    raise MachineError(f"the machine ended ({event}), having said {self.said[-2000:]}")
        before, _, self.said = self.said.partition(word)
        return before

    def up(self) -> Self:
        """Wait for its shell."""
        self.wait_for("GUEST-IS-UP\n")
        return self

    def run(self, command: str, timeout_seconds: float = 30.0) -> str:
        """What ``command`` says in the guest's shell."""
        self._commands += 1
        mark = f"END-OF-{self._commands}"
        self.session.send(f"echo; echo BEGIN; {{ {command} ; }} 2>&1; echo {mark[:3]}''{mark[3:]}\n".encode())
        return self.wait_for(f"{mark}\n", timeout_seconds).rpartition("BEGIN\n")[2].strip()
