"""GRUB's configuration: a few lines on the ESP that find the root by its UUID, and the menu on the root.

The menu is what ``update-grub`` writes, in short; the first kernel update in the guest replaces it by Debian's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from armvm.distribution.debian import GRUB_PREFIX
from armvm.distribution.recipe import Architecture

ESP_CONFIG = f"{GRUB_PREFIX}/grub.cfg"
"""The path on the ESP that GRUB looks at first, in both execution states."""
CONSOLES = ("console=hvc0", "console=ttyAMA0")
"""All consoles that the specification knows: hvc0 is virtio's and Xen's, ttyAMA0 is the pl011.

Those that a platform has are used, and the last of them is /dev/console."""
_CPUS = {Architecture.ARM64: "arm64", Architecture.ARMHF: "arm"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """An installed kernel: its version, and where it and its initial RAM disk (if any) are below the root."""

    version: str
    kernel: str
    initrd: str | None


def find_kernels(names: Iterable[str]) -> tuple[Kernel, ...]:
    """The kernels among the ``names`` in Debian's /boot, the newest first."""
    present = set(names)
    versions = [name.removeprefix("vmlinuz-") for name in present if name.startswith("vmlinuz-")]
    return tuple(
        Kernel(
            version,
            f"/boot/vmlinuz-{version}",
            f"/boot/initrd.img-{version}" if f"initrd.img-{version}" in present else None,
        )
        for version in sorted(versions, key=version_key, reverse=True)
    )


def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Orders kernel versions as people do: 6.9 before 6.10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", version) if part)


def command_line(root: UUID, arguments: Iterable[str]) -> str:
    """The kernel's command line."""
    return " ".join([f"root=UUID={root}", "ro", *CONSOLES, *arguments])


def esp_config(roots: Mapping[Architecture, UUID]) -> str:
    """The configuration on the ESP: with two roots, each GRUB takes the one of its own processor."""
    lines = ["# Finds the root file system and goes on with the configuration there."]
    searches = {architecture: f"search --no-floppy --fs-uuid --set=root {uuid}" for architecture, uuid in roots.items()}
    if len(searches) == 1:
        lines += searches.values()
    else:
        for number, (architecture, search) in enumerate(searches.items()):
            lines += [f'{"el" if number else ""}if [ "$grub_cpu" = "{_CPUS[architecture]}" ]; then', f"  {search}"]
        lines.append("fi")
    return "\n".join([*lines, "set prefix=($root)/boot/grub", "configfile ($root)/boot/grub/grub.cfg", ""])


def menu(kernels: Iterable[Kernel], root: UUID, arguments: Iterable[str], *, name: str) -> str:
    """grub.cfg on the root file system: an entry for every kernel, the first is started after a second."""
    words = command_line(root, arguments)
    lines = [
        "# Written when the image was made; update-grub replaces it.",
        "set default=0",
        "set timeout=1",
        "insmod part_gpt",
        "insmod ext2",
        f"search --no-floppy --fs-uuid --set=root {root}",
    ]
    for kernel in kernels:
        lines += [
            f"menuentry '{name}, with Linux {kernel.version}' --class debian --class gnu-linux {{",
            f"  linux {kernel.kernel} {words}",
        ]
        if kernel.initrd is not None:
            lines.append(f"  initrd {kernel.initrd}")
        lines.append("}")
    return "\n".join([*lines, ""])


def defaults(arguments: Iterable[str]) -> str:
    """What /etc/default/grub.d holds, so that update-grub in the guest comes to the same."""
    words = " ".join([*CONSOLES, *arguments])
    return (
        "# All consoles of the VM System Specification for ARM: whichever a platform has is used.\n"
        f'GRUB_CMDLINE_LINUX="{words}"\n'
        'GRUB_CMDLINE_LINUX_DEFAULT=""\n'
        "GRUB_TERMINAL=console\n"
        "GRUB_TIMEOUT=1\n"
        "GRUB_DISABLE_OS_PROBER=true\n"
    )
