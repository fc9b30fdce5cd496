"""The Linux probe's disk: a portable image that boots a given kernel into the probe's initial RAM disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

from armvm.disk.storage import Disk
from armvm.disk.write import write_raw
from armvm.execution import ExecutionState
from armvm.image.build import build_image
from armvm.image.recipe import KernelRecipe, Recipe
from armvm.machine.definition import Console
from armvm.probe.initramfs import WANTED_MODULES, build_initramfs
from armvm.probe.kernels import GuestKernel, open_kernel
from armvm.probe.modules import find_kernel_modules


def build_linux_disk(
    output: Path, kernel: GuestKernel, *, state: ExecutionState, console: Console, timestamp: int
) -> None:
    """Write a raw image that boots ``kernel`` into the Linux probe. Raises InputError when it is no kernel for that."""
    modules = find_kernel_modules(kernel.modules, WANTED_MODULES) if kernel.modules is not None else ()
    with tempfile.TemporaryDirectory(prefix=".armvm-linux-", dir=output.parent) as scratch:
        image, initrd = Path(scratch) / "kernel", Path(scratch) / "probe.cpio"
        with open_kernel(kernel.image) as disk:
            _write(image, disk)
        _write(initrd, build_initramfs(state, modules=modules))
        words = "console=ttyAMA0" if console is Console.PL011 else "console=hvc0"
        if state is ExecutionState.AARCH32:
            # The probe brings the others up, behind the code patching for which a 32-bit kernel stops all CPUs.
            words += " maxcpus=1"
        recipe = Recipe(kernels={state: KernelRecipe(image, (initrd,), f"{words} panic=-1 quiet")})
        build_image(recipe, output, timestamp=timestamp)


def _write(path: Path, disk: Disk) -> None:
    with path.open("xb") as file:
        write_raw(file, disk)
