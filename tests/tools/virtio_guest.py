"""A Linux guest that speaks on a virtio console: the installer's kernel and modules, and an init of our own.

It says ``ARMVM-GUEST-READY hvc0`` on /dev/hvc0, then reads one line there, says it back as ``ARMVM-GUEST-ECHO line``,
and powers off.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from armvm.disk.storage import MemoryDisk
from armvm.efi import EfiProgram, read_program
from armvm.execution import ExecutionState
from armvm.image.uki import build_uki
from tools.boot_images import MIB, esp_image
from tools.installer import find_installer
from tools.tiny_guest import newc

_TARGETS = {
    ExecutionState.AARCH64: ("aarch64-linux-none", "generic"),
    ExecutionState.AARCH32: ("thumb-linux-eabi", "generic+v7a+hwdiv"),
}
_MODULES = ("virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio", "virtio_console")
"""In the order in which they can be loaded."""

_INIT = r"""
typedef __SIZE_TYPE__ usize;
#ifdef __aarch64__
enum { OPENAT = 56, READ = 63, WRITE = 64, MOUNT = 40, FINIT_MODULE = 273, REBOOT = 142, NANOSLEEP = 101 };
static long call(long number, long a, long b, long c, long d, long e) {
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c,
                  x3 __asm__("x3") = d, x4 __asm__("x4") = e;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
}
#else
enum { OPENAT = 322, READ = 3, WRITE = 4, MOUNT = 21, FINIT_MODULE = 379, REBOOT = 88, NANOSLEEP = 162 };
static long call(long number, long a, long b, long c, long d, long e) {
    register long r0 __asm__("r0") = a, r1 __asm__("r1") = b, r2 __asm__("r2") = c, r3 __asm__("r3") = d,
                  r4 __asm__("r4") = e, r6 __asm__("r6") = number;
    __asm__ volatile("push {r7}\n mov r7, r6\n svc 0\n pop {r7}"
                     : "+r"(r0) : "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r6) : "memory");
    return r0;
}
#endif
static long say(long file, const char *text) {
    usize length = 0;
    while (text[length]) length++;
    return call(WRITE, file, (long)text, (long)length, 0, 0);
}
void _start(void) {
    char name[] = "/0.ko", c;
    long tick[4] = {0, 20000000, 0, 0}, console = -1;
    call(MOUNT, (long)"devtmpfs", (long)"/dev", (long)"devtmpfs", 0, 0);
    for (; name[1] < '0' + MODULES; name[1]++)
        if (call(FINIT_MODULE, call(OPENAT, -100, (long)name, 0, 0, 0), (long)"", 0, 0, 0)) say(1, "no module\n");
    for (int i = 0; console < 0 && i < 500; i++) {
        console = call(OPENAT, -100, (long)"/dev/hvc0", 2, 0, 0);
        if (console < 0) call(NANOSLEEP, (long)tick, 0, 0, 0, 0);
    }
    say(console, "ARMVM-GUEST-READY hvc0\n");
    say(console, "ARMVM-GUEST-ECHO ");
    while (call(READ, console, (long)&c, 1, 0, 0) == 1 && c != '\n') call(WRITE, console, (long)&c, 1, 0, 0);
    say(console, "\n");
    for (;;) call(REBOOT, (long)0xfee1dead, 672274793, 0x4321fedc, 0, 0);
}
"""


def virtio_console_image(path: Path, state: ExecutionState) -> Path:
    """A disk image at ``path`` that boots it."""
    installer = find_installer(state)
    modules = _modules(installer.initrd)
    content = {"init": _compiled(state, path.parent)}
    content |= {f"{number}.ko": modules[name] for number, name in enumerate(_MODULES)}
    program = build_uki(
        read_program(EfiProgram.STUB, state),
        linux=MemoryDisk(installer.kernel.read_bytes(), name="kernel"),
        initrd=[MemoryDisk(newc(content), name="initrd")],
        cmdline="console=hvc0 quiet panic=-1",
    )
    name = f"EFI/BOOT/{state.boot_file}"
    size = max(48 * MIB, program.size_bytes + 16 * MIB) // MIB * MIB
    return esp_image(path, {name: program.read(0, program.size_bytes)}, size_bytes=size)


def _modules(initrd: Path) -> dict[str, bytes]:
    return {Path(name).stem: content for name, content in _members(gzip.decompress(initrd.read_bytes()))}


def _members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents in a cpio archive of the format that Linux unpacks."""
    offset = 0
    while True:
        fields = [int(archive[at : at + 8], 16) for at in range(offset + 6, offset + 110, 8)]
        size, name_size = fields[6], fields[11]
        name = archive[offset + 110 : offset + 110 + name_size - 1].decode()
        start = (offset + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return
        yield name, archive[start : start + size]
        offset = (start + size + 3) & ~3


def _compiled(state: ExecutionState, folder: Path) -> bytes:
    triple, cpu = _TARGETS[state]
    source, program = folder / "virtio_init.c", folder / f"virtio_init.{state.value}"
    source.write_text(_INIT)
    subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "build-exe", "-cflags", f"-DMODULES={len(_MODULES)}"),
            *("-ffreestanding", "-fno-stack-protector", "-fno-builtin", "--", str(source)),
            *("-O", "ReleaseSmall", "-fstrip", "-fno-compiler-rt", "-fentry=_start", f"-femit-bin={program}"),
            *("-target", triple, "-mcpu", cpu),
            *("--cache-dir", str(folder / "zig"), "--global-cache-dir", str(folder / "zig")),
        ],
        check=True,
        capture_output=True,
        timeout=240,
    )
    return program.read_bytes()
